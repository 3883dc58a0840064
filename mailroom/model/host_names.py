"""Names of hosts: the one by which we introduce ourselves to a mail server (RFC 5321, 2.3.5 and 4.1.4), and one with its port."""

import re
import socket
from contextlib import suppress
from functools import cache
from ipaddress import IPv6Address, ip_address

from mailroom.process.lazy_import import Lazy

idna = Lazy("idna")

NAME_MAX_CHARACTERS = 253
#: Letters, digits and hyphens (RFC 1123, 2.1); the last label is no number, as that would be an address.
_HOST_NAME = re.compile(
    r"(?:(?!-)[a-z0-9-]{1,63}(?<!-)\.)*(?!-)(?![0-9]+\Z)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE
)
_LITERAL = re.compile(r"\[(IPv6:)?([0-9a-f.:]+)\]", re.IGNORECASE)
#: What a machine without a name of its own is told by its resolver; on a Mac an address backwards.
_NAMELESS = (".localhost", ".localdomain", ".arpa")


def host_name(text: str) -> str:
    """Return it as servers take it, letters beyond ASCII encoded (IDNA); "" if no host can be called so."""
    name = text.rstrip(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except UnicodeError:  # Its own errors are such.
            return ""
    return name if len(name) <= NAME_MAX_CHARACTERS and _HOST_NAME.fullmatch(name) else ""


def given_name(text: str) -> str:
    """Read the setting EHLO_NAME: a host name, or an address in brackets.

    Raises:
      ValueError: with what was expected and what came.
    """
    if found := host_name(text):
        return found
    with suppress(ValueError):
        if (parts := _LITERAL.fullmatch(text)) and (address := literal(parts[2])).startswith(
            "[IPv6:"
        ) == bool(parts[1]):
            return address
    raise ValueError(
        f"expected a host name like mail.example.org, or [192.0.2.1] or [IPv6:2001:db8::1], got {text!r}"
    )


def default_name(domain: str) -> str:
    """Return this machine's full name, or else the sender's `domain`; "" where neither is the name of a host."""
    found = _full_name() or host_name(domain)
    return found if "." in found else ""


@cache
def _full_name() -> str:
    """Look it up once; smtplib would ask DNS for each connection."""
    found = host_name(socket.getfqdn())
    return "" if "." not in found or found.lower().endswith(_NAMELESS) else found


def literal(address: str) -> str:
    """Write an IP address as EHLO has it (RFC 5321, 4.1.3)."""
    ip = ip_address(address.partition("%")[0])
    return f"[IPv6:{ip}]" if isinstance(ip, IPv6Address) else f"[{ip}]"


def host_and_port(host: str, port: int) -> str:
    """Write both as a URL has them, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
