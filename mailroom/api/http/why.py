"""Says in one sentence what a message or a job waits for."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mailroom.broker.publisher import Publisher
from mailroom.jobs import registry
from mailroom.model.message import FINAL, State
from mailroom.model.times import readable_time
from mailroom.process.installation import START_WORKER, WORKER
from mailroom.store.jobs.jobs import JobDetails, JobState
from mailroom.store.messages.outbox import MessageDetails

#: States that last until a time, or until a person acts, whether there are workers or not.
_PUT_OFF = (State.DEFERRED, State.SCHEDULED, State.HELD)

ON_ANOTHER_DATABASE = (
    "workers consume the queue, but this outbox has seen none of them: they read another database"
)
NO_WORKER_YET = f"no worker was ever seen; start one with `{START_WORKER}`"


def why(
    details: MessageDetails,
    publisher: Publisher | None,
    *,
    lease_seconds: float,
    hanging: Mapping[str, str],
    accounts: Collection[str],
    broker_trouble: Callable[[], str] = str,
) -> str:
    """Say in one sentence what a message waits for and since when, or how it ended.

    `hanging` has a sentence for each of the `accounts` whose server hangs. `broker_trouble` says what keeps
    the living workers from their queues; it is called only if nothing else explains the wait.
    """
    row, state = details.row, State(details.row["state"])
    if state in FINAL:
        return f"{state}: {row['reason']}" if row["reason"] else str(state)
    if state in _PUT_OFF:
        return _why_put_off(row, state)
    if state in (State.SENDING, State.IN_DATA):
        return _why_sending(row, hanging)
    job = details.job if state is State.WAITING else None
    if job and job["state"] == "running":
        return _with_detail(f"its job {job['name']} is running", job["step"])
    causes = _faults_of(details, publisher, lease_seconds, broker_trouble)
    return "; ".join(causes) or _why_not_taken(row, job, hanging, accounts)


def _faults_of(
    details: MessageDetails,
    publisher: Publisher | None,
    lease_seconds: float,
    broker_trouble: Callable[[], str],
) -> list[str]:
    return faults(
        publisher,
        now=details.now,
        seen_at=details.worker_seen_at,
        beat_at=details.worker_beat_at,
        lease_seconds=lease_seconds,
        broker_trouble=broker_trouble,
    )


def _with_detail(sentence: str, detail: str | None) -> str:
    return f"{sentence}: {detail}" if detail else sentence


def _why_put_off(row: Mapping[str, Any], state: State) -> str:
    """Say what a message of one of the states _PUT_OFF waits for."""
    if state is State.HELD:
        return f"held: {row['reason'] or 'until a person lets it go'}"
    if state is State.SCHEDULED:
        return f"to be sent at {readable_time(row['next_attempt_at'])}"
    if row["looks"] is not None:
        return (
            "the reply was lost; looking for it in the Sent folder of "
            f"{row['account']}, again at {readable_time(row['next_attempt_at'])}: {row['reason']}"
        )
    if not row["parked"]:
        return f"tried again at {readable_time(row['next_attempt_at'])}: {row['reason']}"
    if not row["next_attempt_at"]:
        return str(row["reason"])
    time = readable_time(row["next_attempt_at"])
    return f"waits until an account can send, not before {time}: {row['reason']}"


def _why_sending(row: Mapping[str, Any], hanging: Mapping[str, str]) -> str:
    sentence = f"a worker is handing it to the mail server, attempt {row['attempt']}"
    if row["account"] in hanging:
        return f"{sentence}; {hanging[row['account']]}"
    return sentence


def _why_not_taken(
    row: Mapping[str, Any],
    job: Mapping[str, Any] | None,
    hanging: Mapping[str, str],
    accounts: Collection[str],
) -> str:
    """Say what a message waits for though nothing keeps a worker from taking it, or its job."""
    if job:
        return f"its job {job['name']} is {job['state']}"
    usable = sorted([row["sender"]] if row["sender"] else accounts)
    if usable and all(name in hanging for name in usable):
        waits = [f"a free connection of account {name}: {hanging[name]}" for name in usable]
        return "waits for " + "; ".join(waits)
    return (
        "waits for a worker to take it"
        if row["published_at"]
        else "waits to be handed to the broker"
    )


def why_job(details: JobDetails, publisher: Publisher | None) -> str:
    """Say in one sentence what a job waits for, or how it ended."""
    row, state = details.row, JobState(details.row["state"])
    if state is JobState.RUNNING:
        return _with_detail(f"a worker runs it, attempt {row['attempt']}", row["step"])
    if state is not JobState.QUEUED:
        return _with_detail(str(state), row["error"])
    if not registry.is_known(row["name"]):
        return (
            f"no job type is named {row['name']!r} here any more; "
            "put its module back into JOBS, or cancel the job"
        )
    if row["next_attempt_at"] and row["next_attempt_at"] > details.now:
        return f"tried again at {readable_time(row['next_attempt_at'])}: {row['error']}"
    if details.served:
        return "waits for a free slot of a worker"
    return _why_unserved(row["queue"], publisher)


def _why_unserved(queue: str, publisher: Publisher | None) -> str:
    command = f"{WORKER} -Q {queue}"
    sentence = f"no worker serves the queue {queue}; start one with `{command}`"
    if publisher and publisher.down:
        return f"{sentence}; {_unreachable(publisher.down)}"
    return sentence


def _unreachable(down: tuple[float, str]) -> str:
    """Say since when the broker is unreachable; `down` is that time, in seconds since 1970, and a reason."""
    since, reason = down
    return f"broker unreachable since {readable_time(int(since * 1000))} ({reason})"


def faults(
    publisher: Publisher | None,
    *,
    now: int,
    seen_at: int | None,
    beat_at: int | None,
    lease_seconds: float,
    broker_trouble: Callable[[], str] = str,
) -> list[str]:
    """List what keeps every mail from moving; empty if nothing does.

    `seen_at` is when any worker was last seen, `beat_at` when one was that has not stopped since. These and
    `now` are in milliseconds since 1970.
    """
    causes = []
    if publisher and publisher.down:
        causes.append(_unreachable(publisher.down))
    is_seen = beat_at is not None and now - beat_at <= lease_seconds * 1000
    if not is_seen and publisher and not publisher.down and publisher.queue and publisher.queue[1]:
        causes.append(ON_ANOTHER_DATABASE)
    elif seen_at is None:
        causes.append(NO_WORKER_YET)
    elif not is_seen:
        causes.append(f"no worker seen since {readable_time(seen_at)}")
    elif not causes and (trouble := broker_trouble()):
        causes.append(f"no worker can take it: {trouble}")
    return causes
