"""Parts that all pages share: blueprint, headers, form tokens, times in words, errors as pages."""

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flask import (
    Blueprint,
    Response,
    current_app,
    g,
    make_response,
    redirect,
    render_template,
    request,
)
from markupsafe import Markup

from mailroom.api.auth import sessions
from mailroom.api.auth.guard import check_after_body, current_key
from mailroom.api.auth.scopes import needed
from mailroom.api.problems import PROBLEM_TYPE
from mailroom.api.services import services
from mailroom.model.errors import FieldError, StoreUnavailable
from mailroom.model.text import unicode_text
from mailroom.model.times import parse_timestamp
from mailroom.process.installation import PROGRAM, START_WORKER
from mailroom.store.events.changes import pulse
from mailroom.store.keys.api_keys import Scope

#: The static files of all pages; they need no key, as they are in every copy of this project.
assets = Blueprint(
    "web",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static/web",
)

SCRIPTS = ("/static/web/htmx/htmx.min.js", "/static/web/pages.js")
SIGN_IN = "/sign-in"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The pages in the navigation, by path.
_NAV_PAGES = {
    "/dashboard": "Dashboard",
    "/messages": "Messages",
    "/compose": "Compose",
    "/jobs": "Jobs",
    "/templates": "Templates",
    "/suppressions": "Suppressions",
    "/webhooks": "Webhooks",
    "/keys": "Keys",
    "/inbox/": "Inbox",
    "/docs": "API",
}
#: The notice that a page shows after a form was sent, by the word in `?done=`.
NOTICES = {
    "accepted": "Accepted. It is stored, and will be sent as soon as possible.",
    "canceled": "Canceled.",
    "held": "Held until somebody releases it.",
    "released": "Released.",
    "retried": "Trying now.",
    "rescheduled": "Rescheduled.",
    "resent": "This is the new message; the old one stays as it is.",
    "rerun": "This is the new job; the old one stays as it is.",
    "tried": "Trying the account with one mail now.",
    "saved": "Saved.",
    "deleted": "Deleted.",
    "added": "Added.",
    "replayed": "The delivery is repeated.",
    "tested": "A test is on its way.",
    "revoked": "Revoked. It stops working within seconds.",
    "signed-out": "Signed out.",
}


def pages(name: str) -> Blueprint:
    """Return a blueprint for pages: its forms need a token (CSRF), and its errors are pages too."""
    blueprint = Blueprint(f"{name}_page", __name__)
    blueprint.before_request(_note_pulse)
    blueprint.before_request(_take_large_forms)
    blueprint.before_request(sessions.refuse_form)
    blueprint.before_request(check_after_body)
    blueprint.after_request(finish)
    return blueprint


def page(
    template: str, *, status: int = 200, live: bool = False, once: str = "", **values: Any
) -> Response:
    """Render a page.

    `live`: it refreshes itself when something has happened. `once`: the idempotency key of a form that is
    shown again with errors.
    """
    html = render_template(
        f"web/{template}",
        nav_pages=visible_pages(),
        key=current_key(),
        is_signed_in=bool(sessions.current()),
        token=sessions.form_token(),
        may=may,
        has_inbox="inbox" in current_app.blueprints and may("GET", "/inbox/"),
        once=once or secrets.token_urlsafe(12),
        notice=NOTICES.get(request.args.get("done", ""), ""),
        pulse=g.get("pulse", "") if live else "",
        here=_own_path(),
        **values,
    )
    response = make_response(unicode_text(html))
    response.status_code = status
    return response


def visible_pages() -> list[tuple[str, str]]:
    """Return path and name of the pages in the navigation that the key of this request may see."""
    known = {rule.rule for rule in current_app.url_map.iter_rules()}
    return [(path, name) for path, name in _NAV_PAGES.items() if path in known and may("GET", path)]


def may(method: str, rule: str) -> bool:
    """Tell whether the key of this request has the scope for this route."""
    scopes = current_key().scopes
    return Scope.ADMIN in scopes or bool(scopes & {*needed(method, rule)})


def done(path: str, word: str) -> Response:
    """Redirect after a form (303), and show the notice for `word` there."""
    assert word in NOTICES
    separator = "&" if "?" in path else "?"
    return see(f"{path}{separator}done={word}")


def item_path(section: str, id: str) -> str:
    """Return the path of a message or job; clients may choose ids, so they are quoted."""
    return f"/{section}/{quote(id, safe='')}"


def query_params(*names: str) -> dict[str, str]:
    """Return those of the query parameters that are not empty."""
    params = {name: request.args.get(name, "").strip() for name in names}
    return {name: value for name, value in params.items() if value}


def status_of(errors: Sequence[object] | None) -> int:
    """Return the status of a page: 422 if it shows errors of its form."""
    return 422 if errors else 200


def details(errors: Sequence[FieldError]) -> list[str]:
    return [error.detail for error in errors]


def see(path: str) -> Response:
    """Redirect to a page of this site: 303 See Other."""
    response: Any = redirect(path, 303)
    return response  # type: ignore[no-any-return]  # werkzeug's type, which Flask's is


def finish(response: Response) -> Response:
    """Turn errors into pages, and set the header fields of every page."""
    response = for_people(response)
    response.headers.setdefault("Content-Security-Policy", _POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    return response


def base_url() -> str:
    """Return this service's own address, for commands that a reader may copy."""
    scheme = "https" if sessions.is_https() else "http"
    return f"{scheme}://{request.host}".replace("//localhost:", "//127.0.0.1:")


def stays_here() -> bool:
    """Tell whether all mail goes to the disposable inbox of this service."""
    settings = services().settings
    return (settings.SMTP_HOST, settings.SMTP_PORT) == ("127.0.0.1", settings.INBOX_SMTP_PORT)


def for_people(response: Response) -> Response:
    """Turn a problem+json error into a page if the client is a browser, and a 401 into the sign-in page."""
    if response.mimetype != PROBLEM_TYPE or "text/html" not in request.headers.get("Accept", ""):
        return response
    return _error_page(response)


def decimal(text: str) -> float | None:
    """Parse a number typed into a form; None for anything else, also nan and 1_0, which float() accepts."""
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) else None


def here(path: str) -> str:
    """Return the path if it leads to this site; "" if not, as a link may have brought any in its query."""
    return (
        path
        if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
        else ""
    )


def home() -> str:
    """Return the first page that the key of this request may see."""
    return next((path for path, _ in visible_pages()), "/")


def _take_large_forms() -> None:
    # Flask's own limit for texts in forms, 500 kB, is less than our setting allows.
    request.max_form_memory_size = services().settings.REQUEST_MAX_BYTES


def _error_page(response: Response) -> Response:
    if response.status_code == 401 and request.method in ("GET", "HEAD"):
        return see(f"{SIGN_IN}?next={quote(request.full_path.rstrip('?'))}")
    try:
        error_page = page(
            "error.html",
            status=response.status_code,
            problem=response.get_json(force=True),
            location=response.headers.get("Location", "").removeprefix("/v1"),
        )
    except StoreUnavailable:  # Without the database there are no tokens for the page's forms.
        return response
    for name in ("Retry-After", "Allow"):
        if name in response.headers:
            error_page.headers[name] = response.headers[name]
    return error_page


def _own_path() -> str:
    """Return the path and query of this page, for its refresh."""
    query = request.query_string.decode("latin-1")
    return quote(request.path) + f"?{query}" * bool(query)


def _note_pulse() -> None:
    """Note the version of the data before the page reads any, so that no later change is missed."""
    with suppress(StoreUnavailable):  # The page itself will report it, if it needs the database.
        g.pulse = pulse(services().outbox.database, services().settings.LEASE_SECONDS)


@assets.app_context_processor
def programs() -> dict[str, str]:
    """Name the programs that a page tells its reader to run."""
    return {"program": PROGRAM, "start_worker": START_WORKER}


@assets.app_template_filter("when")
def when(timestamp: str | None) -> Markup:
    """Write a time of the API relative to now, with the full time in a tooltip."""
    if not timestamp:
        return Markup("–")
    at = parse_timestamp(timestamp)
    return Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{}</time>').format(
        timestamp, at, apart((at - datetime.now(UTC)).total_seconds())
    )


@assets.app_template_filter("clock")
def clock(timestamp: str | None) -> Markup:
    """Write a time of the API in UTC; a script turns it into the reader's time zone."""
    if not timestamp:
        return Markup("–")
    at = parse_timestamp(timestamp)
    return Markup(
        '<time class="clock" datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{:%Y-%m-%d %H:%M:%S} UTC</time>'
    ).format(timestamp, at, at)


def apart(seconds: float) -> str:
    """Write a time relative to now: 12 s ago, in 4 min, 3 h ago, in 2 days."""
    size = abs(seconds)
    number, unit = size / 86400, "days"
    for unit_seconds, name, most in ((1, "s", 99), (60, "min", 99 * 60), (3600, "h", 48 * 3600)):
        if size < most:
            number, unit = size / unit_seconds, name
            break
    if number < 1:
        return "now"
    return f"in {number:.0f} {unit}" if seconds > 0 else f"{number:.0f} {unit} ago"


@assets.app_template_filter("span")
def span(seconds: float) -> str:
    """Write a duration: 0.3 s, 12 s, 4 min."""
    return f"{seconds:.1f} s" if seconds < 9.95 else apart(-seconds).removesuffix(" ago")
