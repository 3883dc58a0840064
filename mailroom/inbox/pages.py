"""Shows the letters to a person: pages that a server rendered, and that work without any script."""

import base64
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from mailroom.inbox.api import Api
from mailroom.inbox.chaos import COUNT_MAX, Chaos, Failure
from mailroom.inbox.parser import Image, MailContent, links_in
from mailroom.inbox.storage import Letters, ReceivedMail, address_asked

REFRESH_SECONDS = 3
PAGE_LENGTH = 100
#: Recipients that the list offers a view of.
ADDRESSES_SHOWN = 12
#: What is longer is cut on the page of a letter; its source is whole.
SHOWN_MAX_CHARS = 10_000
IMAGES_MAX_CHARS = 20_000_000
VIEWS = ("html", "text", "headers", "source", "attachments", "links")
#: A stream holds a thread of the server.
STREAMS_MAX = 12
#: How long a stream lasts; a browser connects anew by itself.
STREAM_SECONDS = 60
BEAT_SECONDS = 5

# What a mail brought runs nothing, sends nothing and fetches nothing, opened by itself neither.
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data: cid:; style-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_CONTENT_ID = re.compile(r"""cid:([^"'\s)>]{1,500})""", re.IGNORECASE)


def _nothing(*arguments: object) -> Any:
    return ()


@dataclass(frozen=True)
class Around:
    """The things that the application around the inbox gives it."""

    hint: str = ""  #: the command that sends, for an empty list
    scripts: Sequence[str] = ()  #: URLs; with them the list shows what comes as it comes
    places: Callable[[], Sequence[tuple[str, str]]] = _nothing  #: (path, name) of its other pages
    origin: Callable[[str], Sequence[tuple[str, str]]] = _nothing  #: (URL, words) of what made a mail
    form_token: Callable[[], str] = str  #: what a form has to carry
    refuse_form: Callable[[], Response | None] = lambda: None  #: of a form without it
    may_act: Callable[[], bool] = lambda: True  #: whether who looks may change something
    #: gives what tells later, in any thread, whether who asks is still served
    standing: Callable[[], Callable[[], bool]] = lambda: lambda: True
    refuse: Callable[[], Response | None] = lambda: None  #: of a request that has waited

    @property
    def policy(self) -> str:
        """The Content-Security-Policy of a page."""
        script = "script-src 'self'; connect-src 'self'; " if self.scripts else ""
        return (
            f"default-src 'none'; style-src 'self'; {script}img-src 'self' data:; frame-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
        )


def create_blueprint(letters: Letters, dial: Chaos | None = None, around: Around | None = None) -> Blueprint:
    """Return pages and API under /inbox."""
    blueprint = Blueprint(
        "inbox",
        __name__,
        url_prefix="/inbox",
        template_folder="templates",
        static_folder="static",
    )
    dial, around = dial or Chaos(), around or Around()
    pages = _Pages(letters, dial, around)
    blueprint.add_url_rule("", "list", pages.newest)
    blueprint.add_url_rule("/", "list", pages.newest)
    blueprint.add_url_rule("/live", "live", pages.live)
    blueprint.add_url_rule("/delete", "delete_all", pages.delete_all, methods=["POST"])
    blueprint.add_url_rule("/failure", "dial", pages.turn_dial, methods=["POST"])
    blueprint.add_url_rule("/<id>", "letter", pages.letter)
    blueprint.add_url_rule("/<id>/html", "html", pages.html)
    blueprint.add_url_rule("/<id>/source", "source", pages.source)
    blueprint.add_url_rule("/<id>/attachments/<int:number>", "attachment", pages.attachment)
    blueprint.add_url_rule("/<id>/delete", "delete", pages.delete, methods=["POST"])
    api = Api(letters, dial, around.standing, around.refuse)
    blueprint.add_url_rule("/api/messages", "messages", api.messages)
    blueprint.add_url_rule("/api/messages", "clear", api.clear, methods=["DELETE"])
    blueprint.add_url_rule("/api/messages/<id>", "message", api.message)
    blueprint.add_url_rule("/api/messages/<id>", "forget", api.forget, methods=["DELETE"])
    blueprint.add_url_rule("/api/failure", "failure", api.failure)
    blueprint.add_url_rule("/api/failure", "set_failure", api.set_failure, methods=["PUT"])
    blueprint.before_request(api.refuse_query)
    blueprint.before_request(lambda: around.refuse_form() if request.method == "POST" else None)
    blueprint.after_request(lambda response: _guard(response, around.policy))
    blueprint.add_app_template_filter(size_in_words, "inbox_size")
    blueprint.add_app_template_filter(local_time, "inbox_time")
    return blueprint


class _Pages:
    """The views; each gets its letters from here and not from the application."""

    def __init__(self, letters: Letters, dial: Chaos, around: Around) -> None:
        self._letters = letters
        self._dial = dial
        self._around = around
        self._streams = threading.BoundedSemaphore(STREAMS_MAX)

    def newest(self) -> ResponseReturnValue:
        """Show the newest, a page at a time; it looks again by itself unless somebody chose."""
        to, words = address_asked(request.args.get("to")), request.args.get("q", "").strip()
        asked = request.args.get("page", "1")
        page = int(asked) if re.fullmatch("[1-9][0-9]{0,8}", asked) else 1
        version = self._letters.version
        found = self._letters.newest(to, words)
        first = (page - 1) * PAGE_LENGTH
        failure, failures = self._dial.read()
        return self._page(
            "list",
            letters=found[first : first + PAGE_LENGTH],
            found=len(found),
            first=first,
            page=page,
            more=len(found) > first + PAGE_LENGTH,
            to=to,
            words=words,
            addresses=self._addresses(),
            version=version,
            refresh=REFRESH_SECONDS if _follows(to, words, page) else None,
            beside="beside" in request.args,
            failure=failure,
            failures=failures,
            all_failures=list(Failure),
        )

    def live(self) -> ResponseReturnValue:
        """Tell a list that something has come or gone, by a stream of server-sent events."""
        if not self._streams.acquire(blocking=False):
            return Response("too many listen", 503, {"Retry-After": "30"})
        stream = _InboxStream(self._letters, self._streams, self._around.standing())
        response = Response(stream, content_type="text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def letter(self, id: str) -> ResponseReturnValue:
        """Show one letter: who, what, when, and one of VIEWS."""
        letter = self._letters.get(id)
        if letter is None:
            return self._gone()
        body = letter.body
        view = request.args.get("view", "")
        if view not in VIEWS:
            view = "text" if body.html is None else "html"
        shown = _shown(letter, body, view)
        return self._page(
            "letter",
            letter=letter,
            head=letter.head,
            body=body,
            view=view,
            views=VIEWS,
            headers=letter.headers if view == "headers" else [],
            links=links_in(body),
            origin=self._around.origin(letter.head.message_id),
            shown=shown[:SHOWN_MAX_CHARS],
            cut=len(shown) > SHOWN_MAX_CHARS,
        )

    def html(self, id: str) -> ResponseReturnValue:
        """Serve what the mail calls its HTML, disarmed."""
        letter = self._letters.get(id)
        body = letter.body if letter else MailContent()
        if body.html is None:
            return self._gone()
        response = make_response(with_images(body.html, body.images))
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response

    def source(self, id: str) -> ResponseReturnValue:
        """Serve the bytes as they came."""
        letter = self._letters.get(id)
        if letter is None:
            return self._gone()
        response = Response(letter.raw, content_type="text/plain; charset=utf-8")
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response

    def attachment(self, id: str, number: int) -> ResponseReturnValue:
        """Serve one attachment, to be saved and never to be shown: it may be anything."""
        letter = self._letters.get(id)
        attachments = letter.body.attachments if letter else []
        if not 1 <= number <= len(attachments):
            return self._gone()
        one = attachments[number - 1]
        response = Response(one.data, content_type="application/octet-stream")
        name = re.sub(r"[^\w.() -]", "_", one.filename or "", flags=re.ASCII)[-100:]
        name = name.strip(" .") or f"attachment-{number}"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    def delete(self, id: str) -> ResponseReturnValue:
        """Forget one letter."""
        self._letters.forget(id)
        return self._back()

    def delete_all(self) -> ResponseReturnValue:
        """Forget all letters."""
        self._letters.clear()
        return self._back()

    def turn_dial(self) -> ResponseReturnValue:
        """Choose what the next mails are to meet."""
        asked = request.form.get("failure", "")
        count = request.form.get("count", "1")
        number = int(count) if re.fullmatch("[0-9]{1,9}", count) else 1
        failure = Failure(asked) if asked in set(Failure) else None
        self._dial.set(failure, max(1, min(COUNT_MAX, number)))
        return self._back()

    def _addresses(self) -> list[tuple[str, int]]:
        """Whom the mails here are to, those with most of them first."""
        counts = Counter(to for letter in self._letters.newest() for to in letter.addresses)
        return counts.most_common(ADDRESSES_SHOWN)

    def _back(self) -> ResponseReturnValue:
        beside = "1" if "beside" in request.args else None
        return redirect(url_for("inbox.list", beside=beside), 303)

    def _gone(self) -> ResponseReturnValue:
        return self._page("gone"), 404

    def _page(self, name: str, **values: object) -> str:
        return render_template(f"inbox/{name}.html", around=self._around, **values)


class _InboxStream:
    """The lines of one stream; its place is free again when it has ended, however that came."""

    def __init__(
        self, letters: Letters, places: threading.BoundedSemaphore, is_served: Callable[[], bool]
    ) -> None:
        self._letters = letters
        self._is_served = is_served
        self._places: threading.BoundedSemaphore | None = places

    def __iter__(self) -> Iterator[str]:
        try:
            known = -1
            for _ in range(STREAM_SECONDS // BEAT_SECONDS):
                now = self._letters.wait_for_change(known, BEAT_SECONDS)
                if not self._is_served():
                    return
                yield f"data: {now}\n\n" if now != known else ": \n\n"
                known = now
                if self._letters.is_stopping:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """The server calls it, too, where the reader has gone before the first line."""
        places, self._places = self._places, None
        if places:
            places.release()


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


def _follows(to: str | None, words: str, page: int) -> bool:
    # A refresh would take what somebody is typing or reading away from under him.
    return to is None and not words and page == 1 and "still" not in request.args


def _shown(letter: ReceivedMail, body: MailContent, view: str) -> str:
    if view == "text":
        return body.text or ""
    if view == "source":
        return letter.raw[: SHOWN_MAX_CHARS * 4].decode("utf-8", "replace")
    return ""


def _guard(response: Response, policy: str) -> Response:
    headers = response.headers
    # A form of a page that sends no referrer has the origin "null", as one of a stranger's has.
    is_mail = headers.get("Content-Security-Policy") == _MAIL_POLICY
    headers["Referrer-Policy"] = "no-referrer" if is_mail else "same-origin"
    headers.setdefault("Content-Security-Policy", policy)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-DNS-Prefetch-Control"] = "off"
    if request.endpoint != "inbox.static":
        headers["Cache-Control"] = "no-store"
    return response
