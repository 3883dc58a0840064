"""Verifies RabbitMQ's certificate, declares the queues, and puts its errors into words."""

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import amqp
from amqp.exceptions import AccessRefused, NotAllowed, NotFound, PreconditionFailed
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.pyamqp import SSLTransport

from mailroom.model.text import one_line

#: The length of the broker's own text in an error.
REPLY_MAX_CHARACTERS = 200
#: From version 3.12 on RabbitMQ names the right that is missing; before that the AMQP method tells.
_REFUSED = re.compile(
    r"ACCESS_REFUSED - (?:(?P<right>\w+) )?access to (?P<what>\w+ '.*' in vhost '.*') "
    r"refused for user '(?P<user>.*)'"
)
_RIGHTS = {
    "Exchange.declare": "configure",
    "Queue.declare": "configure",
    "Basic.consume": "read",
    "Basic.publish": "write",
}


class VerifiedTransport(SSLTransport):
    """Checks that the certificate is for the host of the URL; kombu's own class takes one for any host."""

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        # Read now, as kombu turns the client's `localhost` into 127.0.0.1 when it connects.
        self._host = client.hostname or "localhost"

    def establish_connection(self) -> Any:
        client: Any = self.client
        chosen = client.ssl if isinstance(client.ssl, dict) else {}
        # A dict for each connection: a shared one would keep the name of the first of several brokers.
        client.ssl = {**chosen, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": self._host}
        return super().establish_connection()


# Registered for its scheme, as kombu picks the transport anew for each of several URLs.
TRANSPORT_ALIASES["amqps"] = f"{__name__}:{VerifiedTransport.__name__}"


class OptionalQueue(Queue):
    """A queue that is declared if we have the right to; otherwise it has to exist already."""

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Return its name once it exists. Raises AccessRefused if it does not, and we may not declare it."""
        channel = channel or self.channel
        if not isinstance(channel, amqp.Channel):
            return str(super().declare(nowait, channel))
        try:
            with _own_channel(channel.connection) as own:
                super().declare(channel=own)
        except AccessRefused:
            if not self._is_there(channel.connection):
                raise
        return str(self.name)

    def _is_there(self, connection: Any) -> bool:
        """Tell whether the queue exists, which takes no right; the default exchange leads to every queue."""
        try:
            with _own_channel(connection) as own:
                own.queue_declare(self.name, passive=True)
        except NotFound:
            return False
        return True


@contextmanager
def _own_channel(connection: Any) -> Iterator[Any]:
    """Open a channel of its own for a call that may be refused, as RabbitMQ then closes the channel."""
    channel = connection.channel()
    yield channel
    channel.close()


def queues_of(names: Sequence[str], queue_type: str) -> list[Queue]:
    """Return queues with these names, each with an exchange of its own that leads to it."""
    # A classic queue has no argument, as Celery's defaults declare it so, and RabbitMQ compares.
    arguments = {"x-queue-type": queue_type} if queue_type != "classic" else None
    return [
        OptionalQueue(name, Exchange(name, "direct"), name, queue_arguments=arguments)
        for name in names
    ]


def broker_error(error: Exception) -> str:
    """Return one line that says why the broker cannot be used, and what to do about it if that is known."""
    cause = error.__cause__ if isinstance(error, OperationalError) and error.__cause__ else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {cause.verify_message}; correct the host in "
            "MAILASYNC_BROKER_URL, or set MAILASYNC_BROKER_CA_FILE to the authority that signed it"
        )
    reply = one_line(getattr(cause, "reply_text", None) or cause, most=REPLY_MAX_CHARACTERS)
    if isinstance(cause, AccessRefused | NotAllowed):
        return _refusal(reply, cause.method_name or "")
    if isinstance(cause, PreconditionFailed) and "inequivalent arg" in reply:
        return (
            f"a queue exists with other arguments ({reply}); delete it, or set MAILASYNC_QUEUE_TYPE to "
            "what it is"
        )
    return f"{type(error).__name__} {reply}"


def _refusal(reply: str, method: str) -> str:
    """Name the right that is missing, or say that user, password or vhost is wrong."""
    if match := _REFUSED.search(reply):
        right = match["right"] or _RIGHTS.get(method) or _right_to_bind(match["what"])
        return (
            f"RabbitMQ refuses user {match['user']!r} the right to {right} {match['what']}; grant it, "
            'docs/operations.md, "Rights in RabbitMQ", lists those that are needed'
        )
    return f"RabbitMQ does not let us in, correct user, password and vhost in MAILASYNC_BROKER_URL ({reply})"


def _right_to_bind(what: str) -> str:
    return "read" if what.startswith("exchange") else "write"
