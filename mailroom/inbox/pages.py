"""The inbox's pages for people: rendered on the server, and usable without any script."""

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
from mailroom.inbox.storage import InboxStorage, ReceivedMail, address_param

REFRESH_SECONDS = 3
PAGE_LENGTH = 100
#: Recipients that the list offers as filters.
ADDRESSES_MAX = 12
#: Longer texts are cut on the page of a mail; the link to its source has all of it.
TEXT_MAX_CHARS = 10_000
IMAGES_MAX_CHARS = 20_000_000
VIEWS = ("html", "text", "headers", "source", "attachments", "links")
#: The most open event streams; each occupies a thread of the web server.
STREAMS_MAX = 12
#: Duration of a stream; browsers reconnect by themselves.
STREAM_SECONDS = 60
#: How often a stream without news sends a comment line, which shows that a connection is dead.
HEARTBEAT_SECONDS = 5

# Content of a mail must not run scripts, send forms or fetch anything, even when opened on its own.
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data: cid:; style-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_CONTENT_ID = re.compile(r"""cid:([^"'\s)>]{1,500})""", re.IGNORECASE)


def _none(*arguments: object) -> Any:
    return ()


@dataclass(frozen=True)
class AppHooks:
    """The hooks by which the application adapts the inbox; the defaults are for an inbox alone."""

    hint: str = ""  #: the command that sends a mail, shown while the list is empty
    scripts: Sequence[str] = ()  #: URLs; with scripts the list updates itself as mail arrives
    #: (path, name) of the application's pages
    pages: Callable[[], Sequence[tuple[str, str]]] = _none
    #: (URL, text) of links, for a Message-ID
    origin: Callable[[str], Sequence[tuple[str, str]]] = _none
    form_token: Callable[[], str] = str  #: the CSRF token of a form
    #: the answer to a form with a wrong token
    refuse_form: Callable[[], Response | None] = lambda: None
    #: whether the client may delete mails and make them fail
    may_act: Callable[[], bool] = lambda: True
    #: called in a request; the function it returns tells later, in any thread, if the client may still read
    access_check: Callable[[], Callable[[], bool]] = lambda: lambda: True
    #: checks access again after waiting
    refuse_waited: Callable[[], Response | None] = lambda: None

    @property
    def policy(self) -> str:
        """The Content-Security-Policy of a page."""
        script = "script-src 'self'; connect-src 'self'; " if self.scripts else ""
        return (
            f"default-src 'none'; style-src 'self'; {script}img-src 'self' data:; frame-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
        )


def create_blueprint(
    storage: InboxStorage, chaos: Chaos | None = None, hooks: AppHooks | None = None
) -> Blueprint:
    """Return the blueprint of the pages and the API under /inbox."""
    blueprint = Blueprint(
        "inbox",
        __name__,
        url_prefix="/inbox",
        template_folder="templates",
        static_folder="static",
    )
    chaos, hooks = chaos or Chaos(), hooks or AppHooks()
    _add_pages(blueprint, _Pages(storage, chaos, hooks), hooks)
    _add_api(blueprint, Api(storage, chaos, hooks.access_check, hooks.refuse_waited))
    return blueprint


def _add_pages(blueprint: Blueprint, pages: "_Pages", hooks: AppHooks) -> None:
    blueprint.add_url_rule("", "list", pages.newest)
    blueprint.add_url_rule("/", "list", pages.newest)
    blueprint.add_url_rule("/live", "live", pages.live)
    blueprint.add_url_rule("/delete", "delete_all", pages.delete_all, methods=["POST"])
    blueprint.add_url_rule("/failure", "chaos", pages.set_chaos, methods=["POST"])
    blueprint.add_url_rule("/<id>", "mail", pages.mail)
    blueprint.add_url_rule("/<id>/html", "html", pages.html)
    blueprint.add_url_rule("/<id>/source", "source", pages.source)
    blueprint.add_url_rule("/<id>/attachments/<int:number>", "attachment", pages.attachment)
    blueprint.add_url_rule("/<id>/delete", "delete", pages.delete, methods=["POST"])
    blueprint.before_request(lambda: hooks.refuse_form() if request.method == "POST" else None)
    blueprint.after_request(lambda response: _add_security_headers(response, hooks.policy))
    blueprint.add_app_template_filter(size_in_words, "inbox_size")
    blueprint.add_app_template_filter(local_time, "inbox_time")


def _add_api(blueprint: Blueprint, api: Api) -> None:
    blueprint.add_url_rule("/api/messages", "messages", api.messages)
    blueprint.add_url_rule("/api/messages", "clear", api.clear, methods=["DELETE"])
    blueprint.add_url_rule("/api/messages/<id>", "message", api.message)
    blueprint.add_url_rule("/api/messages/<id>", "forget", api.forget, methods=["DELETE"])
    blueprint.add_url_rule("/api/failure", "failure", api.failure)
    blueprint.add_url_rule("/api/failure", "set_failure", api.set_failure, methods=["PUT"])
    blueprint.before_request(api.refuse_query)


class _Pages:
    """The views of the pages."""

    def __init__(self, storage: InboxStorage, chaos: Chaos, hooks: AppHooks) -> None:
        self._storage = storage
        self._chaos = chaos
        self._hooks = hooks
        self._streams = threading.BoundedSemaphore(STREAMS_MAX)

    def newest(self) -> ResponseReturnValue:
        """List the mails, newest first, a page at a time; the unfiltered first page refreshes itself."""
        to, words = address_param(request.args.get("to")), request.args.get("q", "").strip()
        number = request.args.get("page", "1")
        page = int(number) if re.fullmatch("[1-9][0-9]{0,8}", number) else 1
        version = self._storage.version
        mails = self._storage.newest(to, words)
        first = (page - 1) * PAGE_LENGTH
        failure, failures = self._chaos.read()
        return self._page(
            "list",
            mails=mails[first : first + PAGE_LENGTH],
            mail_count=len(mails),
            first=first,
            page=page,
            more=len(mails) > first + PAGE_LENGTH,
            to=to,
            words=words,
            addresses=self._addresses(),
            version=version,
            refresh=REFRESH_SECONDS if _refreshes(to, words, page) else None,
            beside="beside" in request.args,
            failure=failure,
            failures=failures,
            all_failures=list(Failure),
        )

    def live(self) -> ResponseReturnValue:
        """Stream an event for each change of the list (server-sent events; WHATWG HTML, 9.2)."""
        if not self._streams.acquire(blocking=False):
            return Response("too many open streams", 503, {"Retry-After": "30"})
        stream = _InboxStream(self._storage, self._streams, self._hooks.access_check())
        response = Response(stream, content_type="text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def mail(self, id: str) -> ResponseReturnValue:
        """Show one mail: its main headers, and one of VIEWS."""
        mail = self._storage.get(id)
        if mail is None:
            return self._gone()
        body = mail.body
        view = request.args.get("view", "")
        if view not in VIEWS:
            view = "text" if body.html is None else "html"
        text = _view_text(mail, body, view)
        return self._page(
            "mail",
            mail=mail,
            head=mail.head,
            body=body,
            view=view,
            views=VIEWS,
            headers=mail.headers if view == "headers" else [],
            links=links_in(body),
            origin=self._hooks.origin(mail.head.message_id),
            text=text[:TEXT_MAX_CHARS],
            cut=len(text) > TEXT_MAX_CHARS,
        )

    def html(self, id: str) -> ResponseReturnValue:
        """Serve the HTML of the mail, with a policy that disables scripts, forms and remote content."""
        mail = self._storage.get(id)
        body = mail.body if mail else MailContent()
        if body.html is None:
            return self._gone()
        response = make_response(with_images(body.html, body.images))
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response

    def source(self, id: str) -> ResponseReturnValue:
        """Serve the bytes of the mail as plain text."""
        mail = self._storage.get(id)
        if mail is None:
            return self._gone()
        response = Response(mail.raw, content_type="text/plain; charset=utf-8")
        response.headers["Content-Security-Policy"] = _MAIL_POLICY
        return response

    def attachment(self, id: str, number: int) -> ResponseReturnValue:
        """Serve one attachment as a download; never shown in the browser, as it may be anything."""
        mail = self._storage.get(id)
        attachments = mail.body.attachments if mail else []
        if not 1 <= number <= len(attachments):
            return self._gone()
        attachment = attachments[number - 1]
        response = Response(attachment.data, content_type="application/octet-stream")
        name = re.sub(r"[^\w.() -]", "_", attachment.filename or "", flags=re.ASCII)[-100:]
        name = name.strip(" .") or f"attachment-{number}"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    def delete(self, id: str) -> ResponseReturnValue:
        """Delete one mail."""
        self._storage.forget(id)
        return self._back()

    def delete_all(self) -> ResponseReturnValue:
        """Delete all mails."""
        self._storage.clear()
        return self._back()

    def set_chaos(self) -> ResponseReturnValue:
        """Choose how the next mails fail, and how many of them."""
        name = request.form.get("failure", "")
        count = request.form.get("count", "1")
        number = int(count) if re.fullmatch("[0-9]{1,9}", count) else 1
        failure = Failure(name) if name in set(Failure) else None
        self._chaos.set(failure, max(1, min(COUNT_MAX, number)))
        return self._back()

    def _addresses(self) -> list[tuple[str, int]]:
        """Count the mails of each recipient; those with most mails first."""
        counts = Counter(to for mail in self._storage.newest() for to in mail.addresses)
        return counts.most_common(ADDRESSES_MAX)

    def _back(self) -> ResponseReturnValue:
        beside = "1" if "beside" in request.args else None
        return redirect(url_for("inbox.list", beside=beside), 303)

    def _gone(self) -> ResponseReturnValue:
        return self._page("gone"), 404

    def _page(self, name: str, **values: object) -> str:
        return render_template(f"inbox/{name}.html", hooks=self._hooks, **values)


class _InboxStream:
    """The lines of one event stream; however it ends, its slot is released once."""

    def __init__(
        self, storage: InboxStorage, slots: threading.BoundedSemaphore, may_read: Callable[[], bool]
    ) -> None:
        self._storage = storage
        self._may_read = may_read
        self._slots: threading.BoundedSemaphore | None = slots

    def __iter__(self) -> Iterator[str]:
        try:
            known = -1
            for _ in range(STREAM_SECONDS // HEARTBEAT_SECONDS):
                version = self._storage.wait_for_change(known, HEARTBEAT_SECONDS)
                if not self._may_read():
                    return
                yield f"data: {version}\n\n" if version != known else ": \n\n"
                known = version
                if self._storage.is_stopping:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """Release the slot; the server calls this too if the client leaves before the first line."""
        slots, self._slots = self._slots, None
        if slots:
            slots.release()


def with_images(html: str, images: dict[str, Image]) -> str:
    """Replace the cid: addresses in HTML by the pictures attached to the mail, as data: URLs.

    Stops at IMAGES_MAX_CHARS, as a small mail may refer to one big picture many times.
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
    """Write a size in bytes for people: 812 B, 1.2 kB, 34 MB."""
    if size < 1_000:
        return f"{size} B"
    if size < 999_500:
        number, unit = size / 1_000, "kB"
    else:
        number, unit = size / 1_000_000, "MB"
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"


def local_time(moment: datetime) -> str:
    """Write a time in this machine's time zone, with the date unless it is today."""
    local = moment.astimezone()
    same_day = local.date() == datetime.now(local.tzinfo).date()
    return f"{local:%H:%M:%S}" if same_day else f"{local:%Y-%m-%d %H:%M:%S}"


def _refreshes(to: str | None, words: str, page: int) -> bool:
    # A refresh would interrupt somebody who is typing a search or reading older mail.
    return to is None and not words and page == 1 and "still" not in request.args


def _view_text(mail: ReceivedMail, body: MailContent, view: str) -> str:
    if view == "text":
        return body.text or ""
    if view == "source":
        return mail.raw[: TEXT_MAX_CHARS * 4].decode("utf-8", "replace")
    return ""


def _add_security_headers(response: Response, policy: str) -> Response:
    headers = response.headers
    # Browsers send the origin "null" for a form on a page without referrer, as they do for a foreign form.
    is_mail = headers.get("Content-Security-Policy") == _MAIL_POLICY
    headers["Referrer-Policy"] = "no-referrer" if is_mail else "same-origin"
    headers.setdefault("Content-Security-Policy", policy)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-DNS-Prefetch-Control"] = "off"
    if request.endpoint != "inbox.static":
        headers["Cache-Control"] = "no-store"
    return response
