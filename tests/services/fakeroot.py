"""Fakeroot, with which a program that insists on root runs without: found or fetched.

A library loaded into its processes lets them believe that they are root and may become others; a
small server remembers which file is whose.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.services import Unavailable, cache_directory, debian

LIBRARIES = "usr/lib/*/libfakeroot/libfakeroot-tcp.so"
#: Its own that a process passes on to those it starts.
VARIABLES = ("LD_PRELOAD", "FAKEROOTKEY", "FAKED_MODE")


@dataclass(frozen=True)
class Fakeroot:
    """The server and the library; the variant on TCP, as nothing of it outlives a kill."""

    server: Path
    library: Path

    def command(self, port: int) -> list[str | Path]:
        """Return the command of a server on this loopback port."""
        return [self.server, "--foreground", "--port", str(port)]

    def environment(self, port: int) -> dict[str, str]:
        """Return the variables of a process that is to believe it."""
        values = (str(self.library), str(port), "unknown-is-root")
        return dict(zip(VARIABLES, values, strict=True))


def find_fakeroot() -> Fakeroot:
    """Return the programs, fetched if need be.

    Raises:
      Unavailable: there are none.
    """
    places = (Path("/"), cache_directory() / "fakeroot")
    if found := next(_programs(places), None):
        return found
    if debian.is_here():
        debian.unpack("fakeroot", family="fakeroot|libfakeroot")
        if found := next(_programs(places), None):
            return found
    raise Unavailable("Fakeroot is not here")


def _programs(places: tuple[Path, ...]) -> Iterator[Fakeroot]:
    for root in places:
        server = root / "usr/bin/faked-tcp"
        for library in root.glob(LIBRARIES):
            if server.exists():
                yield Fakeroot(server, library)
