"""Unsubscribing with one click (RFC 8058): open to everybody who has the link, and reveals nothing else.

A GET changes nothing, as mail scanners follow every link. A mail program sends the POST by itself; the button
on the page sends the same request.
"""

import base64
import hashlib

from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from mailroom.api.services import services

#: More than the field List-Unsubscribe=One-Click needs, as a URL-encoded or a multipart form.
BODY_MAX_BYTES = 4096
_STYLE = (
    "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1rem}"
    "button{font:inherit;padding:.5rem 1rem}"
)
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
    "<title>Unsubscribe</title><style>{style}</style></head><body>{body}</body></html>"
)
_FORM = (
    "<h1>Unsubscribe</h1><p>No more mail to the address that this link was sent to?</p>"
    '<form method="post"><button name="List-Unsubscribe" value="One-Click">Unsubscribe</button></form>'
)
_DONE = "<h1>Unsubscribed</h1><p>This address gets no more mail from here.</p>"
_UNKNOWN = "<h1>Not found</h1><p>This link is not valid, or not any more.</p>"
_NO_CLICK = "<h1>Nothing was changed</h1><p>Expected the form field List-Unsubscribe=One-Click.</p>"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

blueprint = Blueprint("unsubscribe", __name__)


@blueprint.get("/unsubscribe/<token>")
def ask(token: str) -> Response:
    """Show a page with a button; changes nothing."""
    return _page(_FORM) if services().unsubscribes.is_known(token) else _page(_UNKNOWN, 404)


@blueprint.post("/unsubscribe/<token>")
def unsubscribe(token: str) -> Response:
    """Stop all mail to the recipient of this link."""
    if not services().unsubscribes.is_known(token):
        return _page(_UNKNOWN, 404)
    if not _is_click():
        return _page(_NO_CLICK, 400)
    services().unsubscribes.unsubscribe(token)
    return _page(_DONE)


def _is_click() -> bool:
    request.max_content_length = BODY_MAX_BYTES
    try:
        return request.form.get("List-Unsubscribe") == "One-Click"
    except RequestEntityTooLarge:
        return False


def _page(body: str, status: int = 200) -> Response:
    return Response(
        _PAGE.format(style=_STYLE, body=body),
        status=status,
        content_type="text/html; charset=utf-8",
        headers=_HEADERS,
    )
