"""Our IMAP connection to servers that are hostile, or do what Dovecot does not."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import pytest

from mailroom.mailbox.connection import MailboxConnection, MailboxError
from mailroom.mailbox.sent_folder import is_in_sent
from mailroom.model.account import MailboxServer
from tests.services.imap import Reply, ScriptedIMAP, dripping, endless

FETCHED = b'* 1 FETCH (UID 1 BODY[HEADER.FIELDS ("SUBJECT")]<0> '


def server_of(imap: ScriptedIMAP, *, seconds: float = 60, security: str = "none") -> MailboxServer:
    return MailboxServer(
        host="127.0.0.1",
        port=imap.port,
        security=security,
        user="ops@example.org",
        password="correct horse",
        timeout_seconds=seconds,
    )


def failure(act: Callable[[], object]) -> MailboxError:
    with pytest.raises(MailboxError) as raised:
        act()
    error = raised.value
    assert "\n" not in str(error) and len(str(error)) <= 500
    assert "horse" not in str(error)
    return error


def failure_at_open(imap: ScriptedIMAP, **options: object) -> str:
    connection = MailboxConnection(server_of(imap, **options))  # type: ignore[arg-type]  # as they are
    error = failure(connection.open)
    assert not connection.is_open
    return str(error)


@contextmanager
def connected(
    replies: dict[str, Reply] | None = None,
    *,
    seconds: float = 60,
    capabilities: str = "IMAP4rev1 IDLE",
) -> Iterator[tuple[MailboxConnection, ScriptedIMAP]]:
    """Yield a connection with the inbox selected to a server that replies so."""
    with ScriptedIMAP(replies, capabilities=capabilities) as imap:
        server = server_of(imap, seconds=seconds)
        with MailboxConnection(server) as connection:
            connection.select_inbox()
            yield connection, imap


def failure_of(
    command: str, reply: Reply, act: Callable[[MailboxConnection], object], *, seconds: float = 60
) -> MailboxError:
    """Return how `act` fails on a server that replies so to a command."""
    with connected({command: reply}, seconds=seconds) as (connection, _):
        error = failure(lambda: act(connection))
        assert not connection.is_open
        return error


def search(connection: MailboxConnection) -> object:
    return connection.new_uids(0, limit=10)


def fetch(connection: MailboxConnection) -> object:
    return connection.fetch(1, 1000)


def headers(connection: MailboxConnection) -> object:
    return connection.headers([1], ["Subject"])


def folders(connection: MailboxConnection) -> object:
    return connection.folders()


def wait(connection: MailboxConnection) -> object:
    return connection.wait_for_mail(3600)


@pytest.mark.parametrize(
    ("command", "act"),
    [("SEARCH", search), ("NOOP", search), ("FETCH", fetch), ("LIST", folders), ("IDLE", wait)],
)
@pytest.mark.parametrize("start", [b"", b"* 1 FETCH (UID 1 BODY[]<0> {1000}\r\n", b"+ "])
def test_server_that_drips_is_left_in_time(
    command: str, act: Callable[[MailboxConnection], object], start: bytes
) -> None:
    error = failure_of(command, lambda tag: chain([start], dripping()), act, seconds=0.5)
    assert "in time" in str(error)


@pytest.mark.parametrize("act", [search, wait])
def test_server_that_drips_whole_responses_is_left_in_time(
    act: Callable[[MailboxConnection], object],
) -> None:
    drip: Reply = lambda tag: dripping(b"* OK wait\r\n")  # noqa: E731
    with connected({"NOOP": drip, "IDLE": drip}, seconds=0.5) as (connection, _):
        assert "in time" in str(failure(lambda: act(connection)))


@pytest.mark.parametrize(
    ("command", "act", "data"),
    [
        ("SEARCH", search, b"x" * 65536),
        ("FETCH", fetch, b"x" * 65536),
        ("FETCH", fetch, b"* 1 EXISTS\r\n" * 5000),
    ],
)
def test_response_without_end_is_left(
    command: str, act: Callable[[MailboxConnection], object], data: bytes
) -> None:
    error = failure_of(command, lambda tag: endless(data), act)
    assert f"sent more data than {command} can bring" in str(error)


@pytest.mark.parametrize("size", ["10000000000", "9" * 5000])
@pytest.mark.parametrize(("command", "act"), [("SEARCH", search), ("FETCH", fetch)])
def test_literal_that_is_too_long_is_not_waited_for(
    command: str, act: Callable[[MailboxConnection], object], size: str
) -> None:
    start = f"* 1 FETCH (UID 1 BODY[]<0> {{{size}}}\r\n".encode()
    error = failure_of(command, lambda tag: chain([start], dripping()), act)
    assert "sent more data" in str(error) or "makes no sense" in str(error)


@pytest.mark.parametrize(
    "said",
    [
        b"secret\r\n",
        b"* SEARCH secret\r\n",
        b"* SEARCH 1\r\n* SEARCH 2\r\n",
        b"* 1 FETCH secret\r\n",
        b"* 1 FETCH (UID 1 BODY\r\n",
        b"* 1 FETCH " + b"(" * 100_000 + b"\r\n",
        b'* 1 FETCH (UID secret "x)\r\n',
        b"* LIST secret\r\n",
        b'* LIST (\\Sent) "/" "&secret"\r\n',
        b"* LIST 1 2 3\r\n",
        b"\xff\xfe\r\n",
        b"\r\n",
        b"A1 OK\r\n",
    ],
)
@pytest.mark.parametrize("act", [search, fetch, headers, folders])
def test_nonsense_fails_without_being_repeated(
    said: bytes, act: Callable[[MailboxConnection], object]
) -> None:
    reply: Reply = lambda tag: [said, tag + b" OK done\r\n"]  # noqa: E731
    replies = {"SEARCH": reply, "FETCH": reply, "LIST": reply}
    with connected(replies) as (connection, _):
        said_of_it = ""
        try:
            act(connection)
        except MailboxError as e:
            said_of_it = str(e)
        assert connection.is_open != bool(said_of_it)
    assert not said_of_it or "makes no sense" in said_of_it
    assert "secret" not in said_of_it


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        ([b"* BYE Too many connections\r\n"], "refused the connection: Too many connections"),
        ([b"* OK"], "connection closed by the server"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], "makes no sense"),
        (endless(), "sent more data"),
        ([], "connection closed by the server"),
    ],
)
def test_greeting_that_is_none(greeting: Iterable[bytes], said: str) -> None:
    class Closing(ScriptedIMAP):
        def serve(self, client: object) -> None:
            for piece in self.greeting:
                client.sendall(piece)  # type: ignore[attr-defined]  # a socket

    with Closing(greeting=greeting) as imap:
        assert said in failure_at_open(imap)


def test_greeting_that_drips_is_left_in_time() -> None:
    with ScriptedIMAP(greeting=dripping()) as imap:
        assert "in time" in failure_at_open(imap, seconds=0.5)


def test_silent_server_in_the_handshake_is_left_in_time() -> None:
    with ScriptedIMAP(greeting=[]) as imap:
        assert "in time" in failure_at_open(imap, seconds=0.5, security="ssl")


def test_server_without_starttls_gets_no_password() -> None:
    with ScriptedIMAP() as imap:
        assert "does not offer what STARTTLS needs" in failure_at_open(imap, security="starttls")
        assert imap.commands == ["CAPABILITY"]


def test_what_is_said_before_tls_is_not_believed() -> None:
    replies: dict[str, Reply] = {"STARTTLS": lambda tag: [tag + b" OK go\r\n* PREAUTH hello\r\n"]}
    with ScriptedIMAP(replies, capabilities="IMAP4rev1 STARTTLS") as imap:
        assert "spoke between STARTTLS and TLS" in failure_at_open(imap, security="starttls")


def test_login_that_the_server_finished_itself_is_not_believed() -> None:
    with ScriptedIMAP(greeting=[b"* PREAUTH hello\r\n"]) as imap:
        assert "makes no sense" in failure_at_open(imap)
        assert imap.commands == ["CAPABILITY"]


def test_login_that_came_before_starttls_is_not_believed() -> None:
    greeting = [b"* PREAUTH hello\r\n"]
    with ScriptedIMAP(greeting=greeting, capabilities="IMAP4rev1 STARTTLS") as imap:
        assert "makes no sense" in failure_at_open(imap, security="starttls")
        assert set(imap.commands) == {"CAPABILITY"}


@pytest.mark.parametrize(
    ("words", "of_login"),
    [
        (b"[AUTHENTICATIONFAILED] Invalid credentials (Failure)", True),
        (b"[ALERT] Application-specific password required", True),
        (b"[ALERT] Too many simultaneous connections. (Failure)", False),
        (b"[UNAVAILABLE] Temporary System Error", False),
    ],
)
def test_refused_login_tells_whether_a_person_has_to_act(words: bytes, of_login: bool) -> None:
    replies: dict[str, Reply] = {"LOGIN": lambda tag: [tag + b" NO " + words + b"\r\n"]}
    with ScriptedIMAP(replies) as imap:
        error = failure(MailboxConnection(server_of(imap)).open)
    assert str(error).endswith(f"refused the login: {words.decode()}")
    assert error.of_login is of_login


def test_password_is_not_repeated_when_the_server_does() -> None:
    echo: dict[str, Reply] = {"LOGIN": lambda tag: [tag + b' BAD LOGIN a "correct horse"\r\n']}
    with ScriptedIMAP(echo) as imap:
        assert failure_at_open(imap).endswith('refused the login: LOGIN a "…"')


def test_user_and_password_are_quoted_for_login() -> None:
    with connected() as (_, imap):
        pass
    assert 'LOGIN "ops@example.org" "correct horse"' in imap.commands


def test_login_without_a_way_that_we_know() -> None:
    with ScriptedIMAP(capabilities="IMAP4rev1 LOGINDISABLED AUTH=GSSAPI") as imap:
        assert "offers no way to log in that we know" in failure_at_open(imap)
        assert imap.commands == ["CAPABILITY"]


def test_challenges_without_end_are_answered_once() -> None:
    def challenge(tag: bytes) -> Iterable[bytes]:
        return [b"+ \r\n"] * 3

    replies: dict[str, Reply] = {"AUTHENTICATE": challenge, "*": lambda tag: [], "": challenge}
    with ScriptedIMAP(replies, capabilities="IMAP4rev1 AUTH=PLAIN") as imap:
        assert "in time" in failure_at_open(imap, seconds=0.5)
        sent = [command for command in imap.commands if command]
    assert sent == ["CAPABILITY", "AUTHENTICATE PLAIN"]


def test_link_that_is_lost_between_commands_is_told() -> None:
    with connected() as (connection, imap):
        imap.close()
        assert "was lost" in str(failure(lambda: search(connection)))
        assert not connection.is_open


def test_goodbye_is_quoted() -> None:
    bye: Reply = lambda tag: [b"+ idling\r\n", b"* BYE Session expired\r\n"]  # noqa: E731
    assert str(failure_of("IDLE", bye, wait)).endswith("hung up: Session expired")
    bye = lambda tag: [b"* BYE Session expired\r\n"]  # noqa: E731
    assert str(failure_of("NOOP", bye, search)).endswith("hung up: Session expired")


def test_refused_idle_is_told() -> None:
    with connected({"IDLE": lambda tag: [tag + b" NO not now\r\n"]}) as (connection, _):
        assert str(failure(lambda: wait(connection))).endswith("refused IDLE: not now")
        assert connection.is_open


def test_mail_told_of_before_idle_begins_ends_the_wait() -> None:
    replies: dict[str, Reply] = {
        "IDLE": lambda tag: [b"* 2 EXISTS\r\n", b"+ idling\r\n"],
        "SEARCH": lambda tag: [b"* 3 EXISTS\r\n", b"* SEARCH 1\r\n", tag + b" OK done\r\n"],
    }
    with connected(replies) as (connection, imap):
        assert connection.wait_for_mail(3600) is True
        assert connection.new_uids(0, limit=1) == [1]
        # Between the search and IDLE.
        before = len(imap.commands)
        assert connection.wait_for_mail(3600) is True
        assert len(imap.commands) == before


def test_idle_is_asked_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.mailbox.connection.IDLE_SECONDS_MAX", 0.02)
    with connected() as (connection, imap):
        assert connection.wait_for_mail(0.5) is False
        assert imap.commands.count("IDLE") == imap.commands.count("DONE") > 2


def test_without_idle_the_wait_ends_by_itself() -> None:
    with connected(capabilities="IMAP4rev1") as (connection, imap):
        before = [*imap.commands]
        assert not connection.can_idle
        assert connection.wait_for_mail(0.1) is False
        assert imap.commands == before


@pytest.mark.parametrize(
    ("message_id", "command"),
    [
        ("1.a@example.org", 'SEARCH X-GM-RAW "rfc822msgid:1.a@example.org"'),
        ('1" OR in:sent "@x', 'SEARCH HEADER Message-ID "<1\\" OR in:sent \\"@x>"'),
        ("{a}@example.org", 'SEARCH HEADER Message-ID "<{a}@example.org>"'),
    ],
)
def test_gmail_is_searched_in_its_own_way(message_id: str, command: str) -> None:
    found: Reply = lambda tag: [b"* SEARCH 7\r\n", tag + b" OK done\r\n"]  # noqa: E731
    offer = "IMAP4rev1 X-GM-EXT-1"
    with connected({"SEARCH": found}, capabilities=offer) as (connection, imap):
        assert is_in_sent(connection, "[Gmail]/Sent Mail", message_id)
        assert imap.commands[-2:] == ['EXAMINE "[Gmail]/Sent Mail"', f"UID {command}"]


@pytest.mark.parametrize("reply", [b" OK done\r\n", b" NO not for you\r\n", b" BAD what?\r\n"])
def test_who_we_are_is_said_where_the_server_wants_to_know(reply: bytes) -> None:
    identify: Reply = lambda tag: [tag + reply]  # noqa: E731
    with connected({"ID": identify}, capabilities="IMAP4rev1 ID") as (_, imap):
        assert 'ID ("name" "mailasync")' in imap.commands


@pytest.mark.parametrize("size", [3, 20_000])
def test_server_that_cuts_nothing_is_cut(size: int) -> None:
    literal = b"{%d}\r\n" % size + b"x" * size
    reply: Reply = lambda tag: [FETCHED + literal + b")\r\n", tag + b" OK done\r\n"]  # noqa: E731
    with connected({"FETCH": reply}) as (connection, _):
        assert len(connection.headers([1], ["Subject"])[1]) == min(size, 16_384)
        assert connection.fetch(1, 2) == b"xx"


def test_mail_that_was_copied_is_not_copied_again() -> None:
    refused: Reply = lambda tag: [tag + b" NO not now\r\n"]  # noqa: E731
    with connected({"STORE": refused}) as (connection, imap):
        connection.select_inbox(writable=True)
        assert "refused STORE" in str(failure(lambda: connection.move([1], "Bounces")))
        assert [c for c in imap.commands if "COPY" in c] == ['UID COPY 1 "Bounces"']


def test_move_that_is_refused_for_good_is_told() -> None:
    refused: Reply = lambda tag: [tag + b" NO [OVERQUOTA] full\r\n"]  # noqa: E731
    replies = {"MOVE": refused, "CREATE": refused}
    with connected(replies, capabilities="IMAP4rev1 MOVE") as (connection, imap):
        connection.select_inbox(writable=True)
        error = failure(lambda: connection.move([1], "Bounces"))
        assert str(error).endswith("refused MOVE: [OVERQUOTA] full")
        assert connection.is_open and imap.commands[-2] == 'CREATE "Bounces"'
