"""Measures the parts by themselves, the best that any service can do: `python -m benchmarks.limits --help`.

It prints one line of JSON.
"""

import argparse
import json
import smtplib
import sqlite3
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psycopg
from kombu import Connection, Producer, Queue

MAIL = (
    "From: alice@example.org\r\nTo: bob@example.org\r\nSubject: News\r\nMIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n\r\n" + "There are some news. " * 16 + "\r\n"
).encode()


def deliver(port: int, *, mails: int, connections: int, ca_file: str) -> dict[str, float]:
    """Send so many mails over so many connections, each in two round trips (PIPELINING, RFC 2920)."""
    numbers = count()

    def run() -> None:
        link = _connected(port, ca_file)
        while next(numbers) < mails:
            link.send("MAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")
            replies = [link.getreply()[0] for _ in range(3)]
            link.send(MAIL + b".\r\n")
            assert [*replies, link.getreply()[0]] == [250, 250, 354, 250]
        link.quit()

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {}


def _connected(port: int, ca_file: str) -> smtplib.SMTP:
    if not ca_file:
        link = smtplib.SMTP("127.0.0.1", port, local_hostname="[127.0.0.1]")
        link.ehlo()
        return link
    link = smtplib.SMTP_SSL(
        "127.0.0.1",
        port,
        local_hostname="[127.0.0.1]",
        context=ssl.create_default_context(cafile=ca_file),
    )
    link.login("alice@example.org", "secret")
    return link


def commit(database: str, *, seconds: float) -> dict[str, float]:
    """Commit one small row after the other, on disk each time."""
    if database == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            driver = sqlite3.connect(Path(directory) / "commits.sqlite3", isolation_level=None)
            driver.executescript(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE rows (id INTEGER PRIMARY KEY, mail BLOB)"
            )

            def one() -> None:
                driver.execute("BEGIN IMMEDIATE")
                driver.execute("INSERT INTO rows (mail) VALUES (?)", (MAIL,))
                driver.execute("COMMIT")

            return _timed(one, seconds)
    with psycopg.connect(database) as link:
        link.execute("CREATE TABLE rows (id SERIAL PRIMARY KEY, mail BYTEA)")
        link.commit()

        def one() -> None:
            link.execute("INSERT INTO rows (mail) VALUES (%s)", (MAIL,))
            link.commit()

        return _timed(one, seconds)


def publish(broker_url: str, *, seconds: float) -> dict[str, float]:
    """Publish one message after the other, each confirmed."""
    with Connection(broker_url, transport_options={"confirm_publish": True}) as connection:
        Queue("limit", durable=True)(connection.default_channel).queue_declare()
        producer = Producer(connection)
        return _timed(
            lambda: producer.publish({"id": "x" * 36}, routing_key="limit", delivery_mode=2),
            seconds,
        )


def _timed(one: Callable[[], object], seconds: float) -> dict[str, float]:
    took: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        one()
        took.append(time.perf_counter() - started)
    return {
        "per_second": len(took) / sum(took),
        "p50_ms": statistics.median(took) * 1000,
        "p99_ms": statistics.quantiles(took, n=100)[98] * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("deliver")
    for name in ("--port", "--mails", "--connections"):
        one.add_argument(name, type=int, required=True)
    one.add_argument("--ca-file", default="", help="TLS from the first byte, and a login")
    one = commands.add_parser("commit")
    one.add_argument(
        "--database", default="sqlite", help="sqlite, or the URL of a PostgreSQL database"
    )
    one.add_argument("--seconds", type=float, default=3)
    one = commands.add_parser("publish")
    one.add_argument("--broker-url", required=True)
    one.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    if options.command == "deliver":
        found = deliver(
            options.port,
            mails=options.mails,
            connections=options.connections,
            ca_file=options.ca_file,
        )
    elif options.command == "commit":
        found = commit(options.database, seconds=options.seconds)
    else:
        found = publish(options.broker_url, seconds=options.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
