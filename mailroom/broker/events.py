"""Tells monitors such as Flower what a worker does, where RabbitMQ lets us; mail goes without it."""

import logging
from typing import Any

from amqp.exceptions import AccessRefused
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

from mailroom.broker.queues import words

log = logging.getLogger("mailasync.events")


class OptionalDispatcher(EventDispatcher):
    """Sends nothing more once it was refused; Celery's own would keep each event for ever, and try again."""

    _is_told = False  #: this process said so
    _outbound_buffer: Any  #: Celery's

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffer_while_offline = False  # So that we get to know.

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        if not self.enabled:
            return
        dispatcher: Any = super()  # Celery's types have nothing private.
        try:
            dispatcher._publish(event, producer, routing_key, **options)
        except AccessRefused as e:
            self.enabled = False
            if not OptionalDispatcher._is_told:
                OptionalDispatcher._is_told = True
                log.warning("Flower will see nothing of this worker: %s", words(e))
        except Exception:  # As Celery's own does while the broker is away.
            self._outbound_buffer.append((event, routing_key))


class OptionalEvents(Events):
    """The events of an application whose broker may refuse them."""

    dispatcher_cls = f"{__name__}:{OptionalDispatcher.__name__}"
