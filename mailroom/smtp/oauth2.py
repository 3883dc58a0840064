"""Gets access tokens for Gmail with the refresh token of a yagmail OAuth2 file."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

from yagmail.oauth2 import command_to_url, generate_oauth2_string

from mailroom.process.lazy_import import Lazy

requests = Lazy("requests")

#: A token is renewed this long before it expires, so that none expires between fetch and use.
MARGIN_SECONDS = 60


class TokenError(Exception):
    """Raised if no access token could be had; the text says why, and holds no secret.

    `code` is the SMTP reply code that would mean the same: 421 if trying again soon may help, 535 if a person
    has to act.
    """

    def __init__(self, reason: str, *, code: int = 535) -> None:
        self.code = code
        super().__init__(reason)


class TokenSource:
    """The access token of one account, for all its sessions and threads."""

    def __init__(
        self, path: str, timeout_seconds: float, *, url: str = command_to_url("o/oauth2/token")
    ) -> None:
        self.path = path
        self.timeout_seconds = timeout_seconds
        self.url = url
        self._token = ""
        self._expires_at = 0.0
        self._lock = threading.Lock()

    def auth_string(self, user: str) -> str:
        """Return the argument of `AUTH XOAUTH2`, in base64.

        Raises:
          TokenError: the file cannot be read or is no such file, or the token endpoint refused.
        """
        with self._lock:
            if time.monotonic() > self._expires_at - MARGIN_SECONDS:
                self._fetch()
            return str(generate_oauth2_string(user, self._token, as_base64=True))

    def forget(self) -> None:
        """Fetch a new token next time: the server refused this one."""
        self._expires_at = 0.0

    def _fetch(self) -> None:
        form = self._form()
        try:
            response = requests.post(
                self.url, data=form, timeout=self.timeout_seconds, allow_redirects=False
            )
        except requests.RequestException as e:
            reason = f"the token endpoint could not be reached: {type(e).__name__}"
            raise TokenError(reason, code=421) from None
        try:
            body = response.json()
            token, seconds = body["access_token"], float(body["expires_in"])
            if not isinstance(token, str) or not token.isascii():
                raise ValueError("no token")
        except (ValueError, KeyError, TypeError):
            status = response.status_code
            reason = f"the token endpoint answered {status} without a token{_error_code(response)}"
            raise TokenError(reason, code=535 if 400 <= status < 429 else 421) from None
        self._token, self._expires_at = token, time.monotonic() + seconds

    def _form(self) -> dict[str, str]:
        """Read the file and return the request for a token (RFC 6749, 6)."""
        try:
            secrets = json.loads(Path(self.path).expanduser().read_text())
            return {
                "client_id": secrets["google_client_id"],
                "client_secret": secrets["google_client_secret"],
                "refresh_token": secrets["google_refresh_token"],
                "grant_type": "refresh_token",
            }
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise TokenError(
                f"expected a yagmail OAuth2 file at {self.path!r}: {type(e).__name__}"
            ) from None


def _error_code(response: Any) -> str:
    """Return the endpoint's error code (RFC 6749, 5.2), to be added to a sentence; "" if it sent none.

    "invalid_grant" is a refresh token that was revoked or has expired.
    """
    try:
        error = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {error}" if re.fullmatch(r"[a-z_]{1,40}", error) else ""
