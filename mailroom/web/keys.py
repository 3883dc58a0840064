"""API keys as a person looks at them: which there are, a new one, and the end of one."""

import re
from typing import Any

from flask import Response, request
from werkzeug.exceptions import NotFound

from mailroom.api.auth import keys
from mailroom.api.auth.guard import needs_key
from mailroom.api.services import services
from mailroom.model.errors import InvalidMessage
from mailroom.store.keys.api_keys import Scope, UnknownKey, hashed
from mailroom.web.layout import done, page, pages
from mailroom.web.sign_in import enter

blueprint = pages("keys")


@blueprint.get("/keys")
def list_keys() -> Response:
    """All that were ever made, the newest first."""
    return _page()


@blueprint.post("/keys")
def create() -> Response:
    """Make one and show it, this once. Who makes the first one that may do everything is signed in with it."""
    was_open = not needs_key()
    asked: dict[str, Any] = {
        "name": request.form.get("name", ""),
        "scopes": request.form.getlist("scopes"),
        "senders": [
            sender for part in request.form.get("senders", "").split(",") if (sender := part.strip())
        ],
    }
    if per_minute := request.form.get("per_minute", "").strip():
        asked["per_minute"] = (
            int(per_minute) if re.fullmatch("[0-9]{1,9}", per_minute) else per_minute
        )  # Its reader says what is wrong.
    try:
        secret, key = keys.make(services().api_keys, asked)
    except InvalidMessage as e:
        return _page(wrong=[f"{error.pointer.removeprefix('#/')}: {error.detail}" for error in e.errors])
    answer = _page(secret=secret, made=keys.key_json(key), is_first=was_open)
    return enter(answer, key, hashed(secret)) if was_open and Scope.ADMIN in key.scopes else answer


@blueprint.post("/keys/<id>/revoke")
def revoke(id: str) -> Response:
    """End a key for good."""
    try:
        services().api_keys.revoke(id)
    except UnknownKey as e:
        raise NotFound(str(e)) from None
    return done("/keys", "revoked")


def _page(
    *,
    wrong: list[str] | None = None,
    secret: str = "",
    made: dict[str, object] | None = None,
    is_first: bool = False,
) -> Response:
    rows = [keys.key_row_json(row) for row in reversed(services().api_keys.every())]
    settings = services().settings
    opens = (
        settings.listens_on_loopback
        and not settings.API_KEY
        and sum(row["revoked_at"] is None for row in rows) == 1
    )
    return page(
        "keys.html",
        status=422 if wrong else 201 if secret else 200,
        rows=rows,
        opens=opens,
        wrong=wrong or [],
        secret=secret,
        made=made,
        is_first=is_first,
        is_open=not needs_key(),
        entered=request.form,
        has_default=bool(settings.API_KEY),
    )
