"""Reads the times in a request: when a mail is to be sent, and when it expires."""

import re
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from mailroom.model.errors import refuse
from mailroom.model.text import short_repr
from mailroom.model.times import parse_timestamp

#: A time further ahead than this is taken for a mistake.
AHEAD_MAX_SECONDS = 366 * 86400
ATTEMPTS_MAX = 100

#: RFC 3339, 5.6: with an offset; T and Z may be lower case, and a space may stand for the T.
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def parse_moment(value: object) -> int:
    """Read a time in the future, like "2026-01-31T12:00:00+01:00"; return milliseconds since 1970.

    Raises:
      PydanticCustomError: it is no such time, or more than AHEAD_MAX_SECONDS ahead.
    """
    at = parse_time(value)
    if not 0 < at / 1000 - datetime.now(UTC).timestamp() <= AHEAD_MAX_SECONDS:
        days = AHEAD_MAX_SECONDS // 86400
        refuse(f"expected a time in the future, at most {days} days ahead, got {short_repr(value)}")
    return at


def parse_time(value: object) -> int:
    """Read a time as `parse_moment` does, past ones as well."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        refuse(
            f"expected a time like 2026-01-31T12:00:00Z, with its offset, got {short_repr(value)}"
        )
    try:
        return int(parse_timestamp(value.upper()).timestamp() * 1000)
    except (ValueError, OverflowError):
        refuse(f"expected a time that exists, got {short_repr(value)}")


Moment = Annotated[
    int, BeforeValidator(parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]


class RescheduleRequest(BaseModel):
    """The new time to send a message: either `at` or `delay`."""

    model_config = ConfigDict(extra="forbid")

    at: Moment | None = Field(None, description="RFC 3339, with an offset.")
    delay: float | None = Field(
        None, ge=0, le=AHEAD_MAX_SECONDS, strict=True, description="Seconds from now."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.at is None) == (self.delay is None):
            got = "none" if self.at is None else "both"
            refuse(f"expected either `at` or `delay`, got {got}")
        return self
