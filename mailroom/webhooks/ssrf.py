"""Keeps requests to URLs that clients named away from our own network: https, and public addresses only (SSRF)."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

URL_MAX_CHARACTERS = 2000
PORTS = {"https": 443, "http": 80}

#: What ipaddress takes for global in some versions of Python, or what a router may lead back inside: protocol assignments, 6to4 relays,
#: benchmarks.
_NOT_PUBLIC_4 = [
    ip_network(net)
    for net in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "224.0.0.0/3",
    )
]
#: Only this part of IPv6 is given out, and in it are Teredo and other assignments, documentation and 6to4, which hide an IPv4 address.
_GIVEN_OUT_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = [ip_network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = IPv6Network("64:ff9b::/96")
#: What a URL may be made of (RFC 3986, 2); no space, control character or backslash, on which parsers differ.
_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+", re.ASCII)
_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?", re.ASCII
)

#: Like socket.getaddrinfo: of a host and a port, rows that end in (address, port, …).
Resolve = Callable[..., Any]


class Forbidden(Exception):
    """The URL is none that may be called; the text says what was expected and what came, and no address that a name stands for."""


class Target(NamedTuple):
    """The target of a request."""

    scheme: str
    host: str  #: as the certificate has it; an IPv6 address without brackets
    port: int
    path: str  #: with the query

    @property
    def authority(self) -> str:
        """The header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class AddressGuard:
    """`to_loopback`: this machine may be called as well, and over http; for development."""

    to_loopback: bool = False
    resolve: Resolve = socket.getaddrinfo

    def problem(self, url: str) -> str:
        """Say what `read` would refuse the URL for, in words; "" if nothing."""
        try:
            self.read(url)
        except Forbidden as e:
            return str(e)
        return ""

    def read(self, url: str) -> Target:
        """Take a URL apart; an address in it is looked at, a name is not resolved. Raises Forbidden."""
        if len(url) > URL_MAX_CHARACTERS:
            raise Forbidden(f"expected at most {URL_MAX_CHARACTERS} characters, got {len(url)}")
        schemes = ("https", "http") if self.to_loopback else ("https",)
        if not _CHARACTERS.fullmatch(url) or url.partition("://")[0].lower() not in schemes:
            raise Forbidden(
                f"expected an {' or '.join(schemes)} URL in ASCII, without a fragment, got {url[:80]!r}"
            )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise Forbidden(f"expected a URL, got {url[:80]!r}") from None
        if "@" in parts.netloc:
            raise Forbidden(
                "expected a URL without user and password, got one with them"
            )  # Not shown, as it is a secret.
        if port == 0 or not (_address(host) if "[" in parts.netloc else _NAME.fullmatch(host)):
            raise Forbidden(
                f"expected a host name or an address, and a port that there is, got {parts.netloc[:80]!r}"
            )
        if (address := _address(host)) is not None and not self._may_call(address, parts.scheme):
            raise Forbidden(f"expected a public address, got {host!r}")
        if host.rstrip(".").endswith("localhost") and not self.to_loopback:
            raise Forbidden(f"expected a host in the Internet, got {host!r}")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme, host, port or PORTS[parts.scheme], path)

    def addresses(self, target: Target) -> list[str]:
        """Resolve the host, once; every address it has may be called. Raises Forbidden, and OSError where it has none."""
        found = dict.fromkeys(
            row[4][0] for row in self.resolve(target.host, target.port, type=socket.SOCK_STREAM)
        )
        if not found:
            raise OSError(f"{target.host} has no address")
        for text in found:
            address = _address(text)
            if address is None or not self._may_call(address, target.scheme):
                wanted = (
                    "public addresses only"
                    if target.scheme == "https"
                    else "addresses of this machine only, as it is called by http"
                )
                raise Forbidden(f"expected {target.host} to have {wanted}")
        return list(found)

    def _may_call(self, address: IPv4Address | IPv6Address, scheme: str) -> bool:
        """In clear to this machine only."""
        return (self.to_loopback and address.is_loopback) or (scheme == "https" and is_public(address))


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether the address is somebody's in the Internet, by whatever way it is written."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in net for net in _NOT_PUBLIC_4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address.is_global and address in _GIVEN_OUT_6 and not any(address in net for net in _NOT_PUBLIC_6)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
