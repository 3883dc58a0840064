"""The class of our tasks: publishing one never hangs and never multiplies."""

from typing import Any, ClassVar, NamedTuple

from celery import Task
from celery.result import AsyncResult
from kombu import Producer

from mailroom.broker.connection import bounded_connection
from mailroom.broker.publisher import Publisher
from mailroom.broker.task_arguments import is_uuid
from mailroom.model.ids import MailId

CONFIRM_TIMEOUT_SECONDS = 3
#: How each task is published, whatever its caller says or leaves out.
BOUNDS: dict[str, Any] = {
    "retry": False,
    "confirm_timeout": CONFIRM_TIMEOUT_SECONDS,
    "mandatory": True,
    "argsrepr": "()",
    "kwargsrepr": "{}",
}


class HandedOver(NamedTuple):
    """Tells that the publisher has the id. An AsyncResult would take longer than all the rest, and have no more to tell."""

    id: str


class NudgeTask(Task):  # type: ignore[type-arg]  # celery-types makes Task generic, Celery does not
    """Hands the id of a row to the publisher of this process, if one runs; else publishes on a connection of its own."""

    Request = "mailroom.broker.celery_request:QuietRequest"
    typing = False  # Whatever a client sends is answered in the outbox, not by a TypeError in the log.
    publisher: ClassVar[Publisher | None] = None  #: the one of this process, for all tasks

    def apply_async(  # type: ignore[override]  # narrower
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> AsyncResult[Any] | HandedOver:
        if args and isinstance(args[0], MailId):
            options.setdefault("queue", args[0].queue)
        if self.publisher and args and len(args) == 1 and not kwargs and is_uuid(args[0]):
            queue = options.get("queue") or self.app.conf.task_routes[self.name]["queue"]
            self.publisher.offer(args[0], queue=queue)
            return HandedOver(args[0])
        options.pop("producer", None)  # Celery beat brings its own, which may wait for ever.
        connection = bounded_connection(self.app)
        try:
            return self.publish(Producer(connection), args, kwargs, **options)
        finally:
            connection.collect()

    def publish(self, producer: Producer, args: Any, kwargs: Any = None, **options: Any) -> AsyncResult[Any]:
        """Publish once, and return when the broker has confirmed it; an error does not prove that it has not."""
        return super().apply_async(args, kwargs, producer=producer, **(BOUNDS | options))
