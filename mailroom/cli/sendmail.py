"""The command that stands for sendmail(8), which cron and PHP call with a mail on standard input."""

import os
import re
import sys
from collections.abc import Callable
from email.utils import formataddr
from functools import partial
from typing import Any, NoReturn, TypeVar

import click

from mailroom.api.auth import guard
from mailroom.api.auth.senders import account_sender_of
from mailroom.api.services import Services
from mailroom.cli.context import CommandContext
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.model.header import HeaderTooLong, breaks_off, split_header
from mailroom.smtpd.raw_message import Acceptance, SubmittedMail
from mailroom.submission.raw_message import LINE_MAX_BYTES, header_recipients, names_and_addresses

#: The first line of a mail in a mailbox file, which is no header field.
_MBOX_LINE = re.compile(rb"\A>?From [^\n]*\n")
#: Also a CR alone, as in the progress bar of a command that cron reports on.
_LINE_END = re.compile(rb"\r+\n?|\n")


FC = TypeVar("FC", bound=Callable[..., Any])


class WrongArguments(click.UsageError):
    """The arguments are wrong."""

    exit_code = os.EX_USAGE


class SendmailCommand(click.Command):
    """Ends with EX_USAGE of sysexits(3) where its arguments are wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as e:
            raise WrongArguments(e.message, ctx) from None


def _ignored(*names: str, **more: Any) -> Callable[[FC], FC]:
    """Take an option of sendmail that changes nothing here."""
    return click.option(*names, expose_value=False, hidden=True, **more)


@click.command("sendmail", cls=SendmailCommand)
@click.argument("recipients", nargs=-1)
@click.option("-t", "in_header", is_flag=True, help="Also send to those in To, Cc and Bcc.")
@click.option("-i", "keeps_dots", is_flag=True, help="Do not end at a line with a dot alone.")
@click.option("-f", "-r", "sender", metavar="ADDRESS", help="Where bounces go.")
@click.option("-F", "name", metavar="NAME", help="The name in From, where the mail has no From.")
@click.option("-o", "modes", multiple=True, metavar="MODE", help="-oi is -i; others are ignored.")
@click.option("-b", "mode", default="m", metavar="MODE", help="m: read a mail, the only mode.")
@_ignored("-B")
@_ignored("-N")
@_ignored("-R")
@_ignored("-V")
@_ignored("-h")
@_ignored("-G", is_flag=True)
@_ignored("-U", is_flag=True)
@_ignored("-m", is_flag=True)
@_ignored("-n", is_flag=True)
@_ignored("-v", is_flag=True)
@click.pass_obj
def sendmail_command(
    context: CommandContext,
    /,
    recipients: tuple[str, ...],
    in_header: bool,
    modes: tuple[str, ...],
    mode: str,
    **options: Any,
) -> None:
    """Accept a whole mail from standard input, as sendmail does; a worker sends it.

    Exits with a code of sysexits(3): 0 once it is kept, 64 for wrong arguments, 65 for a mail that cannot be
    sent, 75 if the database is away, 77 if no account may send from its address, 78 if there is no database.
    """
    options["keeps_dots"] |= "i" in modes
    if mode != "m":
        _end(os.EX_USAGE, f"expected -bm, the only mode, got -b{mode}")
    if not (recipients or in_header):
        _end(os.EX_USAGE, "expected recipients, or -t to send to those in To, Cc and Bcc")
    data = sys.stdin.buffer.read()
    try:
        with context.services() as services:
            reply = _accept(services, data, recipients, in_header=in_header, **options)
    except StoreUnavailable as e:
        _end(os.EX_TEMPFAIL, str(e))
    except MailroomError as e:
        _end(os.EX_CONFIG, str(e))
    if not reply.startswith("250"):
        _end(_exit_code(reply), reply)


def _accept(
    services: Services,
    data: bytes,
    recipients: tuple[str, ...],
    *,
    in_header: bool,
    keeps_dots: bool,
    sender: str | None,
    name: str | None,
) -> str:
    """Accept the mail, and return the reply that SMTP would give."""
    text = data if keeps_dots else _up_to_dot(data)
    mail = _with_sender(_lines(text), account_sender_of(services, None).address, name or "")
    everyone = [*recipients, *(header_recipients(mail) if in_header else [])]
    if not everyone:
        return "501 5.1.3 expected an address in To, Cc or Bcc, got none"
    submitted = SubmittedMail(
        content=mail,
        sender=_bounce_address(sender),
        recipients=tuple(everyone),
        smtputf8=None,
        source="",
        protocol="local",
        key=guard.LOCAL,
    )
    return _acceptance(services).accept(submitted)


def _bounce_address(sender: str | None) -> str | None:
    """Return the address of -f; "": nobody gets bounces; None: the one in From does."""
    if sender in ("", "<>"):
        return ""
    # cron and PHP give a name of this machine's.
    return sender if sender and "@" in sender else None


def _acceptance(services: Services) -> Acceptance:
    return Acceptance(
        reader=services.reader,
        outbox=services.outbox,
        keys=services.keys,
        account_sender=partial(account_sender_of, services),
        send=services.send,
    )


def _up_to_dot(data: bytes) -> bytes:
    """Return what comes before a line with a dot alone."""
    return re.split(rb"(?m)^\.\r*\n", data, maxsplit=1)[0]


def _lines(data: bytes) -> bytes:
    """Return the mail with CRLF line ends and without NUL, as neither can be sent.

    Long lines are broken before a space, as Postfix breaks them.
    """
    mail = _LINE_END.sub(b"\r\n", _MBOX_LINE.sub(b"", data.replace(b"\0", b"")))
    return b"\r\n".join(map(_broken, mail.split(b"\r\n")))


def _broken(line: bytes) -> bytes:
    """Return a line as lines of at most LINE_MAX_BYTES."""
    if len(line) <= LINE_MAX_BYTES:
        return line
    step = LINE_MAX_BYTES - 1
    return b"\r\n ".join(line[start : start + step] for start in range(0, len(line), step))


def _with_sender(mail: bytes, address: str, name: str) -> bytes:
    """Return the mail with our address in From, if it has none, or only a name like cron's `root`."""
    try:
        fields, rest = split_header(mail)
    except HeaderTooLong:
        return mail
    if breaks_off(mail, fields):
        return mail
    authors = [field for field in fields if field.name == "from"]
    named = names_and_addresses([field.value for field in authors])
    if any("@" in one for _, one in named):
        return mail
    display_name = name or next((one for one, _ in named if one), "")
    author = formataddr((display_name, address), "utf-8")
    others = b"".join(field.lines for field in fields if field.name != "from")
    return f"From: {author}\r\n".encode() + others + rest


def _exit_code(reply: str) -> int:
    if reply.startswith("4"):
        return os.EX_TEMPFAIL
    if reply.startswith("550 5.7.1"):
        return os.EX_NOPERM
    return os.EX_USAGE if reply.startswith("501") else os.EX_DATAERR


def _end(code: int, problem: str) -> NoReturn:
    click.echo(f"sendmail: {problem}", err=True)
    sys.exit(code)
