"""Reads what a client asks for in one mail: what is accepted, and what is refused with a reason."""

import re
import time
from base64 import b64decode
from collections import Counter
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
from mailroom.model.errors import refuse, refuse_items
from mailroom.model.media_types import parse_media_type
from mailroom.model.message import STRUCTURED, Address, Attachment, Message, SendOptions, file_name
from mailroom.model.text import check_subject, encodable, has_control, is_unicode, short_repr, storable
from mailroom.submission.addresses import RECIPIENTS_MAX, parse_addresses
from mailroom.submission.fields import read_fields
from mailroom.submission.strict_json import parse_json
from mailroom.submission.times import AHEAD_MAX_SECONDS, ATTEMPTS_MAX, Moment

ATTACHMENTS_MAX = 20
#: Gmail takes 25 MB, encoded (support.google.com/mail/answer/6584).
ENCODED_MAX_BYTES = 25_000_000
HEADERS_MAX = 30
HEADER_MAX_CHARACTERS = 900
#: The ids of a long thread; what is too much for a mail's header is left out of their middle.
REFERENCES_MAX_CHARACTERS = 16_000
TAGS_MAX = 10
METADATA_MAX = 50
METADATA_MAX_CHARACTERS = 500
URL_MAX_CHARACTERS = 2000

#: Fields that a client may set beside those with a name of their own; what says who sends what to whom, or how it is to be read, is ours.
#: A name of at most 50 characters leaves room for a word beside it; without one, readers take the fold for a part of the value.
HEADERS_ALLOWED = re.compile(
    r"x-[a-z0-9-]{1,48}|list-[a-z0-9-]{1,40}|in-reply-to|references|auto-submitted|precedence|priority|importance|sensitivity|"
    r"feedback-id|organization|comments|keywords", re.IGNORECASE)
#: A word as RFC 2047 encodes it. Where none may be (5), readers decode it all the same, and it can hold the end of a line.
_ENCODED = re.compile(r"=\?[^?\s]*\?[bq]\?", re.IGNORECASE)
#: What `unsubscribe` writes.
_OF_UNSUBSCRIBE = frozenset({"list-unsubscribe", "list-unsubscribe-post"})
_ONE_OF = (("expires_at", "expires_in"), ("scheduled_at", "delay"), ("contents", "text"), ("contents", "html"), ("contents", "template"),
           ("text", "template"), ("html", "template"))
Wrong = list[tuple[list[str | int], str]]
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}")


def _base64(value: object) -> bytes:
    if isinstance(value, bytes):  # A form's file.
        return value
    if not isinstance(value, str):
        refuse(f"expected base64, got {short_repr(value)}")
    try:
        return b64decode("".join(value.split()), validate=True)
    except ValueError as e:
        refuse(f"expected base64, got what is none: {e}")


class AttachmentRequest(BaseModel):
    """A file that goes with the mail."""

    model_config = ConfigDict(extra="forbid")

    filename: StrictStr = Field(min_length=1, max_length=1000, description="A name; what is before a slash is left away.")
    content: Annotated[bytes, BeforeValidator(_base64), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
    content_type: StrictStr = Field("application/octet-stream", max_length=255, description="Like image/png, or text/csv; charset=utf-8.")
    content_id: StrictStr = Field("", description="Set where the HTML shows it, as cid:….")

    @field_validator("filename")
    @classmethod
    def _named(cls, value: str) -> str:
        return encodable(value)

    @field_validator("content_type")
    @classmethod
    def _typed(cls, value: str) -> str:
        kind = parse_media_type(value)
        if kind is None:
            refuse("expected a type like image/png or text/csv; charset=utf-8, and not message/… or multipart/…, "
                   f"got {short_repr(value)}")
        return str(kind)

    @field_validator("content_id")
    @classmethod
    def _identified(cls, value: str) -> str:
        if value and not _CONTENT_ID.fullmatch(value):
            refuse(f"expected letters, digits and signs without spaces, at most 200, got {short_repr(value)}")
        return value


class TemplateRequest(BaseModel):
    """A stored text, and what to fill in."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr = Field(max_length=100)
    variables: dict[str, Any] = Field(default_factory=dict, description="What {{ name }} in it stands for.")


_ADDRESS_SCHEMA: dict[str, Any] = {"anyOf": [
    {"type": "string", "examples": ["bob@example.org", "Bob <bob@example.org>"]},
    {"type": "object", "properties": {"email": {"type": "string"}, "name": {"type": "string"}}, "required": ["email"],
     "additionalProperties": False}]}
_ADDRESS_OR_NONE = {"anyOf": [*_ADDRESS_SCHEMA["anyOf"], {"type": "null"}]}


def _list_schema(least: int) -> WithJsonSchema:
    listed = {"type": "array", "items": _ADDRESS_SCHEMA, "minItems": least, "maxItems": RECIPIENTS_MAX}
    return WithJsonSchema({"anyOf": [*_ADDRESS_SCHEMA["anyOf"], listed]})


Addresses = Annotated[list[Address], BeforeValidator(parse_addresses), _list_schema(0)]


def _one_address(value: object) -> Address | None:
    return None if value is None else parse_address(value)


class MailRequest(BaseModel):
    """A mail; only `to` is required."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[list[Address], BeforeValidator(partial(parse_addresses, least=1)), _list_schema(1)] = Field(
        description='An address, {"email", "name"}, or a list of up to 100.')
    cc: Addresses = Field(default_factory=list, description="Further recipients whom all others see.")
    bcc: Addresses = Field(default_factory=list, description="Further recipients whom nobody sees.")
    reply_to: Addresses = Field(default_factory=list, description="Where answers go.")
    sender: Annotated[Address | None, BeforeValidator(_one_address), WithJsonSchema(_ADDRESS_OR_NONE)] = Field(
        None, alias="from", description="One of the addresses that the account, and the key, may send from.")
    subject: StrictStr = Field("", description="One line.")
    contents: StrictStr | None = Field(None, description="Text; HTML if it begins with < and ends with >.")
    text: StrictStr | None = Field(None, description="The text form, instead of contents.")
    html: StrictStr | None = Field(None, description="The HTML form, instead of contents.")
    template: TemplateRequest | None = Field(None, description="A stored template, instead of a text.")
    attachments: list[AttachmentRequest] = Field(default_factory=list, max_length=ATTACHMENTS_MAX,
                                               description="The whole mail at most 25 MB.")
    headers: dict[StrictStr, StrictStr] = Field(default_factory=dict, max_length=HEADERS_MAX,
                                                description="X-…, List-…, References and the like.")
    tags: list[StrictStr] = Field(default_factory=list, max_length=TAGS_MAX, description="Words to find it by.")
    metadata: dict[StrictStr, StrictStr] = Field(default_factory=dict, max_length=METADATA_MAX,
                                                 description="Your own words; webhooks tell them.")
    priority: Literal["normal", "low"] = Field("normal", description="low: on the queue for bulk mail, which lets others pass.")
    scheduled_at: Moment | None = Field(None, description="RFC 3339, with an offset: not sent before.")
    delay: float | None = Field(None, ge=0, le=AHEAD_MAX_SECONDS, strict=True, description="The same, in seconds from now.")
    expires_at: Moment | None = Field(None, description="RFC 3339, with an offset: not sent from then on.")
    expires_in: float | None = Field(None, gt=0, le=AHEAD_MAX_SECONDS, strict=True, description="The same, in seconds from now.")
    max_attempts: StrictInt | None = Field(None, ge=1, le=ATTEMPTS_MAX, description="Instead of as many as RETRY_SCHEDULE has.")
    unsubscribe: StrictBool = Field(False, description="Add a link for one click (RFC 8058); needs PUBLIC_URL, and one recipient.")
    webhook_url: StrictStr | None = Field(None, max_length=URL_MAX_CHARACTERS, description="Told of every change of its state.")
    dry_run: StrictBool = Field(False, description="Say what would be sent, and accept nothing.")

    def parts(self) -> tuple[str | None, str | None]:
        """The body as (text, html), one of the two at least."""
        if self.text is not None or self.html is not None:
            return self.text, self.html
        contents = self.contents or ""
        body = contents.strip().removeprefix("\ufeff").strip()
        return (None, contents) if body.startswith("<") and body.endswith(">") else (contents, None)

    def terms(self) -> SendOptions:
        return SendOptions(scheduled_at=self.scheduled_at, delay=_ms(self.delay),
                           expires_at=self.expires_at, expires_in=_ms(self.expires_in),
                     max_attempts=self.max_attempts)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for one, other in _ONE_OF:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                refuse(f"expected {one} or {other}, got both")
        return self

    @model_validator(mode="after")
    def _one_way_out(self) -> Self:
        if self.unsubscribe and (given := [name for name in self.headers if name.lower() in _OF_UNSUBSCRIBE]):
            refuse(f"expected unsubscribe or the header {given[0]}, got both")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.expires_at is None and self.expires_in is None:
            return self
        now = time.time() * 1000
        first = self.scheduled_at or now + (_ms(self.delay) or 0)
        last = self.expires_at or now + (_ms(self.expires_in) or 0)
        if last <= first and (self.scheduled_at or self.delay):
            refuse("expected a mail that is sent before it expires, got one that expires first")
        return self

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        if (people := len(self.to) + len(self.cc) + len(self.bcc)) > RECIPIENTS_MAX:
            refuse(f"expected at most {RECIPIENTS_MAX} recipients in to, cc and bcc, got {people}")
        texts = sum(len(part.encode()) for part in (self.contents, self.text, self.html) if part)
        if (size := (texts + sum(len(file.content) for file in self.attachments)) * 4 // 3) > ENCODED_MAX_BYTES:
            refuse(f"expected a mail of at most {ENCODED_MAX_BYTES} bytes in base64, got {size}")
        return self

    @field_validator("subject")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return check_subject(value)

    @field_validator("contents", "text", "html")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        return value if value is None else storable(value)

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, str]) -> dict[str, str]:
        wrong: Wrong = [([name], problem) for name, text in value.items() if (problem := _header_problem(name, text))]
        times = Counter(map(str.lower, value))
        twice: Wrong = [([name], "expected each field once, whatever its case, got it more often") for name in value
                        if times[name.lower()] > 1]
        if wrong or twice:
            refuse_items([*wrong, *twice])
        return value

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: list[str]) -> list[str]:
        wrong: Wrong = [([index], f"expected 1 to 100 printable characters, got {short_repr(tag)}") for index, tag in enumerate(value)
                 if not 1 <= len(tag) <= 100 or not tag.isprintable()]
        if wrong:
            refuse_items(wrong)
        return list(dict.fromkeys(value))

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, value: dict[str, str]) -> dict[str, str]:
        wrong: Wrong = [([name], f"expected at most {METADATA_MAX_CHARACTERS} characters without NUL, got {short_repr(text)}")
                 for name, text in value.items()
                 if len(name) + len(text) > METADATA_MAX_CHARACTERS or "\0" in name + text or not is_unicode(name + text)]
        if wrong:
            refuse_items(wrong)
        return value


class MailAfterJobRequest(MailRequest):
    """A mail that may name work to be done first."""

    job: Any = Field(None, description="Work to do first; it has `name` and `args`.")


@dataclass(frozen=True, kw_only=True)
class MailSubmission:
    """A mail as it was asked for, and on what terms."""

    message: Message
    terms: SendOptions
    template: TemplateRequest | None = None  #: to be filled in first
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
    """Read such an object with all that it asks for.

    `at` is where in a request it stands, a JSON pointer. `with_job`: its field `job` is somebody else's to read.
    """
    asked = read_fields(MailAfterJobRequest if with_job else MailRequest, value, at=at)
    text, html = asked.parts()
    to, cc, bcc = _once_each(asked.to, asked.cc, asked.bcc)
    files = tuple(Attachment(file_name(file.filename), file.content_type, file.content, file.content_id) for file in asked.attachments)
    message = Message(
        to=to, cc=cc, bcc=bcc, sender=asked.sender, reply_to=tuple(asked.reply_to), subject=asked.subject, text=text, html=html,
        headers=tuple(asked.headers.items()), tags=tuple(asked.tags), metadata=asked.metadata, attachments=files)
    return MailSubmission(message=message, terms=asked.terms(), template=asked.template, priority=asked.priority,
                     unsubscribe=asked.unsubscribe, webhook_url=asked.webhook_url, dry_run=asked.dry_run)


def _once_each(*lists: list[Address]) -> list[tuple[Address, ...]]:
    """Keep one copy for one address: it stays where it stands first."""
    seen: set[str] = set()
    kept: list[tuple[Address, ...]] = []
    for people in lists:
        kept.append(tuple(person for person in people if person.address not in seen))
        seen |= {person.address for person in people}
    return kept


def _header_problem(name: str, value: str) -> str:
    if not HEADERS_ALLOWED.fullmatch(name):
        return "expected X-…, List-…, In-Reply-To, References, Auto-Submitted, Precedence, Priority, Importance, Sensitivity, " \
               "Feedback-ID, Organization, Comments or Keywords, got another name"
    most = REFERENCES_MAX_CHARACTERS if name.lower() == "references" else HEADER_MAX_CHARACTERS
    if has_control(value) or not is_unicode(value) or len(value) > most or value != value.strip():
        return f"expected one line of at most {most} characters, without spaces at its ends, got {short_repr(value)}"
    if most > HEADER_MAX_CHARACTERS and max(map(len, value.split()), default=0) > HEADER_MAX_CHARACTERS:
        return f"expected ids of at most {HEADER_MAX_CHARACTERS} characters, got a longer one"
    if STRUCTURED.fullmatch(name) and (not value or not value.isascii() or _ENCODED.search(value)):
        return f"expected ASCII text without encoded words, got {short_repr(value)}"
    return ""


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, int(seconds * 1000))
