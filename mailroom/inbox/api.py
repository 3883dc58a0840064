"""Answers a test in any language: which mail came, and what is in it."""

import re
from typing import Any

from flask import Response, jsonify, request
from flask.typing import ResponseReturnValue

from mailroom.inbox.letters import Letter, Letters, address_asked

WAIT_MAX_SECONDS = 60

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Api:
    """The views of /inbox/api."""

    def __init__(self, letters: Letters) -> None:
        self._letters = letters

    def messages(self) -> ResponseReturnValue:
        """List what came, the newest first; with `wait`, as soon as there is something to list."""
        to = address_asked(request.args.get("to"))
        asked = request.args.get("wait", "0")
        seconds = float(asked) if _SECONDS.fullmatch(asked) else -1.0
        if not 0 <= seconds <= WAIT_MAX_SECONDS:
            detail = f"expected seconds from 0 to {WAIT_MAX_SECONDS}, got {asked[:100]!r}"
            errors = [{"parameter": "wait", "detail": detail}]
            return _problem(422, f"wait: {detail}", errors=errors)
        found = self._letters.wait(to, seconds) if seconds else self._letters.newest(to)
        return jsonify(data=[as_json(letter) for letter in found])

    def message(self, id: str) -> ResponseReturnValue:
        """Return one."""
        letter = self._letters.get(id)
        if letter is None:
            return _problem(404, f"no mail {id[:100]!r} here; only the newest are kept")
        return jsonify(as_json(letter))

    def clear(self) -> ResponseReturnValue:
        """Forget all."""
        self._letters.clear()
        return Response(status=204)


def as_json(letter: Letter) -> dict[str, Any]:
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


def _problem(status: int, detail: str, **more: object) -> Response:
    title = {404: "Not Found", 422: "Unprocessable Content"}[status]
    response = jsonify(type="about:blank", title=title, status=status, detail=detail, **more)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response
