"""Shows a person who gets no mail any more."""

from flask import Response, request

from mailroom.api.answers import SuppressionJson
from mailroom.api.routes import suppressions
from mailroom.model.errors import InvalidMessage
from mailroom.store.messages.suppressions import Reason
from mailroom.web.layout import done, page, pages

blueprint = pages("suppressions")

PAGE_LENGTH = 50
FILTERS = ("reason", "after")


@blueprint.get("/suppressions")
def list_suppressions() -> Response:
    """The newest first; `?address=` looks for one."""
    asked = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
    address = request.args.get("address", "").strip()
    try:
        (rows, limit), wrong = suppressions.find_suppressions(asked | {"limit": str(PAGE_LENGTH)}), []
    except InvalidMessage as e:
        rows, limit, wrong = [], 0, e.errors
    if address:
        found = suppressions.find(address)
        rows, limit = [found] if found else [], 1
    return _page(
        asked,
        address=address,
        wrong=[error.detail for error in wrong],
        rows=[suppressions.suppression_json(row) for row in rows[:limit]],
        next=suppressions.cursor(rows[limit - 1]) if len(rows) > limit else None,
    )


@blueprint.post("/suppressions")
def add() -> Response:
    """Send an address no mail any more, as `POST /v1/suppressions` does."""
    asked = {name: value for name in ("address", "detail") if (value := request.form.get(name, "").strip())}
    try:
        suppressions.add(asked)
    except InvalidMessage as e:
        return _page({}, wrong=[error.detail for error in e.errors], rows=[], entered=asked)
    return done("/suppressions", "added")


@blueprint.post("/suppressions/remove")
def remove() -> Response:
    """Let an address get mail again."""
    suppressions.remove_suppression(request.form.get("address", ""))
    return done("/suppressions", "deleted")


def _page(
    asked: dict[str, str],
    *,
    wrong: list[str],
    rows: list[SuppressionJson],
    address: str = "",
    next: str | None = None,
    entered: dict[str, str] | None = None,
) -> Response:
    return page(
        "suppressions.html",
        status=422 if wrong else 200,
        asked=asked,
        wrong=wrong,
        rows=rows,
        address=address,
        next=next,
        entered=entered or {},
        reasons=[*Reason],
    )
