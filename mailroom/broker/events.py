"""Sends the events that Flower reads, if RabbitMQ allows it; mail does not depend on them."""

import logging
from typing import Any

from amqp.exceptions import AccessRefused
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

from mailroom.broker.queues import broker_error

log = logging.getLogger("mailasync.events")


class OptionalDispatcher(EventDispatcher):
    """Stops sending once it was refused; Celery's own class would keep every event and try for ever."""

    _has_warned = False  #: in this process
    _outbound_buffer: Any  #: of Celery's class

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffer_while_offline = False  # Otherwise the error would not get here.

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        if not self.enabled:
            return
        dispatcher: Any = super()  # Celery's types have nothing private.
        try:
            dispatcher._publish(event, producer, routing_key, **options)
        except AccessRefused as e:
            self.enabled = False
            if not OptionalDispatcher._has_warned:
                OptionalDispatcher._has_warned = True
                log.warning("Flower will see nothing of this worker: %s", broker_error(e))
        except Exception:  # Celery's own class does the same while the broker is away.
            self._outbound_buffer.append((event, routing_key))


class OptionalEvents(Events):
    """The events of a Celery application whose broker may refuse them."""

    dispatcher_cls = f"{__name__}:{OptionalDispatcher.__name__}"
