"""Reads when a mail is to be sent, until when, and how often it is tried."""

import re
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from mailroom.model.errors import refuse
from mailroom.model.text import short_repr
from mailroom.model.times import parse_timestamp

#: A moment farther away than this is a slip of the pen.
AHEAD_MAX_SECONDS = 366 * 86400
ATTEMPTS_MAX = 100

#: RFC 3339, 5.6, which asks for an offset; the letters may be small, and a space is as good as the T.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_moment(value: object) -> int:
    """Read "2026-01-31T12:00:00+01:00", a moment to come; return milliseconds since 1970.

    Raises:
      PydanticCustomError: it is none.
    """
    at = parse_time(value)
    if not 0 < at / 1000 - datetime.now(UTC).timestamp() <= AHEAD_MAX_SECONDS:
        refuse(
            f"expected a time to come, at most {AHEAD_MAX_SECONDS // 86400} days ahead, got {short_repr(value)}"
        )
    return at


def parse_time(value: object) -> int:
    """Read any moment as `parse_moment` reads one to come."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        refuse(f"expected a time like 2026-01-31T12:00:00Z, with its offset, got {short_repr(value)}")
    try:
        return int(parse_timestamp(value.upper()).timestamp() * 1000)
    except (ValueError, OverflowError):
        refuse(f"expected a time that there is, got {short_repr(value)}")


Moment = Annotated[
    int, BeforeValidator(parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]


class RescheduleRequest(BaseModel):
    """The moment to send a message at: the one or the other."""

    model_config = ConfigDict(extra="forbid")

    at: Moment | None = Field(None, description="RFC 3339, with an offset.")
    delay: float | None = Field(
        None, ge=0, le=AHEAD_MAX_SECONDS, strict=True, description="Seconds from now."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.at is None) == (self.delay is None):
            refuse("expected either `at` or `delay`, got " + ("none" if self.at is None else "both"))
        return self
