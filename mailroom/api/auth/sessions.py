"""Sessions of browsers that signed in with an API key: a signed cookie that names the key, and a form token.

The cookie alone allows reading. A request that changes something also needs the token, which a page of
another site cannot know (CSRF). Web pages require it of every browser, signed in or not.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

from flask import Response, current_app, g, request
from itsdangerous import BadData, URLSafeTimedSerializer

from mailroom.api.problems import problem
from mailroom.store.keys.api_keys import ApiKey
from mailroom.store.keys.sign_outs import LIFETIME_SECONDS, SignOuts

COOKIE = "mailasync_session"
#: The token is in this field of a form, or in this header field of a script's request.
FIELD = "token"
HEADER = "X-Form-Token"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_EXTENSION = "mailasync sessions"


@dataclass(frozen=True, kw_only=True)
class BrowserSession:
    """The content of the cookie; `key_id` is "" before the browser has signed in."""

    key_id: str = ""
    mark: str = ""  #: made from the key's hash, so that a new key of the same id ends the session
    nonce: str  #: names the session where it is recorded as signed out


class BrowserSessions:
    """Signs cookies and tokens, and reads them. Without `sign_outs` no browser can sign in.

    `secret` is called when it is first needed, and may raise StoreUnavailable.
    """

    def __init__(self, secret: Callable[[], bytes], sign_outs: SignOuts | None = None) -> None:
        self._read_secret = secret
        self._sign_outs = sign_outs

    def begin(self, key_id: str = "", key_hash: str = "") -> BrowserSession:
        key_mark = mark(key_hash) if key_id else ""
        return BrowserSession(key_id=key_id, mark=key_mark, nonce=secrets.token_urlsafe(12))

    def read(self, cookie: str) -> BrowserSession | None:
        """Return the session; None if it is forged, too old, or signed out. Raises StoreUnavailable."""
        if not cookie:
            return None
        try:
            session = BrowserSession(**self._cookies.loads(cookie, max_age=LIFETIME_SECONDS))
        except (BadData, TypeError):
            return None
        return None if self.has_ended(session) else session

    def has_ended(self, session: BrowserSession) -> bool:
        """Tell whether the session was signed out. Raises StoreUnavailable."""
        return bool(session.key_id and self._sign_outs and self._sign_outs.has(session.nonce))

    def end(self, session: BrowserSession) -> None:
        """Sign the session out, in every window and web process. Raises StoreUnavailable."""
        if session.key_id and self._sign_outs:
            self._sign_outs.add(session.nonce)

    def give(self, response: Response, session: BrowserSession) -> Response:
        """Set the session's cookie, which the browser sends with each request from then on."""
        response.set_cookie(
            COOKIE,
            self._cookies.dumps(asdict(session)),
            max_age=LIFETIME_SECONDS,
            httponly=True,
            samesite="Lax",
            secure=is_https(),
        )
        return response

    def token(self, key_id: str, nonce: str) -> str:
        return hmac.digest(self._secret, f"form {key_id} {nonce}".encode(), hashlib.sha256).hex()[
            :32
        ]

    @cached_property
    def _secret(self) -> bytes:
        return self._read_secret()

    @cached_property
    def _cookies(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._secret, salt="session", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def attach(self, app: object) -> None:
        app.extensions[_EXTENSION] = self  # type: ignore[attr-defined]  # a Flask application


def is_https() -> bool:
    """Tell whether the browser uses HTTPS, with this service or with a proxy in front of it."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"


def current() -> BrowserSession | None:
    """Return the session of the current request; None if it has none, or came with an API key."""
    session: BrowserSession | None = g.get("session")
    return session


def sessions() -> BrowserSessions:
    attached: BrowserSessions = current_app.extensions[_EXTENSION]
    return attached


def mark(key_hash: str) -> str:
    return hashlib.sha256(key_hash.encode()).hexdigest()[:16]


def form_token() -> str:
    """Return the token that a form of this request's page has to carry."""
    key: ApiKey | None = g.get("api_key")
    session = current()
    key_id = key.id if key else ""
    return sessions().token(key_id, session.nonce if session else "")


def refuse_form() -> Response | None:
    """Return the refusal of a request that changes something and has no valid form token, or None."""
    if request.method in SAFE:
        return None
    token = request.headers.get(HEADER) or request.form.get(FIELD, "")
    if hmac.compare_digest(token.encode(), form_token().encode()):
        return None
    return problem(
        403,
        "wrong_form_token",
        "This form is not valid any more",
        "expected a form of this page with its token, got another; "
        "go back, load the page again, and send it once more",
    )
