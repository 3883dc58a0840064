"""The schedule of the report, for Celery beat and its own scheduler.

    REPORT_TO=you@example.org celery -A examples.periodic.schedule beat --loglevel=INFO

This is a Celery application of its own, not mailasync's: beat only publishes, so it needs no database, and it
waits for a broker that is down, where the service gives up after seconds.

Each task id is made from the day, and the service accepts an id only once. So two beats, or one that was
killed before it saved its state, still make one report a day. Without a worker, tasks wait in their queue.
"""

import math
import os
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from celery import Celery
from celery.schedules import crontab
from celery.signals import before_task_publish

from mailroom.config.environment import load
from mailroom.config.settings import PAIR_BROKER_URL
from mailroom.process.installation import PROJECT

TIMEZONE = "UTC"
#: To try it out: seconds between two reports, instead of one a day.
EVERY = float(os.environ.get("REPORT_EVERY_SECONDS", "0"))
STATE = Path(os.environ.get("REPORT_STATE_FILE", PROJECT / "instance" / "celerybeat-schedule"))

REPORT = {
    "name": "report",
    "notify": {
        "to": os.environ.get("REPORT_TO", "you@example.org"),
        "subject": "Daily report of {{ job.result.host|default('a machine') }}",
        "contents": (
            "The disk is {{ job.result.used_percent }} % full: "
            "{{ job.result.free_gb }} of {{ job.result.total_gb }} GB are free."
        ),
    },
}

app = Celery("periodic", broker=load().BROKER_URL or PAIR_BROKER_URL)
app.conf.update(
    timezone=TIMEZONE,
    beat_schedule={
        "daily report": {
            "task": "mailasync.runJob",
            "args": [
                REPORT
            ],  # On the queue `celery`, as none is named; workers without -Q read it.
            "schedule": EVERY or crontab(hour=7, minute=0),
        }
    },
    beat_schedule_filename=str(STATE),
    result_expires=None,  # Otherwise beat schedules a nightly cleanup of results, of which there are none.
    broker_connection_max_retries=None,  # The default, 100, would end beat after 45 minutes without a broker.
    broker_transport_options={"confirm_publish": True, "read_timeout": 10, "write_timeout": 10},
    # Retry for ever: the default policy would lose a report when the broker restarts.
    task_publish_retry_policy={"max_retries": None, "interval_max": 10},
)
STATE.parent.mkdir(mode=0o700, exist_ok=True)


@before_task_publish.connect
def name_by_day(headers: dict[str, Any], **_: object) -> None:
    """Give all tasks of one day the same id."""
    period = str(datetime.now(ZoneInfo(TIMEZONE)).date())
    if EVERY:
        period = str(math.floor(time.time() / EVERY))
    headers["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"mailasync:report:{period}"))
