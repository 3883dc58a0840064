"""The page of suppressed addresses, which get no mail."""

from flask import Response, request

from mailroom.api.answers import SuppressionJson
from mailroom.api.routes import suppressions
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.store.messages.suppressions import Reason, Suppression
from mailroom.web.layout import details, done, page, pages, query_params, status_of

blueprint = pages("suppressions")

PAGE_LENGTH = 50
FILTERS = ("reason", "after")


@blueprint.get("/suppressions")
def list_suppressions() -> Response:
    """List them, the newest first; `?address=` looks for one."""
    params = query_params(*FILTERS)
    address = request.args.get("address", "").strip()
    errors: list[FieldError] = []
    rows: list[Suppression] = []
    limit = 0
    try:
        rows, limit = suppressions.find_suppressions(params | {"limit": str(PAGE_LENGTH)})
    except InvalidMessage as e:
        errors = e.errors
    if address:
        suppression = suppressions.find(address)
        rows, limit = [suppression] if suppression else [], 1
    listed = [suppressions.suppression_json(row) for row in rows[:limit]]
    return _page(
        params,
        address=address,
        errors=details(errors),
        rows=listed,
        next=suppressions.cursor(rows[limit - 1]) if len(rows) > limit else None,
    )


@blueprint.post("/suppressions")
def add() -> Response:
    """Suppress an address, as `POST /v1/suppressions` does."""
    values = {}
    for name in ("address", "detail"):
        if value := request.form.get(name, "").strip():
            values[name] = value
    try:
        suppressions.add(values)
    except InvalidMessage as e:
        return _page({}, errors=details(e.errors), rows=[], entered=values)
    return done("/suppressions", "added")


@blueprint.post("/suppressions/remove")
def remove() -> Response:
    """Remove a suppression, so that the address gets mail again."""
    suppressions.remove_suppression(request.form.get("address", ""))
    return done("/suppressions", "deleted")


def _page(
    params: dict[str, str],
    *,
    errors: list[str],
    rows: list[SuppressionJson],
    address: str = "",
    next: str | None = None,
    entered: dict[str, str] | None = None,
) -> Response:
    return page(
        "suppressions.html",
        status=status_of(errors),
        params=params,
        errors=errors,
        rows=rows,
        address=address,
        next=next,
        entered=entered or {},
        reasons=[*Reason],
    )
