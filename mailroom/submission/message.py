"""Reads the JSON of one mail: accepts it, or refuses it with the reason for each wrong field."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse
from mailroom.model.message import Address, Message, SendOptions
from mailroom.model.text import check_subject, storable
from mailroom.submission.addresses import RECIPIENTS_MAX, parse_addresses
from mailroom.submission.attachments import ATTACHMENTS_MAX, AttachmentRequest
from mailroom.submission.fields import read_fields
from mailroom.submission.headers import (
    HEADERS_MAX,
    METADATA_MAX,
    TAGS_MAX,
    check_headers,
    check_metadata,
    check_tags,
)
from mailroom.submission.strict_json import parse_json
from mailroom.submission.times import AHEAD_MAX_SECONDS, ATTEMPTS_MAX, Moment

#: Gmail accepts 25 MB, in base64 (support.google.com/mail/answer/6584).
ENCODED_MAX_BYTES = 25_000_000
URL_MAX_CHARACTERS = 2000

#: Header fields that `unsubscribe` sets.
_UNSUBSCRIBE_HEADERS = frozenset({"list-unsubscribe", "list-unsubscribe-post"})
#: Pairs of fields of which a mail may have only one.
_ALTERNATIVES = (
    ("expires_at", "expires_in"),
    ("scheduled_at", "delay"),
    ("contents", "text"),
    ("contents", "html"),
    ("contents", "template"),
    ("text", "template"),
    ("html", "template"),
)

_ADDRESS_FORMS: list[dict[str, Any]] = [
    {"type": "string", "examples": ["bob@example.org", "Bob <bob@example.org>"]},
    {
        "type": "object",
        "properties": {"email": {"type": "string"}, "name": {"type": "string"}},
        "required": ["email"],
        "additionalProperties": False,
    },
]


def _addresses_schema(least: int) -> WithJsonSchema:
    address = {"anyOf": _ADDRESS_FORMS}
    array = {"type": "array", "items": address, "minItems": least, "maxItems": RECIPIENTS_MAX}
    return WithJsonSchema({"anyOf": [*_ADDRESS_FORMS, array]})


def _parse_optional(value: object) -> Address | None:
    return None if value is None else parse_address(value)


_Addresses = Annotated[list[Address], BeforeValidator(parse_addresses), _addresses_schema(0)]
_Recipients = Annotated[
    list[Address], BeforeValidator(partial(parse_addresses, least=1)), _addresses_schema(1)
]
_OptionalAddress = Annotated[
    Address | None,
    BeforeValidator(_parse_optional),
    WithJsonSchema({"anyOf": [*_ADDRESS_FORMS, {"type": "null"}]}),
]


class TemplateRequest(BaseModel):
    """A stored template, and the values of its variables."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr = Field(max_length=100)
    variables: dict[str, Any] = Field(
        default_factory=dict, description="The values for {{ name }} in it."
    )


class MailRequest(BaseModel):
    """A mail; only `to` is required."""

    model_config = ConfigDict(extra="forbid")

    to: _Recipients = Field(description='An address, {"email", "name"}, or a list of up to 100.')
    cc: _Addresses = Field(
        default_factory=list, description="Further recipients, whom all others see."
    )
    bcc: _Addresses = Field(
        default_factory=list, description="Further recipients, whom nobody else sees."
    )
    reply_to: _Addresses = Field(default_factory=list, description="Where replies go.")
    sender: _OptionalAddress = Field(
        None,
        alias="from",
        description="One of the addresses that the account, and the key, may send from.",
    )
    subject: StrictStr = Field("", description="One line.")
    contents: StrictStr | None = Field(
        None, description="Text; HTML if it begins with < and ends with >."
    )
    text: StrictStr | None = Field(None, description="The text form, instead of contents.")
    html: StrictStr | None = Field(None, description="The HTML form, instead of contents.")
    template: TemplateRequest | None = Field(
        None, description="A stored template, instead of a text."
    )
    attachments: list[AttachmentRequest] = Field(
        default_factory=list,
        max_length=ATTACHMENTS_MAX,
        description="The whole mail may have 25 MB at most.",
    )
    headers: dict[StrictStr, StrictStr] = Field(
        default_factory=dict,
        max_length=HEADERS_MAX,
        description="X-…, List-…, References and the like.",
    )
    tags: list[StrictStr] = Field(
        default_factory=list, max_length=TAGS_MAX, description="Words to find the mail by."
    )
    metadata: dict[StrictStr, StrictStr] = Field(
        default_factory=dict,
        max_length=METADATA_MAX,
        description="Your own data, repeated in webhooks.",
    )
    priority: Literal["normal", "low"] = Field(
        "normal", description="low: on the queue for bulk mail, which other mail overtakes."
    )
    scheduled_at: Moment | None = Field(
        None, description="RFC 3339, with an offset: not sent before."
    )
    delay: float | None = Field(
        None, ge=0, le=AHEAD_MAX_SECONDS, strict=True, description="The same, in seconds from now."
    )
    expires_at: Moment | None = Field(
        None, description="RFC 3339, with an offset: not sent from then on."
    )
    expires_in: float | None = Field(
        None, gt=0, le=AHEAD_MAX_SECONDS, strict=True, description="The same, in seconds from now."
    )
    max_attempts: StrictInt | None = Field(
        None,
        ge=1,
        le=ATTEMPTS_MAX,
        description="The most attempts, instead of as many as RETRY_SCHEDULE has.",
    )
    unsubscribe: StrictBool = Field(
        False,
        description="Add a link for one click (RFC 8058); needs PUBLIC_URL, and one recipient.",
    )
    webhook_url: StrictStr | None = Field(
        None,
        max_length=URL_MAX_CHARACTERS,
        description="Gets a POST at every change of the mail's status.",
    )
    dry_run: StrictBool = Field(False, description="Say what would be sent, and accept nothing.")

    def text_and_html(self) -> tuple[str | None, str | None]:
        """Return both forms of the body, of which at least one is not None."""
        if self.text is not None or self.html is not None:
            return self.text, self.html
        contents = self.contents or ""
        body = contents.strip().removeprefix("\ufeff").strip()
        is_html = body.startswith("<") and body.endswith(">")
        return (None, contents) if is_html else (contents, None)

    def options(self) -> SendOptions:
        return SendOptions(
            scheduled_at=self.scheduled_at,
            delay=_ms(self.delay),
            expires_at=self.expires_at,
            expires_in=_ms(self.expires_in),
            max_attempts=self.max_attempts,
        )

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        for one, other in _ALTERNATIVES:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                refuse(f"expected {one} or {other}, got both")
        return self

    @model_validator(mode="after")
    def _check_unsubscribe(self) -> Self:
        if self.unsubscribe:
            for name in self.headers:
                if name.lower() in _UNSUBSCRIBE_HEADERS:
                    refuse(f"expected unsubscribe or the header {name}, got both")
        return self

    @model_validator(mode="after")
    def _check_expiry(self) -> Self:
        if self.expires_at is None and self.expires_in is None:
            return self
        now = time.time() * 1000
        sent_at = self.scheduled_at or now + (_ms(self.delay) or 0)
        expires_at = self.expires_at or now + (_ms(self.expires_in) or 0)
        if expires_at <= sent_at and (self.scheduled_at or self.delay):
            refuse("expected a mail that is sent before it expires, got one that expires first")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        people = len(self.to) + len(self.cc) + len(self.bcc)
        if people > RECIPIENTS_MAX:
            refuse(f"expected at most {RECIPIENTS_MAX} recipients in to, cc and bcc, got {people}")
        texts = sum(len(part.encode()) for part in (self.contents, self.text, self.html) if part)
        files = sum(len(file.content) for file in self.attachments)
        size = (texts + files) * 4 // 3
        if size > ENCODED_MAX_BYTES:
            refuse(f"expected a mail of at most {ENCODED_MAX_BYTES} bytes in base64, got {size}")
        return self

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, value: str) -> str:
        return check_subject(value)

    @field_validator("contents", "text", "html")
    @classmethod
    def _check_text(cls, value: str | None) -> str | None:
        return value if value is None else storable(value)

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str]) -> dict[str, str]:
        check_headers(value)
        return value

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, value: list[str]) -> list[str]:
        check_tags(value)
        return list(dict.fromkeys(value))

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        check_metadata(value)
        return value


class MailAfterJobRequest(MailRequest):
    """A mail that may name work to be done first."""

    job: Any = Field(None, description="Work to be done first; it has `name` and `args`.")


@dataclass(frozen=True, kw_only=True)
class MailSubmission:
    """A mail that a client submitted, and how it is to be sent."""

    message: Message
    options: SendOptions
    template: TemplateRequest | None = None  #: to be rendered into the message
    priority: str = "normal"
    unsubscribe: bool = False
    webhook_url: str | None = None
    dry_run: bool = False


def read_message(data: bytes) -> Message:
    """Read the body of a request.

    Raises:
      MalformedJSON: the bytes are not one JSON object.
      InvalidMessage: fields are wrong, unknown or missing.
    """
    return message_from(parse_json(data))


def message_from(value: object, *, at: str = "#") -> Message:
    """Read an object that came over the queue, or from `parse_json`; raises what `read_message` raises."""
    return mail_from(value, at=at).message


def mail_from(value: object, *, at: str = "#", with_job: bool = False) -> MailSubmission:
    """Read an object as `message_from` does, with its options.

    `at` is a JSON pointer to it in the request. `with_job` allows a field `job`, for the caller to read.
    """
    request = read_fields(MailAfterJobRequest if with_job else MailRequest, value, at=at)
    text, html = request.text_and_html()
    to, cc, bcc = _without_repeats(request.to, request.cc, request.bcc)
    message = Message(
        to=to,
        cc=cc,
        bcc=bcc,
        sender=request.sender,
        reply_to=tuple(request.reply_to),
        subject=request.subject,
        text=text,
        html=html,
        headers=tuple(request.headers.items()),
        tags=tuple(request.tags),
        metadata=request.metadata,
        attachments=tuple(file.attachment() for file in request.attachments),
    )
    return _submission(message, request)


def _submission(message: Message, request: MailRequest) -> MailSubmission:
    return MailSubmission(
        message=message,
        options=request.options(),
        template=request.template,
        priority=request.priority,
        unsubscribe=request.unsubscribe,
        webhook_url=request.webhook_url,
        dry_run=request.dry_run,
    )


def _without_repeats(*lists: list[Address]) -> list[tuple[Address, ...]]:
    """Keep each address only in the first list that has it."""
    seen: set[str] = set()
    kept: list[tuple[Address, ...]] = []
    for people in lists:
        kept.append(tuple(person for person in people if person.address not in seen))
        seen |= {person.address for person in people}
    return kept


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, int(seconds * 1000))
