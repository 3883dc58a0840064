"""The API to look at and to try: Swagger UI, from this service alone; and programs that call it."""

from pathlib import Path

from flask import Blueprint, Response, make_response, render_template

from mailroom.web.layout import base_url, for_people

blueprint = Blueprint("docs", __name__)
blueprint.after_request(for_people)

#: Each is a whole program; the address in it is the one of `python3 app.py`.
CLIENTS = Path(__file__).resolve().parents[2] / "docs" / "clients"
LANGUAGES = {"send.sh": "curl", "send.py": "Python", "send.mjs": "Node", "send.go": "Go", "send.php": "PHP"}
_ADDRESS = "http://127.0.0.1:5000"
#: By language; none where only the code was installed. Read at the start: no request opens a file of ours.
_PROGRAMS = {
    language: (CLIENTS / name).read_text()
    for name, language in LANGUAGES.items()
    if (CLIENTS / name).is_file()
}

#: Its script sets styles one by one, which needs no permission, and shows small pictures that are in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@blueprint.get("/docs")
def docs() -> Response:
    """A page that reads /openapi.json and asks nobody else for anything."""
    here = base_url()
    shown = {language: program.replace(_ADDRESS, here) for language, program in _PROGRAMS.items()}
    page = make_response(render_template("web/docs.html", programs=shown))
    page.headers["Content-Security-Policy"] = _POLICY
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page
