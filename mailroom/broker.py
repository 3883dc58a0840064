"""Reaches RabbitMQ: over TLS that is verified; and says in words what it refuses."""

import ssl
from collections.abc import Sequence
from typing import Any

from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.pyamqp import SSLTransport

#: What is told of an error whose way out is not known.
WORDS_MAX_CHARACTERS = 200


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


def declared(names: Sequence[str], queue_type: str) -> list[Queue]:
    """Return queues of these names, each with an exchange of its own that leads to it."""
    # Without an argument where it is classic: so does a stock client, and RabbitMQ compares.
    arguments = {"x-queue-type": queue_type} if queue_type != "classic" else None
    return [Queue(name, Exchange(name, "direct"), name, queue_arguments=arguments) for name in names]


def words(error: Exception) -> str:
    """Say in one line what keeps us from the broker, and the way out where it is known."""
    cause = error.__cause__ if isinstance(error, OperationalError) and error.__cause__ else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (f"its certificate is not trusted: {cause.verify_message}; correct the host in "
                "MAILASYNC_BROKER_URL, or set MAILASYNC_BROKER_CA_FILE to the authority that signed it")
    return " ".join(f"{type(error).__name__} {error}".split())[:WORDS_MAX_CHARACTERS]
