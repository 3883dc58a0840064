"""Reads what a client asks for where it stores a template, or looks at one."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

from mailroom.model.errors import refuse
from mailroom.model.text import storable
from mailroom.templating.sandbox import SOURCE_MAX_CHARACTERS

_SUBJECT_SOURCE_MAX_CHARACTERS = 5000


class StoreTemplateRequest(BaseModel):
    """A template; `{{ name }}` in it stands for a variable."""

    model_config = ConfigDict(extra="forbid")

    subject: StrictStr = Field(
        max_length=_SUBJECT_SOURCE_MAX_CHARACTERS, description="One line, when it is filled in."
    )
    text: StrictStr | None = Field(None, max_length=SOURCE_MAX_CHARACTERS, description="The text form.")
    html: StrictStr | None = Field(
        None, max_length=SOURCE_MAX_CHARACTERS, description="The HTML form; its CSS is inlined."
    )

    @field_validator("subject", "text", "html")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        return value if value is None else storable(value)

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.text is None and self.html is None:
            refuse("expected text, html or both, got none")
        return self


class PreviewRequest(BaseModel):
    """Variables to fill in."""

    model_config = ConfigDict(extra="forbid")

    variables: dict[str, Any] = Field(
        default_factory=dict, description="What {{ name }} in the template stands for."
    )
