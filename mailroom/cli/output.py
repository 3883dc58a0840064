"""Holds what the commands share: the --json options, reading an address, and ending with an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import InvalidMessage, MailroomError

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
AS_JSON_LINES = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line."
)


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """End the command with one line where the service raises an error."""
    try:
        yield
    except MailroomError as e:
        raise click.ClickException(str(e)) from None


def refuse_options(error: InvalidMessage) -> NoReturn:
    """End the command with all that is wrong with its options."""
    details = [field_error.detail for field_error in error.errors]
    raise click.UsageError("; ".join(details)) from None


def parsed_address(address: str) -> str:
    """Return the bare address of an argument; end the command with what is wrong with it."""
    try:
        return parse_address(address).address
    except PydanticCustomError as e:
        raise click.UsageError(e.message()) from None
