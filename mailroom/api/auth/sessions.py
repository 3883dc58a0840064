"""A browser that signed in with an API key: a signed cookie that names the key, and a token that its forms carry.

The cookie alone lets it read. Whatever changes something also needs the token, which no page of another site can know (CSRF); pages
ask for it of everybody, signed in or not.
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
#: Where the token comes: in a form, or where a script sends what is none.
FIELD = "token"
HEADER = "X-Form-Token"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_EXTENSION = "mailasync sessions"


@dataclass(frozen=True, kw_only=True)
class BrowserSession:
    """The content of the cookie. Before somebody has signed in it names no key."""

    key_id: str = ""
    mark: str = ""  #: of the key's hash: another key of the same name ends the session
    nonce: str  #: by which it is ended


class BrowserSessions:
    """Signs cookies and tokens, and reads them. Without `sign_outs` nobody can sign in.

    `secret` is asked for when it is first needed, and may raise StoreUnavailable.
    """

    def __init__(self, secret: Callable[[], bytes], sign_outs: SignOuts | None = None) -> None:
        self._ask = secret
        self._sign_outs = sign_outs

    def begin(self, key_id: str = "", key_hash: str = "") -> BrowserSession:
        return BrowserSession(
            key_id=key_id, mark=mark(key_hash) if key_id else "", nonce=secrets.token_urlsafe(12)
        )

    def read(self, cookie: str) -> BrowserSession | None:
        """The session, unless it is another's, or over. Raises StoreUnavailable."""
        if not cookie:
            return None
        try:
            found = BrowserSession(**self._cookies.loads(cookie, max_age=LIFETIME_SECONDS))
        except (BadData, TypeError):
            return None
        return None if self.has_ended(found) else found

    def has_ended(self, session: BrowserSession) -> bool:
        """Tell whether somebody signed out of it. Raises StoreUnavailable."""
        return bool(session.key_id and self._sign_outs and self._sign_outs.has(session.nonce))

    def end(self, session: BrowserSession) -> None:
        """Sign out of it, in every window and web process. Raises StoreUnavailable."""
        if session.key_id and self._sign_outs:
            self._sign_outs.add(session.nonce)

    def give(self, answer: Response, session: BrowserSession) -> Response:
        """Have the browser send it with each request from now on."""
        answer.set_cookie(
            COOKIE,
            self._cookies.dumps(asdict(session)),
            max_age=LIFETIME_SECONDS,
            httponly=True,
            samesite="Lax",
            secure=is_https(),
        )
        return answer

    def token(self, key_id: str, nonce: str) -> str:
        return hmac.digest(self._secret, f"form {key_id} {nonce}".encode(), hashlib.sha256).hex()[:32]

    @cached_property
    def _secret(self) -> bytes:
        return self._ask()

    @cached_property
    def _cookies(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._secret, salt="session", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def attach(self, app: object) -> None:
        app.extensions[_EXTENSION] = self  # type: ignore[attr-defined]  # a Flask application


def is_https() -> bool:
    """Tell whether the browser speaks HTTPS, with us or with a proxy before us."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"


def current() -> BrowserSession | None:
    """By which the present request is served, where that is so."""
    found: BrowserSession | None = g.get("session")
    return found


def sessions() -> BrowserSessions:
    found: BrowserSessions = current_app.extensions[_EXTENSION]
    return found


def mark(key_hash: str) -> str:
    return hashlib.sha256(key_hash.encode()).hexdigest()[:16]


def form_token() -> str:
    """Return the token that a form of this request's page has to carry."""
    key: ApiKey | None = g.get("api_key")
    session = current()
    return sessions().token(key.id if key else "", session.nonce if session else "")


def refuse_form() -> Response | None:
    """The refusal of a request that changes something and comes from no form of ours, or None."""
    if request.method in SAFE or hmac.compare_digest(
        (request.headers.get(HEADER) or request.form.get(FIELD, "")).encode(), form_token().encode()
    ):
        return None
    return problem(
        403,
        "wrong_form_token",
        "This form is not valid any more",
        "expected a form of this page with its token, got another; go back, load the page again, and send it once more",
    )
