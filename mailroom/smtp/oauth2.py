"""Access tokens for Gmail, from the refresh token in a yagmail OAuth2 file; kept until shortly before they expire."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

from yagmail.oauth2 import command_to_url, generate_oauth2_string

from mailroom.process.lazy_import import Lazy

requests = Lazy("requests")

#: A token that ends sooner is renewed, so that none expires between its fetch and its use.
MARGIN_SECONDS = 60


class TokenError(Exception):
    """No access token could be had; the text says why, without any secret.

    `code` is what SMTP would say to it: 421 where trying again soon may help, 535 where a person has to act.
    """

    def __init__(self, why: str, *, code: int = 535) -> None:
        self.code = code
        super().__init__(why)


class TokenSource:
    def __init__(
        self, path: str, timeout_seconds: float, *, url: str = command_to_url("o/oauth2/token")
    ) -> None:
        self.path = path
        self.timeout_seconds = timeout_seconds
        self.url = url
        self._token = ""
        self._expires = 0.0
        self._turn = threading.Lock()

    def auth_string(self, user: str) -> str:
        """Return what follows `AUTH XOAUTH2`, in base64.

        Raises:
          TokenError: the file cannot be read or is no such file, or the token endpoint refused.
        """
        with self._turn:
            if time.monotonic() > self._expires - MARGIN_SECONDS:
                self._fetch()
            return str(generate_oauth2_string(user, self._token, as_base64=True))

    def forget(self) -> None:
        """Fetch anew next time: the server refused this token."""
        self._expires = 0.0

    def _fetch(self) -> None:
        try:
            secrets = json.loads(Path(self.path).expanduser().read_text())
            form = {
                "client_id": secrets["google_client_id"],
                "client_secret": secrets["google_client_secret"],
                "refresh_token": secrets["google_refresh_token"],
                "grant_type": "refresh_token",
            }
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise TokenError(f"expected a yagmail OAuth2 file at {self.path!r}: {type(e).__name__}") from None
        try:
            answer = requests.post(self.url, data=form, timeout=self.timeout_seconds, allow_redirects=False)
        except requests.RequestException as e:
            raise TokenError(
                f"the token endpoint could not be reached: {type(e).__name__}", code=421
            ) from None
        try:
            body = answer.json()
            token, seconds = body["access_token"], float(body["expires_in"])
            if not isinstance(token, str) or not token.isascii():
                raise ValueError("no token")
        except (ValueError, KeyError, TypeError):
            why = f"the token endpoint answered {answer.status_code} without a token{_error_code(answer)}"
            raise TokenError(why, code=535 if 400 <= answer.status_code < 429 else 421) from None
        self._token, self._expires = token, time.monotonic() + seconds


def _error_code(answer: Any) -> str:
    """Say why, in the word that RFC 6749, 5.2 has for it.

    "invalid_grant" is a refresh token that was revoked or ran out.
    """
    try:
        error = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {error}" if re.fullmatch(r"[a-z_]{1,40}", error) else ""
