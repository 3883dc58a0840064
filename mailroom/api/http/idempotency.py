"""Answers a request that repeats an Idempotency-Key as the first one, and does nothing else."""

import hashlib
import re
import time
from collections.abc import Callable
from typing import NoReturn

from flask import abort, request

from mailroom.api.auth.guard import current_key
from mailroom.api.problems import may_repeat, problem
from mailroom.api.services import services
from mailroom.store.messages.idempotency import Kept, Key, KeyTaken, StoredAnswer

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
KEY_MAX_CHARACTERS = 256
#: How long a request waits while another request with the same key is being answered.
WAIT_SECONDS = 2.0
#: Between two looks whether another process has committed; each wait is twice the one before.
LOOK_MIN_SECONDS = 0.02
LOOK_MAX_SECONDS = 0.25

#: A string as RFC 9651, 3.3.3 has it, which the IETF's draft of the header field asks for.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x7e][\x20-\x7e]*")

Accept = Callable[[Key | None], StoredAnswer]


def once(accept: Accept, key: Key | None = None) -> tuple[StoredAnswer, bool]:
    """Return the answer to this request, and True if an earlier request with its key got that answer already.

    The key is `key`, or else the one in the header. `accept` commits the key together with what it accepts,
    or raises KeyTaken; if it refuses the request, the key stays free.
    """
    advice = "send the same request again with the same Idempotency-Key"
    if key:
        advice = "send this form again"
    key = key or _key_of_header()
    if key is None:
        return accept(None), False
    may_repeat(advice)
    answer = _answer_once(accept, key)
    if answer is None:
        _refuse_concurrent()
    return answer


def _answer_once(accept: Accept, key: Key) -> tuple[StoredAnswer, bool] | None:
    """Do what `once` does with a key; None if another request with it takes longer than WAIT_SECONDS."""
    deadline, pause = time.monotonic() + WAIT_SECONDS, LOOK_MIN_SECONDS
    with services().keys.in_hand(key, until=deadline) as is_ours:
        while is_ours:
            # Before the body is read: a time in it may have been in the future then, and be past now.
            if stored := services().keys.find(key):
                return _same(key, stored), True
            try:
                return accept(key), False
            except KeyTaken:  # Another process is committing it, or has just done so.
                if time.monotonic() + pause > deadline:
                    break
            time.sleep(pause)
            pause = min(2 * pause, LOOK_MAX_SECONDS)
    return None


def form_key(form: str, *content: object) -> Key | None:
    """Return the key of a form on a web page; None if `form` is not the id of one.

    A page's form has a new id each time it is shown. Sent twice with the same content, it is done once.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,64}", form):
        return None
    request_text = repr((request.path, *content))
    request_hash = hashlib.sha256(request_text.encode("utf-8", "surrogatepass")).hexdigest()
    return Key(owner=current_key().id, key=f"form {form} {request_hash}", request_hash=request_hash)


def _same(key: Key, stored: Kept) -> StoredAnswer:
    """Return the stored answer; abort with 409 if it belongs to a request that was different."""
    if stored.key.request_hash != key.request_hash:
        abort(
            problem(
                409,
                "invalid_idempotent_request",
                "The Idempotency-Key belongs to another request",
                "expected method, URL and body as they were when this key first came, "
                f"which was answered with {stored.answer.location}; a new request needs a new key",
            )
        )
    return stored.answer


def _refuse_concurrent() -> NoReturn:
    abort(
        problem(
            409,
            "concurrent_idempotent_requests",
            "A request with this Idempotency-Key is being answered",
            f"waited {WAIT_SECONDS:g} s for it; ask again to get its answer",
            headers={"Retry-After": "1"},
        )
    )


def _key_of_header() -> Key | None:
    value = request.headers.get(HEADER)
    if value is None:
        return None
    key = _key_text(value)
    if not 1 <= len(key) <= KEY_MAX_CHARACTERS:
        abort(
            problem(
                400,
                "invalid_idempotency_key",
                "The Idempotency-Key cannot be read",
                f"expected 1 to {KEY_MAX_CHARACTERS} printable ASCII characters, "
                f"bare or as a string in double quotes, got {len(value)}: {value[:80]!a}",
            )
        )
    return Key(owner=current_key().id, key=key, request_hash=_request_hash())


def _key_text(value: str) -> str:
    """Return the key without its quotes; "" if the value cannot be read."""
    if quoted := _QUOTED.fullmatch(value):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    return value if _BARE.fullmatch(value) else ""


def _request_hash() -> str:
    """Hash method, URL and body, without the boundary of a form, which is a new one for each request."""
    body = request.get_data()
    query = f"?{request.query_string.decode('latin-1')}" if request.query_string else ""
    if boundary := request.mimetype_params.get("boundary"):
        # Never makes it longer, whatever the boundary is.
        body = body.replace(boundary.encode(), b"")
    return hashlib.sha256(f"{request.method} {request.path}{query}\n".encode() + body).hexdigest()
