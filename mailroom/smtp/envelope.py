"""Sends MAIL, RCPT and DATA, and keeps every reply, even if the connection is lost (RFC 5321, 3.3)."""

import smtplib
from dataclasses import dataclass

from mailroom.smtp.connection import Connection, Reply, describe
from mailroom.smtp.poller import Dialogue


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The replies to MAIL, to RCPT for each of `positions`, and to DATA, as far as they came."""

    positions: tuple[int, ...]
    replies: tuple[Reply, ...]
    #: why there are no more: 421, or how the connection was lost (code 0)
    hangup: Reply | None = None
    timed_out: bool = False  #: True if they did not come in time

    @property
    def mail(self) -> Reply | None:
        return self.replies[0] if self.replies else None

    @property
    def rcpt(self) -> dict[int, Reply]:
        """Return the replies to RCPT, by position of the recipient."""
        return dict(zip(self.positions, self.replies[1:], strict=False))

    @property
    def refused(self) -> dict[int, Reply]:
        replies = self.rcpt.items()
        return {position: reply for position, reply in replies if not reply.accepts}

    @property
    def data(self) -> Reply | None:
        if len(self.replies) < len(self.positions) + 2:
            return None
        return self.replies[-1]


def send_envelope(
    connection: Connection, mail: str, recipients: dict[int, str], *, pipelined: bool
) -> Dialogue[Envelope]:
    """Send the commands, all in one write if `pipelined` (PIPELINING, RFC 2920).

    `mail` is the whole MAIL command. A lost connection raises nothing; it is the envelope's `hangup`.
    """
    commands = _commands(mail, recipients)
    replies: list[Reply] = []
    hangup = None
    timed_out = False
    try:
        if pipelined:
            yield from connection.write("".join(f"{command}\r\n" for command in commands))
        for command in commands:
            if not pipelined:
                if _is_over(command, replies):
                    break
                yield from connection.write(f"{command}\r\n")
            reply = yield from connection.read_reply()
            if reply.code == 421:  # The server hangs up after this reply.
                hangup = reply
                break
            replies.append(reply)
    except (OSError, smtplib.SMTPException) as e:
        hangup = Reply(0, describe(e))
        timed_out = isinstance(e.__cause__, TimeoutError)
    return Envelope(
        positions=tuple(recipients), replies=tuple(replies), hangup=hangup, timed_out=timed_out
    )


def _commands(mail: str, recipients: dict[int, str]) -> list[str]:
    commands = [mail]
    for address in recipients.values():
        commands.append(f"RCPT TO:<{address}>")
    commands.append("DATA")
    return commands


def _is_over(command: str, replies: list[Reply]) -> bool:
    """Tell whether `command` is pointless, as the mail or all of its recipients were refused."""
    if not replies:
        return False
    refused_all = command == "DATA" and not any(reply.accepts for reply in replies[1:])
    return refused_all or not replies[0].accepts
