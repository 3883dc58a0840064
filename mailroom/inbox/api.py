"""Answers a test in any language: which mail came, what is in it, and what the next one is to meet."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from flask import Response, jsonify, request
from flask.typing import ResponseReturnValue

from mailroom.inbox.chaos import COUNT_MAX, Chaos, Failure
from mailroom.inbox.storage import Letters, ReceivedMail, address_asked

WAIT_MAX_SECONDS = 60

#: The parameters of each view, by its endpoint.
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
        letters: Letters,
        dial: Chaos,
        standing: Callable[[], Callable[[], bool]],
        refuse: Callable[[], Response | None],
    ) -> None:
        self._letters = letters
        self._dial = dial
        self._standing = standing
        self._refuse = refuse

    def refuse_query(self) -> Response | None:
        """Refuse parameters that a view has not, and one that is there twice; pages ignore others."""
        endpoint = (request.endpoint or "").rpartition(".")[2]
        known = QUERIES.get(endpoint)
        if known is None:
            return None
        errors = [
            {"parameter": name[:100], "detail": detail}
            for name, values in request.args.lists()
            if (detail := _wrong(name, len(values), known))
        ]
        if not errors:
            return None
        first = errors[0]
        return _problem(422, f"{first['parameter']}: {first['detail']}", errors=errors[:20])

    def messages(self) -> ResponseReturnValue:
        """List what came, the newest first; with `wait`, as soon as there is something to list."""
        to = address_asked(request.args.get("to"))
        asked = request.args.get("wait", "0")
        seconds = float(asked) if _SECONDS.fullmatch(asked) else -1.0
        if not 0 <= seconds <= WAIT_MAX_SECONDS:
            detail = f"expected seconds from 0 to {WAIT_MAX_SECONDS}, got {asked[:100]!r}"
            errors = [{"parameter": "wait", "detail": detail}]
            return _problem(422, f"wait: {detail}", errors=errors)
        if not seconds:
            return jsonify(data=[as_json(letter) for letter in self._letters.newest(to)])
        found = self._letters.wait(to, seconds, self._standing())
        return self._refuse() or jsonify(data=[as_json(letter) for letter in found])

    def message(self, id: str) -> ResponseReturnValue:
        """Return one."""
        letter = self._letters.get(id)
        return _missing(id) if letter is None else jsonify(as_json(letter))

    def clear(self) -> ResponseReturnValue:
        """Forget all."""
        self._letters.clear()
        return Response(status=204)

    def forget(self, id: str) -> ResponseReturnValue:
        """Forget one."""
        return Response(status=204) if self._letters.forget(id) else _missing(id)

    def failure(self) -> ResponseReturnValue:
        """Tell what the next mails are to meet."""
        failure, count = self._dial.read()
        return jsonify(failure=failure, count=count)

    def set_failure(self) -> ResponseReturnValue:
        """Have the next mails deferred, refused, or dropped after their final dot; null: all is well."""
        coding = request.headers.get("Content-Encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            refused = _problem(415, f"expected a body without Content-Encoding, got {coding[:80]!r}")
            refused.headers["Accept-Encoding"] = "identity"
            return refused
        asked = request.get_json(silent=True)
        if not isinstance(asked, dict) or not asked.keys() <= {"failure", "count"}:
            return _problem(422, "expected a JSON object with failure and count, got something else")
        failure, count = asked.get("failure"), asked.get("count", 1)
        if failure is not None and (not isinstance(failure, str) or failure not in set(Failure)):
            return _problem(422, f"failure: expected null or one of {', '.join(Failure)}, got another")
        if type(count) is not int or not 1 <= count <= COUNT_MAX:
            return _problem(422, f"count: expected a whole number from 1 to {COUNT_MAX}, got another")
        self._dial.set(None if failure is None else Failure(failure), count)
        return self.failure()


def as_json(letter: ReceivedMail) -> dict[str, Any]:
    """Return what a test asks of a mail; `to` and `envelope_from` are what SMTP said."""
    body = letter.body
    headers: dict[str, list[str]] = {}
    for name, value in letter.headers:
        headers.setdefault(name, []).append(value)
    return {
        "id": letter.id,
        "received_at": letter.received_at.isoformat().replace("+00:00", "Z"),
        "envelope_from": letter.sender,
        "from": letter.head.author,
        "to": list(letter.recipients),
        "subject": letter.head.subject,
        "message_id": letter.head.message_id,
        "text": body.text,
        "html": body.html,
        "attachments": [
            {"filename": one.filename, "content_type": one.content_type, "size": one.size}
            for one in body.attachments
        ],
        "headers": headers,
        "size": len(letter.raw),
    }


def _wrong(name: str, times: int, known: Sequence[str]) -> str:
    if name in known:
        return f"expected it once, got it {times} times" if times > 1 else ""
    nearest = get_close_matches(name[:100], known, n=1)
    if nearest:
        return f"expected a parameter that is known, got another; did you mean {nearest[0]}?"
    return f"expected {'one of ' + ', '.join(known) if known else 'no parameter'}, got another"


def _missing(id: str) -> Response:
    return _problem(404, f"no mail {id[:100]!r} here; only the newest are kept")


def _problem(status: int, detail: str, **more: object) -> Response:
    title = {404: "Not Found", 415: "Unsupported Media Type", 422: "Unprocessable Content"}[status]
    response = jsonify(type="about:blank", title=title, status=status, detail=detail, **more)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response
