"""flask send: accepts a mail as `POST /v1/messages` does, directly into the database."""

import json
import mimetypes
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from mailroom.api.auth.senders import account_sender
from mailroom.api.services import Services
from mailroom.cli.output import told
from mailroom.cli.watch import Tell, Working, as_step, follow, standing
from mailroom.model.attempt import Claim
from mailroom.model.errors import CommitUnanswered, FieldError, InvalidMessage, MalformedJSON
from mailroom.model.media_types import OCTET_STREAM, parse_media_type
from mailroom.model.message import State
from mailroom.smtp.mime import compose
from mailroom.store.messages.outbox import NewMessage
from mailroom.submission.message import ENCODED_MAX_BYTES
from mailroom.submission.strict_json import parse_json

STDIN = "-"
#: Options that go into the request under another name, or as they are.
_LISTS = {"cc": "cc", "bcc": "bcc", "reply_to": "reply_to", "tag": "tags"}
_WORDS = {"sender": "from", "subject": "subject", "at": "scheduled_at", "delay": "delay"}


class WaitSeconds(click.ParamType[float]):
    """Seconds; what comes without a number is NO_END."""

    name = "seconds"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            self.fail(
                f"expected seconds from 0 up, got {value!r}; without a number put --wait at the end",
                parameter,
                context,
            )
        return seconds


NO_END = "inf"
PARAMETERS: list[click.Parameter] = [
    click.Argument(["to"], required=False),
    click.Argument(["words"], metavar="[TEXT | -]", required=False),
    click.Option(["--to", "more"], multiple=True, metavar="ADDRESS", help="A further recipient."),
    click.Option(["--cc"], multiple=True, metavar="ADDRESS"),
    click.Option(["--bcc"], multiple=True, metavar="ADDRESS"),
    click.Option(["--reply-to"], multiple=True, metavar="ADDRESS"),
    click.Option(["--from", "sender"], metavar="ADDRESS", help="One that an account may send from."),
    click.Option(["--subject", "-s"]),
    click.Option(
        ["--text"],
        metavar="FILE",
        help="The text, instead of TEXT; - for standard input, here and for every FILE.",
    ),
    click.Option(["--html"], metavar="FILE", help="The HTML form."),
    click.Option(["--file", "files"], multiple=True, metavar="FILE", help="To be attached."),
    click.Option(["--header", "headers"], multiple=True, metavar="'X-A: b'"),
    click.Option(["--tag"], multiple=True),
    click.Option(["--template"], metavar="NAME", help="A stored template, instead of a text."),
    click.Option(["--variables"], metavar="JSON", help='Of the template, like {"name": "Bob"}.'),
    click.Option(["--at"], metavar="TIME", help="Not before this moment, like 2027-01-31T12:00:00Z."),
    click.Option(["--delay"], type=float, metavar="SECONDS", help="Not before so many seconds from now."),
    click.Option(["--low"], is_flag=True, help="On the queue for bulk mail."),
    click.Option(["--request"], metavar="FILE", help="The whole as the JSON object of POST /v1/messages."),
    click.Option(["--dry-run"], is_flag=True, help="Show the mail as it would go, and accept nothing."),
    click.Option(
        ["--wait"],
        type=WaitSeconds(),
        is_flag=False,
        flag_value=NO_END,
        metavar="[SECONDS]",
        help="Wait until it has ended, for so long at most; ends with 0 only if it was sent.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="One JSON object."),
]


def send_command(working: Working) -> click.Command:
    @click.command("send", params=PARAMETERS)
    def send(as_json: bool, wait: float | None, dry_run: bool, **given: Any) -> None:
        """Accept a mail to TO, and print its id; a worker sends it. Ends with 2 where something is wrong with it, and says what."""
        with refusing(as_json=as_json):
            request = asked(given)
        if dry_run and isinstance(request, dict):
            request |= {"dry_run": True}
        with told(), working() as services:
            with refusing(as_json=as_json):
                acceptance = services.reader.mail(request)
            if acceptance.dry_run:
                return show(acceptance, as_json=as_json)
            remark = accept(services, acceptance)
            if remark:
                click.echo(f"({remark})", err=True)
            if wait is None or not as_json:
                click.echo(
                    json.dumps({"id": acceptance.id, "status": acceptance.state, "remark": remark})
                    if as_json
                    else acceptance.id
                )
            if wait is not None:
                end(services, acceptance.id, wait, as_json=as_json)

    return send


def accept(services: Services, acceptance: NewMessage) -> str:
    """Commit it, and tell a worker; return what a person should know of that. The mail is kept from the commit on."""
    try:
        services.outbox.accept(acceptance)
    except CommitUnanswered as e:
        raise click.ClickException(
            f"{e}; the mail may have been accepted: look with `flask status {acceptance.id}` before you send it "
            "again"
        ) from None
    try:
        if acceptance.job:
            services.run(acceptance.job)
        elif acceptance.state is State.QUEUED:
            services.send(acceptance.mail_id)
    except Exception as e:  # kombu's errors have no common base, and whatever it is, the mail is kept.
        return (
            f"the broker cannot be reached ({type(e).__name__}); the mail is kept, and goes when it is back"
        )
    if services.outbox.worker_seen_ms_ago() is None:
        return (
            "no worker is running; the mail is kept until one is: celery -A mailasync worker --loglevel=INFO"
        )
    return ""


def end(services: Services, id: str, seconds: float, *, as_json: bool) -> None:
    """Wait for it, and end with 0 if it was sent."""
    is_seen = not as_json and sys.stdout.isatty()
    tell: Tell | None = (lambda step: click.echo(as_step(step))) if is_seen else None
    now = follow(services, id, tell=tell, seconds=None if seconds == float(NO_END) else seconds)
    click.echo(json.dumps(now) if as_json else standing(now), err=not as_json)
    sys.exit(0 if now["status"] == State.SENT else 1)


def show(acceptance: NewMessage, *, as_json: bool) -> None:
    """The mail as it would go over the wire, in attempt 1; nothing is kept."""
    message = acceptance.message
    claim = Claim(
        id=acceptance.id,
        attempt=1,
        message_id=acceptance.message_id,
        created_at_ms=int(time.time() * 1000),
        message=message,
        pending=(),
    )
    wire = compose(claim, sender=message.sender or account_sender(acceptance.sender)).decode(errors="replace")
    whom = [
        {"email": to.address, "kind": kind}
        for to, kind in zip(message.everyone, message.kinds(), strict=True)
    ]
    if as_json:
        return click.echo(
            json.dumps(
                {
                    "dry_run": True,
                    "status": acceptance.state,
                    "recipients": whom,
                    "size": len(wire),
                    "raw": wire,
                }
            )
        )
    click.echo(f"(nothing was accepted; this would go to {', '.join(to['email'] for to in whom)})", err=True)
    click.echo(wire.replace("\r\n", "\n"), nl=False)


@contextmanager
def refusing(*, as_json: bool) -> Iterator[None]:
    """End with what is wrong, a field a line as the API tells it; nothing was accepted."""
    try:
        yield
    except (InvalidMessage, MalformedJSON) as e:
        refuse(e, as_json=as_json)


def refuse(error: InvalidMessage | MalformedJSON, *, as_json: bool) -> NoReturn:
    wrong = error.errors if isinstance(error, InvalidMessage) else [FieldError("#", str(error))]
    code = error.code if isinstance(error, InvalidMessage) else "malformed_json"
    if as_json:
        click.echo(
            json.dumps(
                {"code": code, "errors": [{"pointer": one.pointer, "detail": one.detail} for one in wrong]}
            )
        )
    else:
        click.echo("\n".join(f"{one.pointer}: {one.detail}" for one in wrong), err=True)
    sys.exit(2)


def asked(given: Mapping[str, Any]) -> object:
    """The object of POST /v1/messages that the options say."""
    if [*given.values(), *given["files"]].count(STDIN) > 1:
        raise click.UsageError("expected - for standard input once, got it more often")
    if given["request"] is not None:
        if others := [name for name, value in given.items() if name != "request" and value]:
            raise click.UsageError(f"expected everything in --request, got {', '.join(others)} beside it")
        return parse_json(_read(given["request"]))
    if given["variables"] is not None and not given["template"]:
        raise click.UsageError("expected --template with --variables, got none")
    if given["words"] is not None and given["text"] is not None:
        raise click.UsageError("expected TEXT or --text FILE, got both")
    return (
        _people(given)
        | _parts(given)
        | {name: list(given[option]) for option, name in _LISTS.items() if given[option]}
        | {name: given[option] for option, name in _WORDS.items() if given[option] is not None}
        | ({"priority": "low"} if given["low"] else {})
        | ({"headers": _headers(given["headers"])} if given["headers"] else {})
    )


def _people(given: Mapping[str, Any]) -> dict[str, Any]:
    to = [*([given["to"]] if given["to"] is not None else []), *given["more"]]
    return {"to": to[0] if len(to) == 1 else to} if to else {}


def _parts(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"text": given["words"]} if given["words"] not in (None, STDIN) else {}
    for part, file in (
        ("text", STDIN if given["words"] == STDIN else given["text"]),
        ("html", given["html"]),
    ):
        if file is not None:
            found[part] = _text(file)
    if given["template"] is not None:
        variables = (
            {"variables": parse_json(given["variables"].encode())} if given["variables"] is not None else {}
        )
        found["template"] = {"name": given["template"]} | variables
    if given["files"]:
        found["attachments"] = [_attachment(file) for file in given["files"]]
    return found


def _attachment(file: str) -> dict[str, Any]:
    kind = mimetypes.guess_type(file)[0] or ""
    return {
        "filename": "file" if file == STDIN else Path(file).name,
        "content": _read(file),
        "content_type": str(parse_media_type(kind) or OCTET_STREAM),
    }


def _headers(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in given:
        name, colon, value = line.partition(":")
        if not colon or name in found:
            raise click.UsageError(f"expected --header 'Name: value', each name once, got {line[:80]!r}")
        found[name] = value.strip()
    return found


def _text(file: str) -> str:
    try:
        return _read(file).decode()
    except UnicodeDecodeError as e:
        raise click.UsageError(
            f"expected UTF-8 in {file}, got byte 0x{e.object[e.start]:02x} at {e.start}"
        ) from None


def _read(file: str) -> bytes:
    """No more than what is refused as too much."""
    try:
        if file == STDIN:
            return sys.stdin.buffer.read(2 * ENCODED_MAX_BYTES)
        with Path(file).open("rb") as stream:
            return stream.read(2 * ENCODED_MAX_BYTES)
    except OSError as e:
        raise click.UsageError(f"{file}: {e.strerror}") from None
