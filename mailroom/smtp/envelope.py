"""Says MAIL, RCPT and DATA, and keeps every reply, also where the link ended in between (RFC 5321, 3.3)."""

import smtplib
from dataclasses import dataclass

from mailroom.smtp.connection import Link, Reply, words_of
from mailroom.smtp.poller import Dialogue


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The replies to MAIL, to RCPT for each of `positions`, and to DATA, as far as they came."""

    positions: tuple[int, ...]
    replies: tuple[Reply, ...]
    end: Reply | None = None  #: why there are no more: 421, or how the link was lost (code 0)
    timed_out: bool = False  #: whether they did not come in time

    @property
    def mail(self) -> Reply | None:
        return self.replies[0] if self.replies else None

    @property
    def rcpt(self) -> dict[int, Reply]:
        """Replies to recipients, by position."""
        return dict(zip(self.positions, self.replies[1:], strict=False))

    @property
    def refused(self) -> dict[int, Reply]:
        return {position: reply for position, reply in self.rcpt.items() if not reply.accepts}

    @property
    def data(self) -> Reply | None:
        return self.replies[-1] if len(self.replies) == len(self.positions) + 2 else None


def hand_over(link: Link, mail: str, recipients: dict[int, str], *, pipelined: bool) -> Dialogue[Envelope]:
    """Say them, in one write where the server takes that (PIPELINING, RFC 2920); no error of the link is raised."""
    commands = [mail, *(f"RCPT TO:<{address}>" for address in recipients.values()), "DATA"]
    replies: list[Reply] = []
    end, timed_out = None, False
    try:
        if pipelined:
            yield from link.sending("".join(f"{command}\r\n" for command in commands))
        for command in commands:
            if not pipelined:
                if _is_over(command, replies):
                    break
                yield from link.sending(f"{command}\r\n")
            reply = yield from link.replying()
            if reply.code == 421:  # It hangs up; these are its last words.
                end = reply
                break
            replies.append(reply)
    except (OSError, smtplib.SMTPException) as e:
        end, timed_out = Reply(0, words_of(e)), isinstance(e.__cause__, TimeoutError)
    return Envelope(positions=tuple(recipients), replies=tuple(replies), end=end, timed_out=timed_out)


def _is_over(command: str, replies: list[Reply]) -> bool:
    """Tell a mail of which nothing more is to be said: it was refused, or all its recipients were."""
    if not replies:
        return False
    refused_all = command == "DATA" and not any(reply.accepts for reply in replies[1:])
    return refused_all or not replies[0].accepts
