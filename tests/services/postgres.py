"""A PostgreSQL cluster of a test's own: on a free loopback port, by root too, found or fetched."""

import functools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from tests.services import (
    Server,
    cache_directory,
    debian,
    freeze,
    scratch,
    send_signal,
    spawn,
    wait_until,
)

INSTALLED = (
    "usr/lib/postgresql/*/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
)
#: GMT is the only time zone PostgreSQL knows without the system's files of time zones.
CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = {fsync}
max_connections = 200
max_wal_size = 256MB
jit = off
timezone = 'GMT'
log_timezone = 'GMT'
"""


def find_postgres() -> Path:
    """Return the directory of PostgreSQL's programs, the newest there is, fetched if need be.

    Raises:
      Unavailable: there is none.
    """
    return debian.find_or_fetch(
        lambda: _installed() or _unpacked(),
        _fetch,
        way_out=(
            "PostgreSQL is not here. On Debian and Ubuntu: apt install postgresql. "
            "On a Mac: brew install postgresql@17. Elsewhere: install it and put pg_ctl on the PATH."
        ),
    )


#: A server that was killed, or a child of it, needs a moment to be gone, and none starts meanwhile.
STILL_THERE = ("still in use", 'lock file "postmaster.pid" already exists')


class Postgres(Server):
    """One cluster; its databases and its port outlive `stop` and `kill`, for the next `start`."""

    port_names = ("postgres",)

    def __init__(
        self, directory: Path, programs: Path | None = None, *, fsync: bool = True
    ) -> None:
        """`programs` is the directory that find_postgres returned; without it, it is called."""
        self._bin = programs or find_postgres()
        super().__init__(directory)
        self._fsync = fsync

    def start(self) -> None:
        """Start, and return when clients are served."""
        self._choose_ports()
        if not self._data:
            self._initialize()
        self._launch()
        try:
            wait_until(self._serves, what="PostgreSQL served clients")
        except AssertionError as e:
            e.add_note(self.log_tail())
            self._end("server", signal.SIGKILL)
            raise

    def stop(self, *, immediate: bool = False) -> None:
        """Stop as an operator would: clients are disconnected, all is written. `immediate`: nothing is, and the start recovers."""
        self._end("server", signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """Kill the server without a warning; its children notice and end."""
        self._end("server", signal.SIGKILL)

    def restart(self, *, immediate: bool = False) -> None:
        self.stop(immediate=immediate)
        self.start()

    def stand_by(self, directory: Path) -> "Postgres":
        """Start a server in `directory` that follows this one, and can take its place."""
        follower = Postgres(directory, self._bin, fsync=self._fsync)
        follower._choose_ports()
        account = _account()
        data = follower._home(account) / "data"
        self.run(
            "pg_basebackup",
            "--pgdata",
            str(data),
            "--dbname",
            self.url(),
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            account=account,
        )
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {follower.ports['postgres']}\n")
        follower._write_state({**follower._state(), "data": str(data)})
        follower.start()
        return follower

    def wait_for_stand_by(self, waits: bool) -> None:
        """Let each commit wait until a stand-by has it, or no longer."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(
                    "*" if waits else ""
                )
            )
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._waits() is waits, 60, what="it is configured so")

    def _waits(self) -> bool:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            row = connection.execute("SHOW synchronous_standby_names").fetchone()
        return bool(row and row[0])

    def promote(self) -> None:
        """Let a stand-by take the place of the server it followed."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def run(self, program: str, *arguments: str, account: pwd.struct_passwd | None = None) -> None:
        """Run one of PostgreSQL's own programs."""
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            env=self._environment(),
            cwd="/",
            capture_output=True,
            text=True,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")

    def pause(self) -> None:
        """Freeze it with all its children: connections stay open and nobody answers."""
        for pid in self._processes():
            freeze(pid)

    def resume(self) -> None:
        for pid in self._processes():
            send_signal(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """The server first, so that it starts no other child meanwhile."""
        server = self.pids["server"]
        told = subprocess.run(
            ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
        )
        children = [
            int(pid)
            for pid, parent in (line.split() for line in told.stdout.splitlines())
            if int(parent) == server
        ]
        return [server, *children]

    def close(self) -> None:
        """End every process of it at once, and remove the databases."""
        super().close()
        if self._data:
            shutil.rmtree(self._data.parent, ignore_errors=True)
            self._write_state({**self._state(), "data": ""})

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.ports['postgres']}/{database}"

    @property
    def version(self) -> str:
        with psycopg.connect(self.url()) as connection:
            return str(connection.info.parameter_status("server_version"))

    def create_database(self, name: str, *, encoding: LiteralString = "UTF8") -> None:
        create_database(self.url(), name, encoding=encoding)

    def drop_database(self, name: str) -> None:
        """Drop it even while clients are connected to it, and if it is not there."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    @property
    def _data(self) -> Path | None:
        place = self._state().get("data")
        return Path(place) if place else None

    def _initialize(self) -> None:
        account = _account()
        home = self._home(account)
        data = home / "data"
        command = [str(self._bin / "initdb"), "--pgdata", str(data), "--username", "postgres"]
        options = ["--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(
            [*command, *options],
            env=self._environment(),
            cwd="/",
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr.strip()}")
        with (data / "postgresql.conf").open("a") as file:
            on = "on" if self._fsync else "off"
            file.write(CONFIGURATION.format(port=self.ports["postgres"], fsync=on))
        self._write_state({**self._state(), "data": str(data)})

    def _home(self, account: pwd.struct_passwd | None) -> Path:
        """Return a new directory that `account` owns, and that it can reach."""
        if account and not _can_enter(account, self.directory):
            # pytest's directories are root's alone.
            home = Path(tempfile.mkdtemp(prefix="mailasync-postgres-", dir=scratch()))
        else:
            home = self.directory / "postgres"
            home.mkdir(mode=0o700, exist_ok=True)
        if account:
            os.chown(home, account.pw_uid, account.pw_gid)
        return home

    def _launch(self) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        log = self.directory / "console.log"
        pid = spawn(command, log=log, env=self._environment(), account=_account())
        self._record("server", pid)

    def _serves(self) -> bool:
        if not self.is_running():
            assert any(words in self.log_tail(5) for words in STILL_THERE), (
                "PostgreSQL ended while it started"
            )
            self._launch()
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        inherited["LC_ALL"] = "C"
        if self._bin.is_relative_to(cache_directory()):
            return inherited | debian.library_path(self._bin.parents[4])
        return inherited


def create_database(
    server_url: str, name: str, *, template: str = "template0", encoding: LiteralString = "UTF8"
) -> None:
    """Make a database as a copy of files: to write a copy to the log, which is usual, takes the processor twice as long."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement: LiteralString = "CREATE DATABASE {} TEMPLATE {} ENCODING '" + encoding + "'"
        if connection.info.server_version >= 150_000:
            statement += " STRATEGY FILE_COPY"
        connection.execute(
            sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template))
        )


def _installed() -> Path | None:
    found = [programs for pattern in INSTALLED for programs in Path("/").glob(pattern)]
    if on_path := shutil.which("pg_ctl"):
        found.append(Path(on_path).resolve().parent)
    return _newest(found)


def _unpacked() -> Path | None:
    return _newest(list((cache_directory() / "postgresql").glob(INSTALLED[0])))


def _newest(found: list[Path]) -> Path | None:
    """Return the newest with a server in it: Debian's client packages make such directories too."""
    servers = [programs for programs in found if (programs / "initdb").exists()]
    return max(servers, key=_version, default=None)


def _version(programs: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", programs.parent.name)]


def _fetch() -> Path:
    return debian.unpack_or_install(
        "postgresql",
        family="postgresql|libpq",
        find=lambda: _unpacked() or _installed(),
        failure="Debian's packages of PostgreSQL do not hold its programs where they used to",
    )


@functools.cache
def _account() -> pwd.struct_passwd | None:
    """Return the account that has to run PostgreSQL, which refuses root, or None if we are not."""
    if os.geteuid():
        return None
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    return accounts.get("postgres") or accounts["nobody"]


def _can_enter(account: pwd.struct_passwd, directory: Path) -> bool:
    return all(
        path.stat().st_mode & 0o001 or path.stat().st_uid == account.pw_uid
        for path in (directory, *directory.parents)
    )
