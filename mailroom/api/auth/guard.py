"""Serves a client that has an API key, as far as the key's scopes allow.

As long as no key exists, clients on this machine are served without one.
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
from mailroom.process.installation import PROGRAM
from mailroom.store.keys.api_keys import CACHE_SECONDS, ApiKey, ApiKeys, Scope, hashed
from mailroom.store.keys.rate_limits import Charge

#: Paths that need no key, as they reveal and change nothing: for load balancers and a first check.
OPEN_PATHS = frozenset({"/ping", "/livez", "/readyz", "/sign-in"})
#: Paths whose last part is a secret itself, and the styles and scripts of pages, which are not secret.
OPEN_PREFIXES = ("/unsubscribe/", "/static/web/")
KEY_HEADER = "X-API-Key"
#: A body that took longer than this to arrive has its key checked again: the key may have been revoked.
BODY_SECONDS = CACHE_SECONDS
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ADVICE = f"set MAILASYNC_API_KEY, or make a key with `{PROGRAM} keys create`"
_EXPECTED_KEY = (
    "expected an API key as `Authorization: Bearer <API key>`, as `X-API-Key`, "
    "or as the password of any user"
)
_CHALLENGES = ('Bearer realm="mailasync"', 'Basic realm="mailasync", charset="UTF-8"')

#: Stands for the key in the setting API_KEY.
DEFAULT = ApiKey(id="default", name="default", scopes=frozenset({Scope.ADMIN}))
#: Stands for a client on this machine where no key is needed.
LOCAL = ApiKey(id="", name="this machine", scopes=frozenset({Scope.ADMIN}))
_NOBODY = ApiKey(id="", name="nobody", scopes=frozenset())


def check() -> Response | None:
    """Return the refusal of the current request, or None if it is allowed."""
    if _is_open():
        return None
    return refusal() or _beyond_scope(current_key())


def check_alone(api_key: str) -> Response | None:
    """Return the refusal of a request to an inbox that runs alone, or None if it is allowed.

    Such an inbox has no database, and so `api_key` is its only key; "" if it needs none.
    """
    return None if _is_open() else _refusal(api_key, None)


def refusal() -> Response | None:
    """Return the refusal of a client without a valid key, or None if it has one or needs none."""
    ours = services()
    try:
        return _refusal(
            ours.settings.API_KEY, ours.api_keys, always=not ours.settings.listens_on_loopback
        )
    except StoreUnavailable as e:
        return unavailable(e)


def current_key() -> ApiKey:
    """Return the key of the current request.

    Its `id` is "" if no key was needed; on an open path it has no scopes.
    """
    key: ApiKey = g.get("api_key", _NOBODY)
    return key


def access_check() -> Callable[[], bool]:
    """Return a function that says later, in any thread, whether the client of this request is still allowed.

    Its key may have been revoked since, or its browser signed out. It is not while the database is away.
    """
    ours, key = services(), current_key()
    session, browsers = sessions.current(), sessions.sessions()

    def is_served() -> bool:
        with suppress(StoreUnavailable):
            has_ended = session and browsers.has_ended(session)
            return not has_ended and is_valid(key, ours)
        return False

    return is_served


def is_valid(key: ApiKey, ours: Services) -> bool:
    """Tell whether a key is still valid and unchanged. Raises StoreUnavailable."""
    if key is LOCAL:
        return not needs_key_of(ours)
    if key is DEFAULT:
        return True
    row = ours.api_keys.usable(key.id)
    return row is not None and row.key == key


def check_anew() -> None:
    """Abort if the client is no longer allowed; called before an answer for which it waited."""
    if refused := check():
        abort(refused)


def check_after_body() -> Response | None:
    """Check the request again if its body took longer than BODY_SECONDS; return its refusal, or None."""
    return check() if time.monotonic() - g.began > BODY_SECONDS else None


def check_sender(address: str, *, pointer: str = "#/from") -> None:
    """Abort with 403 unless the key of this request may send from this address.

    `pointer` is the field with the address, as a JSON pointer.
    """
    key = current_key()
    if key.may_send_from(address):
        return
    detail = (
        f"expected a sender that the key {key.id} ({key.name}) may use, {' or '.join(key.senders)}, "
        f"got {address[:320]!r}"
    )
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
    """Return the charge of `count` messages to the key of this request; None if it has no rate limit.

    The charge is debited in the commit of the messages.

    Raises:
      InvalidMessage: the key may never send that many at once.
    """
    key = current_key()
    if key.per_minute is None:
        return None
    if count > key.per_minute:
        detail = (
            f"expected at most {key.per_minute} messages, which is what the key {key.id} ({key.name}) "
            f"may send in a minute, got {count}"
        )
        raise InvalidMessage([FieldError("#", detail)])
    g.charge = Charge(key_id=key.id, per_minute=key.per_minute, count=count)
    return g.charge  # type: ignore[no-any-return]  # Flask's g holds anything


def _is_open() -> bool:
    path = request.path
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _refusal(api_key: str, keys: ApiKeys | None, *, always: bool = False) -> Response | None:
    if not (api_key or always or (keys and keys.are_there())):
        g.api_key = LOCAL
        return _check_local()
    if secret := _secret():
        return _enter_by_secret(secret, api_key, keys)
    key = _session_key(api_key, keys)
    if key is None:
        return _refused(f"{_EXPECTED_KEY}, got none", challenges=_CHALLENGES)
    g.api_key = key
    return sessions.refuse_form()


def _enter_by_secret(secret: str, api_key: str, keys: ApiKeys | None) -> Response | None:
    """Serve the request as that of the key with this secret; return its refusal, or None."""
    key = key_with_secret(secret, api_key, keys)
    if key is None:
        return _refuse_wrong()
    g.api_key = key
    return _refuse_other_site()


def find_key(secret: str) -> ApiKey | None:
    """Return the key with this secret; None if there is none. Raises StoreUnavailable."""
    return key_with_secret(secret, services().settings.API_KEY, services().api_keys)


def enter_by_session() -> bool:
    """Serve the request as that of the key with which the browser signed in; return False if it did not.

    This is for open paths, where `check` does not look at sessions. Raises StoreUnavailable.
    """
    key = _session_key(services().settings.API_KEY, services().api_keys)
    if key:
        g.api_key = key
    return key is not None


def needs_key() -> bool:
    """Tell whether a client on this machine needs a key, too. Raises StoreUnavailable."""
    return needs_key_of(services())


def needs_key_of(ours: Services) -> bool:
    """Do what `needs_key` does, outside of a request."""
    return (
        bool(ours.settings.API_KEY)
        or not ours.settings.listens_on_loopback
        or ours.api_keys.are_there()
    )


def key_with_secret(secret: str, api_key: str, keys: ApiKeys | None) -> ApiKey | None:
    """Return API_KEY or the key in the database with this secret; None if it is neither."""
    # Hashes are compared, so that the time it takes reveals nothing of the key, nor its length.
    if hmac.compare_digest(hashed(secret), hashed(api_key)) and api_key:
        return DEFAULT
    return keys.find(secret) if keys else None


def _session_key(api_key: str, keys: ApiKeys | None) -> ApiKey | None:
    """Return the key with which this browser signed in; None if it did not, or the key is no longer valid."""
    session = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    if session is None or not session.key_id:
        return None
    if session.key_id == DEFAULT.id:
        key, hash = DEFAULT, hashed(api_key)
    elif keys is None or (row := keys.usable(session.key_id)) is None:
        return None
    else:
        key, hash = row.key, row.hash
    if not hmac.compare_digest(session.mark, sessions.mark(hash)) or (
        key is DEFAULT and not api_key
    ):
        return None
    if keys and key is not DEFAULT:
        keys.note_used(key.id)
    g.session = session
    return key


def _secret() -> str:
    """Return the API key in the request's header, "" if there is none."""
    if KEY_HEADER in request.headers:
        return request.headers[KEY_HEADER].strip()
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        basic = request.authorization
        return (basic.password or "") if basic else ""
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _beyond_scope(key: ApiKey) -> Response | None:
    """Return the refusal of a key whose scopes do not allow the current request, or None."""
    missing = lacking(key)
    if not missing:
        return None
    expected = " or ".join(dict.fromkeys([*missing, Scope.ADMIN]))
    return problem(
        403,
        "restricted_api_key",
        "The API key may not do this",
        f"expected a key with the scope {expected}, "
        f"got {key.id} ({key.name}) with {', '.join(sorted(key.scopes))}",
        scopes=list(missing),
    )


def _refuse_other_site() -> Response | None:
    """Return the refusal of a request from another site's page, or None.

    A browser adds a password that it remembers to such a request by itself (CSRF), and a form's POST has no
    preflight.
    """
    basic = request.headers.get("Authorization", "").lower().startswith("basic ")
    if not basic or KEY_HEADER in request.headers or request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site and site in ("same-origin", "none"):
        return None
    if not site and (origin is None or origin.partition("://")[2] == request.host):
        return None
    return problem(
        403,
        "cross_site_request",
        "Another site's page may not use the browser's password",
        f"expected a request of this site, got one of {origin or site!r}; "
        "send the key as `Authorization: Bearer <API key>`",
    )


def _check_local() -> Response | None:
    """Return the refusal of a request without a key that another site's page or a proxy made, or None.

    Both connect from this machine, but not for its user. On any HOST but loopback a key is always needed.
    """
    environ, host_header = request.environ, request.host
    host = _host_of(f"//{host_header}")
    if host not in _LOCAL_NAMES:
        return _refused(
            f"without an API key only localhost is served, and the Host header names {host!r}; {_ADVICE}"
        )
    if sign := _sign_of_proxy(environ):
        return _refused(f"without an API key no proxy is served, and {sign}; {_ADVICE}")
    if peer.is_own(environ) is False:
        return _refused(
            "without an API key only processes of this service's own user and of root are served, "
            f"and the connection is another's, perhaps a proxy's; {_ADVICE}"
        )
    origin = environ.get("HTTP_ORIGIN")
    # A page on another port of this machine is another site, too.
    if origin is not None and origin != f"{request.scheme}://{host_header}":
        return _refused(
            f"without an API key no other site's page is served, and the Origin header names {origin!r}"
        )
    return None


def _sign_of_proxy(environ: Mapping[str, Any]) -> str:
    """Say what shows that a request came through a proxy; "" if nothing does."""
    for name in environ:  # Faster than request.headers, which first rewrites each of these names.
        if name in ("HTTP_FORWARDED", "HTTP_VIA") or name.startswith("HTTP_X_FORWARDED_"):
            return f"the header {name.removeprefix('HTTP_').replace('_', '-').title()} is there"
    # The default of nginx before 1.29.7 towards an upstream, and it adds no header field of its own.
    is_old = environ.get("SERVER_PROTOCOL") in ("HTTP/1.0", "HTTP/1")
    return "the request is HTTP/1.0, as proxies send it" if is_old else ""


def _refuse_wrong() -> Response:
    """Answer 401 to a wrong key, or 429 if too many came from the client's address."""
    seconds = note_wrong_key()
    if not seconds:
        return _refused(f"{_EXPECTED_KEY}, got another key", "invalid_api_key", _CHALLENGES)
    return problem(
        429,
        "too_many_wrong_keys",
        "Too many wrong API keys came from this address",
        f"{_EXPECTED_KEY}, got another key; correct it, or wait {seconds} s",
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
    response = problem(401, code, "Not served without an API key", detail)
    for challenge in challenges:
        # In fields of their own: some browsers read only the first challenge of a field.
        response.headers.add("WWW-Authenticate", challenge)
    return response
