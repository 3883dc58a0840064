"""The page of API keys: list, create and revoke them."""

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
    """List all keys, revoked ones as well, the newest first."""
    return _page()


@blueprint.post("/keys")
def create() -> Response:
    """Create a key and show its secret, this once.

    After the first key every request needs one, so its maker is signed in with it if it may do everything.
    """
    was_open = not needs_key()
    senders = [part.strip() for part in request.form.get("senders", "").split(",")]
    values: dict[str, Any] = {
        "name": request.form.get("name", ""),
        "scopes": request.form.getlist("scopes"),
        "senders": [sender for sender in senders if sender],
    }
    if per_minute := request.form.get("per_minute", "").strip():
        # Anything else than a number is passed on as it is, and refused with a reason.
        is_number = re.fullmatch("[0-9]{1,9}", per_minute)
        values["per_minute"] = int(per_minute) if is_number else per_minute
    try:
        secret, key = keys.make(services().api_keys, values)
    except InvalidMessage as e:
        return _page(
            errors=[f"{error.pointer.removeprefix('#/')}: {error.detail}" for error in e.errors]
        )
    response = _page(secret=secret, made=keys.key_json(key), is_first=was_open)
    if was_open and Scope.ADMIN in key.scopes:
        return enter(response, key, hashed(secret))
    return response


@blueprint.post("/keys/<id>/revoke")
def revoke(id: str) -> Response:
    """Revoke a key, for good."""
    try:
        services().api_keys.revoke(id)
    except UnknownKey as e:
        raise NotFound(str(e)) from None
    return done("/keys", "revoked")


def _page(
    *,
    errors: list[str] | None = None,
    secret: str = "",
    made: keys.KeyJson | None = None,
    is_first: bool = False,
) -> Response:
    rows = [keys.key_row_json(row) for row in reversed(services().api_keys.every())]
    settings = services().settings
    valid_count = sum(row["revoked_at"] is None for row in rows)
    #: Revoking the last key lets everybody on this machine in again.
    opens = settings.listens_on_loopback and not settings.API_KEY and valid_count == 1
    status = 200
    if errors:
        status = 422
    elif secret:
        status = 201
    return page(
        "keys.html",
        status=status,
        rows=rows,
        opens=opens,
        errors=errors or [],
        secret=secret,
        made=made,
        is_first=is_first,
        is_open=not needs_key(),
        entered=request.form,
        has_default=bool(settings.API_KEY),
    )
