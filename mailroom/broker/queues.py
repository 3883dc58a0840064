"""Reaches RabbitMQ: verifies it, uses queues that others may have made, and says what it refuses."""

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

#: What is told of an error whose way out is not known.
WORDS_MAX_CHARACTERS = 200
#: RabbitMQ says which right it is from 3.12 on; before that the method tells.
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
    """Compares the certificate with the host of the URL; kombu's own trusts one for any host."""

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        # Taken now, because kombu turns the client's `localhost` into 127.0.0.1 when it connects.
        self._host = client.hostname or "localhost"

    def establish_connection(self) -> Any:
        client: Any = self.client
        chosen = client.ssl if isinstance(client.ssl, dict) else {}
        # A dict for each connection: one that all share would keep the name of the first of several brokers.
        client.ssl = {**chosen, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": self._host}
        return super().establish_connection()


# By its scheme, as kombu takes it anew from each URL where there are several.
TRANSPORT_ALIASES["amqps"] = f"{__name__}:{VerifiedTransport.__name__}"


class QueueOfAnybody(Queue):
    """A queue that is declared where we may do that, and else has to be there already."""

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Return its name when it is there. Raises AccessRefused where it is not, and we may not make it."""
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
        """Look, for which RabbitMQ wants no right; the default exchange leads to each queue."""
        try:
            with _own_channel(connection) as own:
                own.queue_declare(self.name, passive=True)
        except NotFound:
            return False
        return True


@contextmanager
def _own_channel(connection: Any) -> Iterator[Any]:
    """Open a channel for what may be refused: RabbitMQ closes the one on which it refuses something."""
    channel = connection.channel()
    yield channel
    channel.close()


def queues_of(names: Sequence[str], queue_type: str) -> list[Queue]:
    """Return queues of these names, each with an exchange of its own that leads to it."""
    # Without an argument where it is classic: so does a stock client, and RabbitMQ compares.
    arguments = {"x-queue-type": queue_type} if queue_type != "classic" else None
    return [QueueOfAnybody(name, Exchange(name, "direct"), name, queue_arguments=arguments) for name in names]


def words(error: Exception) -> str:
    """Say in one line what keeps us from the broker, and the way out where it is known."""
    cause = error.__cause__ if isinstance(error, OperationalError) and error.__cause__ else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {cause.verify_message}; correct the host in "
            "MAILASYNC_BROKER_URL, or set MAILASYNC_BROKER_CA_FILE to the authority that signed it"
        )
    said = one_line(getattr(cause, "reply_text", None) or cause, most=WORDS_MAX_CHARACTERS)
    if isinstance(cause, AccessRefused | NotAllowed):
        return _refusal(said, cause.method_name or "")
    if isinstance(cause, PreconditionFailed) and "inequivalent arg" in said:
        return (
            f"a queue exists with other arguments ({said}); delete it, or set MAILASYNC_QUEUE_TYPE to "
            "what it is"
        )
    return f"{type(error).__name__} {said}"


def _refusal(said: str, method: str) -> str:
    """Name the right that is missing, or what else is wrong with user and vhost."""
    if found := _REFUSED.search(said):
        right = found["right"] or _RIGHTS.get(method) or _right_to_bind(found["what"])
        return (
            f"RabbitMQ refuses user {found['user']!r} the right to {right} {found['what']}; grant it, "
            'docs/operations.md, "Rights in RabbitMQ", lists those that are needed'
        )
    return f"RabbitMQ does not let us in, correct user, password and vhost in MAILASYNC_BROKER_URL ({said})"


def _right_to_bind(what: str) -> str:
    return "read" if what.startswith("exchange") else "write"
