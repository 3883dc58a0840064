"""Describes in words what went wrong with a mailbox, in the server's own words where it has some."""

import imaplib
import re
import ssl

from imapclient.exceptions import CapabilityError

from mailroom.mailbox.limited_imap import TooMuchData
from mailroom.smtp.connection import describe
from mailroom.smtp.login import NoMechanism
from mailroom.smtp.oauth2 import TokenError

#: The steps of opening a connection that have no command.
CONNECTION, LOGIN = "the connection", "the login"
#: Refusals of a login that are not about user or password (RFC 5530, 3); "too many" is Gmail's.
_PASSING = re.compile(r"\[(UNAVAILABLE|INUSE|LIMIT|SERVERBUG|CONTACTADMIN)\b|\btoo many\b", re.I)


def explain(error: Exception, server: str, command: str, *, refusal: str, goodbye: str) -> str:
    """Return the reason why `command` failed; never what the server sent as data, as that may be a mail."""
    if refusal:
        return f"{server} refused {command}: {refusal}"
    if goodbye:
        return f"{server} hung up: {goodbye}"
    if isinstance(error, TokenError):
        return f"no access token: {error}"
    if isinstance(error, NoMechanism):
        return f"{server} {error}"
    if isinstance(error, UnicodeError) and command == CONNECTION:
        return f"expected the name of a host, got {server}"
    if isinstance(error, CapabilityError):
        return f"{server} does not offer what {command} needs"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {server} is not to be trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"{server} did not answer {command} in time"
    if isinstance(error, OSError) and command == CONNECTION:
        return f"{server} could not be reached: {describe(error)}"
    if isinstance(error, OSError):
        return f"the connection to {server} was lost: {describe(error)}"
    if isinstance(error, TooMuchData):
        return f"{server} sent more data than {command} can bring"
    if isinstance(error, imaplib.IMAP4.readonly):
        return f"{server} lets us read the folder, but not change it"
    return f"{server} answered {command} in a way that makes no sense"


def is_about_login(error: Exception, refusal: str) -> bool:
    """Tell a login that a person has to mend from one that may work later."""
    if isinstance(error, TokenError):
        return error.code != 421
    if isinstance(error, NoMechanism):
        return True
    return bool(refusal) and not _PASSING.search(refusal)
