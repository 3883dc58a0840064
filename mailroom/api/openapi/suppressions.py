"""Describes the routes of suppressions: the addresses that get no mail."""

from mailroom.api.json_schemas import one_of
from mailroom.api.openapi.operation import (
    AFTER,
    BODY_REFUSALS,
    DONE,
    JSON,
    LIMIT,
    Operation,
    Parameter,
    ResponseDescription,
    json_answer,
)
from mailroom.store.messages.suppressions import Reason

SUPPRESSIONS: dict[str, Operation] = {
    "GET /v1/suppressions": Operation(
        group="Suppressions",
        parameters=(
            LIMIT,
            AFTER,
            Parameter(
                name="reason",
                description="Only suppressions for this reason.",
                schema=one_of(Reason),
            ),
        ),
        answers={200: json_answer("SuppressionPage", "One page of the list.")},
        refusals=(422,),
    ),
    "POST /v1/suppressions": Operation(
        group="Suppressions",
        body="SuppressionsRequest",
        answers={
            201: ResponseDescription(
                description="The suppression; or, for a list, how many were added.",
                headers=("Location",),
                content={JSON: {"anyOf": ["Suppression", "SuppressionsAdded"]}},
            )
        },
        refusals=BODY_REFUSALS,
    ),
    "GET /v1/suppressions/<path:address>": Operation(
        group="Suppressions",
        answers={200: json_answer("Suppression", "The suppression.")},
        refusals=(404,),
    ),
    "DELETE /v1/suppressions/<path:address>": Operation(
        group="Suppressions",
        answers={204: DONE},
        refusals=(404,),
    ),
}
