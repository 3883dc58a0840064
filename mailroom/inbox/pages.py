"""Shows the letters to a person: pages that a server rendered, without any script."""

import base64
import re
from datetime import datetime
from html import escape

from flask import Blueprint, Response, make_response, render_template, request
from flask.typing import ResponseReturnValue

from mailroom.inbox.api import Api
from mailroom.inbox.contents import Body, Image
from mailroom.inbox.letters import Letter, Letters, address_asked

REFRESH_SECONDS = 3
PAGE_LENGTH = 100
#: What is longer is cut on the page of a letter; its source is whole.
SHOWN_MAX_CHARS = 200_000
IMAGES_MAX_CHARS = 20_000_000
VIEWS = ("html", "text", "headers", "source")

_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# What a mail brought runs nothing, sends nothing and fetches nothing, opened by itself neither.
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data: cid:; style-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_CONTENT_ID = re.compile(r"""cid:([^"'\s)>]{1,500})""", re.IGNORECASE)


def create_blueprint(letters: Letters, *, hint: str = "") -> Blueprint:
    """Return pages and API under /inbox; an empty list shows `hint`, the command that sends."""
    blueprint = Blueprint(
        "inbox",
        __name__,
        url_prefix="/inbox",
        template_folder="templates",
        static_folder="static",
    )
    pages = _Pages(letters, hint)
    blueprint.add_url_rule("", "list", pages.newest)
    blueprint.add_url_rule("/", "list", pages.newest)
    blueprint.add_url_rule("/<id>", "letter", pages.letter)
    blueprint.add_url_rule("/<id>/html", "html", pages.html)
    blueprint.add_url_rule("/<id>/source", "source", pages.source)
    api = Api(letters)
    blueprint.add_url_rule("/api/messages", "messages", api.messages)
    blueprint.add_url_rule("/api/messages", "clear", api.clear, methods=["DELETE"])
    blueprint.add_url_rule("/api/messages/<id>", "message", api.message)
    blueprint.after_request(_guard)
    blueprint.add_app_template_filter(size_in_words, "inbox_size")
    blueprint.add_app_template_filter(local_time, "inbox_time")
    return blueprint


class _Pages:
    """The views; each gets its letters from here and not from the application."""

    def __init__(self, letters: Letters, hint: str) -> None:
        self._letters = letters
        self._hint = hint

    def newest(self) -> ResponseReturnValue:
        """Show the newest, a page at a time; it looks again by itself unless somebody chose."""
        to = address_asked(request.args.get("to"))
        page = max(1, request.args.get("page", 1, type=int))
        found = self._letters.newest(to)
        first = (page - 1) * PAGE_LENGTH
        return render_template(
            "inbox/list.html",
            letters=found[first : first + PAGE_LENGTH],
            found=len(found),
            first=first,
            page=page,
            more=len(found) > first + PAGE_LENGTH,
            to=to,
            hint=self._hint,
            refresh=REFRESH_SECONDS if _follows(to, page) else None,
        )

    def letter(self, id: str) -> ResponseReturnValue:
        """Show one letter: who, what, when, and one of VIEWS."""
        letter = self._letters.get(id)
        if letter is None:
            return _gone()
        body = letter.body
        view = request.args.get("view", "")
        if view not in VIEWS:
            view = "text" if body.html is None else "html"
        shown = _shown(letter, body, view)
        return render_template(
            "inbox/letter.html",
            letter=letter,
            head=letter.head,
            body=body,
            view=view,
            views=VIEWS,
            headers=letter.headers if view == "headers" else [],
            shown=shown[:SHOWN_MAX_CHARS],
            cut=len(shown) > SHOWN_MAX_CHARS,
        )

    def html(self, id: str) -> ResponseReturnValue:
        """Serve what the mail calls its HTML, disarmed."""
        letter = self._letters.get(id)
        body = letter.body if letter else Body()
        if body.html is None:
            return _gone()
        response = make_response(with_images(body.html, body.images))
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response

    def source(self, id: str) -> ResponseReturnValue:
        """Serve the bytes as they came."""
        letter = self._letters.get(id)
        if letter is None:
            return _gone()
        response = Response(letter.raw, content_type="text/plain; charset=utf-8")
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response


def with_images(html: str, images: dict[str, Image]) -> str:
    """Return `html` with the pictures the mail brought in place of their cid: addresses.

    Stops at IMAGES_MAX_CHARS: a small mail may name one big picture many times.
    """
    left = IMAGES_MAX_CHARS

    def replace(match: re.Match[str]) -> str:
        nonlocal left
        image = images.get(match[1])
        if image is None or len(image.data) * 4 // 3 > left:
            return match[0]
        data = base64.b64encode(image.data).decode("ascii")
        left -= len(data)
        return f"data:{escape(image.content_type)};base64,{data}"

    return _CONTENT_ID.sub(replace, html) if images else html


def size_in_words(size: int) -> str:
    """Return a size as people say it: 812 B, 1.2 kB, 34 MB."""
    if size < 1_000:
        return f"{size} B"
    number, unit = (size / 1_000, "kB") if size < 999_500 else (size / 1_000_000, "MB")
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"


def local_time(moment: datetime) -> str:
    """Return the time of day on this machine's clock, with the date unless it is today's."""
    local = moment.astimezone()
    same_day = local.date() == datetime.now(local.tzinfo).date()
    return f"{local:%H:%M:%S}" if same_day else f"{local:%Y-%m-%d %H:%M:%S}"


def _follows(to: str | None, page: int) -> bool:
    # A refresh would take what somebody is typing or reading away from under him.
    return to is None and page == 1 and "still" not in request.args


def _shown(letter: Letter, body: Body, view: str) -> str:
    if view == "text":
        return body.text or ""
    if view == "source":
        return letter.raw[: SHOWN_MAX_CHARS * 4].decode("utf-8", "replace")
    return ""


def _gone() -> ResponseReturnValue:
    return render_template("inbox/gone.html"), 404


def _guard(response: Response) -> Response:
    headers = response.headers
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["X-DNS-Prefetch-Control"] = "off"
    if request.endpoint != "inbox.static":
        headers["Cache-Control"] = "no-store"
    return response
