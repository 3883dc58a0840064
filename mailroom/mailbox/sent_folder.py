"""Finds the account's Sent folder, and looks there for a mail of ours."""

import re

from mailroom.mailbox.connection import Folder, MailboxConnection
from mailroom.model.text import has_control, is_unicode

SENT = r"\sent"
NOT_SELECTABLE = frozenset({r"\noselect", r"\nonexistent"})
#: Names that servers and mail programs give it, the likeliest first; compared without regard to case.
SENT_NAMES = (
    "Sent",
    "Sent Items",
    "Sent Messages",
    "Sent Mail",
    "Gesendet",
    "Gesendete Elemente",
    "Gesendete Objekte",
    "Envoyés",
    "Éléments envoyés",
    "Messages envoyés",
    "Enviados",
    "Elementos enviados",
    "Itens enviados",
    "Inviata",
    "Posta inviata",
    "Verzonden",
    "Verzonden items",
    "Wysłane",
    "Elementy wysłane",
    "Отправленные",
    "已发送",
    "送信済み",
)
#: Gmail's search language reads others, such as quotes and braces, as its own.
_GMAIL_SAFE = re.compile(r"[A-Za-z0-9._%+=$~/]+@[A-Za-z0-9.-]+")


def find_sent_folder(connection: MailboxConnection) -> str:
    r"""Return the folder marked \Sent (RFC 6154), or else one with a well-known name; "" if there is none."""
    folders = [folder for folder in connection.folders() if not folder.attributes & NOT_SELECTABLE]
    for folder in folders:
        if SENT in folder.attributes:
            return folder.name
    names = {_last_part(folder): folder.name for folder in reversed(folders)}
    for name in SENT_NAMES:
        if name.casefold() in names:
            return names[name.casefold()]
    return ""


def is_in_sent(connection: MailboxConnection, folder: str, message_id: str) -> bool:
    """Look for a mail by its Message-ID, with or without angle brackets.

    Selects the folder anew, so that a new mail is seen, in place of the inbox.
    """
    inner = message_id.strip().removeprefix("<").removesuffix(">")
    # No header field has these, and no search may: a line break would begin a command of its own.
    if not inner or has_control(inner) or not is_unicode(inner):
        return False
    connection.examine(folder)
    if connection.offers("X-GM-EXT-1") and _GMAIL_SAFE.fullmatch(inner):
        query = f'X-GM-RAW "rfc822msgid:{inner}"'
        return bool(connection.search(query.encode()))
    # A search finds parts of a field as well (RFC 3501, 6.4.4): the brackets make it the whole.
    whole = f"<{inner}>"
    if whole.isascii():
        escaped = whole.replace("\\", "\\\\").replace('"', '\\"')
        query = f'HEADER Message-ID "{escaped}"'
        return bool(connection.search(query.encode()))
    return bool(connection.search(["HEADER", "Message-ID", whole], charset="UTF-8"))


def _last_part(folder: Folder) -> str:
    name = folder.name
    if folder.separator:
        name = name.rpartition(folder.separator)[2]
    return name.casefold()
