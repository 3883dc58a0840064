"""Lets in a client with a key, for what the key's scopes allow.

As long as there is no key, whoever is on this very machine may ask.
"""

import hmac
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from flask import Response, abort, g, request

from mailroom.api.auth import peer, sessions
from mailroom.api.auth.scopes import lacking
from mailroom.api.auth.wrong_keys import note_wrong_key
from mailroom.api.problems import problem, unavailable
from mailroom.api.services import Services, services
from mailroom.model.errors import FieldError, InvalidMessage, StoreUnavailable
from mailroom.store.keys.api_keys import CACHE_SECONDS, ApiKey, ApiKeys, Scope, hashed
from mailroom.store.keys.rate_limits import Charge

#: Paths that tell nothing and change nothing, for load balancers and the tutorial's first check.
OPEN_PATHS = frozenset({"/ping", "/livez", "/readyz", "/sign-in"})
#: Paths whose last part is a secret by itself, and the style and script of pages, which are no secret.
OPEN_PREFIXES = ("/unsubscribe/", "/static/web/")
KEY_HEADER = "X-API-Key"
#: What came sooner was asked for by a key as this process knew it.
BODY_SECONDS = CACHE_SECONDS
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WAY_OUT = "set MAILASYNC_API_KEY, or make a key with `flask keys create`"
_EXPECTED = (
    "expected an API key as `Authorization: Bearer <API key>`, as `X-API-Key`, or as the password of any user"
)
_CHALLENGES = ('Bearer realm="mailasync"', 'Basic realm="mailasync", charset="UTF-8"')

#: The one of the setting API_KEY.
DEFAULT = ApiKey(id="default", name="default", scopes=frozenset({Scope.ADMIN}))
#: This machine's user, where no key is needed.
LOCAL = ApiKey(id="", name="this machine", scopes=frozenset({Scope.ADMIN}))
_NOBODY = ApiKey(id="", name="nobody", scopes=frozenset())


def check() -> Response | None:
    """The refusal of the present request, or None."""
    if _is_open():
        return None
    return refusal() or _beyond_scope(current_key())


def check_alone(api_key: str) -> Response | None:
    """Return the refusal of a request to the inbox that runs alone, or None.

    There is no database then, and so no other key.
    """
    return None if _is_open() else _refusal(api_key, None)


def refusal() -> Response | None:
    """Return the refusal of whoever asks, or None if it is one who may ask for something."""
    here = services()
    try:
        return _refusal(here.settings.API_KEY, here.api_keys, always=not here.settings.listens_on_loopback)
    except StoreUnavailable as e:
        return unavailable(e)


def current_key() -> ApiKey:
    """Whose request this is. Its `id` is "" where no key was needed; on an open path it has no scope."""
    key: ApiKey = g.get("api_key", _NOBODY)
    return key


def standing() -> Callable[[], bool]:
    """Return what tells later, in any thread, whether who asks is still served.

    A key may have been revoked since, or a browser signed out. Nobody is while the database cannot say so.
    """
    here, key, signed_in, browsers = services(), current_key(), sessions.current(), sessions.sessions()

    def is_served() -> bool:
        with suppress(StoreUnavailable):
            return not (signed_in and browsers.has_ended(signed_in)) and _is_valid(key, here)
        return False

    return is_served


def _is_valid(key: ApiKey, here: Services) -> bool:
    """Tell whether this key, by which somebody was served a moment ago, is as it was. Raises StoreUnavailable."""
    if key is LOCAL:
        return not _needs_key(here)
    if key is DEFAULT:
        return True
    row = here.api_keys.usable(key.id)
    return row is not None and row.key == key


def check_anew() -> None:
    """Answer with the refusal where who asks is no longer served: before an answer that was waited for."""
    if refused := check():
        abort(refused)


def check_after_body() -> Response | None:
    """Look again where a body took so long to come that its key may have been revoked meanwhile."""
    return check() if time.monotonic() - g.began > BODY_SECONDS else None


def check_sender(address: str, *, pointer: str = "#/from") -> None:
    """Answer 403 unless the key of this request may send from this address."""
    key = current_key()
    if not key.may_send_from(address):
        detail = f"expected a sender that the key {key.id} ({key.name}) may use, {' or '.join(key.senders)}, got {address[:320]!r}"
        abort(
            problem(
                403,
                "invalid_from_address",
                "The key may not send from this address",
                detail,
                errors=[{"pointer": pointer, "detail": detail}],
            )
        )


def charge(count: int = 1) -> Charge | None:
    """Return what so many messages cost the key of this request; None where it has no limit.

    The charge is debited with them.

    Raises:
      InvalidMessage: it may never send so many at once.
    """
    key = current_key()
    if key.per_minute is None:
        return None
    if count > key.per_minute:
        raise InvalidMessage(
            [
                FieldError(
                    "#",
                    f"expected at most {key.per_minute} messages, which is what the key {key.id} ({key.name}) "
                    f"may send in a minute, got {count}",
                )
            ]
        )
    g.charge = Charge(key_id=key.id, per_minute=key.per_minute, count=count)
    return g.charge  # type: ignore[no-any-return]  # Flask's g holds anything


def _is_open() -> bool:
    path = request.path
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _refusal(api_key: str, keys: ApiKeys | None, *, always: bool = False) -> Response | None:
    if not (api_key or always or (keys and keys.are_there())):
        g.api_key = LOCAL
        return _check_local()
    given = _given()
    key = _known(given, api_key, keys) if given else None
    if key is None and not given and (key := _of_session(api_key, keys)):
        g.api_key = key
        return sessions.refuse_form()
    if key is None:
        return _refuse_wrong() if given else _refused(f"{_EXPECTED}, got none", challenges=_CHALLENGES)
    g.api_key = key
    return _from_another_site()


def known(given: str) -> ApiKey | None:
    """Whose key this is. Raises StoreUnavailable."""
    return _known(given, services().settings.API_KEY, services().api_keys)


def enter_by_session() -> bool:
    """Tell whether this browser is signed in, and make the request its key's if so. Raises StoreUnavailable.

    This is for paths where nobody was asked who he is.
    """
    key = _of_session(services().settings.API_KEY, services().api_keys)
    if key:
        g.api_key = key
    return key is not None


def needs_key() -> bool:
    """Tell whether nobody is served without a key. Raises StoreUnavailable."""
    return _needs_key(services())


def _needs_key(here: Services) -> bool:
    return bool(here.settings.API_KEY) or not here.settings.listens_on_loopback or here.api_keys.are_there()


def _known(given: str, api_key: str, keys: ApiKeys | None) -> ApiKey | None:
    # Both are compared whatever the first says, and hashed, so that the time tells neither which one it was nor how long it is.
    is_default = hmac.compare_digest(hashed(given), hashed(api_key)) and bool(api_key)
    return DEFAULT if is_default else keys.find(given) if keys else None


def _of_session(api_key: str, keys: ApiKeys | None) -> ApiKey | None:
    """The key that this browser signed in with, as long as it is one."""
    found = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    if found is None or not found.key_id:
        return None
    if found.key_id == DEFAULT.id:
        key, hash = DEFAULT, hashed(api_key)
    elif keys is None or (row := keys.usable(found.key_id)) is None:
        return None
    else:
        key, hash = row.key, row.hash
    if not hmac.compare_digest(found.mark, sessions.mark(hash)) or (key is DEFAULT and not api_key):
        return None
    if keys and key is not DEFAULT:
        keys.note_used(key.id)
    g.session = found
    return key


def _given() -> str:
    """The key that came, in whichever way; "" if none."""
    if KEY_HEADER in request.headers:
        return request.headers[KEY_HEADER].strip()
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        basic = request.authorization
        return (basic.password or "") if basic else ""
    return given.strip() if scheme.lower() == "bearer" else ""


def _beyond_scope(key: ApiKey) -> Response | None:
    wanted = lacking(key)
    if not wanted:
        return None
    expected = " or ".join(dict.fromkeys([*wanted, Scope.ADMIN]))
    return problem(
        403,
        "restricted_api_key",
        "The API key may not do this",
        f"expected a key with the scope {expected}, got {key.id} ({key.name}) with {', '.join(sorted(key.scopes))}",
        scopes=list(wanted),
    )


def _from_another_site() -> Response | None:
    """A browser adds the password that it knows to whatever another site's page sends here, with no preflight for a form."""
    basic = request.headers.get("Authorization", "").lower().startswith("basic ")
    if not basic or KEY_HEADER in request.headers or request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if (
        (site in ("same-origin", "none"))
        if site
        else (origin is None or origin.partition("://")[2] == request.host)
    ):
        return None
    return problem(
        403,
        "cross_site_request",
        "Another site's page may not use the browser's password",
        f"expected a request of this site, got one of {origin or site!r}; send the key as `Authorization: Bearer <API key>`",
    )


def _check_local() -> Response | None:
    """Without a key: a page of another site that a browser here has open, and a proxy, are not this machine's user.

    On any other HOST than loopback a key is always needed.
    """
    environ, host_header = request.environ, request.host
    host = _host_of(f"//{host_header}")
    if host not in _LOCAL_NAMES:
        return _refused(
            f"without an API key only localhost is served, and the Host header names {host!r}; {_WAY_OUT}"
        )
    if sign := _sign_of_proxy(environ):
        return _refused(f"without an API key no proxy is served, and {sign}; {_WAY_OUT}")
    if peer.is_own(environ) is False:
        return _refused(
            "without an API key only processes of this service's own user and of root are served, and the connection is "
            f"another's, perhaps a proxy's; {_WAY_OUT}"
        )
    origin = environ.get("HTTP_ORIGIN")
    if (
        origin is not None and origin != f"{request.scheme}://{host_header}"
    ):  # Another port is another site, maybe a careless one.
        return _refused(
            f"without an API key no other site's page is served, and the Origin header names {origin!r}"
        )
    return None


def _sign_of_proxy(environ: Mapping[str, Any]) -> str:
    """Name what shows that a request came through a proxy; "" if nothing does."""
    for name in environ:  # Not request.headers, which makes a header field's name of each of these first.
        if name in ("HTTP_FORWARDED", "HTTP_VIA") or name.startswith("HTTP_X_FORWARDED_"):
            return f"the header {name.removeprefix('HTTP_').replace('_', '-').title()} is there"
    # nginx before 1.29.7 speaks it to an upstream unless it is told otherwise, and adds no header of its own.
    is_old = environ.get("SERVER_PROTOCOL") in ("HTTP/1.0", "HTTP/1")
    return "the request is HTTP/1.0, as proxies send it" if is_old else ""


def _refuse_wrong() -> Response:
    """401 to a wrong key, and 429 where too many came from its address already."""
    seconds = note_wrong_key()
    if not seconds:
        return _refused(f"{_EXPECTED}, got another key", "invalid_api_key", _CHALLENGES)
    return problem(
        429,
        "too_many_wrong_keys",
        "Too many wrong API keys came from this address",
        f"{_EXPECTED}, got another key; correct it, or wait {seconds} s",
        headers={"Retry-After": str(seconds)},
    )


@lru_cache(256)
def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _refused(
    detail: str, code: str = "missing_api_key", challenges: tuple[str, ...] = ("Bearer",)
) -> Response:
    answer = problem(401, code, "Not served without an API key", detail)
    for (
        challenge
    ) in challenges:  # One header each: some browsers look at the first challenge of a header only.
        answer.headers.add("WWW-Authenticate", challenge)
    return answer
