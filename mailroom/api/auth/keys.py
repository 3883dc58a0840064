"""API keys, as a command or a page asks for one and shows them; there are no routes under /v1 for them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator
from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse, refuse_items
from mailroom.model.times import timestamp
from mailroom.store.keys.api_keys import ApiKey, ApiKeys, KeyRow, Scope
from mailroom.store.keys.rate_limits import PER_MINUTE_MAX
from mailroom.submission.fields import read_fields

NAME_MAX_CHARACTERS = 100


class AskedKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr
    scopes: list[Scope] = Field(min_length=1)
    senders: list[StrictStr] = []
    per_minute: StrictInt | None = Field(None, ge=1, le=PER_MINUTE_MAX)

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not (1 <= len(value) <= NAME_MAX_CHARACTERS and value.isprintable() and value.strip()):
            refuse(f"expected 1 to {NAME_MAX_CHARACTERS} printable characters, got {value[:200]!r}")
        return value.strip()

    @field_validator("senders")
    @classmethod
    def _in_from(cls, value: list[str]) -> list[str]:
        """In the form in which messages have their From, so that the two can be compared."""
        found, wrong = list[str](), list[tuple[list[str | int], str]]()
        for index, sender in enumerate(value):
            try:
                address = parse_address(f"any{sender}" if sender.startswith("@") else sender).address
            except PydanticCustomError as e:
                wrong.append(([index], e.message()))
                continue
            if "," in address:
                wrong.append(([index], f"expected an address without a comma, got {sender!r}"))
            found.append(address.removeprefix("any") if sender.startswith("@") else address)
        if wrong:
            refuse_items(wrong)
        return found


def make(keys: ApiKeys, value: object) -> tuple[str, ApiKey]:
    """Make a key; the first of the two is its only copy. Raises InvalidMessage."""
    asked = read_fields(AskedKey, value)
    return keys.create(asked.name, scopes=asked.scopes, senders=asked.senders, per_minute=asked.per_minute)


def key_json(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "from": list(key.senders),
        "per_minute": key.per_minute,
    }


def key_row_json(row: KeyRow) -> dict[str, Any]:
    """Return the fields of a key, as `key_json` does, with its times."""
    return key_json(row.key) | {
        "created_at": timestamp(row.created_at),
        "used_at": timestamp(row.used_at),
        "revoked_at": timestamp(row.revoked_at),
    }
