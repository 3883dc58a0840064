"""Host names: the one that we send in EHLO (RFC 5321, 2.3.5 and 4.1.4), and a host with its port."""

import re
import socket
from contextlib import suppress
from functools import cache
from ipaddress import IPv6Address, ip_address

from mailroom.process.lazy_import import Lazy

idna = Lazy("idna")

NAME_MAX_CHARACTERS = 253
#: Letters, digits and hyphens (RFC 1123, 2.1); a number as the last label would make it an address.
_HOST_NAME = re.compile(
    r"(?:(?!-)[a-z0-9-]{1,63}(?<!-)\.)*(?!-)(?![0-9]+\Z)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE
)
_LITERAL = re.compile(r"\[(IPv6:)?([0-9a-f.:]+)\]", re.IGNORECASE)
#: Ends of names that a resolver gives a machine without a full name; on a Mac a reversed address.
_NAMELESS = (".localhost", ".localdomain", ".arpa")


def host_name(text: str) -> str:
    """Return a host name with its non-ASCII letters encoded (IDNA); "" if the text is not a host name."""
    name = text.rstrip(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except UnicodeError:  # The base of idna's errors.
            return ""
    return name if len(name) <= NAME_MAX_CHARACTERS and _HOST_NAME.fullmatch(name) else ""


def parse_ehlo_name(text: str) -> str:
    """Read the setting EHLO_NAME: a host name, or an address in brackets.

    Raises:
      ValueError: it is neither; the text says what was expected and what came.
    """
    if name := host_name(text):
        return name
    with suppress(ValueError):
        parts = _LITERAL.fullmatch(text)
        address = literal(parts[2]) if parts else ""
        if parts and address.startswith("[IPv6:") == bool(parts[1]):
            return address
    raise ValueError(
        f"expected a host name like mail.example.org, or [192.0.2.1] or [IPv6:2001:db8::1], got {text!r}"
    )


def default_ehlo_name(domain: str) -> str:
    """Return this machine's full name, or else the sender's domain; "" if neither is a full host name."""
    name = _full_name() or host_name(domain)
    return name if "." in name else ""


@cache
def _full_name() -> str:
    """Look up this machine's full name, once; smtplib would ask DNS for each connection."""
    name = host_name(socket.getfqdn())
    return "" if "." not in name or name.lower().endswith(_NAMELESS) else name


def literal(address: str) -> str:
    """Write an IP address as EHLO has it (RFC 5321, 4.1.3)."""
    ip = ip_address(address.partition("%")[0])
    return f"[IPv6:{ip}]" if isinstance(ip, IPv6Address) else f"[{ip}]"


def host_and_port(host: str, port: int) -> str:
    """Write host and port as in a URL, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
