"""Takes messages off the queues; what no task of ours can read is recorded or given back, never dropped."""

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

from mailroom.broker.queues import words

log = logging.getLogger("mailasync.consumer")

#: The queue of every Celery client that names none. Other applications on this vhost may use it as well.
SHARED_QUEUE = "celery"
#: A task whose name begins so is meant for us, even if there is none of that name.
PREFIX = "mailasync."
#: The tasks for clients.
TASKS = (f"{PREFIX}sendMail", f"{PREFIX}runJob")
#: The task that records what cannot be read: (reason, name). No client gets there by that name.
REFUSE = "mailasync.refuse"
REASON_MAX_CHARACTERS = 300

#: How long to rest after RabbitMQ refused us something; twice as long each time.
REST_MIN_SECONDS = 1.0
REST_MAX_SECONDS = 60.0
#: How soon a worker that rests notices that it is to end.
REST_LOOK_SECONDS = 0.2
#: For dropping a connection that may be dead.
COLLECT_SECONDS = 5.0

#: Sent, with `reason`, when RabbitMQ refuses us what we cannot do without; "" when it no longer does.
refused = Signal(name="refused", providing_args=["reason"])
#: Sent, with `reason`, when this worker leaves SHARED_QUEUE alone from now on.
left_queue = Signal(name="left_queue", providing_args=["reason"])


class CarefulConsumer(Consumer):
    """Celery's own drops what it cannot read or what is somebody else's, and ends at what it does not expect.

    All of this runs in the thread of the event loop, as Celery's does: only there may the channel be used.
    """

    # Celery's types do not have these.
    strategies: dict[str, Any]
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    task_consumer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        # What these two do is for workers that take orders or elect one of them, and needs further rights.
        spared = {"without_mingle": True, "without_gossip": True}
        options["worker_options"] = {**(options.get("worker_options") or {}), **spared}
        super().__init__(*args, **options)
        self._refusal = ""  #: what RabbitMQ refuses us now
        self._rest_seconds = REST_MIN_SECONDS
        self._shared_tag: str | None = None  #: our consumer of SHARED_QUEUE, once we are leaving it
        self._held: list[Any] = []  #: messages of SHARED_QUEUE, until no more of them come

    def create_task_handler(self, *args: Any) -> Any:
        """Return what gets each message; called for each connection."""
        self._handle = super().create_task_handler(*args)
        self._held.clear()  # RabbitMQ gives them out again, as the connection that brought them has ended.
        return self._receive

    def on_ready(self) -> None:
        """Called each time when all queues are consumed."""
        super().on_ready()
        self._rest_seconds = REST_MIN_SECONDS
        if self._refusal:
            self._refusal = ""
            refused.send(sender=self, reason="")
            log.info("RabbitMQ lets us work")

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._note_refusal(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Celery tries again at once, whatever it is: that suits a lost connection, and no refusal."""
        if not isinstance(exc, self.channel_errors):
            super().on_connection_error_after_connected(exc)
            return
        connection: Any = self.connection
        self.connection = None
        with suppress(Exception):
            connection.collect(socket_timeout=COLLECT_SECONDS)
        if f"'{SHARED_QUEUE}' in vhost" in str(exc):
            self.leave_shared_queue(words(exc))
        else:
            self._note_refusal(exc)

    def _note_refusal(self, error: Exception) -> None:
        """Say what it is, once, and rest before the next try."""
        reason = words(error)
        if reason != self._refusal:
            self._refusal = reason
            refused.send(sender=self, reason=reason)
            log.error("no mail is taken from the queues: %s; this is tried again and again", reason)
        deadline = time.monotonic() + self._rest_seconds
        while time.monotonic() < deadline:
            maybe_shutdown()
            time.sleep(REST_LOOK_SECONDS)
        self._rest_seconds = min(2 * self._rest_seconds, REST_MAX_SECONDS)

    def on_unknown_message(self, body: object, message: Any) -> None:
        self._refuse(message, "expected a Celery message that names its task, got one that does not")

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:
        self._refuse(message, f"expected the task {' or '.join(TASKS)}, got {task_name(message)[:100]!r}")

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:
        if isinstance(exc, ContentDisallowed):
            self._refuse(message, f"expected a task in JSON, got {message.content_type!r}")
        else:
            self._refuse(message, f"expected a task as Celery's clients send it, got one with {exc}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        kinds = f"{message.content_type!r}, {message.content_encoding!r}"
        reason = f"expected a task in JSON, got what cannot be decoded as {kinds} ({_kind(exc)})"
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
        """Have Celery read it, which raises at what it does not expect; that would end the worker."""
        try:
            self._handle(message)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as e:
            if message.acknowledged:
                raise
            self._refuse(message, f"expected a task as Celery's clients send it, got a {_kind(e)} from it")

    def _refuse(self, message: Any, reason: str) -> None:
        """Have the pool run the task that records the reason, in the place of the one that was meant."""
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
        # By the consumer that brought it: exchange and routing key are as the publisher likes.
        tag = self._shared_tag or self.task_consumer._active_tags.get(SHARED_QUEUE)
        return tag is not None and message.delivery_info.get("consumer_tag") == tag

    def _is_ours(self, name: str) -> bool:
        return name.startswith(PREFIX) or self._is_task(name)

    def _is_task(self, name: str) -> bool:
        """Tell our tasks from those that every Celery has, such as celery.map, which runs tasks of others."""
        return name in self.strategies and name != REFUSE and not name.startswith("celery.")

    def _hold(self, message: Any, name: str) -> None:
        """Keep a message until no more come, and give all back then: at once, they would come again."""
        self._held.append(message)
        if self._shared_tag is None:
            self._shared_tag = message.delivery_info["consumer_tag"]
            self.leave_shared_queue(f"a task on it is not ours: {name[:100]!r}")

    def leave_shared_queue(self, reason: str) -> None:
        """Take nothing from SHARED_QUEUE until this worker is started anew, whatever connection it has."""
        self.app.amqp.queues.deselect([SHARED_QUEUE])
        self.call_soon(self._cancel_shared)
        left_queue.send(sender=self, reason=reason)
        log.warning(
            "the queue %s is left alone until this worker is started anew, as %s; our Celery clients "
            'name queue="mail", see docs/clients.md, "From a Celery client"',
            SHARED_QUEUE,
            reason,
        )

    def _cancel_shared(self) -> None:
        self.cancel_task_queue(SHARED_QUEUE)  # Waits for the answer; what comes before that is held as well.
        held, self._held = self._held, []
        for message in held:
            message.reject_log_error(log, self.connection_errors, requeue=True)


def task_name(message: Any) -> str:
    """Return the name of the task that a message is for, "" where none can be read."""
    name = message.headers["task"] if "task" in message.headers else _in_body(message, "task")
    return name if isinstance(name, str) else ""


def task_id(message: Any) -> str:
    """Return the id of a task, "" where none can be read."""
    id = message.headers.get("id") or _in_body(message, "id") or message.properties.get("correlation_id")
    return str(id) if isinstance(id, str | int) else ""


def _kind(error: BaseException) -> str:
    """Name an error without its words, which may quote a body."""
    return type(error.__cause__ or error).__name__


def _in_body(message: Any, field: str) -> object:
    """Look where Celery's first protocol has it. Whatever is no JSON stays unread."""
    try:
        return message.payload.get(field)
    except Exception:
        return None
