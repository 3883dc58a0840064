"""An IMAP server of a test's own, a Dovecot: on free loopback ports, by root too, found or fetched.

with Dovecot(tmp_path / "dovecot") as imap:
    imap.deliver(raw)
    connect(imap.host, imap.port, imap.user, imap.password, imap.certificates.ca_file)
"""

import base64
import contextlib
import functools
import grp
import imaplib
import itertools
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.services import (
    DEADLINE_SECONDS,
    cache_directory,
    debian,
    scratch,
    spawn,
    wait_until,
)
from tests.services.certificates import Certificates, make_certificates
from tests.services.groups import GroupServer
from tests.services.tokens import signed_token

PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/dovecot/sbin")
#: Paths in Debian's programs of what they load or run, and others as long that lead from where they run.
COMPILED_IN = {
    b"/usr/lib/dovecot/modules": b"././././././././/modules",
    b"/usr/bin/doveconf": b"././././/doveconf",
}
#: Wrong passwords get their answer at once, however many came before; nothing is written twice.
#: Gmail allows 15 connections.
COMMON = """\
base_dir = {home}/run
state_dir = {home}/run
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
default_internal_user = {account}
default_internal_group = {group}
default_login_user = {account}
first_valid_uid = {uid}
first_valid_gid = {gid}
mail_fsync = never
mail_max_userip_connections = 15
mailbox_idle_check_interval = 1s
auth_mechanisms = plain xoauth2
auth_failure_delay = 0
ssl = yes
namespace inbox {{
  inbox = yes
  separator = /
  mailbox "{sent}" {{
    auto = subscribe
    special_use = \\Sent
  }}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  unix_listener auth-client {{
    mode = 0666
  }}
}}
"""
UNTIL_2_3 = """\
disable_plaintext_auth = no
ssl_cert = <{home}/server.pem
ssl_key = <{home}/server.pem
mail_location = maildir:{home}/Maildir
passdb {{
  driver = passwd-file
  mechanisms = plain
  args = scheme=PLAIN {home}/passwords
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2
  args = {home}/oauth2.conf
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={home} allow_all_users=yes
}}
import_environment = TZ LD_LIBRARY_PATH={libraries}
"""
OAUTH2_UNTIL_2_3 = """\
introspection_mode = local
username_attribute = sub
local_validation_key_dict = fs:posix:prefix={home}/keys/
"""
#: They have to come first.
VERSIONS = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
"""
SINCE_2_4 = """\
auth_allow_cleartext = yes
ssl_server_cert_file = {home}/server.pem
ssl_server_key_file = {home}/server.pem
mail_driver = maildir
mail_path = {home}/Maildir
passdb passwords {{
  driver = passwd-file
  passdb_mechanisms_filter = plain
  default_password_scheme = PLAIN
  passwd_file_path = {home}/passwords
}}
passdb oauth2 {{
  passdb_mechanisms_filter = xoauth2
}}
oauth2 {{
  introspection_mode = local
  username_attribute = sub
  oauth2_local_validation {{
    dict fs {{
      fs posix {{
        prefix = {home}/keys/
      }}
    }}
  }}
}}
userdb static {{
  static_allow_all_users = yes
  fields {{
    uid = {uid}
    gid = {gid}
    home = {home}
  }}
}}
import_environment {{
  LD_LIBRARY_PATH = {libraries}
}}
"""


def find_dovecot() -> Path:
    """Return Dovecot's program, fetched if need be.

    Raises:
      Unavailable: there is none.
    """
    return debian.find_or_fetch(
        lambda: _installed() or _unpacked(),
        _fetch,
        way_out=(
            "Dovecot is not here. On Debian and Ubuntu: apt install dovecot-imapd. "
            "On a Mac: brew install dovecot. Elsewhere: install it and put dovecot on the PATH."
        ),
    )


class Dovecot(GroupServer):
    """One server with one account; mail, password and ports outlive `stop` and `kill`, and end with `close`."""

    port_names = ("imap", "imaps")
    user = "ops@example.org"

    def __init__(
        self,
        directory: Path,
        certificates: Certificates | None = None,
        *,
        sent: str = "Gesendet",
    ) -> None:
        """Without `certificates` it makes its own; `sent` is the name of the folder that is marked \\Sent."""
        super().__init__(directory)
        self._given = certificates
        self.sent = sent

    @property
    def port(self) -> int:
        """The port with TLS from the first byte; `ports["imap"]` has STARTTLS."""
        return self.ports["imaps"]

    @property
    def password(self) -> str:
        return str(self._state()["password"])

    @property
    def token(self) -> str:
        """An access token that XOAUTH2 takes."""
        return str(self._state()["token"])

    @property
    def expired_token(self) -> str:
        """An access token that it took an hour ago."""
        return str(self._state()["expired_token"])

    @functools.cached_property
    def certificates(self) -> Certificates:
        return self._given or make_certificates(self.directory)

    @property
    def auth_socket(self) -> Path:
        """The socket at which an SMTP server checks logins."""
        return self.home / "run" / "auth-client"

    @property
    def maildir(self) -> Path:
        return self.home / "Maildir"

    def folder(self, name: str) -> Path:
        """Return the directory that holds a folder."""
        if name == "INBOX":
            return self.maildir
        return self.maildir / f".{_modified_utf_7(name).replace('/', '.')}"

    def start(self, certificate: Path | None = None) -> None:
        """Start, and return when clients are served; `certificate` takes the place of the valid one."""
        self._certificate = certificate or self.certificates.valid
        super().start()

    def restart(self) -> None:
        self.stop()
        self.start()

    def set_password(self, password: str) -> None:
        """Change it for logins from now on; who is logged in stays so."""
        self._write_state({**self._state(), "password": password})
        self._write("passwords", f"{self.user}:{password}\n")
        if self.is_running():
            # Dovecot looks at its files once in a second.
            wait_until(self._takes_password, what="the new password is taken")

    def deliver(self, raw: bytes, folder: str = "INBOX") -> None:
        """Put a message into a folder, which is made if need be, as new and unread."""
        place = self.folder(folder)
        if not place.exists():
            self._make_folder(place)
        name = f"{time.time_ns()}.{next(self._numbers)}P{os.getpid()}.test"
        file = place / "tmp" / name
        file.write_bytes(raw)
        self._give_away(file)
        file.rename(place / "new" / name)

    def messages(self, folder: str = "INBOX") -> list[bytes]:
        """Return what is in a folder, in the order of delivery; line ends are those of the delivery."""
        return [content for _, content in self._files(folder)]

    def flags(self, folder: str = "INBOX") -> list[str]:
        """Return each message's flags as letters, S for read, in the order of `messages`."""
        return [name.partition(":2,")[2] for name, _ in self._files(folder)]

    def change_uidvalidity(self, folder: str = "INBOX") -> None:
        """Have clients forget all UIDs, as when a mailbox was restored from a backup."""
        told = self.doveadm("mailbox", "status", "-u", self.user, "uidvalidity", folder)
        changed = int(told.rpartition("=")[2]) + 1
        self.doveadm("mailbox", "update", "-u", self.user, "--uid-validity", str(changed), folder)

    def doveadm(self, *arguments: str) -> str:
        """Run the operator's command, which takes some 50 ms."""
        program = self._program.parents[1] / "bin/doveadm"
        return self._run(program, "-c", self._configuration, *arguments)

    @functools.cached_property
    def _program(self) -> Path:
        return find_dovecot()

    @functools.cached_property
    def _numbers(self) -> Iterator[int]:
        return itertools.count(1)

    @property
    def _configuration(self) -> Path:
        return self.home / "dovecot.conf"

    def _make_home(self) -> None:
        # Not in `directory`: paths of sockets are short, and pytest's directories are root's alone.
        home = Path(tempfile.mkdtemp(prefix="mailasync-dovecot-", dir=scratch()))
        home.chmod(0o711)  # Other servers have to reach the socket of logins.
        self._give_away(home)
        self._write_state({**self._state(), "home": str(home)})
        self.set_password(secrets.token_urlsafe(12))
        self._make_tokens()
        self._make_folder(self.maildir)

    def _make_tokens(self) -> None:
        key = secrets.token_bytes(32)
        # Its place is set by the algorithm; the others are those of a token that names no key.
        place = self.home / "keys/default/HS256"
        place.mkdir(parents=True)
        (place / "default").write_bytes(base64.b64encode(key))
        for path in (self.home / "keys", place.parent, place, place / "default"):
            self._give_away(path)
        token = signed_token(key, self.user)
        expired = signed_token(key, self.user, valid_seconds=-3_600)
        self._write_state({**self._state(), "token": token, "expired_token": expired})

    def _configure(self) -> None:
        account = _account()
        (self.home / "run").mkdir(exist_ok=True)
        self._give_away(self.home / "run")
        self._write("server.pem", self._certificate.read_text())
        values = {
            "home": self.home,
            "account": account.pw_name,
            "group": grp.getgrgid(account.pw_gid).gr_name,
            "uid": account.pw_uid,
            "gid": account.pw_gid,
            "sent": self.sent,
            "libraries": _environment(self._program).get("LD_LIBRARY_PATH", ""),
            **self.ports,
        }
        is_old = _version(self._program) < (2, 4)
        template = COMMON + UNTIL_2_3 if is_old else VERSIONS + COMMON + SINCE_2_4
        text = template.format(**values)
        if root := _unpacked_root(self._program):
            text += f"libexec_dir = {root}/usr/lib/dovecot\n"
            _link(self.home / "run/modules", root / "usr/lib/dovecot/modules")
            _link(self.home / "run/doveconf", root / "usr/bin/doveconf")
        self._write("oauth2.conf", OAUTH2_UNTIL_2_3.format(**values))
        self._write("dovecot.conf", text)

    def _launch(self) -> None:
        pid = spawn(
            [self._program, "-F", "-c", self._configuration],
            log=self.directory / "console.log",
            env=_environment(self._program),
            cwd=self.home / "run",
            account=None if os.geteuid() else _account(),
        )
        self._record("server", pid)

    def _serves_or_died(self) -> bool:
        if not self.is_running():
            return True
        with contextlib.suppress(OSError):
            address = (self.host, self.ports["imap"])
            with socket.create_connection(address, timeout=DEADLINE_SECONDS) as connection:
                return connection.recv(4) == b"* OK"
        return False

    def _run(self, *command: str | Path) -> str:
        account = None if os.geteuid() else _account()
        done = subprocess.run(
            command,
            env=_environment(self._program),
            cwd=self.home / "run",
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def _takes_password(self) -> bool:
        connection = imaplib.IMAP4(self.host, self.ports["imap"], timeout=DEADLINE_SECONDS)
        try:
            # LOGIN takes ASCII only.
            answer = f"\0{self.user}\0{self.password}".encode()
            connection.authenticate("PLAIN", lambda _: answer)
        except imaplib.IMAP4.error:
            return False
        finally:
            connection.shutdown()
        return True

    def _make_folder(self, place: Path) -> None:
        place.mkdir()
        self._give_away(place)
        for part in ("cur", "new", "tmp"):
            (place / part).mkdir()
            self._give_away(place / part)

    def _files(self, folder: str) -> list[tuple[str, bytes]]:
        """Return names and contents, in the order of delivery."""
        found = {}
        for part in ("new", "cur"):
            for file in (self.folder(folder) / part).glob("*"):
                # Dovecot renames a file when its flags change.
                with contextlib.suppress(FileNotFoundError):
                    found[file.name.partition(":")[0]] = (file.name, file.read_bytes())
        return [found[name] for name in sorted(found)]

    def _write(self, name: str, text: str) -> None:
        """Write a file that Dovecot alone can read, at once and whole."""
        new = self.home / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.chmod(0o600)
        self._give_away(new)
        file = self.home / name
        if file.exists():
            # Dovecot reads a file again when the second of its change is another.
            second = file.stat().st_mtime + 1
            os.utime(new, (second, second))
        new.rename(file)

    def _give_away(self, path: Path) -> None:
        if not os.geteuid():
            os.chown(path, _account().pw_uid, _account().pw_gid)


def _link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def _modified_utf_7(name: str) -> str:
    """Return the name of a folder as IMAP and Maildir have it (RFC 3501, 5.1.3)."""

    def encoded(match: re.Match[str]) -> str:
        text = base64.b64encode(match.group().encode("utf-16-be")).decode()
        return f"&{text.rstrip('=').replace('/', ',')}-"

    return re.sub(r"[^\x20-\x7e]+", encoded, name.replace("&", "&-"))


@functools.cache
def _account() -> pwd.struct_passwd:
    """Return the account that runs Dovecot, which serves no mail of root's."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid())
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    return accounts.get("mail") or accounts["nobody"]


def _installed() -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *PLACES])
    program = shutil.which("dovecot", path=path)
    return Path(program) if program and _works(Path(program)) else None


def _unpacked() -> Path | None:
    program = cache_directory() / "dovecot-core/usr/sbin/dovecot"
    return program if _works(program) else None


def _fetch() -> Path:
    return debian.unpack_or_install(
        "dovecot-core",
        "dovecot-imapd",
        family="dovecot",
        patch=_make_relocatable,
        find=lambda: _unpacked() or _installed(),
        failure="Debian's packages of Dovecot do not run here",
        installed="dovecot-imapd",
    )


def _make_relocatable(root: Path) -> None:
    places = ("usr/sbin/*", "usr/bin/*", "usr/lib/dovecot/*")
    for file in [file for place in places for file in root.glob(place)]:
        if file.is_symlink() or not file.is_file():
            continue
        content = file.read_bytes()
        for absolute, relative in COMPILED_IN.items():
            content = content.replace(absolute, relative)
        file.write_bytes(content)


def _works(program: Path) -> bool:
    """Tell whether it runs; Debian has the part that speaks IMAP in a package of its own."""
    if not program.is_file():
        return False
    libexec = (_unpacked_root(program) or Path("/")) / "usr/lib/dovecot"
    if libexec.exists() and not (libexec / "imap").exists():
        return False
    done = subprocess.run([program, "--version"], env=_environment(program), capture_output=True)
    return not done.returncode


def _version(program: Path) -> tuple[int, ...]:
    command: list[str | Path] = [program, "--version"]
    done = subprocess.run(command, env=_environment(program), capture_output=True, check=True)
    return tuple(int(number) for number in re.findall(rb"\d+", done.stdout)[:2])


def _unpacked_root(program: Path) -> Path | None:
    return program.parents[2] if program.is_relative_to(cache_directory()) else None


def _environment(program: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DOVE")}
    if root := _unpacked_root(program):
        ours = [f"{root}/usr/lib/dovecot", f"{root}/usr/lib/dovecot/modules/old-stats"]
        paths = [*ours, debian.library_path(root)["LD_LIBRARY_PATH"]]
        inherited["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    return inherited
