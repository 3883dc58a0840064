"""Refuses query parameters that a route does not know: a mistyped filter would list the wrong items."""

from flask import Blueprint, request

from mailroom.api.openapi.operations import OPERATIONS, is_strict
from mailroom.model.errors import ERRORS_MAX, NAME_MAX_CHARACTERS, FieldError, InvalidMessage
from mailroom.submission.fields import unknown

blueprint = Blueprint("queries", __name__)


@blueprint.before_app_request
def check() -> None:
    """Answer 422 to unknown parameters and to one that came twice; web pages ignore both."""
    if not request.query_string or request.url_rule is None:
        return
    method = "GET" if request.method == "HEAD" else request.method
    route = f"{method} {request.url_rule.rule}"
    if route not in OPERATIONS or not is_strict(route):
        return
    parameters = OPERATIONS[route].parameters
    known = [parameter.name for parameter in parameters if parameter.location == "query"]
    repeated = {parameter.name for parameter in parameters if parameter.is_repeated}
    errors = []
    for name, values in request.args.lists():
        if detail := _mistake(name, 1 if name in repeated else len(values), known):
            errors.append(FieldError(f"?{name[:NAME_MAX_CHARACTERS]}", detail))
    if errors:
        raise InvalidMessage(errors[:ERRORS_MAX])


def _mistake(name: str, times: int, known: list[str]) -> str:
    """Say what is wrong with a parameter that came this many times; "" if nothing is."""
    if name not in known:
        return unknown(name, known, "parameter")
    return f"expected it once, got it {times} times" if times > 1 else ""
