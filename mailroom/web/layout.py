"""The parts that all pages share.

They are blueprints, header fields, forms' tokens, times in words, and errors as a person reads them.
"""

import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, current_app, g, make_response, redirect, render_template, request
from markupsafe import Markup

from mailroom.api.auth import sessions
from mailroom.api.auth.guard import check_after_body, current_key
from mailroom.api.auth.scopes import needed
from mailroom.api.problems import PROBLEM_TYPE
from mailroom.api.services import services
from mailroom.model.errors import StoreUnavailable
from mailroom.model.text import unicode_text
from mailroom.model.times import parse_timestamp
from mailroom.store.events.changes import pulse
from mailroom.store.keys.api_keys import Scope

#: The files of all pages; anybody may have them, as they are in every copy of this project.
assets = Blueprint(
    "web", __name__, template_folder="templates", static_folder="static", static_url_path="/static/web"
)

SCRIPTS = ("/static/web/htmx/htmx.min.js", "/static/web/pages.js")
SIGN_IN = "/sign-in"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The pages in every page's head, by their path.
_PLACES = {
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
#: What a page says after a form was sent, by the word in its address.
NOTICES = {
    "accepted": "Accepted. It is on disk, and goes as soon as it can.",
    "canceled": "Canceled.",
    "held": "Held, until somebody releases it.",
    "released": "Released.",
    "retried": "It is tried now.",
    "rescheduled": "It goes at that time.",
    "resent": "This is the new message; the old one stays as it is.",
    "rerun": "This is the new job; the old one stays as it is.",
    "tried": "One mail tries the account now.",
    "saved": "Saved.",
    "deleted": "Deleted.",
    "added": "Added.",
    "replayed": "It is told once more.",
    "tested": "A test is on its way.",
    "revoked": "Revoked. It ends within seconds.",
    "signed-out": "Signed out.",
}


def pages(name: str) -> Blueprint:
    """A blueprint for pages: its forms need their token, and its errors are pages too."""
    blueprint = Blueprint(f"{name}_page", __name__)
    blueprint.before_request(_note_pulse)
    blueprint.before_request(_take_large_forms)
    blueprint.before_request(sessions.refuse_form)
    blueprint.before_request(check_after_body)
    blueprint.after_request(finish)
    return blueprint


def page(template: str, *, status: int = 200, live: bool = False, once: str = "", **values: Any) -> Response:
    """A page. `live`: it looks again by itself when something has happened. `once`: the name of a form that is shown again."""
    html = render_template(
        f"web/{template}",
        places=places(),
        key=current_key(),
        is_signed_in=bool(sessions.current()),
        token=sessions.form_token(),
        may=may,
        has_inbox="inbox" in current_app.blueprints and may("GET", "/inbox/"),
        once=once or secrets.token_urlsafe(12),
        notice=NOTICES.get(request.args.get("done", ""), ""),
        pulse=g.get("pulse", "") if live else "",
        here=_here(),
        **values,
    )
    answer = make_response(unicode_text(html))
    answer.status_code = status
    return answer


def places() -> list[tuple[str, str]]:
    """The pages in the head of each page that the key of this request may see, with their names."""
    known = {rule.rule for rule in current_app.url_map.iter_rules()}
    return [(path, name) for path, name in _PLACES.items() if path in known and may("GET", path)]


def may(method: str, rule: str) -> bool:
    """Tell whether the key of this request may ask for that."""
    scopes = current_key().scopes
    return Scope.ADMIN in scopes or bool(scopes & {*needed(method, rule)})


def done(path: str, word: str) -> Response:
    """After a form: go there by a GET, and say so."""
    assert word in NOTICES
    return see(f"{path}{'&' if '?' in path else '?'}done={word}")


def at(place: str, id: str) -> str:
    """The page of the message or job with this id, which a client may have chosen."""
    return f"/{place}/{quote(id, safe='')}"


def see(path: str) -> Response:
    answer: Any = redirect(path, 303)
    return answer  # type: ignore[no-any-return]  # werkzeug's type, which Flask's is


def finish(answer: Response) -> Response:
    """The header fields of every page, and an error as a page."""
    answer = for_people(answer)
    answer.headers.setdefault("Content-Security-Policy", _POLICY)
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "same-origin"
    answer.headers["Cache-Control"] = "no-store"
    return answer


def base_url() -> str:
    """This service's own address, as it stands in what a reader may copy."""
    scheme = "https" if sessions.is_https() else "http"
    return f"{scheme}://{request.host}".replace("//localhost:", "//127.0.0.1:")


def stays_here() -> bool:
    """Tell whether all mail goes to the inbox that listens beside this service."""
    settings = services().settings
    return (settings.SMTP_HOST, settings.SMTP_PORT) == ("127.0.0.1", settings.INBOX_SMTP_PORT)


def for_people(answer: Response) -> Response:
    """An error as a page, for whoever asked for a page; who may not see this one is sent to sign in."""
    if answer.mimetype != PROBLEM_TYPE or "text/html" not in request.headers.get("Accept", ""):
        return answer
    return _error(answer)


def decimal(text: str) -> float | None:
    """The number that was typed into a form; None for anything else that float() takes: nan, 1e400, 1_0."""
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) else None


def here(path: str) -> str:
    """A path on this very site, and nothing else, as what came in a query may lead anywhere; "" for anything else."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else ""


def home() -> str:
    """The first page that the key of this request may see."""
    return next((path for path, _ in places()), "/")


def _take_large_forms() -> None:
    request.max_form_memory_size = (
        services().settings.REQUEST_MAX_BYTES
    )  # Else Flask bounds a text by a number that nobody set.


def _error(answer: Response) -> Response:
    if answer.status_code == 401 and request.method in ("GET", "HEAD"):
        return see(f"{SIGN_IN}?next={quote(request.full_path.rstrip('?'))}")
    told: dict[str, Any] = answer.get_json(force=True)
    try:
        shown = page(
            "error.html",
            status=answer.status_code,
            told=told,
            place=answer.headers.get("Location", "").removeprefix("/v1"),
        )
    except StoreUnavailable:  # Not even a form's token can be had.
        return answer
    for name in ("Retry-After", "Allow"):
        if name in answer.headers:
            shown.headers[name] = answer.headers[name]
    return shown


def _here() -> str:
    """The address of this page, to look at it again."""
    query = request.query_string.decode("latin-1")
    return quote(request.path) + f"?{query}" * bool(query)


def _note_pulse() -> None:
    """Before anything is looked at: what happens while a page is made shall be news to it."""
    with suppress(StoreUnavailable):  # A page that needs the database says so by itself.
        g.pulse = pulse(services().outbox.database, services().settings.LEASE_SECONDS)


@assets.app_template_filter("when")
def when(told: str | None) -> Markup:
    """A time of the API: how long ago or ahead, and in full where a pointer rests."""
    if not told:
        return Markup("–")
    at = parse_timestamp(told)
    return Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{}</time>').format(
        told, at, apart((at - datetime.now(UTC)).total_seconds())
    )


@assets.app_template_filter("clock")
def clock(told: str | None) -> Markup:
    """Write a time of the API with its time of day, which a script turns into that of the reader's place."""
    if not told:
        return Markup("–")
    at = parse_timestamp(told)
    return Markup(
        '<time class="clock" datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{:%Y-%m-%d %H:%M:%S} UTC</time>'
    ).format(told, at, at)


def apart(seconds: float) -> str:
    """12 s ago, in 4 min, 3 h ago, in 2 days."""
    size = abs(seconds)
    number, unit = next(
        (
            (size / unit_seconds, unit)
            for unit_seconds, unit, most in ((1, "s", 99), (60, "min", 99 * 60), (3600, "h", 48 * 3600))
            if size < most
        ),
        (size / 86400, "days"),
    )
    if number < 1:
        return "now"
    return f"in {number:.0f} {unit}" if seconds > 0 else f"{number:.0f} {unit} ago"


@assets.app_template_filter("span")
def span(seconds: float) -> str:
    """Say how long: 0.3 s, 12 s, 4 min."""
    return f"{seconds:.1f} s" if seconds < 9.95 else apart(-seconds).removesuffix(" ago")
