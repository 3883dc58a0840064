"""How many mails a second are accepted by POST /v1/messages/batch, workers stopped: `python -m benchmarks.batch --help`."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import app as web
import mailasync
from mailroom.settings import load
from mailroom.store.database import Database


def rates(size: int, rounds: int, directory: Path, *, recipients_only: bool) -> list[float]:
    """Mails a second of each request, through the whole application; SQLite with synchronous=FULL on this disk."""
    url = f"sqlite:///{directory}/batch.sqlite3"
    settings = load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_BROKER_URL": "pyamqp://guest@127.0.0.1:9//", "MAILASYNC_DATABASE_URL": url})
    web.db_upgrade(settings)
    database = Database(url)
    client = web.create_app(settings, database=database).test_client()
    found = []
    for number in range(rounds):
        people = [f"bob{n}.{number}@example.org" for n in range(size)]
        common = {"subject": "News", "text": "There are some. " * 20}
        body = {"common": common, "messages": [{"to": to} for to in people]} if recipients_only else [{"to": to, **common} for to in people]
        started = time.perf_counter()
        answer = client.post("/v1/messages/batch", json=body)
        found.append(size / (time.perf_counter() - started))
        assert answer.status_code == 202, answer.data
    client.application.extensions["mailasync"].api_keys.close()
    mailasync.stop_relay()
    database.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--size", type=int, default=1000, help="mails in a request")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    for name, recipients_only in (("common part and recipients", True), ("whole messages", False)):
        with tempfile.TemporaryDirectory() as directory:
            found = rates(options.size, options.rounds, Path(directory), recipients_only=recipients_only)
        print(f"{name:<28} {statistics.median(found):>8.0f} mails/s, median of {len(found)} requests of {options.size}")


if __name__ == "__main__":
    main()
