"""Order beers and a coffee with Celery alone: without HTTP, and without this project's code.

    python examples/cafe/order.py --beers 20 --to you@example.org

There is no result backend, so `.get()` does not work. The mail says when the coffee is ready, and so does a
web process on the same database, which answers when the job has ended:

    curl -H 'Prefer: wait=30' http://127.0.0.1:5000/v1/jobs/<id>
"""

import argparse
import os
import sys
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError


def order(cafe: Celery, drink: str, to: str | None = None, **args: Any) -> str:
    """Send an order to the queue of its drink; return the id, which is the task's and the job's."""
    job: dict[str, Any] = {"name": drink, "args": args}
    if to:
        job["notify"] = {
            "to": to,
            "subject": f"Your {drink} is ready",
            "contents": "Here is {{ job.result }}.",
        }
    task = cafe.send_task("mailasync.runJob", [job], queue=drink)
    return str(task.id)


def main() -> None:
    parser = argparse.ArgumentParser(description="Order beers and a coffee.")
    parser.add_argument("--beers", type=int, default=3)
    parser.add_argument("--to", help="who gets a mail when the coffee is ready")
    options = parser.parse_args()
    # Without confirm_publish, Celery does not wait for RabbitMQ to accept a message, and may lose it.
    cafe = Celery(
        broker=os.environ.get("MAILASYNC_BROKER_URL", "pyamqp://guest@localhost//"),
        broker_transport_options={"confirm_publish": True},
    )
    try:
        for _ in range(options.beers):
            print("beer  ", order(cafe, "beer"), flush=True)
        print("coffee", order(cafe, "coffee", options.to, cups=1), flush=True)
    except OperationalError as e:
        sys.exit(f"order.py: the broker did not accept the order: {e}")


if __name__ == "__main__":
    main()
