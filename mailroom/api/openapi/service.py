"""Describes the routes of the service itself: sender accounts, metrics, health checks, this description."""

from mailroom.api.json_schemas import TEXT
from mailroom.api.openapi.operation import Operation, ResponseDescription, json_answer

SERVICE: dict[str, Operation] = {
    "GET /v1/accounts": Operation(
        group="Service",
        answers={200: json_answer("Accounts", "The whole list.")},
    ),
    "POST /v1/accounts/<path:account>/retry": Operation(
        group="Service",
        answers={200: json_answer("Account", "The new state.")},
        refusals=(404, 409),
    ),
    "GET /metrics": Operation(
        group="Service",
        answers={
            200: ResponseDescription(
                description="The metrics.",
                content={"text/plain": TEXT, "application/openmetrics-text": TEXT},
            )
        },
    ),
    "GET /": Operation(
        group="Service",
        answers={200: ResponseDescription(description="A web page.", content={"text/html": TEXT})},
    ),
    "GET /ping": Operation(
        group="Service",
        answers={200: json_answer("Pong", "The service responds.")},
        is_open=True,
    ),
    "GET /livez": Operation(
        group="Service",
        answers={200: json_answer("Alive", "The process is alive.")},
        is_open=True,
    ),
    "GET /readyz": Operation(
        group="Service",
        answers={
            200: json_answer("Readiness", "Ready: mail would be accepted."),
            503: json_answer(
                "Readiness",
                "Not ready: mail would not be accepted, or the workers read another database.",
            ),
        },
        is_open=True,
    ),
    "GET /openapi.json": Operation(
        group="Service",
        answers={200: json_answer("OpenAPI", "This document.")},
    ),
}
