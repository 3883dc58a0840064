"""Reads the addresses that clients send."""

from collections.abc import Sequence

from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse, refuse_items
from mailroom.model.message import Address

#: Gmail accepts no more over SMTP (support.google.com/a/answer/166852).
RECIPIENTS_MAX = 100


def parse_addresses(value: object, *, least: int = 0) -> list[Address]:
    """Read one address, or a list of `least` to RECIPIENTS_MAX; of repeated ones, the first is kept.

    Raises:
      PydanticCustomError: some are wrong; in a list, with the position of each.
    """
    if not isinstance(value, list):
        return [parse_address(value)]
    if not least <= len(value) <= RECIPIENTS_MAX:
        expected = f"{least} to" if least else "at most"
        refuse(f"expected {expected} {RECIPIENTS_MAX} addresses, got {len(value)}")
    unique: dict[str, Address] = {}
    for address in parse_each(value):
        unique.setdefault(address.address, address)
    return list(unique.values())


def parse_each(items: Sequence[object]) -> list[Address]:
    """Read all addresses of a list; raises PydanticCustomError with the position of each that is wrong."""
    addresses: list[Address] = []
    errors: list[tuple[list[str | int], str]] = []
    for index, item in enumerate(items):
        try:
            addresses.append(parse_address(item))
        except PydanticCustomError as e:
            errors.append(([index], e.message()))
    if errors:
        refuse_items(errors)
    return addresses
