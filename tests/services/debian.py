"""Fetches Debian packages and unpacks them into a directory; needs no root, installs nothing."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.services import Unavailable, cache_directory, locked, say

NO_START = Path("/usr/sbin/policy-rc.d")

T = TypeVar("T")


def is_here() -> bool:
    return all(map(shutil.which, ("apt-get", "apt-cache", "dpkg")))


def find_or_fetch(find: Callable[[], T | None], fetch: Callable[[], T], *, way_out: str) -> T:
    """Return what `find` finds on this machine, or else what `fetch` fetches where there is apt.

    Raises:
      Unavailable: with `way_out`, and why nothing could be fetched.
    """
    if found := find():
        return found
    reason = ""
    if is_here():
        try:
            return fetch()
        except Unavailable as e:
            reason = f" ({e})"
    raise Unavailable(way_out + reason)


def unpack_or_install(
    package: str,
    *more: str,
    family: str,
    find: Callable[[], T | None],
    failure: str,
    patch: Callable[[Path], None] | None = None,
    installed: str = "",
) -> T:
    """Unpack packages as `unpack` does, or if that fails, install `installed` as root; return what `find` finds.

    Raises:
      Unavailable: they cannot be fetched; or with `failure`, `find` finds nothing in them.
    """
    try:
        unpack(package, *more, family=family, patch=patch)
    except Unavailable as e:
        if os.geteuid():
            raise
        say(f"unpacking failed: {e}")
        install(installed or package)
    if found := find():
        return found
    raise Unavailable(failure)


def unpack(
    package: str,
    *more: str,
    family: str,
    patch: Callable[[Path], None] | None = None,
) -> Path:
    """Unpack `package`, `more` and what they need into the cache, and return that directory.

    What the system already has is left out, except the packages whose names match `family`, which
    must lie beside each other. `patch` is called with the directory before anybody else sees it.

    Raises:
      Unavailable: apt cannot find or fetch them.
    """
    target = cache_directory() / package
    try:
        with locked(target.with_suffix(".lock")):
            if not target.exists():
                _fetch_and_unpack((package, *more), family, patch, target)
    except OSError as e:
        raise Unavailable(f"{target} cannot be written: {e}") from e
    return target


def library_path(root: Path) -> dict[str, str]:
    """Return the variable with which programs unpacked in `root` find the libraries there."""
    places = (
        "usr/lib/*-linux-*",
        "lib/*-linux-*",
        "usr/lib/*-linux-*/pulseaudio",
    )  # The last one is for its owner only.
    paths = [str(path) for place in places for path in root.glob(place)]
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*paths, inherited]))}


def install(package: str, *more: str) -> None:
    """Install `package` as root, without letting it start a service or make a database cluster."""
    say(f"installing {package} with apt-get")
    ours = [] if NO_START.exists() else [NO_START]
    clusters = Path("/etc/postgresql-common/createcluster.conf")
    ours += [clusters] if package == "postgresql" and not clusters.exists() else []
    try:
        for file in ours:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "create_main_cluster = false\n" if file == clusters else "#!/bin/sh\nexit 101\n"
            )
            file.chmod(0o755)
        _run("apt-get", "update")
        keep = "Dpkg::Options::=--force-confold"
        _run("apt-get", "install", "-y", "--no-install-recommends", "-o", keep, package, *more)
    finally:
        for file in ours:
            file.unlink(missing_ok=True)


def _fetch_and_unpack(
    packages: tuple[str, ...], family: str, patch: Callable[[Path], None] | None, target: Path
) -> None:
    # In the cache, not in /tmp: only a rename within one file system is atomic.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{packages[0]}-") as temporary:
        work = Path(temporary)
        say(f"fetching {packages[0]} with apt-get download")
        for archive in _download(packages, family, work):
            _run("dpkg", "-x", str(archive), str(work / "root"))
        if patch:
            patch(work / "root")
        # dpkg gives the directory the rights of the archive's; a later run has to replace it.
        (work / "root").chmod(0o755)
        (work / "root").rename(target)
        say(f"unpacked {packages[0]} into {target}")


def _download(packages: tuple[str, ...], family: str, work: Path) -> list[Path]:
    """Download with the system's package lists, and with fresh ones if these are empty or old."""
    try:
        _run("apt-get", "download", *_needed(packages, family), cwd=work)
    except Unavailable:
        say("fetching fresh package lists, because the system's did not do")
        options = _own_lists(work)
        _run("apt-get", "update", *options)
        _run("apt-get", "download", *options, *_needed(packages, family, *options), cwd=work)
    return sorted(work.glob("*.deb"))


def _own_lists(work: Path) -> list[str]:
    """Return the options that make apt keep its lists in `work`, where no root is needed."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    return [
        *("-o", f"Dir::State::lists={work}/lists"),
        *("-o", f"Dir::Cache={work}/cache"),
        *("-o", "APT::Sandbox::User="),
    ]


def _needed(packages: tuple[str, ...], family: str, *options: str) -> list[str]:
    install = ["apt-get", "install", *options, "--simulate", "--no-install-recommends"]
    missing = re.findall(r"^Inst (\S+)", _run(*install, *packages), re.MULTILINE)
    weak = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"]
    depends = ["apt-cache", "depends", *options, "--recurse", *(f"--no-{kind}" for kind in weak)]
    closure = re.findall(r"^\w\S*", _run(*depends, *packages), re.MULTILINE)
    relatives = [name for name in closure if re.match(family, name)]
    # LLVM is 100 MB, and only for PostgreSQL's compilation of large queries.
    return sorted(name for name in {*missing, *relatives} if not name.startswith("libllvm"))


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise Unavailable(f"{command[0]} {command[1]} failed: {reason}")
    return done.stdout
