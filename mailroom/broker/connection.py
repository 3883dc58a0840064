"""Opens connections to the broker that never hang, and looks whether our queues can be used."""

import amqp
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from mailroom.broker.consumer import SHARED_QUEUE
from mailroom.broker.queues import words


def bounded_connection(celery_app: Celery) -> Connection:
    """Return an open connection whose every step ends in seconds, whatever the broker does."""
    connection = celery_app.connection_for_write(connect_timeout=2)
    # connect() itself would sleep 2 s and try again. A retry is for the next broker of several.
    other_brokers = max(0, len(connection.alt or ()) - 1)
    return connection.ensure_connection(max_retries=other_brokers, interval_start=0, interval_step=0)


def refuse_other_queues(celery_app: Celery) -> None:
    """Stop where the broker has one of our queues with other arguments: no worker could ever use it."""
    try:
        connection = bounded_connection(celery_app)
    except (OperationalError, amqp.exceptions.AMQPError, OSError):
        return  # The consumer keeps trying, and says what is wrong.
    try:
        for queue in celery_app.amqp.queues.values():
            if queue.name != SHARED_QUEUE:
                queue(connection.default_channel).declare()
    except amqp.exceptions.PreconditionFailed as e:
        raise SystemExit(f"mailasync: {words(e)}") from None
    except (amqp.exceptions.AMQPError, OSError):
        pass
    finally:
        connection.collect()
