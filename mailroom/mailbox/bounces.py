"""Reads the reports that servers send about mail of ours: bounces, delays, sending limits and complaints.

RFC 3464 for delivery status notifications (DSN), RFC 5965 for complaints (ARF), and flufl.bounce for servers
that keep to neither, such as qmail. Reports may be hostile: nothing in them is executed, rendered or logged.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from html import unescape

from mailroom.mailbox.parts import (
    MAIL_MAX_BYTES,
    TEXT_MAX_BYTES,
    Fields,
    MailPart,
    blocks,
    leaves,
    read_mail,
    read_part,
)
from mailroom.mailbox.plain_bounces import read_text, words_about
from mailroom.model.report import Report, ReportedRecipient, ReportKind
from mailroom.model.text import one_line
from mailroom.smtp.connection import Reply
from mailroom.smtp.sending_limits import find_limit

#: The header fields that may_be_report() reads.
HEADERS_WANTED = (
    "Return-Path",
    "From",
    "Content-Type",
    "Auto-Submitted",
    "Precedence",
    "X-Auto-Response-Suppress",
    "X-Autoreply",
    "X-Autorespond",
    "X-Failed-Recipients",
    "Feedback-Type",
)
WORDS_MAX_CHARACTERS = 500
RECIPIENTS_MAX = 200
MESSAGE_IDS_MAX = 20
_ADDRESS_MAX_CHARACTERS = 320  #: 64 of the local part, "@", 255 of the domain (RFC 5321, 4.5.3.1)

_STATUS_TYPES = (
    "message/delivery-status",
    "message/global-delivery-status",
)  # RFC 6533 has the second
_REPORT_TYPES = ("multipart/report", "message/feedback-report", *_STATUS_TYPES)
_RETURNED_TYPES = (
    "message/rfc822",
    "text/rfc822-headers",
    "message/rfc822-headers",
    "message/global",
    "message/global-headers",
)
_TEXT_TYPES = ("text/plain", "text/html")
#: Outlook.com and Gmail replace a Message-ID, and keep ours beside it.
_MESSAGE_ID_FIELDS = (
    "message-id",
    "x-microsoft-original-message-id",
    "x-google-original-message-id",
    "x-original-message-id",
)
_RECIPIENT_FIELDS = ("original-recipient", "final-recipient", "x-actual-recipient")
_COMPLAINTS = ("abuse", "fraud", "opt-out", "opt-out-list")
_AUTO_REPLY_FIELDS = ("x-auto-response-suppress", "x-autoreply", "x-autorespond", "precedence")

_DAEMON = re.compile(
    r"(?:^|[\s<\"])(?:mailer-?daemon|mail-?daemon|postmaster|mdaemon|microsoftexchange[0-9a-f]+)@"
    r"|^\s*mailer-daemon\b",
    re.IGNORECASE,
)
_MESSAGE_ID = re.compile(r"<([^<>\s\x00-\x1f\x7f]{1,998})>")
#: As in "550 5.1.1 No such user", and not as in 192.0.2.5.
_ENHANCED_STATUS = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")
_ADDRESS_TYPE = re.compile(r"^\s*[\w-]{1,40}\s*;\s*")
_DIAGNOSTIC_TYPE = re.compile(r"^\s*[\w.-]{1,40}\s*;\s*")
_REPLY_CODE = re.compile(r"^[45]\d\d[ -]")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
#: The sentence is Gmail's; in other languages, the page it links to is still the one about sending limits.
_GMAIL_LIMIT = re.compile(
    r"you have reached a limit for sending|support\.google\.com/(?:mail|a)/answer/(?:22839|166852)\b",
    re.IGNORECASE,
)
_GOOGLE = re.compile(r"@(?:googlemail|gmail|google)\.com\b", re.IGNORECASE)
#: A server that gave up speaks of hours and limits, too.
_EXPIRED = re.compile(r"[45]\.4\.7(?!\d)|expired|too long|retry time", re.IGNORECASE)
_REMOTE = re.compile(r"\bremote\b|\bhost\b|\bresponse\b", re.IGNORECASE)


def may_be_report(header: bytes) -> bool:
    """Tell by the fields HEADERS_WANTED of a mail whether it is worth reading as a whole."""
    return _is_from_server(read_mail(header.lstrip()))


def read_report(raw: bytes) -> Report | None:
    """Return what the first bytes of a mail report about a mail of ours; None: nothing.

    Raises nothing, and reads no more than parts.MAIL_MAX_BYTES.
    """
    try:
        return _read(raw[:MAIL_MAX_BYTES].replace(b"\r\n", b"\n"))
    except Exception:
        # Whatever this mail does to a parser, the next one is to be read. Its words are in no log.
        return None


def _read(raw: bytes) -> Report | None:
    mail = read_mail(raw)
    if not _is_from_server(mail):
        return None
    parts = [*leaves(mail)]
    recipients = _recipients(mail, parts)
    if not recipients:
        return None
    return Report(
        message_ids=_message_ids(mail, parts),
        recipients=recipients,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def _is_from_server(mail: MailPart) -> bool:
    """Tell whether a server wrote the mail, and not somebody who forwards or quotes a report, or is away."""
    fields = mail.fields
    if mail.content_type in _REPORT_TYPES:
        # A receipt says that the mail was read, or deleted unread (RFC 8098).
        return "disposition-notification" not in fields.first("content-type").lower()
    if "x-failed-recipients" in fields or "feedback-type" in fields:
        return True
    if _DAEMON.search(fields.first("from")):
        return True
    if fields.first("return-path") != "<>":
        return False
    is_automatic = fields.first("auto-submitted").lower() not in ("", "no")
    return not is_automatic and not any(name in fields for name in _AUTO_REPLY_FIELDS)


def _recipients(mail: MailPart, parts: list[MailPart]) -> tuple[ReportedRecipient, ...]:
    for part in parts:
        if part.content_type == "message/feedback-report":
            return _of_feedback(part)
    groups = [
        fields
        for part in parts
        if part.content_type in _STATUS_TYPES
        for fields in blocks(part.data())
        if any(name in fields for name in ("action", *_RECIPIENT_FIELDS))
    ]
    if groups:
        return tuple(_of_delivery_status(groups[:RECIPIENTS_MAX], mail, parts))
    if not _DAEMON.search(mail.fields.first("from")) and "x-failed-recipients" not in mail.fields:
        # flufl.bounce takes for a report what merely mentions an address between commas.
        return ()
    return tuple(_of_text(mail, parts))


# RFC 3464


def _of_delivery_status(
    groups: list[Fields], mail: MailPart, parts: list[MailPart]
) -> Iterator[ReportedRecipient]:
    human_text = _human_text(parts)
    is_google = _is_from_google(mail)
    is_gmail_limit = _GMAIL_LIMIT.search(human_text) is not None
    failed: list[str] = []
    if len(groups) == 1:
        failed = mail.fields.first("x-failed-recipients").split(",")
    for fields in groups:
        kind = _kind(fields)
        if kind is None:
            continue
        addresses = _addresses([*fields.all(*_RECIPIENT_FIELDS), *failed])
        words = _words(fields, addresses, human_text)
        # A limit of a remote server is not our account's; nor can any server say it that mails us a report.
        is_ours = kind is ReportKind.FAILED and not fields.first("remote-mta")
        if is_ours and is_google and (is_gmail_limit or _says_limit(words)):
            kind = ReportKind.LIMIT
        status = _status(fields.first("status"), words)
        yield ReportedRecipient(
            kind=kind,
            addresses=addresses,
            status=status,
            words=words,
        )


def _kind(fields: Fields) -> ReportKind | None:
    """Return the outcome; None: delivered, relayed or expanded."""
    action = fields.first("action").lower()
    # OpenSMTPD says "error"; some add a comment, some leave the field out.
    if action.startswith(("fail", "error")):
        return ReportKind.FAILED
    if action.startswith("delay"):
        return ReportKind.DELAYED
    status = fields.first("status")
    if not action and status.startswith("5."):
        return ReportKind.FAILED
    if not action and status.startswith("4."):
        return ReportKind.DELAYED
    return None


def _words(fields: Fields, addresses: tuple[str, ...], human_text: str) -> str:
    """Return the server's words; without a Diagnostic-Code, those for a person, or the comment in Status."""
    words = _DIAGNOSTIC_TYPE.sub("", fields.first("diagnostic-code"))
    if not words and addresses:
        words = words_about(addresses[0], _without_tags(human_text))
    return one_line(words or fields.first("status"), most=WORDS_MAX_CHARACTERS)


def _status(declared: str, words: str) -> str:
    """Return the enhanced status code; that of the reply where the declared one says nothing.

    Exim writes 5.0.0 whatever the remote server said.
    """
    in_field = _ENHANCED_STATUS.search(declared)
    in_words = _ENHANCED_STATUS.search(words)
    if not in_field:
        return in_words[1] if in_words else ""
    is_vague = in_field[1].endswith(".0.0")
    if is_vague and in_words and in_words[1][0] == in_field[1][0]:
        return in_words[1]
    return in_field[1]


def _is_from_google(mail: MailPart) -> bool:
    return _GOOGLE.search(mail.fields.first("from")) is not None


def _says_limit(words: str) -> bool:
    if _GMAIL_LIMIT.search(words):
        return True
    reply = Reply(code=550, text=_REPLY_CODE.sub("", words))
    return not _EXPIRED.search(words) and find_limit(reply.text_without_names) is not None


# RFC 5965


def _of_feedback(part: MailPart) -> tuple[ReportedRecipient, ...]:
    """Return who complained; a provider may say so, or hide it."""
    fields = read_part(part.data().lstrip()).fields
    feedback = fields.first("feedback-type").lower()
    if feedback not in _COMPLAINTS:
        return ()
    named = fields.all("original-rcpt-to", "removal-recipient")
    found = dict.fromkeys(_addresses(one.split(";")[-1:]) for one in named[:RECIPIENTS_MAX])
    return tuple(
        ReportedRecipient(
            kind=ReportKind.COMPLAINT,
            addresses=addresses,
            status="",
            words=feedback,
        )
        for addresses in found or [()]
    )


# Neither


def _of_text(mail: MailPart, parts: list[MailPart]) -> Iterator[ReportedRecipient]:
    texts = [_text_of(part) for part in parts if part.content_type in _TEXT_TYPES]
    for bounced in read_text(mail, texts)[:RECIPIENTS_MAX]:
        words = one_line(bounced.words, most=WORDS_MAX_CHARACTERS)
        kind = ReportKind.DELAYED if bounced.is_delayed else ReportKind.FAILED
        is_ours = _is_from_google(mail) and not _REMOTE.search(words)
        if kind is ReportKind.FAILED and is_ours and _says_limit(words):
            kind = ReportKind.LIMIT
        addresses = _addresses([bounced.address])
        if addresses:
            yield ReportedRecipient(
                kind=kind,
                addresses=addresses,
                status=_status("", words),
                words=words,
            )


def _human_text(parts: list[MailPart]) -> str:
    """Return the beginning of what is written for a person, in all forms of it."""
    texts = [part.text() for part in parts if part.content_type in _TEXT_TYPES]
    return "\n".join(texts)[:TEXT_MAX_BYTES]


def _text_of(part: MailPart) -> str:
    text = part.text()
    return text if part.content_type == "text/plain" else _without_tags(text)


def _without_tags(html: str) -> str:
    with_lines = re.sub(r"<(?:br|/p|/div|/tr|/li)\b[^<>]*>", "\n", html, flags=re.IGNORECASE)
    text = re.sub(r"<[^<>@]*>", "", with_lines)
    return unescape(text)


# The mail that is reported on, and its recipients


def _message_ids(mail: MailPart, parts: list[MailPart]) -> tuple[str, ...]:
    """Return what may be our Message-ID, the likeliest first.

    A mail that is returned with a Message-ID is that one, and none that it answers.
    """
    found: list[str] = []
    returned = [part for part in parts if part.content_type in _RETURNED_TYPES]
    for part in returned[:1]:
        raw = part.data().replace(b"\r\n", b"\n")
        header = read_part(raw.lstrip(b"\n"))
        found += _ids(header.fields.all(*_MESSAGE_ID_FIELDS))
    if not returned:
        found += _ids_in_text(mail.body)
    if found:
        return tuple(dict.fromkeys(found))[:MESSAGE_IDS_MAX]
    found += _ids(mail.fields.all("in-reply-to"))
    # The nearest comes last (RFC 5322, 3.6.4).
    found += reversed(_ids(mail.fields.all("references")))
    return tuple(dict.fromkeys(found))[:MESSAGE_IDS_MAX]


def _ids(values: Iterable[str]) -> list[str]:
    return [message_id for value in values for message_id in _MESSAGE_ID.findall(value)]


def _ids_in_text(body: bytes) -> list[str]:
    """Return the Message-ID of a mail that is returned as mere text below the report."""
    field = re.search(rb"^message-id:\s{0,10}<[^<>\s]{1,998}>", body, re.IGNORECASE | re.MULTILINE)
    if field is None:
        return []
    text = field[0].decode("utf-8", "replace")
    return _ids([text])


def _addresses(values: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses in fields as "rfc822;bob@example.org"; also decoded from xtext (RFC 3461, 4)."""
    found: list[str] = []
    for value in values:
        address = _ADDRESS_TYPE.sub("", value).strip(" \t<>\"'")
        decoded = _XTEXT.sub(lambda code: chr(int(code[1], 16)), address)
        found += [address, decoded]
    valid = filter(_is_address, found)
    return tuple(dict.fromkeys(valid))


def _is_address(text: str) -> bool:
    is_short = len(text) <= _ADDRESS_MAX_CHARACTERS
    return is_short and "@" in text[1:-1] and text.isprintable() and " " not in text
