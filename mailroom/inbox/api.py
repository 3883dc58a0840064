"""The inbox's JSON API, for tests in any language: read and delete mails, and make the next ones fail."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from flask import Response, jsonify, request
from flask.typing import ResponseReturnValue

from mailroom.inbox.chaos import COUNT_MAX, Chaos, Failure
from mailroom.inbox.storage import InboxStorage, ReceivedMail, address_param

WAIT_MAX_SECONDS = 60

#: The query parameters of each view, by endpoint name.
QUERIES: dict[str, tuple[str, ...]] = {
    "messages": ("to", "wait"),
    "message": (),
    "clear": (),
    "forget": (),
    "failure": (),
    "set_failure": (),
}
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Api:
    """The views of /inbox/api."""

    def __init__(
        self,
        storage: InboxStorage,
        chaos: Chaos,
        access_check: Callable[[], Callable[[], bool]],
        refuse_waited: Callable[[], Response | None],
    ) -> None:
        self._storage = storage
        self._chaos = chaos
        self._access_check = access_check
        self._refuse_waited = refuse_waited

    def refuse_query(self) -> Response | None:
        """Answer 422 to unknown and repeated query parameters of the API; pages ignore them."""
        endpoint = (request.endpoint or "").rpartition(".")[2]
        known = QUERIES.get(endpoint)
        if known is None:
            return None
        errors = []
        for name, values in request.args.lists():
            if detail := _parameter_problem(name, len(values), known):
                errors.append({"parameter": name[:100], "detail": detail})
        if not errors:
            return None
        first = errors[0]
        return _problem(422, f"{first['parameter']}: {first['detail']}", errors=errors[:20])

    def messages(self) -> ResponseReturnValue:
        """List the mails, newest first; with `wait`, as soon as there is one, or after that many seconds."""
        to = address_param(request.args.get("to"))
        wait = request.args.get("wait", "0")
        seconds = float(wait) if _SECONDS.fullmatch(wait) else -1.0
        if not 0 <= seconds <= WAIT_MAX_SECONDS:
            detail = f"expected seconds from 0 to {WAIT_MAX_SECONDS}, got {wait[:100]!r}"
            errors = [{"parameter": "wait", "detail": detail}]
            return _problem(422, f"wait: {detail}", errors=errors)
        if not seconds:
            return jsonify(data=[as_json(mail) for mail in self._storage.newest(to)])
        mails = self._storage.wait(to, seconds, self._access_check())
        return self._refuse_waited() or jsonify(data=[as_json(mail) for mail in mails])

    def message(self, id: str) -> ResponseReturnValue:
        """Return one mail."""
        mail = self._storage.get(id)
        return _missing(id) if mail is None else jsonify(as_json(mail))

    def clear(self) -> ResponseReturnValue:
        """Delete all mails."""
        self._storage.clear()
        return Response(status=204)

    def forget(self, id: str) -> ResponseReturnValue:
        """Delete one mail."""
        return Response(status=204) if self._storage.forget(id) else _missing(id)

    def failure(self) -> ResponseReturnValue:
        """Return how the next mails will fail, and how many of them."""
        failure, count = self._chaos.read()
        return jsonify(failure=failure, count=count)

    def set_failure(self) -> ResponseReturnValue:
        """Defer, refuse or drop the next mails after their final dot; null lets all mail through."""
        coding = request.headers.get("Content-Encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            response = _problem(
                415, f"expected a body without Content-Encoding, got {coding[:80]!r}"
            )
            response.headers["Accept-Encoding"] = "identity"
            return response
        body = request.get_json(silent=True)
        if not isinstance(body, dict) or not body.keys() <= {"failure", "count"}:
            return _problem(
                422, "expected a JSON object with failure and count, got something else"
            )
        failure, count = body.get("failure"), body.get("count", 1)
        if failure is not None and (not isinstance(failure, str) or failure not in set(Failure)):
            return _problem(
                422, f"failure: expected null or one of {', '.join(Failure)}, got another"
            )
        if type(count) is not int or not 1 <= count <= COUNT_MAX:
            return _problem(
                422, f"count: expected a whole number from 1 to {COUNT_MAX}, got another"
            )
        self._chaos.set(None if failure is None else Failure(failure), count)
        return self.failure()


def as_json(mail: ReceivedMail) -> dict[str, Any]:
    """Describe a mail; `to` and `envelope_from` are from the SMTP envelope, the rest from the headers."""
    body = mail.body
    headers: dict[str, list[str]] = {}
    for name, value in mail.headers:
        headers.setdefault(name, []).append(value)
    return {
        "id": mail.id,
        "received_at": mail.received_at.isoformat().replace("+00:00", "Z"),
        "envelope_from": mail.sender,
        "from": mail.head.author,
        "to": list(mail.recipients),
        "subject": mail.head.subject,
        "message_id": mail.head.message_id,
        "text": body.text,
        "html": body.html,
        "attachments": [
            {"filename": part.filename, "content_type": part.content_type, "size": part.size}
            for part in body.attachments
        ],
        "headers": headers,
        "size": len(mail.raw),
    }


def _parameter_problem(name: str, times: int, known: Sequence[str]) -> str:
    """Say why a query parameter is refused; "" if it is not."""
    if name in known:
        return f"expected it once, got it {times} times" if times > 1 else ""
    nearest = get_close_matches(name[:100], known, n=1)
    if nearest:
        return f"expected a parameter that is known, got another; did you mean {nearest[0]}?"
    expected = f"one of {', '.join(known)}" if known else "no parameter"
    return f"expected {expected}, got another"


def _missing(id: str) -> Response:
    return _problem(404, f"no mail {id[:100]!r} here; only the newest are kept")


def _problem(status: int, detail: str, **more: object) -> Response:
    title = {404: "Not Found", 415: "Unsupported Media Type", 422: "Unprocessable Content"}[status]
    response = jsonify(type="about:blank", title=title, status=status, detail=detail, **more)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response
