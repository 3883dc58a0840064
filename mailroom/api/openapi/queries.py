"""Refuses a query that a route does not know: with a filter that is mistyped a list would tell of others."""

from flask import Blueprint, request

from mailroom.api.openapi.operations import OPERATIONS, is_strict
from mailroom.model.errors import ERRORS_MAX, NAME_MAX_CHARACTERS, FieldError, InvalidMessage
from mailroom.submission.fields import unknown

blueprint = Blueprint("queries", __name__)


@blueprint.before_app_request
def check() -> None:
    """Answer 422 to parameters that the route has not, and to one that came twice; pages ignore them."""
    if not request.query_string or request.url_rule is None:
        return
    method = "GET" if request.method == "HEAD" else request.method
    route = f"{method} {request.url_rule.rule}"
    if route not in OPERATIONS or not is_strict(route):
        return
    known = [parameter.name for parameter in OPERATIONS[route].parameters if parameter.place == "query"]
    wrong = [
        FieldError(f"?{name[:NAME_MAX_CHARACTERS]}", detail)
        for name, values in request.args.lists()
        if (detail := _wrong(name, len(values), known))
    ]
    if wrong:
        raise InvalidMessage(wrong[:ERRORS_MAX])


def _wrong(name: str, times: int, known: list[str]) -> str:
    if name not in known:
        return unknown(name, known, "parameter")
    return f"expected it once, got it {times} times" if times > 1 else ""
