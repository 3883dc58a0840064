"""The first page: what this is, and what to do next."""

from flask import Response, current_app

from mailroom.api.auth.guard import current_key
from mailroom.api.services import services
from mailroom.web.layout import base_url, page, pages, stays_here

blueprint = pages("home")


@blueprint.get("/")
def home() -> Response:
    """Show the first commands to try, with this service's own address in them."""
    settings = services().settings
    return page(
        "home.html",
        base=base_url(),
        has_key=bool(current_key().id),
        work_seconds=f"{settings.SIMULATED_WORK_SECONDS:g}",
        inbox="inbox" in current_app.blueprints,
        inbox_port=settings.INBOX_PORT,
        stays_here=stays_here(),
    )
