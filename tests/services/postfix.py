"""An SMTP server of a test's own, a Postfix before a Dovecot, as Gmail is to its users: found or fetched.

    with Dovecot(tmp_path / "dovecot") as imap, Postfix(tmp_path / "postfix", imap) as smtp:
        send(smtp.host, smtp.port, imap.user, imap.password, imap.certificates.ca_file)

example.org is its own domain: mail to ops goes to INBOX, and all others there are unknown, which
their senders hear by a bounce only. A copy of what ops sends lies in Sent.
"""

import functools
import grp
import os
import pwd
import shutil
import smtplib
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.services import (
    DEADLINE_SECONDS,
    Unavailable,
    accepts,
    cache_directory,
    debian,
    is_alive,
    scratch,
    spawn,
    wait_until,
)
from tests.services.dovecot import Dovecot
from tests.services.fakeroot import VARIABLES, find_fakeroot
from tests.services.groups import GroupServer

PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
DAEMONS = ("usr/lib/postfix/sbin", "usr/libexec/postfix", "usr/local/libexec/postfix")
#: With its own user, if the system has it, else with two of the system's that nothing else runs as.
OWNERS = ("postfix", "daemon", "bin")
GROUPS = ("postdrop", "games", "staff", "users")
QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("maildrop", "private", "public", "saved", "trace"),
)
NOT_YET_DELIVERED = ("incoming", "active", "deferred")
#: Nothing is looked up, no client is slowed down, and what was put off is tried again in a second.
#: A login without TLS is taken too, so that a test can stand between and see the dialogue.
MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
daemon_directory = {daemons}
command_directory = {commands}
import_environment = MAIL_CONFIG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME LD_LIBRARY_PATH {fakeroot}
export_environment = TZ LANG=C LD_LIBRARY_PATH {fakeroot}
maillog_file = /dev/stdout
mail_owner = {owner}
setgid_group = {group}
default_privs = nobody
myhostname = mx.example.org
mydomain = example.org
myorigin = example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
local_transport = error:no local delivery
recipient_delimiter = +
virtual_mailbox_domains = example.org
virtual_mailbox_base = {mail}
virtual_mailbox_maps = inline:{{ {{ ops@example.org = ./ }}, {{ sent@example.org = {sent} }} }}
virtual_mailbox_limit = 0
virtual_minimum_uid = 1
virtual_uid_maps = static:{mail_uid}
virtual_gid_maps = static:{mail_gid}
sender_bcc_maps = inline:{{ {{ ops@example.org = sent@example.org }} }}
smtpd_reject_unlisted_recipient = no
smtpd_reject_unlisted_sender = no
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {auth_socket}
smtpd_tls_security_level = may
smtpd_tls_auth_only = no
smtpd_tls_chain_files = {home}/server.pem
smtpd_tls_loglevel = 0
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 10000
smtpd_hard_error_limit = 10000
smtpd_client_connection_count_limit = 0
message_size_limit = 35882577
default_process_limit = 50
initial_destination_concurrency = 20
in_flow_delay = 0
hash_queue_names = hold
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
relayhost = {relay}
default_transport = {transport}
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 2s
delay_warning_time = {delay_warning}
notify_classes =
"""
#: None is in a chroot, and only `virtual` needs root, to become the owner of the mailbox.
MASTER = """\
127.0.0.1:{smtp} inet n - n - - smtpd
127.0.0.1:{smtps} inet n - n - - smtpd
    -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def find_postfix() -> Path:
    """Return the program of Postfix, fetched if need be, and see to it that we can run it.

    Raises:
      Unavailable: there is none, or we are not root, which it insists on, and have no fakeroot.
    """
    if os.geteuid():
        try:
            find_fakeroot()
        except Unavailable as e:
            raise Unavailable(
                "Postfix starts as root only. On Debian and Ubuntu: apt install fakeroot. "
                f"Elsewhere: run the tests as root or in a container. ({e})"
            ) from e
    return debian.find_or_fetch(
        lambda: _installed() or _unpacked(),
        _fetch,
        way_out=(
            "Postfix is not here. On Debian and Ubuntu: apt install postfix. "
            "Elsewhere: install it and put postfix on the PATH."
        ),
    )


class Postfix(GroupServer):
    """One instance; its queue and ports outlive `stop` and `kill`, and end with `close`."""

    port_names = ("smtp", "smtps", "fakeroot")

    def __init__(
        self,
        directory: Path,
        mailbox: Dovecot | None = None,
        *,
        relay: int = 0,
        delay_warning_seconds: int = 0,
    ) -> None:
        """Needs a `mailbox` that was started to start itself.

        `relay` is the port on this machine that gets mail to all other domains; without it that is dropped.
        `delay_warning_seconds`: a sender gets a notice of what is put off for so long.
        """
        super().__init__(directory)
        self._mailbox = mailbox
        self._relay = relay
        self._delay_warning = delay_warning_seconds

    @property
    def port(self) -> int:
        """The port with STARTTLS; `ports["smtps"]` has TLS from the first byte."""
        return self.ports["smtp"]

    def queued(self) -> int:
        """Count the messages that it has taken and not delivered yet, bounces included."""
        return sum(len(os.listdir(self.home / "queue" / name)) for name in NOT_YET_DELIVERED)

    def flush(self) -> None:
        """Wait until all is delivered."""
        wait_until(lambda: not self.queued(), what="Postfix has delivered all")

    @functools.cached_property
    def _program(self) -> Path:
        return find_postfix()

    def _make_home(self) -> None:
        # Not in `directory`: pytest's directories are root's alone, and Postfix' daemons are not root.
        home = Path(tempfile.mkdtemp(prefix="mailasync-postfix-", dir=scratch()))
        home.chmod(0o755)
        self._write_state({**self._state(), "home": str(home)})
        for name in ("etc", "queue", "queue/pid"):
            (home / name).mkdir()
        for place in self._places_of_owner():
            place.mkdir(mode=0o700)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            (home / "queue" / name).chmod(mode)

    def _places_of_owner(self) -> list[Path]:
        return [self.home / "data", *(self.home / "queue" / name for name in QUEUES)]

    def _give_away(self) -> None:
        """Make the directories belong to whom Postfix expects."""
        places = self._places_of_owner()
        shared = [place for place in places if place.name in ("maildrop", "public")]
        environment = _environment(self._program) | self._disguise()
        subprocess.run(["chown", _owner(), *places], env=environment, check=True)
        subprocess.run(["chgrp", _group(), *shared], env=environment, check=True)

    def _disguise(self) -> dict[str, str]:
        """Return the variables that let a program take us for root, if we are not."""
        if not os.geteuid():
            return {}
        fakeroot, port = find_fakeroot(), self.ports["fakeroot"]
        if not is_alive(self.pids.get("fakeroot", 0)):
            log = self.directory / "fakeroot.log"
            pid = spawn(fakeroot.command(port), log=log, env=dict(os.environ))
            self._record("fakeroot", pid)
            wait_until(lambda: accepts(port), what="fakeroot listens")
        return fakeroot.environment(port)

    def _configure(self) -> None:
        mailbox = self._mailbox
        assert mailbox, "Postfix needs a mailbox to deliver to"
        mail = mailbox.maildir.stat()
        certificate = self.home / "server.pem"
        certificate.write_bytes(mailbox.certificates.valid.read_bytes())
        certificate.chmod(0o600)
        values = {
            "home": self.home,
            "daemons": _daemons(self._program),
            "commands": self._program.parent,
            "owner": _owner(),
            "group": _group(),
            "mail": mailbox.maildir,
            "mail_uid": mail.st_uid,
            "mail_gid": mail.st_gid,
            "sent": f"{mailbox.folder(mailbox.sent).name}/",
            "auth_socket": mailbox.auth_socket,
            "relay": f"[127.0.0.1]:{self._relay}" if self._relay else "",
            "transport": "smtp" if self._relay else "discard",
            "fakeroot": " ".join(VARIABLES),
            "delay_warning": f"{self._delay_warning}s",
        }
        self._write("main.cf", MAIN.format(**values))
        self._write("master.cf", MASTER.format(**self.ports))
        self._give_away()

    def _write(self, name: str, text: str) -> None:
        file = self.home / "etc" / name
        file.write_text(text)
        # Postfix waits for seconds before a file as young as this, which may not be whole.
        os.utime(file, (0, 0))

    def _launch(self) -> None:
        environment = _environment(self._program) | self._disguise()
        environment |= {
            "MAIL_CONFIG": str(self.home / "etc"),
            # Its variable for a start in the foreground: only then it may write to stdout.
            "POSTLOG_SERVICE": "postlog",
            "POSTLOG_HOSTNAME": "mx.example.org",
        }
        command: list[str | Path] = [
            _daemons(self._program) / "master",
            "-c",
            self.home / "etc",
            "-s",
        ]
        pid = spawn(command, log=self.directory / "console.log", env=environment)
        self._record("server", pid)

    def _serves_or_died(self) -> bool:
        if not self.is_running():
            return True
        try:
            with smtplib.SMTP(self.host, self.port, timeout=DEADLINE_SECONDS) as connection:
                return connection.ehlo()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False


def _owner() -> str:
    return _first(OWNERS, {account.pw_name for account in pwd.getpwall()})


def _group() -> str:
    return _first(GROUPS, {group.gr_name for group in grp.getgrall()})


def _first(wanted: Iterable[str], there: set[str]) -> str:
    return next(name for name in wanted if name in there)


def _installed() -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *PLACES])
    program = shutil.which("postfix", path=path)
    return Path(program) if program and _works(Path(program)) else None


def _unpacked() -> Path | None:
    program = cache_directory() / "postfix/usr/sbin/postfix"
    return program if _works(program) else None


def _fetch() -> Path:
    return debian.unpack_or_install(
        "postfix",
        family="postfix",
        find=lambda: _unpacked() or _installed(),
        failure="Debian's packages of Postfix do not run here",
    )


def _works(program: Path) -> bool:
    """Tell whether it runs: one of its programs that needs no configuration says its version."""
    if not program.is_file():
        return False
    command: list[str | Path] = [program.with_name("postconf"), "-d", "mail_version"]
    done = subprocess.run(command, env=_environment(program), capture_output=True)
    return not done.returncode


def _unpacked_root(program: Path) -> Path:
    return program.parents[2] if program.is_relative_to(cache_directory()) else Path("/")


def _daemons(program: Path) -> Path:
    places = [_unpacked_root(program) / place for place in DAEMONS]
    return next(place for place in places if (place / "master").exists())


def _environment(program: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAIL_", "POSTLOG_"))}
    root = _unpacked_root(program)
    if root != Path("/"):
        paths = debian.library_path(root)["LD_LIBRARY_PATH"]
        inherited["LD_LIBRARY_PATH"] = f"{root}/usr/lib/postfix{os.pathsep}{paths}"
    return inherited
