"""Reads a template that a client stores, and the variables of a preview."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

from mailroom.model.errors import refuse
from mailroom.model.text import storable
from mailroom.templating.sandbox import SOURCE_MAX_CHARACTERS

_SUBJECT_SOURCE_MAX_CHARACTERS = 5000


class StoreTemplateRequest(BaseModel):
    """A template; `{{ name }}` in it is replaced by a variable."""

    model_config = ConfigDict(extra="forbid")

    subject: StrictStr = Field(
        max_length=_SUBJECT_SOURCE_MAX_CHARACTERS, description="One line, once it is rendered."
    )
    text: StrictStr | None = Field(
        None, max_length=SOURCE_MAX_CHARACTERS, description="The text form."
    )
    html: StrictStr | None = Field(
        None, max_length=SOURCE_MAX_CHARACTERS, description="The HTML form; its CSS is inlined."
    )

    @field_validator("subject", "text", "html")
    @classmethod
    def _check_text(cls, value: str | None) -> str | None:
        return value if value is None else storable(value)

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        if self.text is None and self.html is None:
            refuse("expected text, html or both, got none")
        return self


class PreviewRequest(BaseModel):
    """The variables of a preview."""

    model_config = ConfigDict(extra="forbid")

    variables: dict[str, Any] = Field(
        default_factory=dict, description="The values for {{ name }} in the template."
    )
