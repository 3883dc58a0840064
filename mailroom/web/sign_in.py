"""The sign-in page: signs a browser in with an API key, if the service needs one."""

import hmac

from flask import Blueprint, Response, g, request

from mailroom.api.auth import guard, sessions
from mailroom.api.auth.wrong_keys import note_wrong_key
from mailroom.store.keys.api_keys import ApiKey, hashed
from mailroom.web.layout import SIGN_IN, done, finish, here, home, page, pages, see

#: The largest body of the form, which anybody may send.
FORM_MAX_BYTES = 16_384

#: Not made by pages(), whose forms need the token of a signed-in browser; sign_in() checks its own.
blueprint = Blueprint("sign_in", __name__)
blueprint.after_request(finish)
sign_out_blueprint = pages("sign_out")


@blueprint.get(SIGN_IN)
def ask() -> Response:
    """Show the form, unless no key is needed or this browser is signed in."""
    if not guard.needs_key() or guard.enter_by_session():
        start = home() if sessions.current() else "/dashboard"
        return see(here(request.args.get("next", "")) or start)
    return _form()


@blueprint.post(SIGN_IN)
def sign_in() -> Response:
    """Check the key, and begin a session, whose signed cookie names the key."""
    request.max_content_length = FORM_MAX_BYTES
    if guard.enter_by_session():  # The browser was signed in by another window in the meantime.
        return see(here(request.form.get("next", "")) or home())
    began = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    token = sessions.sessions().token("", began.nonce) if began else ""
    is_valid = hmac.compare_digest(request.form.get(sessions.FIELD, "").encode(), token.encode())
    if not token or not is_valid:
        return _form(
            403,
            "This form has expired, or the browser keeps no cookies for this site. Please try again.",
        )
    secret = request.form.get("key", "").strip()
    key = guard.find_key(secret) if secret else None
    if key is None:
        return _refuse(secret)
    g.api_key = key
    return enter(see(here(request.form.get("next", "")) or home()), key, hashed(secret))


@sign_out_blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session, in all copies of its cookie."""
    if session := sessions.sessions().read(request.cookies.get(sessions.COOKIE, "")):
        sessions.sessions().end(session)
    response = done(SIGN_IN if guard.needs_key() else "/dashboard", "signed-out")
    response.delete_cookie(sessions.COOKIE)
    return response


def enter(response: Response, key: ApiKey, key_hash: str) -> Response:
    """Sign the browser in with this key."""
    return sessions.sessions().give(response, sessions.sessions().begin(key.id, key_hash))


def _refuse(secret: str) -> Response:
    """Show the form with the reason; wrong keys count towards the same limit as those in API requests."""
    if not secret:
        return _form(403, "Please enter an API key.")
    seconds = note_wrong_key()
    if not seconds:
        return _form(403, "This is not an API key of this service.")
    response = _form(429, f"Too many wrong keys came from your address. Try again in {seconds} s.")
    response.headers["Retry-After"] = str(seconds)
    return response


def _form(status: int = 200, error: str = "") -> Response:
    """Show the form, with a token of a session without a key; one that another window began is used again."""
    session = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    began = session if session and not session.key_id else sessions.sessions().begin()
    next = here(request.values.get("next", ""))
    response = page(
        "sign_in.html",
        status=status,
        error=error,
        next=next,
        own_token=sessions.sessions().token("", began.nonce),
    )
    return sessions.sessions().give(response, began)
