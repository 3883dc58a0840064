"""Webhooks over HTTP: who is told what happens to messages, and what became of each telling."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, field_validator
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import DeliveryJson, WebhookJson
from mailroom.api.auth.guard import current_key
from mailroom.api.http.pagination import asked_page, page
from mailroom.api.http.pagination import number as as_number
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
    if wrong := [index for index, name in enumerate(value or []) if name not in TYPES]:
        refuse_items(
            [
                ([index], f"expected one of {', '.join(TYPES)}, got {(value or [])[index][:80]!r}")
                for index in wrong
            ]
        )
    return None if value is None else list(dict.fromkeys(value))


class AskedWebhook(BaseModel):
    """Whom to tell, and of what."""

    model_config = ConfigDict(extra="forbid")

    url: StrictStr = Field(description="An https URL with a public address; each event is a POST to it.")
    events: list[StrictStr] = Field(default_factory=list, description="Types like message.sent. None: all.")

    _types = field_validator("events")(_known_types)


class AskedChange(BaseModel):
    """Changes to a webhook; what is not there stays."""

    model_config = ConfigDict(extra="forbid")

    url: StrictStr | None = Field(None, description="An https URL with a public address.")
    events: list[StrictStr] | None = Field(None, description="Types like message.sent. An empty list: all.")
    enabled: StrictBool | None = Field(None, description="Whether it is told anything.")

    _types = field_validator("events")(_known_types)


@blueprint.post("/v1/webhooks")
def post_webhook() -> Response:
    """Have a URL told of what happens to messages; answers 201 with the secret that signs each POST to it."""
    id = create(json_body())
    answer = jsonify(webhook_json(find(id), with_secret=True))
    answer.status_code = 201
    answer.headers["Location"] = f"/v1/webhooks/{id}"
    return answer


def create(value: object) -> str:
    """The id of a new one. Raises InvalidMessage, Conflict."""
    asked = read_fields(AskedWebhook, value)
    _refuse_forbidden(asked.url)
    try:
        return services().webhooks.create(asked.url, asked.events)
    except TooMany as e:
        raise Conflict(str(e)) from None


@blueprint.get("/v1/webhooks")
def list_webhooks() -> Response:
    """All of them, without their secrets."""
    return jsonify({"data": [webhook_json(row) for row in services().webhooks.all()]})


@blueprint.get("/v1/webhooks/<id>")
def get_webhook(id: str) -> Response:
    """Return a webhook, to an admin with its secret; `own` is that of URLs that messages name themselves."""
    return jsonify(webhook_json(find(id), with_secret=Scope.ADMIN in current_key().scopes))


@blueprint.patch("/v1/webhooks/<id>")
def patch_webhook(id: str) -> Response:
    """Change its URL or its events, or stop and start it."""
    change(id, json_body())
    return jsonify(webhook_json(find(id)))


def change(id: str, value: object) -> None:
    """Raises InvalidMessage, NotFound, Conflict."""
    asked = read_fields(AskedChange, value)
    find(id)
    if asked.url is not None:
        _refuse_own(id)
        _refuse_forbidden(asked.url)
    services().webhooks.change(id, url=asked.url, events=asked.events, enabled=asked.enabled)


@blueprint.delete("/v1/webhooks/<id>")
def delete_webhook(id: str) -> Response:
    """Forget it and its log; answers 204."""
    if not (is_id(id) and services().webhooks.delete(id)):
        raise _unknown(id)
    return Response(status=204)


@blueprint.post("/v1/webhooks/<id>/test")
def post_test(id: str) -> Response:
    """Have a `webhook.test` delivered; answers 202 with that delivery."""
    row = find(id)
    _refuse_own(id)
    if row["state"] != ENABLED:
        raise Conflict("expected a webhook that is enabled, got one that is not")
    return _accepted(services().webhooks.test(id))


@blueprint.get("/v1/webhooks/<id>/deliveries")
def list_deliveries(id: str) -> Response:
    """List what a webhook was to be told, the newest first, a page at a time."""
    return page(*find_deliveries(id, request.args), delivery_json, lambda row: str(row["number"]))


def find_deliveries(id: str, asked: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """The rows that a query asks for, and one more where there are others; and how many it asked for. Raises InvalidMessage, NotFound."""
    limit, after = asked_page(as_number, asked)
    find(id)
    return services().webhooks.page(id, limit=limit + 1, before=after), limit


@blueprint.post("/v1/webhooks/<id>/deliveries/<number>/replay")
def replay_delivery(id: str, number: str) -> Response:
    """Tell it once more, under the same id; answers 202."""
    find(id)
    wanted = as_number(number) or 0
    if services().webhooks.delivery(id, wanted) is None:
        raise NotFound(f"expected the number of a delivery of this webhook, got {number[:80]!r}")
    if not services().webhooks.replay(id, wanted):
        raise Conflict("expected an enabled webhook and a delivery that no worker is at, got another")
    return _accepted(services().webhooks.delivery(id, wanted))


def guard() -> AddressGuard:
    """Return the guard that says which URLs may be named."""
    return AddressGuard(services().settings.WEBHOOKS_TO_LOOPBACK == "on")


def _accepted(row: dict[str, Any] | None) -> Response:
    if publisher := services().publisher():
        publisher.offer(
            new_id(), queue=QUEUE
        )  # Any id will do; a worker that does not hear of it looks each second.
    answer = jsonify(row and delivery_json(row))
    answer.status_code = 202
    return answer


def webhook_json(row: dict[str, Any], *, with_secret: bool = False) -> WebhookJson:
    hook: WebhookJson = {
        "id": row["id"],
        "url": row["url"] or None,
        "events": row["events"].split(",") if row["events"] else [],
        "enabled": row["state"] == ENABLED,
        "reason": row["reason"],
        "created_at": timestamp(row["created_at"]),
    }
    if with_secret:
        hook["secret"] = row["secret"]
    return hook


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
