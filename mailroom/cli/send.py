"""The command that sends a mail: flask send, which accepts it as `POST /v1/messages` does."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from mailroom.api.auth.senders import account_sender
from mailroom.api.services import Services
from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON, errors_in_a_line
from mailroom.cli.send_options import read_request
from mailroom.cli.watch import PrintStep, status_line, step_printer, wait_until_final
from mailroom.model.attempt import Claim
from mailroom.model.errors import CommitUnanswered, FieldError, InvalidMessage, MalformedJSON
from mailroom.model.message import State
from mailroom.process.installation import PROGRAM, START_WORKER
from mailroom.smtp.mime import compose
from mailroom.store.messages.outbox import NewMessage

#: The value of --wait without a number.
NO_LIMIT = "inf"


class WaitSeconds(click.ParamType[float]):
    """The value of --wait: seconds, or NO_LIMIT."""

    name = "seconds"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            self.fail(
                f"expected seconds from 0 up, got {value!r}; to wait without a limit, put --wait at the end",
                parameter,
                context,
            )
        return seconds


@click.command("send")
@click.argument("to", required=False)
@click.argument("body", metavar="[TEXT | -]", required=False)
@click.option("--to", "more_to", multiple=True, metavar="ADDRESS", help="Another recipient.")
@click.option("--cc", multiple=True, metavar="ADDRESS")
@click.option("--bcc", multiple=True, metavar="ADDRESS")
@click.option("--reply-to", multiple=True, metavar="ADDRESS")
@click.option(
    "--from", "sender", metavar="ADDRESS", help="An address that an account may send from."
)
@click.option("--subject", "-s")
@click.option(
    "--text",
    metavar="FILE",
    help="Read the text from FILE, instead of TEXT. Here and for every FILE, - is standard input.",
)
@click.option("--html", metavar="FILE", help="The HTML part.")
@click.option("--file", "files", multiple=True, metavar="FILE", help="Attach FILE.")
@click.option("--header", "headers", multiple=True, metavar="'X-A: b'")
@click.option("--tag", multiple=True)
@click.option("--template", metavar="NAME", help="Use a stored template instead of a text.")
@click.option(
    "--variables", metavar="JSON", help='Variables for the template, like {"name": "Bob"}.'
)
@click.option("--at", metavar="TIME", help="Send no earlier than this, like 2027-01-31T12:00:00Z.")
@click.option(
    "--delay",
    type=float,
    metavar="SECONDS",
    help="Send no earlier than this many seconds from now.",
)
@click.option("--low", is_flag=True, help="Use the queue for bulk mail.")
@click.option(
    "--request",
    metavar="FILE",
    help="Read the whole request, the JSON object of POST /v1/messages.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show the mail as it would be sent, and accept nothing."
)
@click.option(
    "--wait",
    type=WaitSeconds(),
    is_flag=False,
    flag_value=NO_LIMIT,
    metavar="[SECONDS]",
    help="Wait until the mail has ended, or for SECONDS; exits with 0 only if it was sent.",
)
@AS_JSON
@click.pass_obj
def send_command(
    context: CommandContext, /, as_json: bool, wait: float | None, dry_run: bool, **options: Any
) -> None:
    """Accept a mail to TO and print its id; a worker sends it.

    Exits with 2 if something is wrong with the mail, and says what.
    """
    with refusals(as_json=as_json):
        request = read_request(options)
    if dry_run and isinstance(request, dict):
        request |= {"dry_run": True}
    with errors_in_a_line(), context.services() as services:
        with refusals(as_json=as_json):
            mail = services.reader.mail(request)
        if mail.dry_run:
            return print_mail(mail, as_json=as_json)
        remark = accept(services, mail)
        if remark:
            click.echo(f"({remark})", err=True)
        if as_json and wait is None:
            click.echo(json.dumps({"id": mail.id, "status": mail.state, "remark": remark}))
        elif not as_json:
            click.echo(mail.id)
        if wait is not None:
            wait_and_exit(services, mail.id, wait, as_json=as_json)


def accept(services: Services, mail: NewMessage) -> str:
    """Commit the mail and notify a worker; return a remark for the user, or "".

    Once it is committed the mail is kept, whatever happens to the broker.
    """
    try:
        services.outbox.accept(mail)
    except CommitUnanswered as e:
        raise click.ClickException(
            f"{e}; the mail may have been accepted: look with `{PROGRAM} status {mail.id}` "
            "before you send it again"
        ) from None
    try:
        if mail.job:
            services.run(mail.job)
        elif mail.state is State.QUEUED:
            services.send(mail.mail_id)
    except Exception as e:  # kombu's errors have no common base, and the mail is kept in any case.
        error = type(e).__name__
        return f"the broker cannot be reached ({error}); the mail is kept, and goes when it is back"
    if services.outbox.worker_seen_ms_ago() is None:
        return f"no worker is running; the mail is kept until one is: {START_WORKER}"
    return ""


def wait_and_exit(services: Services, id: str, seconds: float, *, as_json: bool) -> NoReturn:
    """Wait for the end of the mail, and exit with 0 if it was sent."""
    print_step: PrintStep | None = None
    if not as_json and sys.stdout.isatty():
        print_step = step_printer(id, as_json=False)
    limit = None if seconds == float(NO_LIMIT) else seconds
    message = wait_until_final(services, id, print_step=print_step, seconds=limit)
    click.echo(json.dumps(message) if as_json else status_line(message), err=not as_json)
    sys.exit(0 if message["status"] == State.SENT else 1)


def print_mail(mail: NewMessage, *, as_json: bool) -> None:
    """Print the mail as its first attempt would send it; nothing is stored."""
    message = mail.message
    claim = Claim(
        id=mail.id,
        attempt=1,
        message_id=mail.message_id,
        created_at_ms=int(time.time() * 1000),
        message=message,
        pending=(),
    )
    raw = compose(claim, sender=message.sender or account_sender(mail.sender)).decode(
        errors="replace"
    )
    recipients = [
        {"email": recipient.address, "kind": kind}
        for recipient, kind in zip(message.everyone, message.kinds(), strict=True)
    ]
    if as_json:
        dry_run = {"dry_run": True, "status": mail.state, "recipients": recipients}
        return click.echo(json.dumps(dry_run | {"size": len(raw), "raw": raw}))
    addresses = ", ".join(recipient["email"] for recipient in recipients)
    click.echo(f"(nothing was accepted; this would go to {addresses})", err=True)
    click.echo(raw.replace("\r\n", "\n"), nl=False)


@contextmanager
def refusals(*, as_json: bool) -> Iterator[None]:
    """Exit with 2 and all that is wrong with the mail, one field a line; nothing was accepted."""
    try:
        yield
    except InvalidMessage as e:
        refuse(e.code, list(e.errors), as_json=as_json)
    except MalformedJSON as e:
        refuse("malformed_json", [FieldError("#", str(e))], as_json=as_json)


def refuse(code: str, errors: list[FieldError], *, as_json: bool) -> NoReturn:
    if as_json:
        objects = [{"pointer": error.pointer, "detail": error.detail} for error in errors]
        click.echo(json.dumps({"code": code, "errors": objects}))
    else:
        click.echo("\n".join(f"{error.pointer}: {error.detail}" for error in errors), err=True)
    sys.exit(2)
