"""Describes the routes of jobs and job types."""

from mailroom.api.json_schemas import one_of
from mailroom.api.openapi.operation import (
    AFTER,
    BODY_REFUSALS,
    IDEMPOTENCY_KEY,
    LIMIT,
    PREFER,
    RATE_LIMIT_HEADERS,
    Operation,
    Parameter,
    ResponseDescription,
    json_answer,
)
from mailroom.store.jobs.jobs import JobState

_ACCEPTED_HEADERS = ("Location!", "Idempotency-Replayed", "Preference-Applied", *RATE_LIMIT_HEADERS)

JOBS: dict[str, Operation] = {
    "POST /v1/jobs": Operation(
        group="Jobs",
        body="JobWithMailRequest",
        form="job",
        parameters=(IDEMPOTENCY_KEY, PREFER),
        answers={
            200: json_answer(
                "Job", "The job has ended; the client preferred to wait.", *_ACCEPTED_HEADERS
            ),
            202: json_answer("Job", "The job is accepted.", *_ACCEPTED_HEADERS),
        },
        refusals=(*BODY_REFUSALS, 409, 429),
    ),
    "GET /v1/jobs": Operation(
        group="Jobs",
        parameters=(
            LIMIT,
            AFTER,
            Parameter(
                name="status", description="Only jobs in this state.", schema=one_of(JobState)
            ),
            Parameter(name="name", description="Only jobs of this type."),
            Parameter(name="queue", description="Only jobs on this queue."),
        ),
        answers={200: json_answer("JobPage", "One page of the list.")},
        refusals=(422,),
    ),
    "GET /v1/jobs/<id>": Operation(
        group="Jobs",
        parameters=(PREFER,),
        answers={200: json_answer("Job", "The job.", "Preference-Applied")},
        refusals=(404,),
    ),
    "GET /v1/jobs/<id>/file": Operation(
        group="Jobs",
        answers={
            200: ResponseDescription(
                description="The file that the job made.", content={"application/octet-stream": {}}
            )
        },
        refusals=(404,),
    ),
    "POST /v1/jobs/<id>/cancel": Operation(
        group="Jobs",
        answers={200: json_answer("Job", "The job.")},
        refusals=(404, 409),
    ),
    "POST /v1/jobs/<id>/retry": Operation(
        group="Jobs",
        parameters=(IDEMPOTENCY_KEY,),
        answers={
            202: json_answer(
                "Job", "The new job.", "Location!", "Idempotency-Replayed", *RATE_LIMIT_HEADERS
            )
        },
        refusals=(400, 404, 409, 422, 429),
    ),
    "GET /v1/job-types": Operation(
        group="Jobs",
        answers={200: json_answer("JobTypes", "The whole list.")},
    ),
}
