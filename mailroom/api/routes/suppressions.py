"""Suppressions over HTTP: the addresses that get no mail."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Self
from urllib.parse import quote

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import NotFound

from mailroom.api.answers import SuppressionJson
from mailroom.api.http.pagination import asked_page, number, one_of, page
from mailroom.api.http.request import json_body
from mailroom.api.services import services
from mailroom.model.addresses import parse_address
from mailroom.model.errors import refuse
from mailroom.model.text import encodable, refuse_control
from mailroom.model.times import timestamp
from mailroom.store.messages.suppressions import Reason, Suppression
from mailroom.submission.addresses import parse_each
from mailroom.submission.fields import read_fields

ADDRESSES_MAX = 1000
DETAIL_MAX_CHARACTERS = 500

blueprint = Blueprint("suppressions", __name__)


class AskedSuppressions(BaseModel):
    """Whom to send nothing any more: one, or many."""

    model_config = ConfigDict(extra="forbid")

    address: StrictStr | None = Field(None, description="An address.")
    addresses: list[StrictStr] | None = Field(
        None, description=f"A list of up to {ADDRESSES_MAX:,} addresses."
    )
    detail: StrictStr | None = Field(None, description="Why, in a line.")

    @field_validator("address")
    @classmethod
    def _one(cls, value: str | None) -> str | None:
        return None if value is None else parse_address(value).address

    @field_validator("addresses")
    @classmethod
    def _many(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not 1 <= len(value) <= ADDRESSES_MAX:
            refuse(f"expected 1 to {ADDRESSES_MAX} addresses, got {len(value)}")
        return [person.address for person in parse_each(value)]

    @field_validator("detail")
    @classmethod
    def _line(cls, value: str | None) -> str | None:
        if value:
            refuse_control(value)
        if value and len(value) > DETAIL_MAX_CHARACTERS:
            refuse(f"expected at most {DETAIL_MAX_CHARACTERS} characters, got {len(value)}")
        return value and encodable(value)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.address is None) == (self.addresses is None):
            refuse(
                "expected either `address` or `addresses`, got "
                + ("none" if self.address is None else "both")
            )
        return self


@blueprint.get("/v1/suppressions")
def list_suppressions() -> Response:
    """List those who get no mail, the newest first, a page at a time."""
    return page(*find_suppressions(request.args), suppression_json, cursor)


def find_suppressions(asked: Mapping[str, str]) -> tuple[list[Suppression], int]:
    """Return the suppressions that a query asks for, and how many it asked for. Raises InvalidMessage.

    Where there are others, one more comes with them.
    """
    limit, after = asked_page(_place, asked, also=one_of("reason", Reason, asked))
    return services().suppressions.page(limit=limit + 1, after=after, reason=asked.get("reason", "")), limit


@blueprint.post("/v1/suppressions")
def add_suppressions() -> Response:
    """Send one or many no mail any more. Who is there already stays as it is."""
    return add(json_body())


def add(value: object) -> Response:
    """Raises InvalidMessage."""
    asked = read_fields(AskedSuppressions, value)
    if asked.addresses is not None:
        added = services().suppressions.add_all(asked.addresses, Reason.MANUAL, asked.detail)
        answer = jsonify(
            {"added": added, "known": len({address.lower() for address in asked.addresses}) - added}
        )
        answer.status_code = 201
        return answer
    address = asked.address or ""
    services().suppressions.add(address, Reason.MANUAL, asked.detail)
    answer = jsonify(suppression_json(_found(address)))
    answer.status_code = 201
    answer.headers["Location"] = f"/v1/suppressions/{quote(address.lower(), safe='@')}"
    return answer


@blueprint.get("/v1/suppressions/<path:address>")
def get_suppression(address: str) -> Response:
    """Since when and why an address gets no mail; 404 if it does."""
    return jsonify(suppression_json(_found(_parsed(address))))


@blueprint.delete("/v1/suppressions/<path:address>")
def remove_suppression(address: str) -> Response:
    """Let an address get mail again. What was suppressed meanwhile is not sent by that."""
    if not services().suppressions.remove(_parsed(address)):
        raise _unknown()
    return Response(status=204)


def suppression_json(suppression: Suppression) -> SuppressionJson:
    """Return a suppression; `message` is the id of the one that it came of."""
    return {
        "address": suppression.address,
        "reason": suppression.reason,
        "detail": suppression.detail,
        "message": suppression.message_id,
        "created_at": timestamp(suppression.created_at),
    }


def find(address: str) -> Suppression | None:
    """The one of this address, however it is written; None if it gets mail, or is no address."""
    try:
        return services().suppressions.find(_parsed(address))
    except NotFound:
        return None


def _found(address: str) -> Suppression:
    suppression = services().suppressions.find(address)
    if suppression is None:
        raise _unknown()
    return suppression


def _parsed(address: str) -> str:
    """The address as it is stored: its domain in ASCII."""
    try:
        return parse_address(address).address
    except PydanticCustomError:
        raise _unknown() from None


def _unknown() -> NotFound:
    return NotFound("expected an address that is suppressed, got another one")


def cursor(last: Suppression) -> str:
    return urlsafe_b64encode(f"{last.created_at} {last.address}".encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[int, str] | None:
    """Read what `cursor` wrote; None if it is no such thing."""
    try:
        at, _, address = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
    except ValueError:
        return None
    created_at = number(at)
    return (created_at, address) if created_at is not None and "\0" not in address else None
