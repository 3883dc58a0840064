"""Describes the routes of mails: accept, list, read and act on them."""

from mailroom.api.json_schemas import TEXT, TIME, one_of
from mailroom.api.openapi.operation import (
    AFTER,
    BODY_REFUSALS,
    IDEMPOTENCY_KEY,
    JSON,
    LIMIT,
    PREFER,
    RATE_LIMIT_HEADERS,
    Operation,
    Parameter,
    ResponseDescription,
    json_answer,
)
from mailroom.model.message import State

_MESSAGE = json_answer("Message", "The message.")


def _accepted(status: int) -> dict[int, ResponseDescription]:
    """Describe the responses to a mail; `status` is that of a mail that was accepted, 200 or 202.

    200 also comes for a dry run, and to a client that waited until the mail has ended.
    """
    headers = ("Idempotency-Replayed", "Preference-Applied", *RATE_LIMIT_HEADERS)
    names = ["Message", "DryRun"]
    if status == 200:
        names = ["Accepted", "DryRun", "Message"]
    answers = {
        200: ResponseDescription(
            description=(
                "The mail is accepted; or it has ended, if the client waited; or what a dry run would send."
            ),
            content={JSON: {"anyOf": names}},
            headers=("Location", *headers),
        )
    }
    if status == 202:
        answers[202] = ResponseDescription(
            description="The mail is accepted.",
            content={JSON: {"anyOf": ["Accepted", "Message"]}},
            headers=("Location!", *headers),
        )
    return answers


def _action(body: str = "") -> Operation:
    """Describe an action on a message; `body` names the schema of its request, if it reads one."""
    refusals = (404, 409, *BODY_REFUSALS) if body else (404, 409)
    return Operation(group="Messages", body=body, answers={200: _MESSAGE}, refusals=refusals)


MESSAGES: dict[str, Operation] = {
    "POST /": Operation(
        group="Messages",
        body="MailAfterJobRequest",
        form="message",
        parameters=(IDEMPOTENCY_KEY, PREFER),
        answers=_accepted(200),
        refusals=(*BODY_REFUSALS, 409, 429),
    ),
    "POST /v1/messages": Operation(
        group="Messages",
        body="MailAfterJobRequest",
        form="message",
        parameters=(IDEMPOTENCY_KEY, PREFER),
        answers=_accepted(202),
        refusals=(*BODY_REFUSALS, 409, 429),
    ),
    "POST /v1/messages/batch": Operation(
        group="Messages",
        body="BatchRequest",
        parameters=(IDEMPOTENCY_KEY,),
        answers={
            202: json_answer(
                "AcceptedBatch",
                "All mails are accepted.",
                "Idempotency-Replayed",
                *RATE_LIMIT_HEADERS,
            )
        },
        refusals=(*BODY_REFUSALS, 409, 429),
    ),
    "POST /v1/messages/raw": Operation(
        group="Messages",
        raw_body="message/rfc822",
        parameters=(
            Parameter(
                name="to",
                description="A recipient; may come up to 100 times. Without it: those in To, Cc and Bcc.",
                is_repeated=True,
            ),
            Parameter(
                name="from",
                description="Where bounces go; empty for nowhere. Without it: the address in From.",
            ),
            IDEMPOTENCY_KEY,
            PREFER,
        ),
        answers=_accepted(202),
        refusals=(*BODY_REFUSALS, 409, 429),
    ),
    "GET /v1/messages": Operation(
        group="Messages",
        parameters=(
            LIMIT,
            AFTER,
            Parameter(
                name="status", description="Only messages in this state.", schema=one_of(State)
            ),
            Parameter(name="to", description="Only messages to this address."),
            Parameter(name="tag", description="Only messages with this tag."),
            Parameter(
                name="q",
                description="Only messages with these words in the subject or in a recipient's address.",
            ),
            Parameter(
                name="since",
                description="Only messages accepted at this time or later.",
                schema=TIME,
            ),
            Parameter(
                name="until", description="Only messages accepted before this time.", schema=TIME
            ),
        ),
        answers={200: json_answer("MessagePage", "One page of the list.")},
        refusals=(422,),
    ),
    "GET /v1/messages/<id>": Operation(
        group="Messages",
        parameters=(PREFER,),
        answers={200: json_answer("Message", "The message.", "Preference-Applied")},
        refusals=(404,),
    ),
    "GET /v1/messages/<id>/events": Operation(
        group="Messages",
        answers={200: json_answer("Events", "The timeline.")},
        refusals=(404,),
    ),
    "GET /v1/messages/<id>/raw": Operation(
        group="Messages",
        answers={
            200: ResponseDescription(description="The mail.", content={"message/rfc822": TEXT})
        },
        refusals=(404, 409),
    ),
    "POST /v1/messages/<id>/cancel": _action(),
    "POST /v1/messages/<id>/hold": _action(),
    "POST /v1/messages/<id>/release": _action(),
    "POST /v1/messages/<id>/retry": _action(),
    "POST /v1/messages/<id>/reschedule": _action("RescheduleRequest"),
    "POST /v1/messages/<id>/resend": Operation(
        group="Messages",
        parameters=(IDEMPOTENCY_KEY,),
        answers={
            202: json_answer("Message", "The new message.", "Location!", "Idempotency-Replayed")
        },
        refusals=(400, 404, 409),
    ),
}
