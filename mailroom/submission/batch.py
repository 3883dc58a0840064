"""Reads many mails that share a part, at the cost of one mail and their recipients."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from pydantic_core import PydanticCustomError

from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.model.message import Message
from mailroom.submission.addresses import parse_addresses
from mailroom.submission.message import MailSubmission, mail_from

#: What a message of a batch may have for itself without being read as a whole.
_OWN = frozenset({"to", "variables"})


@dataclass
class BatchReader:
    """Reads one message after the other; `wrong` collects what is wrong with all of them."""

    common: dict[str, Any]
    at: str  #: where the list of messages stands, a JSON pointer
    common_at: str
    wrong: list[FieldError] = field(default_factory=list)
    _base: MailSubmission | None = None  #: of a message that had nothing for itself but `to` and `variables`
    _message: Callable[..., Message] = Message  #: makes its message anew, with another `to`
    _order: Callable[..., MailSubmission] = (
        MailSubmission  #: the same of its order, with another message and template
    )

    def read(self, index: int, item: object) -> MailSubmission | None:
        """The message at this place of the list; None where it is none."""
        try:
            if not isinstance(item, dict):
                raise MalformedJSON("expected an object")
            return (
                self._quickly(self._base, item)
                if self._base and item.keys() <= _OWN and "to" in item
                else self._whole(item)
            )
        except MalformedJSON:
            self.wrong.append(FieldError(f"{self.at}/{index}", "expected an object, got something else"))
        except InvalidMessage as e:
            own = item if isinstance(item, dict) else {}
            self.wrong += [
                error
                for error in (self._placed(error, index, own) for error in e.errors)
                if error not in self.wrong
            ]
        return None

    def _whole(self, item: dict[str, Any]) -> MailSubmission:
        merged = {
            "priority": "low",
            **self.common,
            **{name: value for name, value in item.items() if name != "variables"},
        }
        template = merged.get("template")
        if "variables" in item and isinstance(template, dict) and isinstance(item["variables"], dict):
            shared = template.get("variables", {})
            merged["template"] = {
                **template,
                "variables": {**shared, **item["variables"]} if isinstance(shared, dict) else shared,
            }
        elif "variables" in item:
            raise InvalidMessage(
                [
                    FieldError(
                        "#/variables",
                        "expected an object beside a template, got something else or no template",
                    )
                ]
            )
        order = mail_from(merged)
        if order.dry_run:
            raise InvalidMessage(
                [FieldError("#/dry_run", "expected a single message, as only that is shown, got a batch")]
            )
        if item.keys() <= _OWN and not (order.message.cc or order.message.bcc):
            self._base, self._message = order, _maker(order.message, without={"to"})
            self._order = _maker(order, without={"message", "template"})
        return order

    def _quickly(self, base: MailSubmission, item: dict[str, Any]) -> MailSubmission:
        """Make an order as `_whole` does: all but `to` and `variables` is as it was in `base`."""
        variables = item.get("variables", {})
        if not isinstance(variables, dict) or (variables and not base.template):
            return self._whole(item)
        try:
            to = tuple(parse_addresses(item["to"], least=1))
        except PydanticCustomError:
            return self._whole(item)  # Which says what is wrong.
        template = base.template
        if template:
            shared = self.common["template"].get("variables", {})
            template = template.model_copy(update={"variables": {**shared, **variables}})
        return self._order(message=self._message(to=to), template=template)

    def _placed(self, error: FieldError, index: int, item: dict[str, Any]) -> FieldError:
        """The error where the client wrote it: in the common part, or in this message."""
        name = error.pointer.removeprefix("#").split("/")[1] if "/" in error.pointer else ""
        where = self.common_at if name in self.common and name not in item else f"{self.at}/{index}"
        return FieldError(where + error.pointer.removeprefix("#"), error.detail)


def _maker(value: Any, *, without: Set[str]) -> Callable[..., Any]:
    """Makes more like this one; dataclasses.replace takes four times as long."""
    kind: Callable[..., Any] = type(value)
    return partial(
        kind, **{one.name: getattr(value, one.name) for one in fields(value) if one.name not in without}
    )
