"""Decides who may hand in mail: the owner of an API key, and this machine where no key is needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mailroom.model.errors import MailroomError
from mailroom.store.keys.api_keys import ApiKey, Scope

_SENDING = frozenset({Scope.SEND, Scope.ADMIN})


class Refused(MailroomError):
    """The client may not do this; the text is the reply."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of the HTTP API, which are given, as SMTP applies them. Its methods read the database.

    `peer` has both ends of a connection, named as in the environment of WSGI.
    """

    find_key: Callable[[str], ApiKey | None]  #: the key with this secret
    is_valid: Callable[[ApiKey], bool]  #: whether a key that was found is so still
    #: the key that stands for this machine; None if the client has to have one
    local_key: Callable[[Mapping[str, Any]], ApiKey | None]
    #: counts a wrong key of an address; returns how many seconds it has to wait, 0 if few came
    note_wrong: Callable[[str], int]

    def log_in(self, secret: str, address: str) -> ApiKey:
        """Return the key with this secret. Raises Refused, and StoreUnavailable."""
        key = self.find_key(secret)
        if key is None:
            if seconds := self.note_wrong(address):
                raise Refused(f"421 4.7.0 too many wrong keys from your address; wait {seconds} s")
            raise Refused("535 5.7.8 expected an API key as the password of any user")
        if not key.scopes & _SENDING:
            raise Refused(f"535 5.7.8 the key {key.id} may not send: it lacks the scope send")
        return key

    def sender(self, key: ApiKey | None, peer: Mapping[str, Any]) -> ApiKey:
        """Return the key for a mail; `key` is that of the login. Raises what `log_in` raises."""
        key = key or self.local_key(peer)
        if key is None:
            raise Refused("530 5.7.0 log in with an API key as the password of any user")
        if not self.is_valid(key):
            raise Refused("530 5.7.0 the API key is not valid any more")
        return key
