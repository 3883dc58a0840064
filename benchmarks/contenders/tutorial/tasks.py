"""The tutorial's worker half: one login and one mail for each task. The simulated work is left away."""

import os

import yagmail
from celery import Celery

celery_app = Celery("tasks", broker=os.environ["BROKER_URL"])


@celery_app.task
def sendMail(to: str, subject: str, contents: str) -> None:
    has_login = bool(os.environ.get("SMTP_PASSWORD"))
    yag = yagmail.SMTP(
        os.environ.get("SMTP_USER", "alice@example.org"),
        os.environ.get("SMTP_PASSWORD", "-"),
        host="127.0.0.1",
        port=int(os.environ["SMTP_PORT"]),
        smtp_ssl=has_login,
        smtp_starttls=False,
        smtp_skip_login=not has_login,
    )
    yag.send(to, subject, contents)
