"""Contenders that one would write or pick, each as its own documentation has it, and ours.

Here is how each is served, filled and worked.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kombu import Connection, Producer, Queue
from sqlalchemy import NullPool, create_engine, make_url, text

from benchmarks.rig import HERE, Bench, Process, ask, node_project
from benchmarks.sinks import Sink
from tests.services import free_port, wait_until

CONTENDERS = HERE / "contenders"
TEXT = "There are some news. " * 16
BODY = {"to": "bob@example.org", "subject": "News", "contents": TEXT}
BATCH = 1000
CONNECTIONS = 50


@dataclass
class Contender:
    """A service, on a broker of its own; `web` and `worker` run until their context ends."""

    bench: Bench
    broker_url: str
    port: int = field(default_factory=free_port)
    path = "/"

    @contextmanager
    def web(self) -> Iterator[Process]:
        raise NotImplementedError
        yield

    def fill(self, mails: int) -> None:
        """Have so many mails wait for a worker."""
        raise NotImplementedError

    @contextmanager
    def worker(self, sink: Sink, *, connections: int) -> Iterator[Process]:
        raise NotImplementedError
        yield


class Tutorial(Contender):
    """Flask and Celery with one login for each mail, on the development server."""

    folder = "tutorial"

    def command(self) -> list[str]:
        return ["python", "app.py"]

    def environment(self, sink: Sink | None = None) -> Mapping[str, str]:
        ours = {
            "BROKER_URL": self.broker_url,
            "PORT": str(self.port),
            "PYTHONPATH": str(CONTENDERS / "tutorial"),
            "SMTP_PORT": "9",
        }
        return {**ours, **(sink.environment(self.bench) if sink else {})}

    @contextmanager
    def web(self) -> Iterator[Process]:
        with self.bench.process(
            self.command(), name="web", env=self.environment(), cwd=CONTENDERS / self.folder
        ) as process:
            process.serves(self.port)
            yield process

    def fill(self, mails: int) -> None:
        program = f"from tasks import sendMail\nfor _ in range({mails}): sendMail.delay('bob@example.org', 'News', {TEXT!r})"
        with self.bench.process(
            ["python", "-c", program], name="fill", env=self.environment()
        ) as process:
            assert process.process.wait(120) == 0, process.text()

    @contextmanager
    def worker(self, sink: Sink, *, connections: int) -> Iterator[Process]:
        """Run as many processes as the machine has processors, whatever `connections` is."""
        command = ["python", "-m", "celery", "-A", "tasks", "worker", "--loglevel=INFO"]
        with self.bench.process(command, name="worker", env=self.environment(sink)) as process:
            yield process


class TutorialOnGunicorn(Tutorial):
    """The tutorial on gunicorn, two processes of eight threads."""

    def command(self) -> list[str]:
        return [
            "python",
            "-m",
            "gunicorn",
            "--workers",
            "2",
            "--threads",
            "8",
            "--bind",
            f"127.0.0.1:{self.port}",
            "app:app",
        ]


class FastAPICelery(Tutorial):
    """FastAPI in front of the same task, on uvicorn, two processes."""

    folder = "fastapi_celery"

    def command(self) -> list[str]:
        return [
            "python",
            "-m",
            "uvicorn",
            "--workers",
            "2",
            "--port",
            str(self.port),
            "--log-level",
            "warning",
            "app:app",
        ]


class Node(Contender):
    """Fastify and amqplib with confirms; nodemailer's pool."""

    def _environment(self) -> dict[str, str]:
        return {
            "BROKER_URL": self.broker_url.replace("pyamqp:", "amqp:"),
            "PORT": str(self.port),
            "NODE_ENV": "production",
        }

    @contextmanager
    def web(self) -> Iterator[Process]:
        with self.bench.process(
            ["node", "web.js"], name="web", env=self._environment(), cwd=node_project()
        ) as process:
            process.serves(self.port)
            yield process

    def fill(self, mails: int) -> None:
        payload = json.dumps(BODY)
        with Connection(self.broker_url) as connection:
            Queue("mails", durable=True)(connection.default_channel).queue_declare()
            producer = Producer(connection)
            for _ in range(mails):
                producer.publish(
                    payload,
                    routing_key="mails",
                    content_type="text/plain",
                    content_encoding="utf-8",
                    delivery_mode=2,
                )

    @contextmanager
    def worker(self, sink: Sink, *, connections: int) -> Iterator[Process]:
        environment = {
            **self._environment(),
            **sink.environment(self.bench),
            "CONNECTIONS": str(connections),
        }
        with self.bench.process(
            ["node", "worker.js"], name="worker", env=environment, cwd=node_project()
        ) as process:
            yield process


@dataclass
class Ours(Contender):
    """`python3 app.py` and `celery -A mailasync worker`."""

    database_url: str = ""
    path = "/v1/messages"

    def __post_init__(self) -> None:
        with self.bench.process(
            ["python", "-m", "flask", "db", "upgrade"], name="upgrade", env=self.environment()
        ) as process:
            assert process.process.wait(60) == 0, process.text()
        url = make_url(self.database_url)
        self.engine = create_engine(
            url if url.drivername == "sqlite" else url.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
        )

    def environment(
        self, sink: Sink | None = None, *, connections: int = CONNECTIONS
    ) -> dict[str, str]:
        hop = {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(sink.port if sink else 9),
            "SMTP_CONNECTIONS": str(connections),
            "SMTP_MAILS_PER_CONNECTION": "80",
        }
        login = {
            "MAIL_USERNAME": "alice@example.org",
            "MAIL_PASSWORD": "secret",
            "SMTP_SECURITY": "ssl",
            "SMTP_CA_FILE": str(self.bench.certificates.ca_file),
        }
        plain = {"SMTP_SECURITY": "none", "SMTP_AUTH": "off", "MAIL_FROM": "alice@example.org"}
        ours = {
            "ENV_FILE": "",
            "PORT": str(self.port),
            "BROKER_URL": self.broker_url,
            "DATABASE_URL": self.database_url,
            **hop,
            **(login if sink and sink.tls else plain),
        }
        return {f"MAILASYNC_{name}": value for name, value in ours.items()}

    def count(self, where: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(text(f"SELECT count(*) FROM messages WHERE {where}")) or 0)

    @contextmanager
    def web(self) -> Iterator[Process]:
        with self.bench.process(
            ["python", "app.py"], name="web", env=self.environment()
        ) as process:
            process.serves(self.port)
            yield process

    def fill(self, mails: int) -> None:
        with self.web():
            for first in range(0, mails, BATCH):
                size = min(BATCH, mails - first)
                ask(
                    self.port,
                    "/v1/messages/batch",
                    [BODY | {"to": f"bob{number}@example.org"} for number in range(size)],
                )
            wait_until(lambda: not self.count("published_at IS NULL"), 60, what="all are published")

    @contextmanager
    def worker(self, sink: Sink, *, connections: int) -> Iterator[Process]:
        command = ["python", "-m", "celery", "-A", "mailasync", "worker", "--loglevel=INFO"]
        with self.bench.process(
            command, name="worker", env=self.environment(sink, connections=connections)
        ) as process:
            yield process
