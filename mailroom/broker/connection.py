"""Opens connections to the broker that never hang, and checks that the queues can be used."""

import amqp
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from mailroom.broker.consumer import SHARED_QUEUE
from mailroom.broker.queues import broker_error


def bounded_connection(celery_app: Celery) -> Connection:
    """Return an open connection; opening and using it ends within seconds, whatever the broker does."""
    connection = celery_app.connection_for_write(connect_timeout=2)
    # connect() would sleep for 2 s and try again. Retries are only for the other URLs, if there are several.
    other_brokers = max(0, len(connection.alt or ()) - 1)
    return connection.ensure_connection(
        max_retries=other_brokers, interval_start=0, interval_step=0
    )


def refuse_other_queues(celery_app: Celery) -> None:
    """Exit if a queue exists with other arguments, as no worker could ever use it."""
    try:
        connection = bounded_connection(celery_app)
    except (OperationalError, amqp.exceptions.AMQPError, OSError):
        return  # The consumer keeps trying, and logs what is wrong.
    try:
        for queue in celery_app.amqp.queues.values():
            if queue.name != SHARED_QUEUE:
                queue(connection.default_channel).declare()
    except amqp.exceptions.PreconditionFailed as e:
        raise SystemExit(f"mailasync: {broker_error(e)}") from None
    except (amqp.exceptions.AMQPError, OSError):
        pass
    finally:
        connection.collect()
