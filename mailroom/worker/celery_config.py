"""Sets up Celery: queues, routes, and how it treats the broker."""

from typing import Any

from kombu import Queue

from mailroom.broker.consumer import SHARED_QUEUE
from mailroom.broker.queues import queues_of
from mailroom.config.settings import PAIR_BROKER_URL, Settings
from mailroom.jobs import registry
from mailroom.webhooks import notifier

MAIL_QUEUES = ("mail", "mail.bulk")
#: The tasks of mailasync.py, by which others find them.
SEND_MAIL, RUN_JOB, TELL_CLIENTS = "mailasync.sendMail", "mailasync.runJob", "mailasync.tellClients"


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Every deviation from Celery's defaults prevents a loss, a hang or a double."""
    memory = settings.BROKER_URL.startswith("memory:")
    return {
        "broker_url": settings.BROKER_URL or PAIR_BROKER_URL,
        "broker_use_ssl": {"ca_certs": settings.BROKER_CA_FILE} if settings.BROKER_CA_FILE else None,
        "broker_transport_options": {"polling_interval": 0.005}
        if memory
        else {
            "confirm_publish": True,  # without it a broker that dies or is full loses what was "published"
            "read_timeout": 5,
            "write_timeout": 5,  # a frozen broker must not hold us
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        "broker_connection_timeout": 2,
        "broker_heartbeat": 30,
        "broker_pool_acquire_timeout": 2,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # 100 would end the worker after 45 minutes without a broker
        "broker_channel_error_retry": True,
        "broker_native_delayed_delivery_queue_type": "classic",
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
        "worker_send_task_events": True,  # Flower lives on events
        "worker_consumer": "mailroom.broker.consumer:CarefulConsumer",
        "worker_pool": "threads",
        "worker_concurrency": settings.SMTP_CONNECTIONS,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # it would kill in the middle of a mail
        # It speaks on the channel from threads of the pool, which then wait for ever.
        "worker_enable_prefetch_count_reduction": False,
        "worker_enable_remote_control": False,  # whoever reaches the broker could revoke and shut down
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def queues(settings: Settings) -> list[Queue]:
    ours = queues_of((*MAIL_QUEUES, *registry.queues(), notifier.QUEUE), settings.QUEUE_TYPE)
    # Classic, as a stock client declares it.
    return [*ours, *queues_of((SHARED_QUEUE,), "classic")] if settings.SERVE_CELERY_QUEUE == "on" else ours
