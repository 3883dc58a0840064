"""Who may ask: a client with the key, or, as long as there is none, whoever is on this very machine."""

import hmac
from urllib.parse import urlsplit

from flask import Response, request

from mailroom.api.problems import problem
from mailroom.api.services import services

#: Paths that tell nothing and change nothing, for load balancers and the tutorial's first check.
OPEN_PATHS = frozenset({"/ping", "/livez", "/readyz"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def check() -> Response | None:
    """The refusal of the present request, or None."""
    return None if request.path in OPEN_PATHS else refusal()


def refusal() -> Response | None:
    """Why whoever asks is not served, or None if it is the one who may."""
    key = services().settings.API_KEY
    return _check_key(key) if key else check_local()


def _check_key(key: str) -> Response | None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode()):
        return None
    return _refused("expected the header `Authorization: Bearer <API key>`, got "
                    + ("another key" if given else "none"), "invalid_api_key" if given else "missing_api_key")


def check_local() -> Response | None:
    """Without a key: a page of another site that a browser here has open, and a proxy, are not this machine's user.

    That HOST is loopback where there is no key was looked at at the start (settings.py).
    """
    host = _host_of(f"//{request.host}")
    if host not in _LOCAL_NAMES:
        return _refused(f"without an API key only localhost is served, and the Host header names {host!r}; set MAILASYNC_API_KEY",
                        "missing_api_key")
    forwarded = [name for name, _ in request.headers if name.lower() == "forwarded" or name.lower().startswith("x-forwarded-")]
    if forwarded:
        return _refused(f"without an API key no proxy is served, and the header {forwarded[0]} is there; set MAILASYNC_API_KEY",
                        "missing_api_key")
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) not in _LOCAL_NAMES:
        return _refused(f"without an API key no other site's page is served, and the Origin header names {origin!r}", "missing_api_key")
    return None


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _refused(detail: str, code: str) -> Response:
    return problem(401, code, "Not served without the API key", detail, headers={"WWW-Authenticate": "Bearer"})
