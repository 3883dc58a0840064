"""Says in words what a message or a job waits for."""

from collections.abc import Callable, Collection, Mapping

from mailroom.broker.publisher import Publisher
from mailroom.jobs import registry
from mailroom.model.message import FINAL, State
from mailroom.model.times import readable_time
from mailroom.store.jobs.jobs import JobDetails, JobState
from mailroom.store.messages.outbox import MessageDetails


def why(
    standing: MessageDetails,
    publisher: Publisher | None,
    *,
    lease_seconds: float,
    hanging: Mapping[str, str],
    accounts: Collection[str],
    broker_trouble: Callable[[], str] = str,
) -> str:
    """Say in one sentence what a message waits for and since when, or how it ended.

    `hanging` has words about each of the `accounts` whose server hangs; `broker_trouble` is asked what keeps the
    living workers from their queues, where nothing else is known.
    """
    row, state = standing.row, State(standing.row["state"])
    if state in FINAL:
        return f"{state}: {row['reason']}" if row["reason"] else str(state)
    if state is State.DEFERRED and row["parked"]:
        if not row["next_attempt_at"]:
            return str(row["reason"])
        return f"waits until an account can send, not before {readable_time(row['next_attempt_at'])}: {row['reason']}"
    if state is State.DEFERRED:
        return f"tried again at {readable_time(row['next_attempt_at'])}: {row['reason']}"
    if state is State.SCHEDULED:
        return f"to be sent at {readable_time(row['next_attempt_at'])}"
    if state is State.HELD:
        return f"held: {row['reason'] or 'until a person lets it go'}"
    job = standing.job
    if state in (State.SENDING, State.IN_DATA):
        words = f"; {hanging[row['account']]}" if row["account"] in hanging else ""
        return f"a worker is handing it to the mail server, attempt {row['attempt']}{words}"
    if state is State.WAITING and job and job["state"] == "running":
        return f"its job {job['name']} is running" + (f": {job['step']}" if job["step"] else "")
    if blocked := faults(
        publisher,
        now=standing.now,
        seen_at=standing.worker_seen_at,
        beat_at=standing.worker_beat_at,
        lease_seconds=lease_seconds,
        broker_trouble=broker_trouble,
    ):
        return "; ".join(blocked)
    if state is State.WAITING and job:
        return f"its job {job['name']} is {job['state']}"
    able = sorted([row["sender"]] if row["sender"] else accounts)
    if able and all(name in hanging for name in able):
        waits = [f"a free connection of account {name}: {hanging[name]}" for name in able]
        return "waits for " + "; ".join(waits)
    return "waits for a worker to take it" if row["published_at"] else "waits to be handed to the broker"


def why_job(standing: JobDetails, publisher: Publisher | None) -> str:
    """Say in one sentence what a job waits for, or how it ended."""
    row, state = standing.row, JobState(standing.row["state"])
    if state is JobState.RUNNING:
        return f"a worker runs it, attempt {row['attempt']}" + (f": {row['step']}" if row["step"] else "")
    if state is not JobState.QUEUED:
        return f"{state}: {row['error']}" if row["error"] else str(state)
    if not registry.is_known(row["name"]):
        return f"no job type is named {row['name']!r} here any more; put its module back into JOBS, or cancel the job"
    if row["next_attempt_at"] and row["next_attempt_at"] > standing.now:
        return f"tried again at {readable_time(row['next_attempt_at'])}: {row['error']}"
    if standing.served:
        return "waits for a free slot of a worker"
    broker = (
        f"; broker unreachable since {readable_time(int(publisher.down[0] * 1000))} ({publisher.down[1]})"
        if publisher and publisher.down
        else ""
    )
    return f"no worker serves the queue {row['queue']}; start one with `celery -A mailasync worker -Q {row['queue']}`{broker}"


def faults(
    publisher: Publisher | None,
    *,
    now: int,
    seen_at: int | None,
    beat_at: int | None,
    lease_seconds: float,
    broker_trouble: Callable[[], str] = str,
) -> list[str]:
    """List what keeps every mail from moving, if something does.

    `seen_at` is when any worker was last seen, and `beat_at` one that has not stopped since, both in milliseconds since 1970.
    """
    found = []
    if publisher and publisher.down:
        since, words = publisher.down
        found.append(f"broker unreachable since {readable_time(int(since * 1000))} ({words})")
    is_seen = beat_at is not None and now - beat_at <= lease_seconds * 1000
    if not is_seen and publisher and not publisher.down and publisher.queue and publisher.queue[1]:
        found.append(
            "workers consume the queue, but this outbox has seen none of them: they read another database"
        )
    elif seen_at is None:
        found.append("no worker was ever seen; start one with `celery -A mailasync worker --loglevel=INFO`")
    elif not is_seen:
        found.append(f"no worker seen since {readable_time(seen_at)}")
    elif not found and (trouble := broker_trouble()):
        found.append(f"no worker can take it: {trouble}")
    return found
