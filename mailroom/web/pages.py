"""The first page: what this is, and what to do next."""

from flask import Blueprint, Response, current_app, make_response, render_template, request

from mailroom.api.guard import current_key
from mailroom.api.services import services

blueprint = Blueprint("web", __name__, template_folder="templates", static_folder="static", static_url_path="/static/web")


@blueprint.get("/")
def home() -> Response:
    """The next command, with this service's own address in it."""
    settings = services().settings
    page = make_response(render_template(
        "web/home.html", base=request.host_url.rstrip("/").replace("//localhost:", "//127.0.0.1:"), has_key=bool(current_key().id),
        work_seconds=f"{settings.SIMULATED_WORK_SECONDS:g}", inbox="inbox" in current_app.blueprints,
        stays_here=(settings.SMTP_HOST, settings.SMTP_PORT) == ("127.0.0.1", settings.INBOX_SMTP_PORT), inbox_port=settings.INBOX_PORT))
    page.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
    page.headers["X-Content-Type-Options"] = "nosniff"
    return page
