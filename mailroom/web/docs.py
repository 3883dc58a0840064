"""The API to look at and to try: Swagger UI, from this service alone."""

from flask import Blueprint, Response, make_response, render_template

blueprint = Blueprint("docs", __name__)

#: Its script sets styles one by one, which needs no permission, and shows small pictures that are in its style sheet.
_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


@blueprint.get("/docs")
def docs() -> Response:
    """A page that reads /openapi.json and asks nobody else for anything."""
    page = make_response(render_template("web/docs.html"))
    page.headers["Content-Security-Policy"] = _POLICY
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page
