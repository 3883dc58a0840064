"""Reads the mails of a batch: what they share is read once, so that each one costs little more."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from pydantic_core import PydanticCustomError

from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.message import Message
from mailroom.submission.addresses import parse_addresses
from mailroom.submission.message import MailSubmission, mail_from

#: The fields with which a mail of a batch can differ from another and still share all that was read of it.
_CHEAP_FIELDS = frozenset({"to", "variables"})


@dataclass
class BatchReader:
    """Reads one mail after the other; `errors` collects the errors of all of them."""

    common: dict[str, Any]
    at: str  #: JSON pointer to the list of mails
    common_at: str  #: JSON pointer to `common`
    errors: list[FieldError] = field(default_factory=list)
    _base: MailSubmission | None = None  #: an earlier mail that set only _CHEAP_FIELDS itself
    #: copies the message of `_base` with another `to`
    _make_message: Callable[..., Message] = Message
    #: copies `_base` with another message and template
    _make_submission: Callable[..., MailSubmission] = MailSubmission

    def read(self, index: int, item: object) -> MailSubmission | None:
        """Read the mail at this position of the list; None if it is wrong, and `errors` say why."""
        if not isinstance(item, dict):
            self.errors.append(
                FieldError(f"{self.at}/{index}", "expected an object, got something else")
            )
            return None
        try:
            if self._base and item.keys() <= _CHEAP_FIELDS and "to" in item:
                return self._read_cheaply(self._base, item)
            return self._read_whole(item)
        except InvalidMessage as e:
            for error in e.errors:
                located = self._located(error, index, item)
                if located not in self.errors:
                    self.errors.append(located)
        return None

    def _read_whole(self, item: dict[str, Any]) -> MailSubmission:
        submission = mail_from(self._merged(item))
        if submission.dry_run:
            detail = "expected a single message, as only that can be shown, got a batch"
            raise InvalidMessage([FieldError("#/dry_run", detail)])
        message = submission.message
        if item.keys() <= _CHEAP_FIELDS and not (message.cc or message.bcc):
            self._base = submission
            self._make_message = _copier(message, without={"to"})
            self._make_submission = _copier(submission, without={"message", "template"})
        return submission

    def _merged(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return a mail as it would be sent alone: the common part, with what the item sets itself."""
        own = {name: value for name, value in item.items() if name != "variables"}
        merged = {"priority": "low", **self.common, **own}
        if "variables" not in item:
            return merged
        variables = item["variables"]
        template = merged.get("template")
        if not isinstance(template, dict) or not isinstance(variables, dict):
            detail = "expected an object beside a template, got something else or no template"
            raise InvalidMessage([FieldError("#/variables", detail)])
        shared = template.get("variables", {})
        # A wrong `shared` is left as it is, and refused when the template is read.
        variables = {**shared, **variables} if isinstance(shared, dict) else shared
        return {**merged, "template": {**template, "variables": variables}}

    def _read_cheaply(self, base: MailSubmission, item: dict[str, Any]) -> MailSubmission:
        """Read a mail that differs from `base` only in _CHEAP_FIELDS, with the result of `_read_whole`."""
        variables = item.get("variables", {})
        if not isinstance(variables, dict) or (variables and not base.template):
            return self._read_whole(item)
        try:
            to = tuple(parse_addresses(item["to"], least=1))
        except PydanticCustomError:
            return self._read_whole(item)  # Raises with all that is wrong.
        template = base.template
        if template:
            shared = self.common["template"].get("variables", {})
            template = template.model_copy(update={"variables": {**shared, **variables}})
        return self._make_submission(message=self._make_message(to=to), template=template)

    def _located(self, error: FieldError, index: int, item: dict[str, Any]) -> FieldError:
        """Point an error to where the client wrote the field: in the common part, or in this mail."""
        path = error.pointer.removeprefix("#")
        name = path.split("/")[1] if "/" in path else ""
        is_common = name in self.common and name not in item
        parent = self.common_at if is_common else f"{self.at}/{index}"
        return FieldError(parent + path, error.detail)


def _copier(value: Any, *, without: Set[str]) -> Callable[..., Any]:
    """Return a function that copies a dataclass with other values for some fields.

    dataclasses.replace takes four times as long.
    """
    kind: Callable[..., Any] = type(value)
    kept = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name not in without
    }
    return partial(kind, **kept)
