"""Webhooks over HTTP: create, change and delete them, and list or repeat their deliveries."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, field_validator
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import DeliveryJson, WebhookJson
from mailroom.api.auth.guard import current_key
from mailroom.api.http.pagination import page_response, parse_number, read_page
from mailroom.api.http.request import json_body
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage, refuse_items
from mailroom.model.ids import is_id, new_id
from mailroom.model.times import timestamp
from mailroom.store.events.webhook_events import ENABLED, OWN, TYPES
from mailroom.store.events.webhooks import TooMany
from mailroom.store.keys.api_keys import Scope
from mailroom.submission.fields import read_fields
from mailroom.webhooks.notifier import QUEUE
from mailroom.webhooks.ssrf import AddressGuard, ForbiddenURL

blueprint = Blueprint("webhooks", __name__)


def _known_types(value: list[str] | None) -> list[str] | None:
    """Check the types of events, and drop those that are there twice."""
    if value is None:
        return None
    known = ", ".join(TYPES)
    errors: list[tuple[list[str | int], str]] = []
    for index, name in enumerate(value):
        if name not in TYPES:
            errors.append(([index], f"expected one of {known}, got {name[:80]!r}"))
    if errors:
        refuse_items(errors)
    return list(dict.fromkeys(value))


class WebhookRequest(BaseModel):
    """A webhook to create: its URL and its events."""

    model_config = ConfigDict(extra="forbid")

    url: StrictStr = Field(
        description="An https URL with a public address; each event is a POST to it."
    )
    events: list[StrictStr] = Field(
        default_factory=list, description="Types like message.sent. An empty list: all."
    )

    _types = field_validator("events")(_known_types)


class WebhookChange(BaseModel):
    """Changes to a webhook; fields that are absent stay as they are."""

    model_config = ConfigDict(extra="forbid")

    url: StrictStr | None = Field(None, description="An https URL with a public address.")
    events: list[StrictStr] | None = Field(
        None, description="Types like message.sent. An empty list: all."
    )
    enabled: StrictBool | None = Field(None, description="Whether the webhook gets events.")

    _types = field_validator("events")(_known_types)


@blueprint.post("/v1/webhooks")
def post_webhook() -> Response:
    """Send the events of messages to a URL; answers 201 with the secret that signs each POST."""
    id = create(json_body())
    response = jsonify(webhook_json(find(id), with_secret=True))
    response.status_code = 201
    response.headers["Location"] = f"/v1/webhooks/{id}"
    return response


def create(value: object) -> str:
    """Create the webhook of a request and return its id.

    Raises:
      InvalidMessage: the request is wrong, or its URL is not allowed.
      Conflict: there are too many webhooks.
    """
    wanted = read_fields(WebhookRequest, value)
    _refuse_forbidden(wanted.url)
    try:
        return services().webhooks.create(wanted.url, wanted.events)
    except TooMany as e:
        raise Conflict(str(e)) from None


@blueprint.get("/v1/webhooks")
def list_webhooks() -> Response:
    """List all webhooks, without their secrets."""
    return jsonify({"data": [webhook_json(row) for row in services().webhooks.all()]})


@blueprint.get("/v1/webhooks/<id>")
def get_webhook(id: str) -> Response:
    """Return a webhook, for an admin with its secret; `own` stands for the URLs that messages name."""
    return jsonify(webhook_json(find(id), with_secret=Scope.ADMIN in current_key().scopes))


@blueprint.patch("/v1/webhooks/<id>")
def patch_webhook(id: str) -> Response:
    """Change the URL or the events of a webhook, or disable and enable it."""
    change(id, json_body())
    return jsonify(webhook_json(find(id)))


def change(id: str, value: object) -> None:
    """Change a webhook as a request says.

    Raises:
      InvalidMessage: the request is wrong, or its URL is not allowed.
      NotFound: there is no such webhook.
      Conflict: it is the webhook `own`, which has no URL.
    """
    wanted = read_fields(WebhookChange, value)
    find(id)
    if wanted.url is not None:
        _refuse_own(id)
        _refuse_forbidden(wanted.url)
    services().webhooks.change(id, url=wanted.url, events=wanted.events, enabled=wanted.enabled)


@blueprint.delete("/v1/webhooks/<id>")
def delete_webhook(id: str) -> Response:
    """Delete a webhook and its deliveries; answers 204."""
    if not (is_id(id) and services().webhooks.delete(id)):
        raise _unknown(id)
    return Response(status=204)


@blueprint.post("/v1/webhooks/<id>/test")
def post_test(id: str) -> Response:
    """Send a `webhook.test` event; answers 202 with its delivery."""
    row = find(id)
    _refuse_own(id)
    if row["state"] != ENABLED:
        raise Conflict("expected a webhook that is enabled, got one that is not")
    return _accepted(services().webhooks.test(id))


@blueprint.get("/v1/webhooks/<id>/deliveries")
def list_deliveries(id: str) -> Response:
    """List the deliveries of a webhook, the newest first, a page at a time."""
    rows, limit = find_deliveries(id, request.args)
    return page_response(rows, limit, delivery_json, lambda row: str(row["number"]))


def find_deliveries(id: str, params: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """Return the deliveries that match the parameters of a query, and its limit.

    There is one more than the limit if another page follows. Raises InvalidMessage, NotFound.
    """
    limit, after = read_page(parse_number, params)
    find(id)
    return services().webhooks.page(id, limit=limit + 1, before=after), limit


@blueprint.post("/v1/webhooks/<id>/deliveries/<number>/replay")
def replay_delivery(id: str, number: str) -> Response:
    """Repeat a delivery under the same event id; answers 202."""
    find(id)
    delivery_number = parse_number(number) or 0
    if services().webhooks.delivery(id, delivery_number) is None:
        raise NotFound(f"expected the number of a delivery of this webhook, got {number[:80]!r}")
    if not services().webhooks.replay(id, delivery_number):
        raise Conflict(
            "expected an enabled webhook and a delivery that no worker is at, got another"
        )
    return _accepted(services().webhooks.delivery(id, delivery_number))


def guard() -> AddressGuard:
    """Return the guard that says which URLs are allowed."""
    return AddressGuard(services().settings.WEBHOOKS_TO_LOOPBACK == "on")


def _accepted(row: dict[str, Any] | None) -> Response:
    if publisher := services().publisher():
        # Wakes a worker, which looks for due deliveries whatever the id. Without it one looks each second.
        publisher.offer(new_id(), queue=QUEUE)
    response = jsonify(row and delivery_json(row))
    response.status_code = 202
    return response


def webhook_json(row: dict[str, Any], *, with_secret: bool = False) -> WebhookJson:
    events = row["events"].split(",") if row["events"] else []
    webhook: WebhookJson = {
        "id": row["id"],
        "url": row["url"] or None,
        "events": events,
        "enabled": row["state"] == ENABLED,
        "reason": row["reason"],
        "created_at": timestamp(row["created_at"]),
    }
    if with_secret:
        webhook["secret"] = row["secret"]
    return webhook


def delivery_json(row: dict[str, Any]) -> DeliveryJson:
    return {
        "number": row["number"],
        "type": row["event"],
        "message_id": row["message_id"],
        "created_at": timestamp(row["at"]),
        "status": row["state"],
        "attempts": row["attempt"] - row["excused"],
        "code": row["code"],
        "reply": row["reply"],
        "next_attempt_at": timestamp(row["next_attempt_at"]),
    }


def find(id: str) -> dict[str, Any]:
    """Return the row of a webhook. Raises NotFound."""
    row = services().webhooks.get(id) if is_id(id) else None
    if row is None:
        raise _unknown(id)
    return row


def _unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a webhook, got {id[:80]!r}")


def _refuse_own(id: str) -> None:
    if id == OWN:
        raise Conflict("expected a webhook with a URL, got the one for the URLs that messages name")


def _refuse_forbidden(url: str) -> None:
    try:
        guard().read(url)
    except ForbiddenURL as e:
        raise InvalidMessage([FieldError("#/url", str(e))]) from None
