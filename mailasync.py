"""Queue in: the Celery application and its tasks.

    celery -A mailasync worker --loglevel=INFO

The tutorial this service began with has one task, `sendMail`, which does heavy work and then sends a mail. So
does this one, and here is where each half went:

    the heavy work      mailroom/jobs/runner.py, which `sendMail` wakes; what waits for it goes when it ends
    the mail            mailroom/delivery/delivery.py

A message names rows of the outbox, and may be lost, repeated or reordered: the rows are the truth. Importing
this module starts nothing and connects to nothing.
"""

from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject

from mailroom.broker.consumer import REFUSE
from mailroom.broker.nudge_task import NudgeTask
from mailroom.broker.task_arguments import is_uuid, read_job, read_mail, read_nudge
from mailroom.worker import runtime, signals
from mailroom.worker.tasks import settling

celery_app = Celery("mailasync", set_as_current=False, events="mailroom.broker.events:OptionalEvents")


@celery_app.task(name="mailasync.sendMail", bind=True, base=NudgeTask)
def sendMail(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Deliver the mails of these ids, and wake the jobs that some of them wait for.

    From any other Celery client it takes a mail, as the JSON object of `POST /`, and accepts it.
    """
    with settling(task) as worker:
        if nudge := read_nudge(args, kwargs):
            settled = worker.deliver(nudge[0], outbox_id=nudge[1])
        else:
            settled = worker.accept(str(task.request.id), read_mail(args, kwargs))
    if not settled:
        raise Reject("not settled", requeue=True)


@celery_app.task(name="mailasync.runJob", bind=True, base=NudgeTask)
def runJob(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for jobs to run; or accept one that a Celery client sent, as an object or by name.

    The task is done, and acknowledged, before the job begins: the broker need not wait for it.
    """
    with settling(task) as worker:
        if kwargs or len(args) != 1 or not is_uuid(args[0]):
            worker.accept_job(str(task.request.id), read_job(args, kwargs))
        worker.runner.wake()


@celery_app.task(name="mailasync.tellClients", bind=True, base=NudgeTask)
def tellClients(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for webhooks that are to be told something; whatever came with it is not read."""
    with settling(task) as worker:
        worker.notifier.wake()


@celery_app.task(name=REFUSE, bind=True, base=NudgeTask)
def refuse(task: Task, reason: str, name: str) -> None:  # type: ignore[type-arg]
    """Record why the message that this one stands for is no task; mailroom/broker/consumer.py makes it."""
    with settling(task) as worker:
        worker.refuse(str(task.request.id), name, reason)


runtime.set_up(celery_app)  # At the end, as the modules of JOBS may import what is above.
signals.connect()
