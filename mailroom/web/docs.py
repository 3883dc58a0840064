"""The API's documentation (Swagger UI), with example programs; loads nothing from other sites."""

from flask import Blueprint, Response, make_response, render_template

from mailroom.process.installation import PROJECT
from mailroom.web.layout import base_url, for_people

blueprint = Blueprint("docs", __name__)
blueprint.after_request(for_people)

#: Complete programs, with the default address of `python3 app.py` in them.
CLIENTS = PROJECT / "docs" / "clients"
LANGUAGES = {
    "send.sh": "curl",
    "send.py": "Python",
    "send.mjs": "Node",
    "send.go": "Go",
    "send.php": "PHP",
}
_ADDRESS = "http://127.0.0.1:5000"
#: The programs by language; none if only the code was installed. Read at the start, so that no request does.
_PROGRAMS = {
    language: (CLIENTS / name).read_text()
    for name, language in LANGUAGES.items()
    if (CLIENTS / name).is_file()
}

#: Swagger UI sets styles by script, which needs no permission; its CSS has pictures as data: URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@blueprint.get("/docs")
def docs() -> Response:
    """Show Swagger UI for /openapi.json, and the programs with this service's own address."""
    address = base_url()
    programs = {language: text.replace(_ADDRESS, address) for language, text in _PROGRAMS.items()}
    page = make_response(render_template("web/docs.html", programs=programs))
    page.headers["Content-Security-Policy"] = _POLICY
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page
