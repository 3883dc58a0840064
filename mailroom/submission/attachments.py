"""Reads the attachments of a mail."""

import re
from base64 import b64decode
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    WithJsonSchema,
    field_validator,
)

from mailroom.model.errors import refuse
from mailroom.model.media_types import parse_media_type
from mailroom.model.message import Attachment, file_name
from mailroom.model.text import encodable, short_repr

ATTACHMENTS_MAX = 20
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}")


def _decoded(value: object) -> bytes:
    if isinstance(value, bytes):  # A file from a form.
        return value
    if not isinstance(value, str):
        refuse(f"expected base64, got {short_repr(value)}")
    try:
        return b64decode("".join(value.split()), validate=True)
    except ValueError as e:
        refuse(f"expected base64, got something else: {e}")


_Base64 = Annotated[
    bytes,
    BeforeValidator(_decoded),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class AttachmentRequest(BaseModel):
    """A file that is sent with the mail."""

    model_config = ConfigDict(extra="forbid")

    filename: StrictStr = Field(
        min_length=1, max_length=1000, description="A name; anything before a slash is left out."
    )
    content: _Base64
    content_type: StrictStr = Field(
        "application/octet-stream",
        max_length=255,
        description="Like image/png, or text/csv; charset=utf-8.",
    )
    content_id: StrictStr = Field("", description="Set it if the HTML shows the file, as cid:….")

    @field_validator("filename")
    @classmethod
    def _check_filename(cls, value: str) -> str:
        return encodable(value)

    @field_validator("content_type")
    @classmethod
    def _check_content_type(cls, value: str) -> str:
        media_type = parse_media_type(value)
        if media_type is None:
            refuse(
                "expected a type like image/png or text/csv; charset=utf-8, and not message/… or "
                f"multipart/…, got {short_repr(value)}"
            )
        return str(media_type)

    @field_validator("content_id")
    @classmethod
    def _check_content_id(cls, value: str) -> str:
        if value and not _CONTENT_ID.fullmatch(value):
            refuse(
                f"expected at most 200 letters, digits and signs without spaces, got {short_repr(value)}"
            )
        return value

    def attachment(self) -> Attachment:
        return Attachment(
            file_name(self.filename), self.content_type, self.content, self.content_id
        )
