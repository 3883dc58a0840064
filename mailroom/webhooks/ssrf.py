"""Keeps requests to URLs of clients out of our own network (SSRF): https and public addresses only."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

URL_MAX_CHARACTERS = 2000
PORTS = {"https": 443, "http": 80}

#: Networks that some versions of ipaddress call global, or that may lead back inside: shared address space,
#: protocol assignments, 6to4 relays, benchmarks, multicast and reserved addresses.
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
#: The only part of IPv6 that is allocated to the public …
_ALLOCATED_6 = IPv6Network("2000::/3")
#: … without Teredo and other assignments, documentation, and 6to4, which embeds an IPv4 address.
_NOT_PUBLIC_6 = [
    ip_network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")
#: The characters of a URL (RFC 3986, 2); no space, control character or backslash, on which parsers differ.
_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+", re.ASCII)
_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?",
    re.ASCII,
)

#: A function like socket.getaddrinfo.
Resolve = Callable[..., Any]


class ForbiddenURL(Exception):
    """The URL may not be called; the message never reveals which address a host name resolves to."""


class Target(NamedTuple):
    """The parts of a URL that a request needs."""

    scheme: str
    host: str  #: as in the certificate; an IPv6 address without brackets
    port: int
    path: str  #: including the query

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class AddressGuard:
    """Decides which URLs may be called; `to_loopback` allows this machine, also over http, to try it out."""

    to_loopback: bool = False
    resolve: Resolve = socket.getaddrinfo

    def problem(self, url: str) -> str:
        """Say why `read` refuses the URL; "" if it does not."""
        try:
            self.read(url)
        except ForbiddenURL as e:
            return str(e)
        return ""

    def read(self, url: str) -> Target:
        """Parse and check a URL, without resolving its host name.

        Raises:
          ForbiddenURL: it may not be called.
        """
        if len(url) > URL_MAX_CHARACTERS:
            raise ForbiddenURL(f"expected at most {URL_MAX_CHARACTERS} characters, got {len(url)}")
        schemes = ("https", "http") if self.to_loopback else ("https",)
        if not _CHARACTERS.fullmatch(url) or url.partition("://")[0].lower() not in schemes:
            expected = " or ".join(schemes)
            raise ForbiddenURL(
                f"expected an {expected} URL in ASCII, without a fragment, got {url[:80]!r}"
            )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ForbiddenURL(f"expected a URL, got {url[:80]!r}") from None
        if "@" in parts.netloc:  # Not repeated in the message, as it may be a secret.
            raise ForbiddenURL("expected a URL without user and password, got one with them")
        is_host = _address(host) if "[" in parts.netloc else _NAME.fullmatch(host)
        if port == 0 or not is_host:
            raise ForbiddenURL(
                f"expected a host name or an address, and a valid port, got {parts.netloc[:80]!r}"
            )
        self._check_host(host, parts.scheme)
        query = f"?{parts.query}" if parts.query else ""
        path = (parts.path or "/") + query
        return Target(parts.scheme, host, port or PORTS[parts.scheme], path)

    def _check_host(self, host: str, scheme: str) -> None:
        address = _address(host)
        if address is not None and not self._may_call(address, scheme):
            raise ForbiddenURL(f"expected a public address, got {host!r}")
        if host.rstrip(".").endswith("localhost") and not self.to_loopback:
            raise ForbiddenURL(f"expected a host on the Internet, got {host!r}")

    def addresses(self, target: Target) -> list[str]:
        """Resolve the host once, and return its addresses, which may all be called.

        Raises:
          ForbiddenURL: at least one of them may not be called.
          OSError: there is none.
        """
        rows = self.resolve(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(row[4][0] for row in rows))
        if not addresses:
            raise OSError(f"{target.host} has no address")
        for text in addresses:
            address = _address(text)
            if address is None or not self._may_call(address, target.scheme):
                expected = "public addresses only"
                if target.scheme != "https":
                    expected = "addresses of this machine only, as it is called by http"
                raise ForbiddenURL(f"expected {target.host} to have {expected}")
        return addresses

    def _may_call(self, address: IPv4Address | IPv6Address, scheme: str) -> bool:
        """Allow http to this machine only, and only with `to_loopback`."""
        if self.to_loopback and address.is_loopback:
            return True
        return scheme == "https" and is_public(address)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is on the public Internet, also if it embeds an IPv4 address."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in net for net in _NOT_PUBLIC_4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return (
        address.is_global
        and address in _ALLOCATED_6
        and not any(address in net for net in _NOT_PUBLIC_6)
    )


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
