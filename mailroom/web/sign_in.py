"""Signing in with an API key, where one is needed."""

import hmac
import threading
import time
from collections import OrderedDict, deque

from flask import Blueprint, Response, g, request

from mailroom.api import guard, session
from mailroom.store.keys import ApiKey, hashed
from mailroom.web.layout import SIGN_IN, done, finish, here, home, page, pages, see

#: Of one address, which may be a proxy's, in so many seconds. Past that the setting's key, which can perhaps be guessed, is not looked at;
#: one of `flask keys create` cannot, and lets its owner in.
WRONG_MAX = 10
WRONG_SECONDS = 60.0
#: Addresses that are remembered.
ADDRESSES_MAX = 1000

#: Without the check of the form's token by whoever is signed in: nobody is.
blueprint = Blueprint("sign_in", __name__)
blueprint.after_request(finish)
sign_out_blueprint = pages("sign_out")


class Wrongs:
    """How often wrong keys came from each address of late."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._turn = threading.Lock()

    def wait_seconds(self, address: str) -> int:
        """How long this address has to wait; 0: it may try."""
        with self._turn:
            times = self._times.get(address, deque())
            while times and times[0] < time.monotonic() - WRONG_SECONDS:
                times.popleft()
            return 0 if len(times) < WRONG_MAX else max(1, int(times[0] + WRONG_SECONDS - time.monotonic()) + 1)

    def note(self, address: str) -> None:
        with self._turn:
            self._times.setdefault(address, deque(maxlen=WRONG_MAX)).append(time.monotonic())
            self._times.move_to_end(address)
            while len(self._times) > ADDRESSES_MAX:
                self._times.popitem(last=False)


wrongs = Wrongs()


@blueprint.get(SIGN_IN)
def ask() -> Response:
    """Ask for the key, unless none is needed, or this browser has signed in."""
    if not guard.needs_key() or guard.enter_by_session():
        return see(here(request.args.get("next", "")) or (home() if session.current() else "/dashboard"))
    return _asking()


@blueprint.post(SIGN_IN)
def sign_in() -> Response:
    """Take the key, and remember in a signed cookie whose it is."""
    if guard.enter_by_session():  # In another window, since this form was shown.
        return see(here(request.form.get("next", "")) or home())
    began = session.sessions().read(request.cookies.get(session.COOKIE, ""))
    token = session.sessions().token("", began.nonce) if began else ""
    if not hmac.compare_digest(request.form.get(session.FIELD, "").encode(), token.encode()) or not token:
        return _asking(403, "This form was not valid any more, or the browser keeps no cookies for this site. Try once more.")
    address, given = request.remote_addr or "", request.form.get("key", "").strip()
    seconds = wrongs.wait_seconds(address)
    key = (guard.known_made(given) if seconds else guard.known(given)) if given else None
    if key is None and seconds:
        answer = _asking(429, f"Too many wrong keys came from here. Try again in {seconds} s.")
        answer.headers["Retry-After"] = str(seconds)
        return answer
    if key is None:
        wrongs.note(address)
        return _asking(403, "Expected an API key of this service, got another." if given else "Expected an API key, got none.")
    g.api_key = key
    return enter(see(here(request.form.get("next", "")) or home()), key, hashed(given))


@sign_out_blueprint.post("/sign-out")
def sign_out() -> Response:
    """Forget the key."""
    answer = done(SIGN_IN if guard.needs_key() else "/dashboard", "signed-out")
    answer.delete_cookie(session.COOKIE)
    return answer


def enter(answer: Response, key: ApiKey, key_hash: str) -> Response:
    """Have the browser be signed in with this key."""
    return session.sessions().give(answer, session.sessions().begin(key.id, key_hash))


def _asking(status: int = 200, wrong: str = "") -> Response:
    """The form, with a session that has no key yet and a token of it; a form in another window stays valid."""
    found = session.sessions().read(request.cookies.get(session.COOKIE, ""))
    began = found if found and not found.key_id else session.sessions().begin()
    next = here(request.values.get("next", ""))
    answer = page("sign_in.html", status=status, wrong=wrong, next=next, own_token=session.sessions().token("", began.nonce))
    return session.sessions().give(answer, began)
