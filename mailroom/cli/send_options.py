"""Turns the options of flask send into the JSON object of `POST /v1/messages`."""

import mimetypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mailroom.model.media_types import OCTET_STREAM, parse_media_type
from mailroom.submission.message import ENCODED_MAX_BYTES
from mailroom.submission.strict_json import parse_json

STDIN = "-"
#: More than this of a file is not read, as it is refused as too large anyway.
READ_MAX_BYTES = 2 * ENCODED_MAX_BYTES
#: Fields of the request by the options that fill them: lists, and single values.
LIST_FIELDS = {"cc": "cc", "bcc": "bcc", "reply_to": "reply_to", "tag": "tags"}
VALUE_FIELDS = {"sender": "from", "subject": "subject", "at": "scheduled_at", "delay": "delay"}

Options = Mapping[str, Any]


def read_request(options: Options) -> object:
    """Return the request that the options describe; end the command where they contradict each other."""
    refuse_contradictions(options)
    if options["request"] is not None:
        return parse_json(read_bytes(options["request"]))
    request = recipients(options) | content(options)
    for option, field in LIST_FIELDS.items():
        if options[option]:
            request[field] = list(options[option])
    for option, field in VALUE_FIELDS.items():
        if options[option] is not None:
            request[field] = options[option]
    if options["low"]:
        request["priority"] = "low"
    if options["headers"]:
        request["headers"] = parse_headers(options["headers"])
    return request


def refuse_contradictions(options: Options) -> None:
    if [*options.values(), *options["files"]].count(STDIN) > 1:
        raise click.UsageError("expected - for standard input once, got it more often")
    if options["request"] is not None:
        others = [name for name, value in options.items() if name != "request" and value]
        if others:
            raise click.UsageError(
                f"expected everything in --request, got {', '.join(others)} beside it"
            )
        return
    if options["variables"] is not None and not options["template"]:
        raise click.UsageError("expected --template with --variables, got none")
    if options["body"] is not None and options["text"] is not None:
        raise click.UsageError("expected TEXT or --text FILE, got both")


def recipients(options: Options) -> dict[str, Any]:
    addresses = list(options["more_to"])
    if options["to"] is not None:
        addresses.insert(0, options["to"])
    if not addresses:
        return {}
    return {"to": addresses[0] if len(addresses) == 1 else addresses}


def content(options: Options) -> dict[str, Any]:
    """Return the fields of the request that hold the text, the HTML, the template and the attachments."""
    fields: dict[str, Any] = {}
    text_file = options["text"]
    if options["body"] == STDIN:
        text_file = STDIN
    elif options["body"] is not None:
        fields["text"] = options["body"]
    for field, file in (("text", text_file), ("html", options["html"])):
        if file is not None:
            fields[field] = read_text(file)
    if options["template"] is not None:
        fields["template"] = {"name": options["template"]}
        if options["variables"] is not None:
            fields["template"]["variables"] = parse_json(options["variables"].encode())
    if options["files"]:
        fields["attachments"] = [read_attachment(file) for file in options["files"]]
    return fields


def read_attachment(file: str) -> dict[str, Any]:
    media_type = mimetypes.guess_type(file)[0] or ""
    return {
        "filename": "file" if file == STDIN else Path(file).name,
        "content": read_bytes(file),
        "content_type": str(parse_media_type(media_type) or OCTET_STREAM),
    }


def parse_headers(lines: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name in headers:
            raise click.UsageError(
                f"expected --header 'Name: value', each name once, got {line[:80]!r}"
            )
        headers[name] = value.strip()
    return headers


def read_text(file: str) -> str:
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as e:
        byte = e.object[e.start]
        raise click.UsageError(
            f"expected UTF-8 in {file}, got byte 0x{byte:02x} at {e.start}"
        ) from None


def read_bytes(file: str) -> bytes:
    try:
        if file == STDIN:
            return sys.stdin.buffer.read(READ_MAX_BYTES)
        with Path(file).open("rb") as stream:
            return stream.read(READ_MAX_BYTES)
    except OSError as e:
        raise click.UsageError(f"{file}: {e.strerror}") from None
