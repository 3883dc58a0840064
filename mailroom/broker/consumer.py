"""Consumes the queues; a message that is no task of this service is recorded or given back, never dropped."""

import json
import logging
import time
from contextlib import suppress
from typing import Any

from celery.utils.dispatch import Signal
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.exceptions import ContentDisallowed
from kombu.message import Message

from mailroom.broker.queues import broker_error

log = logging.getLogger("mailasync.consumer")

#: Celery's default queue. Other applications on this vhost may use it as well.
SHARED_QUEUE = "celery"
#: A task whose name begins so is meant for this service, even if there is no such task.
PREFIX = "mailasync."
#: The tasks for clients.
TASKS = (f"{PREFIX}sendMail", f"{PREFIX}runJob")
#: The task that records a message that cannot be read, by its reason and name. Clients cannot call it.
REFUSE = "mailasync.refuse"
REASON_MAX_CHARACTERS = 300

#: How long to wait after RabbitMQ refused something; twice as long each time.
REST_MIN_SECONDS = 1.0
REST_MAX_SECONDS = 60.0
#: How soon a worker that waits notices that it is to end.
REST_CHECK_SECONDS = 0.2
#: The limit for dropping a connection that may be dead.
COLLECT_SECONDS = 5.0

#: Sent with `reason` when RabbitMQ refuses what the consumer needs; with "" when it no longer does.
refused = Signal(name="refused", providing_args=["reason"])
#: Sent with `reason` when this worker stops consuming SHARED_QUEUE.
left_queue = Signal(name="left_queue", providing_args=["reason"])


class CarefulConsumer(Consumer):
    """A consumer that loses no message and does not end.

    Celery's own class drops messages that it cannot read and tasks that it does not know, and ends at errors
    that it does not expect. All of this runs in the thread of Celery's event loop: only there may the channel
    be used.
    """

    # Missing in Celery's types.
    strategies: dict[str, Any]
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    task_consumer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        # Both are for remote control and for electing a leader, which is not used, and need further rights.
        disabled = {"without_mingle": True, "without_gossip": True}
        worker_options = options.get("worker_options") or {}
        options["worker_options"] = {**worker_options, **disabled}
        super().__init__(*args, **options)
        self._refusal = ""  #: what RabbitMQ refuses now
        self._rest_seconds = REST_MIN_SECONDS
        #: the tag of the consumer of SHARED_QUEUE, once that is to end
        self._shared_tag: str | None = None
        self._held: list[Any] = []  #: messages of SHARED_QUEUE, until its consumer has ended

    def create_task_handler(self, *args: Any) -> Any:
        """Return the function that gets each message; Celery calls this for each connection."""
        self._handle = super().create_task_handler(*args)
        self._held.clear()  # RabbitMQ delivers them again, as their connection has ended.
        return self._receive

    def on_ready(self) -> None:
        """Note that all queues are consumed; Celery calls this after each connection."""
        super().on_ready()
        self._rest_seconds = REST_MIN_SECONDS
        if self._refusal:
            self._refusal = ""
            refused.send(sender=self, reason="")
            log.info("RabbitMQ lets us work")

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._note_refusal(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Wait after a refusal; Celery would connect again at once, as after a lost connection."""
        if not isinstance(exc, self.channel_errors):
            super().on_connection_error_after_connected(exc)
            return
        connection: Any = self.connection
        self.connection = None
        with suppress(Exception):
            connection.collect(socket_timeout=COLLECT_SECONDS)
        if f"'{SHARED_QUEUE}' in vhost" in str(exc):
            self.leave_shared_queue(broker_error(exc))
        else:
            self._note_refusal(exc)

    def _note_refusal(self, error: Exception) -> None:
        """Log the reason once, and wait before the next try."""
        reason = broker_error(error)
        if reason != self._refusal:
            self._refusal = reason
            refused.send(sender=self, reason=reason)
            log.error("no mail is taken from the queues: %s; this is tried again and again", reason)
        deadline = time.monotonic() + self._rest_seconds
        while time.monotonic() < deadline:
            maybe_shutdown()
            time.sleep(REST_CHECK_SECONDS)
        self._rest_seconds = min(2 * self._rest_seconds, REST_MAX_SECONDS)

    def on_unknown_message(self, body: object, message: Any) -> None:
        self._refuse(
            message, "expected a Celery message that names its task, got one that does not"
        )

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:
        expected = " or ".join(TASKS)
        name = task_name(message)[:100]
        self._refuse(message, f"expected the task {expected}, got {name!r}")

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:
        if isinstance(exc, ContentDisallowed):
            self._refuse(message, f"expected a task in JSON, got {message.content_type!r}")
        else:
            self._refuse(
                message, f"expected a task as Celery's clients send it, got one with {exc}"
            )

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        kinds = f"{message.content_type!r}, {message.content_encoding!r}"
        reason = (
            f"expected a task in JSON, got bytes that cannot be decoded as {kinds} ({_kind(exc)})"
        )
        self._refuse(message, reason)

    def _receive(self, message: Any) -> None:
        name = task_name(message)
        if self._is_shared(message) and (self._shared_tag or not self._is_ours(name)):
            self._hold(message, name)
        elif name and not self._is_task(name):
            self.on_unknown_task(None, message, KeyError(name))
        elif not name and "task" in message.headers:
            self.on_unknown_message(None, message)
        else:
            self._hand_on(message)

    def _hand_on(self, message: Any) -> None:
        """Have Celery handle a message; record an unexpected error, which would end the worker."""
        try:
            self._handle(message)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as e:
            if message.acknowledged:
                raise
            self._refuse(
                message, f"expected a task as Celery's clients send it, got a {_kind(e)} from it"
            )

    def _refuse(self, message: Any, reason: str) -> None:
        """Have the pool run the task that records the reason, instead of the one that was sent."""
        body = json.dumps([[reason[:REASON_MAX_CHARACTERS], task_name(message)], {}, {}])
        self._handle(
            Message(
                body,
                message.delivery_tag,
                "application/json",
                "utf-8",
                message.delivery_info,
                message.properties,
                {"task": REFUSE, "id": task_id(message)},
                accept=message.accept,
                channel=message.channel,
            )
        )

    def _is_shared(self, message: Any) -> bool:
        # The tag of the consumer tells; exchange and routing key are the client's choice.
        tag = self._shared_tag or self.task_consumer._active_tags.get(SHARED_QUEUE)
        return tag is not None and message.delivery_info.get("consumer_tag") == tag

    def _is_ours(self, name: str) -> bool:
        return name.startswith(PREFIX) or self._is_task(name)

    def _is_task(self, name: str) -> bool:
        """Tell whether this is a task of this service, and none of Celery's own, such as celery.map."""
        return name in self.strategies and name != REFUSE and not name.startswith("celery.")

    def _hold(self, message: Any, name: str) -> None:
        """Keep a message until the consumer has ended and give it back then, else it would come back here."""
        self._held.append(message)
        if self._shared_tag is None:
            self._shared_tag = message.delivery_info["consumer_tag"]
            self.leave_shared_queue(f"a task on it is not ours: {name[:100]!r}")

    def leave_shared_queue(self, reason: str) -> None:
        """Stop consuming SHARED_QUEUE until this worker is restarted, also after it connects again."""
        self.app.amqp.queues.deselect([SHARED_QUEUE])
        self.call_soon(self._cancel_shared)
        left_queue.send(sender=self, reason=reason)
        log.warning(
            "the queue %s is not consumed until this worker is restarted, as %s; Celery clients of this "
            'service should name queue="mail", see docs/clients.md, "From a Celery client"',
            SHARED_QUEUE,
            reason,
        )

    def _cancel_shared(self) -> None:
        # Waits for the reply; messages until then are held as well.
        self.cancel_task_queue(SHARED_QUEUE)
        held, self._held = self._held, []
        for message in held:
            message.reject_log_error(log, self.connection_errors, requeue=True)


def task_name(message: Any) -> str:
    """Return the name of the task in a message, "" if none can be read."""
    headers = message.headers
    name = headers["task"] if "task" in headers else _in_body(message, "task")
    if not isinstance(name, str):
        return ""
    return name


def task_id(message: Any) -> str:
    """Return the id of the task in a message, "" if none can be read."""
    id = message.headers.get("id")
    id = id or _in_body(message, "id")
    id = id or message.properties.get("correlation_id")
    if not isinstance(id, str | int):
        return ""
    return str(id)


def _kind(error: BaseException) -> str:
    """Return the class of an error without its text, which may quote the body."""
    return type(error.__cause__ or error).__name__


def _in_body(message: Any, field: str) -> object:
    """Return a field of the body, where Celery's first protocol has it; None if the body is no JSON."""
    try:
        return message.payload.get(field)
    except Exception:
        return None
