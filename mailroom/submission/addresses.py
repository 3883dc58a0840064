"""Reads the addresses that clients send."""

from collections.abc import Sequence

from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse, refuse_items
from mailroom.model.message import Address

#: Gmail takes no more over SMTP (support.google.com/a/answer/166852).
RECIPIENTS_MAX = 100


def parse_addresses(value: object, *, least: int = 0) -> list[Address]:
    """Read one address or a list of at most RECIPIENTS_MAX; each is kept once, under its first name.

    Raises:
      PydanticCustomError: some are none; says of each where it stands.
    """
    given = value if isinstance(value, list) else [value]
    if not least <= len(given) <= RECIPIENTS_MAX:
        refuse(
            f"expected {f'{least} to' if least else 'at most'} {RECIPIENTS_MAX} addresses, got {len(given)}"
        )
    found: dict[str, Address] = {}
    for address in parse_each(given) if given is value else [parse_address(value)]:
        found.setdefault(address.address, address)
    return list(found.values())


def parse_each(items: Sequence[object]) -> list[Address]:
    """Read every one of a list; raises PydanticCustomError, which says of each that is none where it stands."""
    found: list[Address] = []
    wrong: list[tuple[list[str | int], str]] = []
    for index, item in enumerate(items):
        try:
            found.append(parse_address(item))
        except PydanticCustomError as e:
            wrong.append(([index], e.message()))
    if wrong:
        refuse_items(wrong)
    return found
