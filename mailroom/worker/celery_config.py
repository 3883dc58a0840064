"""Holds the settings of the Celery application: its broker, its queues and routes, its worker."""

from typing import Any

from kombu import Queue

from mailroom.broker.consumer import SHARED_QUEUE
from mailroom.broker.queues import queues_of
from mailroom.config.settings import PAIR_BROKER_URL, Settings
from mailroom.jobs import registry
from mailroom.webhooks import notifier

MAIL_QUEUES = ("mail", "mail.bulk")
#: The names of the tasks in mailasync.py.
SEND_MAIL, RUN_JOB, TELL_CLIENTS = "mailasync.sendMail", "mailasync.runJob", "mailasync.tellClients"

AMQP_OPTIONS = {
    "confirm_publish": True,  # else messages are lost when the broker dies or is full
    "read_timeout": 5,
    "write_timeout": 5,  # a frozen broker must not block us
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}
MEMORY_OPTIONS = {"polling_interval": 0.005}


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings of the Celery application.

    Each that differs from Celery's default prevents a lost mail, a mail that is sent twice, or a hang.
    """
    return broker_settings(settings) | task_settings(settings) | worker_settings(settings)


def broker_settings(settings: Settings) -> dict[str, Any]:
    in_memory = settings.BROKER_URL.startswith("memory:")
    ssl_options = {"ca_certs": settings.BROKER_CA_FILE} if settings.BROKER_CA_FILE else None
    return {
        "broker_url": settings.BROKER_URL or PAIR_BROKER_URL,
        "broker_use_ssl": ssl_options,
        "broker_transport_options": MEMORY_OPTIONS if in_memory else AMQP_OPTIONS,
        "broker_connection_timeout": 2,
        "broker_heartbeat": 30,
        "broker_pool_acquire_timeout": 2,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # 100 would end the worker after 45 minutes without a broker
        "broker_channel_error_retry": True,
        "broker_native_delayed_delivery_queue_type": "classic",
    }


def task_settings(settings: Settings) -> dict[str, Any]:
    return {
        "task_queues": queues(settings),
        "task_create_missing_queues": False,
        "task_routes": {
            SEND_MAIL: {"queue": "mail"},
            RUN_JOB: {"queue": registry.DEFAULT_QUEUE},
            TELL_CLIENTS: {"queue": notifier.QUEUE},
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_backend": None,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_publish_retry": False,  # the sweeper publishes again; retries here only multiply messages
        "task_send_sent_event": False,
    }


def worker_settings(settings: Settings) -> dict[str, Any]:
    return {
        "worker_send_task_events": True,  # Flower needs events
        "worker_consumer": "mailroom.broker.consumer:CarefulConsumer",
        "worker_pool": "threads",
        "worker_concurrency": settings.SMTP_CONNECTIONS,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # would stop it in the middle of a mail
        # This one uses the channel from the threads of the pool, which then wait for ever.
        "worker_enable_prefetch_count_reduction": False,
        "worker_enable_remote_control": False,  # anybody with access to the broker could stop the worker
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def queues(settings: Settings) -> list[Queue]:
    """Return all queues that a worker consumes, unless its -Q names some of them."""
    own = queues_of((*MAIL_QUEUES, *registry.queues(), notifier.QUEUE), settings.QUEUE_TYPE)
    if settings.SERVE_CELERY_QUEUE != "on":
        return own
    # Celery clients declare it as a classic queue.
    return own + queues_of((SHARED_QUEUE,), "classic")
