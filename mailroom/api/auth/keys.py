"""API keys for the command line and the web page that make and list them; /v1 has no routes for keys."""

from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator
from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse, refuse_items
from mailroom.model.times import timestamp
from mailroom.store.keys.api_keys import ApiKey, ApiKeys, KeyRow, Scope
from mailroom.store.keys.rate_limits import PER_MINUTE_MAX
from mailroom.submission.fields import read_fields

NAME_MAX_CHARACTERS = 100


class KeyRequest(BaseModel):
    """A request to make a key."""

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
        """Return the addresses in the form that messages have in From, so that the two can be compared."""
        senders: list[str] = []
        errors: list[tuple[list[str | int], str]] = []
        for index, sender in enumerate(value):
            try:
                address = parse_address(
                    f"any{sender}" if sender.startswith("@") else sender
                ).address
            except PydanticCustomError as e:
                errors.append(([index], e.message()))
                continue
            if "," in address:
                errors.append(([index], f"expected an address without a comma, got {sender!r}"))
            senders.append(address.removeprefix("any") if sender.startswith("@") else address)
        if errors:
            refuse_items(errors)
        return senders


def make(keys: ApiKeys, value: object) -> tuple[str, ApiKey]:
    """Make a key from a request; return its secret, of which there is no other copy, and the key.

    Raises:
      InvalidMessage: the request is wrong.
    """
    wanted = read_fields(KeyRequest, value)
    return keys.create(
        wanted.name,
        scopes=wanted.scopes,
        senders=wanted.senders,
        per_minute=wanted.per_minute,
    )


#: A class cannot have a field `from`, which is a keyword.
_KeySendersJson = TypedDict("_KeySendersJson", {"from": list[str]})


class KeyJson(_KeySendersJson):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    per_minute: int | None


class KeyRowJson(KeyJson):
    """A key with its times."""

    created_at: str
    used_at: str | None
    revoked_at: str | None


def key_json(key: ApiKey) -> KeyJson:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "from": list(key.senders),
        "per_minute": key.per_minute,
    }


def key_row_json(row: KeyRow) -> KeyRowJson:
    return {
        **key_json(row.key),
        "created_at": timestamp(row.created_at),
        "used_at": timestamp(row.used_at),
        "revoked_at": timestamp(row.revoked_at),
    }
