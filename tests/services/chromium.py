"""A browser without a screen, found or fetched; Playwright drives it, and cannot fetch one where its own servers are out of reach."""

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.services import Unavailable, cache_directory, debian, say

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ON_A_MAC = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
#: Quiet, and with no call to anybody: a browser looks for its maker's servers at every start.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@dataclass(frozen=True)
class Chromium:
    """The program, and the variables that it needs."""

    program: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.program)


@functools.cache
def find_chromium() -> Chromium:
    """Return Chromium or Chrome, fetched if need be.

    Raises:
      Unavailable: there is none.
    """
    return debian.find_or_fetch(
        lambda: _installed() or _unpacked(),
        _fetch,
        way_out=(
            "Chromium is not here. On Debian and Ubuntu: apt install chromium. On a Mac: brew install --cask chromium. "
            "Elsewhere: install it, or name it by TEST_CHROMIUM."
        ),
    )


def _installed() -> Chromium | None:
    named = os.environ.get("TEST_CHROMIUM", "")
    places = (
        [named]
        if named
        else [found for name in NAMES if (found := shutil.which(name))] + [*ON_A_MAC]
    )
    return next((Chromium(Path(place)) for place in places if _works(Path(place), {})), None)


def _unpacked() -> Chromium | None:
    root = cache_directory() / "chromium"
    program = root / "usr/lib/chromium/chromium"
    environment = debian.library_path(root) | {"FONTCONFIG_FILE": str(root / "fonts.conf")}
    return Chromium(program, environment) if _works(program, environment) else None


def _fetch() -> Chromium:
    packages = ("chromium", "fonts-dejavu-core")
    try:
        debian.unpack(*packages, family="chromium|fonts-dejavu-core", patch=_name_fonts)
    except Unavailable as e:
        if os.geteuid():
            raise
        say(f"unpacking failed: {e}")
    if not (found := _unpacked()) and not os.geteuid():
        debian.install(*packages)
        found = _installed()
    if found:
        return found
    raise Unavailable("Debian's packages of Chromium do not run here")


def _name_fonts(root: Path) -> None:
    """Wherever `root` comes to lie, which is the directory that has this file."""
    (root / "fonts.conf").write_text(
        '<?xml version="1.0"?><fontconfig><dir prefix="relative">usr/share/fonts</dir><dir>/usr/share/fonts</dir>'
        '<cachedir prefix="xdg">fontconfig</cachedir></fontconfig>'
    )


def _works(program: Path, environment: dict[str, str]) -> bool:
    if not program.is_file():
        return False
    try:
        done = subprocess.run(
            [program, "--version", "--no-sandbox"],
            env={**os.environ, **environment},
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
