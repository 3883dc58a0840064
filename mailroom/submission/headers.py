"""Reads the header fields, tags and metadata that a client adds to a mail."""

import re
from collections import Counter

from mailroom.model.errors import refuse_items
from mailroom.model.message import STRUCTURED
from mailroom.model.text import has_control, is_unicode, short_repr

HEADERS_MAX = 30
HEADER_MAX_CHARACTERS = 900
#: For the ids of a long thread; if they do not fit into a mail's header, those in the middle are left out.
REFERENCES_MAX_CHARACTERS = 16_000
TAGS_MAX = 10
TAG_MAX_CHARACTERS = 100
METADATA_MAX = 50
METADATA_MAX_CHARACTERS = 500

#: Header fields that a client may set; we set those that say who sends what to whom, and how to decode it.
#: A name of at most 50 characters leaves space for a word on its line: if the value begins on a line of its
#: own, some readers take the line break for a part of it.
HEADERS_ALLOWED = re.compile(
    r"x-[a-z0-9-]{1,48}|list-[a-z0-9-]{1,40}|in-reply-to|references|auto-submitted|precedence|priority"
    r"|importance|sensitivity|feedback-id|organization|comments|keywords",
    re.IGNORECASE,
)
#: An encoded word (RFC 2047). Structured fields must not have any (section 5), but readers decode them there
#: all the same, and the result could contain the end of a line.
_ENCODED_WORD = re.compile(r"=\?[^?\s]*\?[bq]\?", re.IGNORECASE)

#: Where in a field something is wrong, and what was expected there.
ItemErrors = list[tuple[list[str | int], str]]


def check_headers(headers: dict[str, str]) -> None:
    """Refuse header fields that are not allowed, repeated, or not representable."""
    errors: ItemErrors = []
    for name, value in headers.items():
        if problem := _header_problem(name, value):
            errors.append(([name], problem))
    counts = Counter(map(str.lower, headers))
    for name in headers:
        if counts[name.lower()] > 1:
            errors.append(
                ([name], "expected each field once, whatever its case, got it more often")
            )
    if errors:
        refuse_items(errors)


def check_tags(tags: list[str]) -> None:
    errors: ItemErrors = []
    for index, tag in enumerate(tags):
        if not 1 <= len(tag) <= TAG_MAX_CHARACTERS or not tag.isprintable():
            detail = (
                f"expected 1 to {TAG_MAX_CHARACTERS} printable characters, got {short_repr(tag)}"
            )
            errors.append(([index], detail))
    if errors:
        refuse_items(errors)


def check_metadata(metadata: dict[str, str]) -> None:
    errors: ItemErrors = []
    for name, value in metadata.items():
        pair = name + value
        if len(pair) > METADATA_MAX_CHARACTERS or "\0" in pair or not is_unicode(pair):
            most, got = METADATA_MAX_CHARACTERS, short_repr(value)
            detail = f"expected at most {most} characters without NUL, got {got}"
            errors.append(([name], detail))
    if errors:
        refuse_items(errors)


def _header_problem(name: str, value: str) -> str:
    """Say why a header field is refused; "" if it is not."""
    if not HEADERS_ALLOWED.fullmatch(name):
        return (
            "expected X-…, List-…, In-Reply-To, References, Auto-Submitted, Precedence, Priority, "
            "Importance, Sensitivity, Feedback-ID, Organization, Comments or Keywords, got another name"
        )
    most = REFERENCES_MAX_CHARACTERS if name.lower() == "references" else HEADER_MAX_CHARACTERS
    if has_control(value) or not is_unicode(value) or len(value) > most or value != value.strip():
        return (
            f"expected one line of at most {most} characters, without spaces at its ends, "
            f"got {short_repr(value)}"
        )
    if (
        most > HEADER_MAX_CHARACTERS
        and max(map(len, value.split()), default=0) > HEADER_MAX_CHARACTERS
    ):
        return f"expected ids of at most {HEADER_MAX_CHARACTERS} characters, got a longer one"
    if STRUCTURED.fullmatch(name) and (
        not value or not value.isascii() or _ENCODED_WORD.search(value)
    ):
        return f"expected ASCII text without encoded words, got {short_repr(value)}"
    return ""
