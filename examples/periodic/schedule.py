"""Says when the report is due: Celery beat with its own scheduler.

    REPORT_TO=you@example.org celery -A examples.periodic.schedule beat --loglevel=INFO

An application of its own and not mailasync's: beat only publishes, so it needs the broker's URL and no database, and it waits for a
broker that is away where our own publishers give up in seconds.

A tick's id is made from its day, and the service accepts an id once. So two beats, or one that was killed before it noted what it had
sent, make one report a day; what is sent while no worker runs waits in its queue.
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
from mailroom.config.settings import PAIR_BROKER_URL, PROJECT

TIMEZONE = "UTC"
#: Seconds, to try it out: a report every so often instead of one a day.
EVERY = float(os.environ.get("REPORT_EVERY_SECONDS", "0"))
STATE = Path(os.environ.get("REPORT_STATE_FILE", PROJECT / "instance" / "celerybeat-schedule"))

REPORT = {
    "name": "report",
    "notify": {
        "to": os.environ.get("REPORT_TO", "you@example.org"),
        "subject": "Daily report of {{ job.result.host|default('a machine') }}",
        "contents": "The disk is {{ job.result.used_percent }} % full: {{ job.result.free_gb }} of {{ job.result.total_gb }} GB are free.",
    },
}

app = Celery("periodic", broker=load().BROKER_URL or PAIR_BROKER_URL)
app.conf.update(
    timezone=TIMEZONE,
    beat_schedule={
        "daily report": {
            "task": "mailasync.runJob",
            "args": [REPORT],  # no queue: the plain one, `celery`, which workers without -Q read
            "schedule": EVERY or crontab(hour=7, minute=0),
        }
    },
    beat_schedule_filename=str(STATE),
    result_expires=None,  # else beat has results cleaned up each night, and there are none
    broker_connection_max_retries=None,  # 100 would end beat after 45 minutes without a broker
    broker_transport_options={"confirm_publish": True, "read_timeout": 10, "write_timeout": 10},
    task_publish_retry_policy={
        "max_retries": None,
        "interval_max": 10,
    },  # else a tick is lost where the broker restarts
)
STATE.parent.mkdir(mode=0o700, exist_ok=True)


@before_task_publish.connect
def name_by_day(headers: dict[str, Any], **_: object) -> None:
    """Give the tick of one day one id."""
    tick = math.floor(time.time() / EVERY) if EVERY else datetime.now(ZoneInfo(TIMEZONE)).date()
    headers["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"mailasync:report:{tick}"))
