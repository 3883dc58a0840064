"""Describes the routes of stored templates."""

from mailroom.api.openapi.operation import (
    BODY_REFUSALS,
    DONE,
    LIMIT,
    Operation,
    Parameter,
    json_answer,
)

TEMPLATES: dict[str, Operation] = {
    "GET /v1/templates": Operation(
        group="Templates",
        parameters=(
            LIMIT,
            Parameter(name="after", description="The last name on the page before."),
        ),
        answers={200: json_answer("TemplatePage", "One page of the list.")},
        refusals=(422,),
    ),
    "PUT /v1/templates/<name>": Operation(
        group="Templates",
        body="StoreTemplateRequest",
        answers={
            200: json_answer("Template", "The template was replaced."),
            201: json_answer("Template", "The template was created."),
        },
        refusals=BODY_REFUSALS,
    ),
    "GET /v1/templates/<name>": Operation(
        group="Templates",
        answers={200: json_answer("Template", "The template.")},
        refusals=(404,),
    ),
    "DELETE /v1/templates/<name>": Operation(
        group="Templates",
        answers={204: DONE},
        refusals=(404,),
    ),
    "POST /v1/templates/<name>/preview": Operation(
        group="Templates",
        body="PreviewRequest",
        answers={200: json_answer("Preview", "The filled-in parts of a mail.")},
        refusals=(404, *BODY_REFUSALS),
    ),
}
