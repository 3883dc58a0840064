"""Holds a mail against what the API key of the request may send."""

from dataclasses import replace

from mailroom.api.auth import guard
from mailroom.api.services import services
from mailroom.model.message import Address
from mailroom.store.messages.outbox import NewMessage


def permitted(acceptance: NewMessage, *, at: str = "#") -> NewMessage:
    """Add the key of this request; answer 403 where that may not send from its address.

    `at` is where the mail stands.
    """
    key = guard.current_key()
    if key.senders:
        guard.check_sender(
            (acceptance.message.sender or account_sender(acceptance.sender)).address, pointer=f"{at}/from"
        )
    return replace(acceptance, key_id=key.id) if key.id else acceptance


def account_sender(account: str | None) -> Address:
    """Return who the mails of this account are from, where they do not say.

    Where no account has this name, the first one counts.
    """
    known = services().known_accounts
    return next((one.sender for one in known if one.name == account), known[0].sender)
