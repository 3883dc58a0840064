"""Turns whatever goes wrong before MAIL into a NotTaken that says in words what it was."""

import smtplib
import ssl

from mailroom.model.account import NextHop
from mailroom.model.errors import ConnectionRefused, NotTaken
from mailroom.smtp.connection import Reply, describe
from mailroom.smtp.login import NoMechanism
from mailroom.smtp.oauth2 import TokenError
from mailroom.smtp.replies import may_be_about_connections


def not_taken(error: Exception, hop: NextHop) -> NotTaken:
    """Return the error with `of_message` False, as no mail is to blame for it.

    It is a ConnectionRefused if we may have too many connections.
    """
    if isinstance(error, smtplib.SMTPResponseException):
        code = max(error.smtp_code, 0)
        reply = Reply(code, describe(error))
        kind = NotTaken
        if may_be_about_connections(reply):
            kind = ConnectionRefused
        return kind(str(reply), code=code, of_message=False)
    if isinstance(error, TokenError):
        reason = f"no access token: {error}"
        return NotTaken(reason, code=error.code, of_message=False)
    if isinstance(error, NoMechanism):
        return NotTaken(f"{hop} {error}", code=504, of_message=False)
    if isinstance(error, UnicodeError):
        reason = f"expected the name of a host, got {hop.host!r}"
        return NotTaken(reason, of_message=False)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return NotTaken(f"{hop} offers no STARTTLS", of_message=False)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"the certificate of {hop} is not to be trusted: {error.verify_message}"
        return NotTaken(reason, of_message=False)
    reason = f"{hop} could not be reached: {describe(error)}"
    if _hangs_up(error):
        return ConnectionRefused(reason, of_message=False)
    return NotTaken(reason, of_message=False)


def _hangs_up(error: Exception) -> bool:
    """Tell a server that refuses or ends a connection from one that does not answer, or cannot be found."""
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return not isinstance(error.__cause__, TimeoutError)
    return isinstance(error, (ConnectionError, ssl.SSLEOFError))
