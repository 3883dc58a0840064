"""Queue in: the Celery application and its tasks.

    celery -A mailasync worker --loglevel=INFO

In the tutorials that this service grew out of, one task, `sendMail`, does the heavy work and then sends the
mail. So does `sendMail` here:

    the heavy work      is a job; `sendMail` wakes mailroom/jobs/runner.py, which runs it; the mail that waits
                        for the job is queued once the job has ended
    the mail            goes out through mailroom/delivery/delivery.py

A message on the queue only names rows of the database, and may be lost, repeated or reordered: the rows say
what is left to do. Importing this module starts nothing and connects to nothing.
"""

from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject

from mailroom.broker.consumer import REFUSE
from mailroom.broker.nudge_task import NudgeTask
from mailroom.broker.task_arguments import is_uuid, read_job, read_mail, read_nudge
from mailroom.worker import runtime, signals
from mailroom.worker.tasks import worker_for

celery_app = Celery(
    "mailasync",
    set_as_current=False,
    events="mailroom.broker.events:OptionalEvents",
)


@celery_app.task(
    name="mailasync.sendMail",
    bind=True,
    base=NudgeTask,
)
def sendMail(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Deliver the mails with these ids, and wake the jobs that some of them wait for.

    Other Celery clients may send a whole mail instead, as the JSON object of `POST /`; it is accepted first.
    """
    with worker_for(task) as worker:
        nudge = read_nudge(args, kwargs)
        if nudge:
            is_done = worker.deliver(nudge.ids, outbox_id=nudge.outbox_id)
        else:
            is_done = worker.accept(str(task.request.id), read_mail(args, kwargs))
    if not is_done:
        raise Reject("not done yet", requeue=True)


@celery_app.task(
    name="mailasync.runJob",
    bind=True,
    base=NudgeTask,
)
def runJob(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for jobs to run; or accept one that another Celery client sent, as an object or by name.

    The task is acknowledged before the job begins, so that the broker does not wait for the job.
    """
    with worker_for(task) as worker:
        is_nudge = len(args) == 1 and is_uuid(args[0])
        if kwargs or not is_nudge:
            job = read_job(args, kwargs)
            worker.accept_job(str(task.request.id), job)
        worker.runner.wake()


@celery_app.task(
    name="mailasync.tellClients",
    bind=True,
    base=NudgeTask,
)
def tellClients(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for webhook deliveries that are due; the arguments are not read."""
    with worker_for(task) as worker:
        worker.notifier.wake()


@celery_app.task(
    name=REFUSE,
    bind=True,
    base=NudgeTask,
)
def refuse(task: Task, reason: str, name: str) -> None:  # type: ignore[type-arg]
    """Record why a message on the queue is not a valid task; mailroom/broker/consumer.py calls this."""
    with worker_for(task) as worker:
        worker.refuse(str(task.request.id), name, reason)


runtime.set_up(celery_app)  # Comes last, as the modules named in JOBS may import this one.
signals.connect()
