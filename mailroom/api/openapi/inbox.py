"""Describes the routes of the disposable inbox."""

from mailroom.api.openapi.operation import DONE, Operation, Parameter, json_answer

INBOX: dict[str, Operation] = {
    "GET /inbox/api/messages": Operation(
        group="Inbox",
        parameters=(
            Parameter(name="to", description="Only mails to this address."),
            Parameter(
                name="wait",
                description="Wait up to this many seconds for a mail.",
                schema={"type": "number", "minimum": 0, "maximum": 60, "default": 0},
            ),
        ),
        answers={200: json_answer("Mails", "The newest first.")},
        refusals=(422,),
    ),
    "GET /inbox/api/messages/<id>": Operation(
        group="Inbox",
        answers={200: json_answer("Mail", "The mail.")},
        refusals=(404,),
    ),
    "DELETE /inbox/api/messages": Operation(
        group="Inbox",
        answers={204: DONE},
    ),
    "DELETE /inbox/api/messages/<id>": Operation(
        group="Inbox",
        answers={204: DONE},
        refusals=(404,),
    ),
    "GET /inbox/api/failure": Operation(
        group="Inbox",
        answers={200: json_answer("NextFailure", "The failure that the next mails will meet.")},
    ),
    "PUT /inbox/api/failure": Operation(
        group="Inbox",
        body="FailureRequest",
        answers={200: json_answer("NextFailure", "The new state.")},
        refusals=(415, 422),
    ),
}
