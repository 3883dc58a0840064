"""Order beers and a coffee with Celery alone: no HTTP, and nothing of ours installed.

    python examples/cafe/order.py --beers 20 --to you@example.org

There is no result backend, so `.get()` has nothing to wait for. Whoever ordered learns that the coffee is ready from the mail, or from
any web process on the same database, which holds its answer until then:

    curl -H 'Prefer: wait=30' http://127.0.0.1:5000/v1/jobs/<id>
"""

import argparse
import os
import sys
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError


def order(cafe: Celery, drink: str, to: str | None = None, **args: Any) -> str:
    """Send one order to the queue of its drink, and return its id: the task's, and the job's."""
    asked: dict[str, Any] = {"name": drink, "args": args}
    if to:
        asked["notify"] = {
            "to": to,
            "subject": f"Your {drink} is ready",
            "contents": "Here is {{ job.result }}.",
        }
    return str(cafe.send_task("mailasync.runJob", [asked], queue=drink).id)


def main() -> None:
    parser = argparse.ArgumentParser(description="Order beers and a coffee.")
    parser.add_argument("--beers", type=int, default=3)
    parser.add_argument("--to", help="who gets a mail when the coffee is ready")
    asked = parser.parse_args()
    # Celery's default is to hand a message to the socket and hope; confirmed, the broker has it when send_task returns.
    cafe = Celery(
        broker=os.environ.get("MAILASYNC_BROKER_URL", "pyamqp://guest@localhost//"),
        broker_transport_options={"confirm_publish": True},
    )
    try:
        for _ in range(asked.beers):
            print("beer  ", order(cafe, "beer"), flush=True)
        print("coffee", order(cafe, "coffee", asked.to, cups=1), flush=True)
    except OperationalError as e:
        sys.exit(f"order.py: the broker did not take it: {e}")


if __name__ == "__main__":
    main()
