"""Suppressions over HTTP: the addresses that get no mail."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Self
from urllib.parse import quote

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import NotFound

from mailroom.api.answers import SuppressionJson, SuppressionsAddedJson
from mailroom.api.http.pagination import choice_errors, page_response, parse_number, read_page
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


class SuppressionsRequest(BaseModel):
    """Addresses to suppress: either one or a list."""

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
            number = "none" if self.address is None else "both"
            refuse(f"expected either `address` or `addresses`, got {number}")
        return self


@blueprint.get("/v1/suppressions")
def list_suppressions() -> Response:
    """List the suppressed addresses, the newest first, a page at a time."""
    return page_response(*find_suppressions(request.args), suppression_json, cursor)


def find_suppressions(params: Mapping[str, str]) -> tuple[list[Suppression], int]:
    """Return the suppressions that match the parameters of a query, and its limit.

    There is one more than the limit if another page follows. Raises InvalidMessage.
    """
    limit, after = read_page(
        _read_cursor, params, other_errors=choice_errors("reason", Reason, params)
    )
    reason = params.get("reason", "")
    return services().suppressions.page(limit=limit + 1, after=after, reason=reason), limit


@blueprint.post("/v1/suppressions")
def add_suppressions() -> Response:
    """Suppress one or many addresses; those that are suppressed already stay as they are."""
    return add(json_body())


def add(value: object) -> Response:
    """Suppress the addresses of a request; answers 201. Raises InvalidMessage."""
    wanted = read_fields(SuppressionsRequest, value)
    if wanted.addresses is not None:
        response = jsonify(_add_all(wanted.addresses, wanted.detail))
        response.status_code = 201
        return response
    address = wanted.address or ""
    services().suppressions.add(address, Reason.MANUAL, wanted.detail)
    response = jsonify(suppression_json(_find(address)))
    response.status_code = 201
    response.headers["Location"] = f"/v1/suppressions/{quote(address.lower(), safe='@')}"
    return response


def _add_all(addresses: list[str], detail: str | None) -> SuppressionsAddedJson:
    added = services().suppressions.add_all(addresses, Reason.MANUAL, detail)
    distinct = {address.lower() for address in addresses}
    return {"added": added, "known": len(distinct) - added}


@blueprint.get("/v1/suppressions/<path:address>")
def get_suppression(address: str) -> Response:
    """Return since when and why an address is suppressed; 404 if it is not."""
    return jsonify(suppression_json(_find(_stored_form(address))))


@blueprint.delete("/v1/suppressions/<path:address>")
def remove_suppression(address: str) -> Response:
    """Let an address get mail again; mails that were suppressed before are not sent."""
    if not services().suppressions.remove(_stored_form(address)):
        raise _unknown()
    return Response(status=204)


def suppression_json(suppression: Suppression) -> SuppressionJson:
    """Return a suppression; `message` is the id of the message that caused it."""
    return {
        "address": suppression.address,
        "reason": suppression.reason,
        "detail": suppression.detail,
        "message": suppression.message_id,
        "created_at": timestamp(suppression.created_at),
    }


def find(address: str) -> Suppression | None:
    """Return the suppression of an address in any spelling; None if there is none."""
    try:
        return services().suppressions.find(_stored_form(address))
    except NotFound:
        return None


def _find(address: str) -> Suppression:
    suppression = services().suppressions.find(address)
    if suppression is None:
        raise _unknown()
    return suppression


def _stored_form(address: str) -> str:
    """Return the address as it is stored, its domain in ASCII. Raises NotFound if it is not an address."""
    try:
        return parse_address(address).address
    except PydanticCustomError:
        raise _unknown() from None


def _unknown() -> NotFound:
    return NotFound("expected an address that is suppressed, got another one")


def cursor(last: Suppression) -> str:
    """Return the cursor of the page that begins after this suppression."""
    return urlsafe_b64encode(f"{last.created_at} {last.address}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, str] | None:
    """Read the text that `cursor` writes; None if it is another text."""
    padding = "=" * (-len(cursor) % 4)
    try:
        created_at, _, address = urlsafe_b64decode(cursor + padding).decode().partition(" ")
    except ValueError:
        return None
    created_at_ms = parse_number(created_at)
    if created_at_ms is None or "\0" in address:
        return None
    return created_at_ms, address
