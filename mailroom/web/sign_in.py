"""Signing in with an API key, where one is needed."""

import hmac

from flask import Blueprint, Response, g, request

from mailroom.api.auth import guard, sessions
from mailroom.api.auth.wrong_keys import note_wrong_key
from mailroom.store.keys.api_keys import ApiKey, hashed
from mailroom.web.layout import SIGN_IN, done, finish, here, home, page, pages, see

#: Of the form, which anybody may send.
FORM_MAX_BYTES = 16_384

#: Without the check of the form's token by whoever is signed in: nobody is.
blueprint = Blueprint("sign_in", __name__)
blueprint.after_request(finish)
sign_out_blueprint = pages("sign_out")


@blueprint.get(SIGN_IN)
def ask() -> Response:
    """Ask for the key, unless none is needed, or this browser has signed in."""
    if not guard.needs_key() or guard.enter_by_session():
        return see(here(request.args.get("next", "")) or (home() if sessions.current() else "/dashboard"))
    return _asking()


@blueprint.post(SIGN_IN)
def sign_in() -> Response:
    """Take the key, and remember in a signed cookie whose it is."""
    request.max_content_length = FORM_MAX_BYTES
    if guard.enter_by_session():  # In another window, since this form was shown.
        return see(here(request.form.get("next", "")) or home())
    began = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    token = sessions.sessions().token("", began.nonce) if began else ""
    if not hmac.compare_digest(request.form.get(sessions.FIELD, "").encode(), token.encode()) or not token:
        return _asking(
            403,
            "This form was not valid any more, or the browser keeps no cookies for this site. Try once more.",
        )
    given = request.form.get("key", "").strip()
    key = guard.known(given) if given else None
    if key is None:
        return _refuse(given)
    g.api_key = key
    return enter(see(here(request.form.get("next", "")) or home()), key, hashed(given))


@sign_out_blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session, for whoever has its cookie."""
    if found := sessions.sessions().read(request.cookies.get(sessions.COOKIE, "")):
        sessions.sessions().end(found)
    answer = done(SIGN_IN if guard.needs_key() else "/dashboard", "signed-out")
    answer.delete_cookie(sessions.COOKIE)
    return answer


def enter(answer: Response, key: ApiKey, key_hash: str) -> Response:
    """Have the browser be signed in with this key."""
    return sessions.sessions().give(answer, sessions.sessions().begin(key.id, key_hash))


def _refuse(given: str) -> Response:
    """The form again, and why; wrong keys are counted together with those that come without a form."""
    if not given:
        return _asking(403, "Expected an API key, got none.")
    seconds = note_wrong_key()
    if not seconds:
        return _asking(403, "Expected an API key of this service, got another.")
    answer = _asking(429, f"Too many wrong keys came from here. Try again in {seconds} s.")
    answer.headers["Retry-After"] = str(seconds)
    return answer


def _asking(status: int = 200, wrong: str = "") -> Response:
    """The form, with a session that has no key yet and a token of it; a form in another window stays valid."""
    found = sessions.sessions().read(request.cookies.get(sessions.COOKIE, ""))
    began = found if found and not found.key_id else sessions.sessions().begin()
    next = here(request.values.get("next", ""))
    answer = page(
        "sign_in.html",
        status=status,
        wrong=wrong,
        next=next,
        own_token=sessions.sessions().token("", began.nonce),
    )
    return sessions.sessions().give(answer, began)
