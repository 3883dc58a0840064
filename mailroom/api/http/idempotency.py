"""Answers a request that comes again with its Idempotency-Key as it was answered the first time, and does nothing else."""

import hashlib
import re
import time
from collections.abc import Callable

from flask import abort, request

from mailroom.api.auth.guard import current_key
from mailroom.api.problems import may_repeat, problem
from mailroom.api.services import services
from mailroom.store.messages.idempotency import Kept, Key, KeyTaken, StoredAnswer

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
KEY_MAX_CHARACTERS = 256
#: How long a request waits for another one with its key that is being answered just now.
WAIT_SECONDS = 2.0
#: Between two looks whether another process has committed; each is twice the one before.
LOOK_MIN_SECONDS = 0.02
LOOK_MAX_SECONDS = 0.25

#: A string as RFC 9651, 3.3.3 has it, which the IETF's draft asks for.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x7e][\x20-\x7e]*")


def once(accept: Callable[[Key | None], StoredAnswer], key: Key | None = None) -> tuple[StoredAnswer, bool]:
    """Return the answer to this request, and whether it is a repetition: by this key, or by the one that came with it.

    `accept` writes the key in the commit of what it accepts, or raises KeyTaken; what it refuses leaves the key free.
    """
    how = "send this form again" if key else "send the same request again with the same Idempotency-Key"
    key = key or _key()
    if key is None:
        return accept(None), False
    may_repeat(how)
    deadline, pause = time.monotonic() + WAIT_SECONDS, LOOK_MIN_SECONDS
    with services().keys.in_hand(key, until=deadline) as is_ours:
        while is_ours:
            # Before the body is read: what was right a moment ago, such as a time to come, may be wrong now.
            if found := services().keys.find(key):
                return _same(key, found), True
            try:
                return accept(key), False
            except KeyTaken:  # Another process is committing it, or has just done so.
                if time.monotonic() + pause > deadline:
                    break
            time.sleep(pause)
            pause = min(2 * pause, LOOK_MAX_SECONDS)
    abort(
        problem(
            409,
            "concurrent_idempotent_requests",
            "A request with this Idempotency-Key is being answered",
            f"waited {WAIT_SECONDS:g} s for it; ask again to get its answer",
            headers={"Retry-After": "1"},
        )
    )


def form_key(form: str, *content: object) -> Key | None:
    """The key of a page's form, which has a name of its own each time it is shown: sent twice with the same content, it is done once."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,64}", form):
        return None
    what = hashlib.sha256(repr((request.path, *content)).encode("utf-8", "surrogatepass")).hexdigest()
    return Key(owner=current_key().id, key=f"form {form} {what}", request_hash=what)


def _same(key: Key, found: Kept) -> StoredAnswer:
    if found.key.request_hash != key.request_hash:
        abort(
            problem(
                409,
                "invalid_idempotent_request",
                "The Idempotency-Key belongs to another request",
                "expected method, path and body as they were when this key first came, which was answered with "
                f"{found.answer.location}; a new request needs a new key",
            )
        )
    return found.answer


def _key() -> Key | None:
    given = request.headers.get(HEADER)
    if given is None:
        return None
    quoted = _QUOTED.fullmatch(given)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else given if _BARE.fullmatch(given) else ""
    if not 1 <= len(key) <= KEY_MAX_CHARACTERS:
        abort(
            problem(
                400,
                "invalid_idempotency_key",
                "The Idempotency-Key cannot be read",
                f"expected 1 to {KEY_MAX_CHARACTERS} printable ASCII characters, bare or as a string in double quotes, "
                f"got {len(given)}: {given[:80]!a}",
            )
        )
    return Key(owner=current_key().id, key=key, request_hash=_request_hash())


def _request_hash() -> str:
    """Of method, path and body; a form's boundary is another each time, and says nothing."""
    body = request.get_data()
    if boundary := request.mimetype_params.get("boundary"):
        body = body.replace(boundary.encode(), b"")  # which makes it no longer, whatever it is
    return hashlib.sha256(f"{request.method} {request.path}\n".encode() + body).hexdigest()
