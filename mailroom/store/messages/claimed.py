"""Builds claims of rows that were claimed: what is to be sent, and how the job before it ended."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.message import TAKEN, Attachment, State
from mailroom.store.content import Content, load, load_attachments
from mailroom.store.db.schema import jobs, messages
from mailroom.store.db.statements import Rows
from mailroom.store.jobs.jobs import SUMMARY
from mailroom.store.messages.allocation import ClaimedRow

_LOAD = Rows(
    messages,
    ("id",),
    lambda row: select(
        messages.c.id,
        messages.c.message_id,
        messages.c.created_at,
        messages.c.first_attempt_at,
        messages.c.job_id,
        messages.c.taken,
        messages.c.uncertain_attempts,
    ).where(messages.c.id == row["id"]),
)


def load_claims(connection: Connection, claimed: dict[str, ClaimedRow]) -> dict[str, Claim]:
    """Return the claims on these rows, by id, without attachments."""
    rows = _LOAD.of(connection, claimed)
    contents = load(connection, claimed, with_attachments=False)
    job_ids = [row.job_id for row in rows if contents[row.id].message.template]
    facts = _job_facts(connection, job_ids)
    return {
        row.id: _claim(row, claimed[row.id], contents[row.id], facts.get(row.job_id))
        for row in rows
    }


def _claim(row: Any, claimed: ClaimedRow, content: Content, job: JobFacts | None) -> Claim:
    unsent = (State.QUEUED, State.DEFERRED)
    return Claim(
        id=row.id,
        attempt=claimed.attempt,
        excused=claimed.excused,
        max_attempts=claimed.max_attempts,
        account=claimed.allowance.account,
        is_probe=claimed.allowance.is_probe,
        message_id=row.message_id,
        created_at_ms=row.created_at,
        first_attempt_at_ms=row.first_attempt_at,
        message=content.message,
        job=job if content.message.template else None,
        pending=tuple(position for position, state in enumerate(content.states) if state in unsent),
        sent_before=State.SENT in content.states,
        taken_before=_may_have_copy(row, content.states),
        has_attachments=content.has_attachments,
    )


def _may_have_copy(row: Any, states: Sequence[str]) -> bool:
    """Tell whether an earlier attempt may have left a copy in the Sent folder that says too much.

    An earlier attempt without a reply may have gone to some recipients only. To a single one, any copy is
    proof that he was sent it.
    """
    if row.taken or any(state in TAKEN for state in states):
        return True
    return row.uncertain_attempts > 0 and len(states) > 1


def _job_facts(connection: Connection, job_ids: list[str]) -> dict[str, JobFacts]:
    """Return how these jobs ended, and what they made."""
    if not job_ids:
        return {}
    files = {id: file for id, (file, *_) in load_attachments(connection, job_ids).items()}
    rows = connection.execute(select(*SUMMARY, jobs.c.result).where(jobs.c.id.in_(job_ids)))
    return {row.id: _facts(row, files.get(row.id)) for row in rows}


def _facts(row: Any, file: Attachment | None) -> JobFacts:
    has_run = row.finished_at and row.started_at
    return JobFacts(
        id=row.id,
        name=row.name,
        status=row.state,
        result=json.loads(row.result or "null"),
        error=row.error or "",
        seconds=(row.finished_at - row.started_at) / 1000 if has_run else 0.0,
        file=file,
    )
