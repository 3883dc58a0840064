"""Describes the routes of webhooks and their deliveries."""

from mailroom.api.openapi.operation import AFTER, BODY_REFUSALS, DONE, LIMIT, Operation, json_answer

WEBHOOKS: dict[str, Operation] = {
    "POST /v1/webhooks": Operation(
        group="Webhooks",
        body="WebhookRequest",
        answers={201: json_answer("Webhook", "The new webhook, with its secret.", "Location!")},
        refusals=(*BODY_REFUSALS, 409),
    ),
    "GET /v1/webhooks": Operation(
        group="Webhooks",
        answers={200: json_answer("Webhooks", "The whole list.")},
    ),
    "GET /v1/webhooks/<id>": Operation(
        group="Webhooks",
        answers={200: json_answer("Webhook", "The webhook.")},
        refusals=(404,),
    ),
    "PATCH /v1/webhooks/<id>": Operation(
        group="Webhooks",
        body="WebhookChange",
        answers={200: json_answer("Webhook", "The new state.")},
        refusals=(404, 409, *BODY_REFUSALS),
    ),
    "DELETE /v1/webhooks/<id>": Operation(
        group="Webhooks",
        answers={204: DONE},
        refusals=(404,),
    ),
    "POST /v1/webhooks/<id>/test": Operation(
        group="Webhooks",
        answers={202: json_answer("Delivery", "The delivery, which is queued.")},
        refusals=(404, 409),
    ),
    "GET /v1/webhooks/<id>/deliveries": Operation(
        group="Webhooks",
        parameters=(LIMIT, AFTER),
        answers={200: json_answer("DeliveryPage", "One page of the list.")},
        refusals=(404, 422),
    ),
    "POST /v1/webhooks/<id>/deliveries/<number>/replay": Operation(
        group="Webhooks",
        answers={202: json_answer("Delivery", "The delivery, which is queued.")},
        refusals=(404, 409),
    ),
}
