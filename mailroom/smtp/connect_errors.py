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
        reply = Reply(max(error.smtp_code, 0), describe(error))
        kind = ConnectionRefused if may_be_about_connections(reply) else NotTaken
        return kind(str(reply), code=reply.code, of_message=False)
    if isinstance(error, TokenError):
        return NotTaken(f"no access token: {error}", code=error.code, of_message=False)
    if isinstance(error, NoMechanism):
        return NotTaken(f"{hop} {error}", code=504, of_message=False)
    if isinstance(error, UnicodeError):
        return NotTaken(f"expected the name of a host, got {hop.host!r}", of_message=False)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return NotTaken(f"{hop} offers no STARTTLS", of_message=False)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"the certificate of {hop} is not to be trusted: {error.verify_message}"
        return NotTaken(reason, of_message=False)
    kind = ConnectionRefused if _hangs_up(error) else NotTaken
    return kind(f"{hop} could not be reached: {describe(error)}", of_message=False)


def _hangs_up(error: Exception) -> bool:
    """Tell a server that refuses or ends a connection from one that does not answer, or cannot be found."""
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return not isinstance(error.__cause__, TimeoutError)
    return isinstance(error, (ConnectionError, ssl.SSLEOFError))
