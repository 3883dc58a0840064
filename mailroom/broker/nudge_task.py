"""The class of the service's tasks: to publish one never hangs, and never publishes it twice."""

from typing import Any, ClassVar, NamedTuple

from celery import Task
from celery.result import AsyncResult
from kombu import Producer

from mailroom.broker.connection import bounded_connection
from mailroom.broker.publisher import Publisher
from mailroom.broker.task_arguments import is_uuid
from mailroom.model.ids import MailId

CONFIRM_TIMEOUT_SECONDS = 3
#: How each task is published, unless its caller says otherwise.
BOUNDS: dict[str, Any] = {
    "retry": False,
    "confirm_timeout": CONFIRM_TIMEOUT_SECONDS,
    "mandatory": True,
    "argsrepr": "()",
    "kwargsrepr": "{}",
}


class HandedOver(NamedTuple):
    """The result of `delay` once the publisher has the id; far cheaper to make than an AsyncResult."""

    id: str


class NudgeTask(Task):  # type: ignore[type-arg]  # celery-types makes Task generic, Celery does not
    """A task whose `delay` hands its id to the publisher of this process.

    Without a publisher, or with other arguments, it is published on a connection of its own.
    """

    Request = "mailroom.broker.celery_request:QuietRequest"
    typing = False  # Wrong arguments are recorded in the outbox, instead of a TypeError in the log.
    publisher: ClassVar[Publisher | None] = None  #: the one of this process, for all tasks

    def apply_async(  # type: ignore[override]  # narrower
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> AsyncResult[Any] | HandedOver:
        id: Any = None
        publisher = self.publisher  # Read once: a process that stops takes it away meanwhile.
        if args and len(args) == 1 and not kwargs:
            id = args[0]
        if isinstance(id, MailId):
            options.setdefault("queue", id.queue)
        if publisher and (isinstance(id, MailId) or is_uuid(id)):
            route = self.app.conf.task_routes[self.name]
            queue = options.get("queue") or route["queue"]
            publisher.offer(id, queue=queue)
            return HandedOver(id)
        options.pop("producer", None)  # Celery beat passes one of its own, which may wait for ever.
        connection = bounded_connection(self.app)
        try:
            return self.publish(Producer(connection), args, kwargs, **options)
        finally:
            connection.collect()

    def publish(
        self, producer: Producer, args: Any, kwargs: Any = None, **options: Any
    ) -> AsyncResult[Any]:
        """Publish once, and return when the broker has confirmed it; after an error it may have it too."""
        bounded = BOUNDS | options
        return super().apply_async(args, kwargs, producer=producer, **bounded)
