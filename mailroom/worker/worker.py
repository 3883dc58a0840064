"""Makes a process a worker: heartbeat, sweeper, deliveries and jobs, on one database."""

import logging
import uuid
from collections.abc import Callable, Sequence

from mailroom.broker.publisher import CHUNK_MAX, Publisher
from mailroom.config.accounts import accounts, schedule
from mailroom.config.settings import Settings
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.jobs import registry
from mailroom.jobs.process_pool import Children
from mailroom.jobs.runner import Runner
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON, StoreUnavailable
from mailroom.model.ids import is_id, new_id
from mailroom.model.message import Message, State
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.counters import count_each
from mailroom.store.events.deliveries import WebhookDeliveries
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import ID_MAX_CHARACTERS, Jobs, NewJob
from mailroom.store.maintenance.clock import Clock
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from mailroom.submission.reader import SubmissionReader
from mailroom.webhooks.notifier import QUEUE, THREADS, Notifier
from mailroom.webhooks.ssrf import AddressGuard
from mailroom.worker.sweeper import Sweeper

log = logging.getLogger("mailasync")


class Worker:
    """The parts that make a process a worker: heartbeat, sweeper, deliveries and jobs, on one database."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        name: str,
        queues: Sequence[str],
        connections: int,
        publisher: Publisher,
        reader: SubmissionReader,
        sweeps: Sweeps,
        threads: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`threads` gives words about threads that ended, for readers in other processes."""
        self.database = database
        self.outbox = Outbox(database)
        self.jobs = Jobs(database, settings.LEASE_SECONDS)
        self.settings = settings
        owner = str(uuid.uuid4())
        known = accounts(settings)
        budgets = tuple(account.budget for account in known)
        self.hops = ", ".join(dict.fromkeys(str(account.hop) for account in known))
        self.publisher = publisher
        self.refusal = ""  #: what RabbitMQ refuses our consumer
        self.reader = reader
        turns = Admission(connections, {account.name: str(account.hop) for account in known})
        self.heartbeat = Heartbeat(
            database,
            owner,
            name,
            queues,
            hanging=turns.hanging,
            threads=threads,
            broker_trouble=self._broker_trouble,
        )
        runs = JobClaims(database, owner, settings.LEASE_SECONDS)
        claims = Claims(database, owner, settings.LEASE_SECONDS, budgets, turns.free)
        senders = {account.name: Sender(account.sender, Sessions(account.hop)) for account in known}
        self.delivery = Delivery(
            claims,
            AttemptRunner(senders, schedule(settings), settings.ON_UNCERTAIN),
            turns,
            unclaimed=self._wake_awaited,
        )
        self.runner = Runner(
            runs,
            [queue for queue in queues if queue in registry.queues()],
            slots=settings.JOB_SLOTS,
            processes=settings.JOB_PROCESSES,
            children=Children(registry.modules(settings.JOBS)),
            queued=self._queue,
        )
        self.notifier = Notifier(
            WebhookDeliveries(database, owner, settings.LEASE_SECONDS),
            AddressGuard(settings.WEBHOOKS_TO_LOOPBACK == "on"),
            threads=THREADS if QUEUE in queues else 0,
        )
        shared = Accounts(database, budgets, turns.free)
        shared.register()
        self.runner.start()
        self.notifier.start()
        self.sweeper = Sweeper(
            Clock(database),
            sweeps,
            claims,
            self.heartbeat,
            runs,
            shared,
            Expiry(database),
            Retention(database, settings.RETENTION_DAYS),
            self.publisher,
            self.runner.watch,
            self.notifier.watch,
            settings.LEASE_SECONDS,
            appetite=max(1, connections // 2) * CHUNK_MAX,
        )  # A nudge takes one of as many threads.
        self.sweeper.start()

    def __str__(self) -> str:
        return f"worker {self.heartbeat.name}: mail goes to {self.hops}; outbox {self.database!r}"

    def _broker_trouble(self) -> str:
        """Name what keeps us from our queues. Our publisher knows it too, if no connection can be had."""
        return self.refusal or (self.publisher.down[1] if self.publisher.down else "")

    def _queue(self, id: str) -> None:
        self.publisher.offer(id, queue="mail")

    def deliver(self, ids: list[str], *, outbox_id: str) -> bool:
        """Deliver what a nudge names. False: it is to go back to the queue."""
        if outbox_id != self.database.outbox_id:
            log.error(
                "this worker reads outbox %s (%r), but the nudge is from outbox %s: web and worker need "
                "the same MAILASYNC_DATABASE_URL, unless the nudge is from before `flask db restored`",
                self.database.outbox_id,
                self.database,
                outbox_id,
            )
            return True
        return self.delivery.deliver(ids)

    def accept(self, id: str, mail: object) -> bool:
        """Accept what a Celery client sent; record what is no mail as failed under the task's id, and why."""
        if isinstance(mail, str) and is_id(mail) and self.outbox.details(mail):
            return self.delivery.deliver([mail])  # sendMail.delay(id), from a process that runs no publisher
        id = self._usable(id, is_id(id))
        try:
            accepted = self.reader.mail(mail, work_seconds=self.settings.SIMULATED_WORK_SECONDS, id=id)
            if accepted.dry_run:
                raise InvalidMessage(
                    [
                        FieldError(
                            "#/dry_run", "expected a mail to be sent, as nobody is told here what would be"
                        )
                    ]
                )
        except (MalformedJSON, InvalidMessage) as e:
            self._fail_mail(id, str(e))
            return True
        if self.outbox.accept(accepted):
            if accepted.job:
                self._wake(accepted.job.queue)
            elif accepted.state is State.QUEUED:
                self.publisher.offer(id, queue=accepted.queue)
        return True

    def accept_job(self, id: str, asked: object) -> None:
        """Accept a job that a Celery client sent; record what is none as failed under the task's id."""
        id = self._usable(id, is_job_id(id))
        try:
            order = self.reader.job(asked, id=id)
        except (MalformedJSON, InvalidMessage) as e:
            self._fail_job(id, str(e))
            return
        if order.mail:
            self.outbox.accept(order.mail)
        else:
            self.jobs.accept(order.job)
        self._wake(order.job.queue)

    def refuse(self, id: str, task_name: str, reason: str) -> None:
        """Record a task that cannot be read as failed, under its id; count one that has none."""
        if not id:
            log.error("a task without an id cannot be read, and is dropped: %s", reason)
            self.database.write(count_each, "tasks_dropped")
        elif "job" in task_name.lower():
            self._fail_job(self._usable(id, is_job_id(id)), reason)
        else:
            self._fail_mail(self._usable(id, is_id(id)), reason)

    def _fail_mail(self, id: str, reason: str) -> None:
        log.error("task %s is no mail that can be accepted; see GET /v1/messages/%s", id, id)
        self.outbox.accept(
            NewMessage(id=id, message=Message(to=()), message_id=f"{new_id()}@localhost", failed=reason)
        )

    def _fail_job(self, id: str, reason: str) -> None:
        log.error("task %s is no job that can be accepted; see GET /v1/jobs/%s", id, id)
        self.jobs.accept(
            NewJob(id=id, name="", args={}, queue=registry.DEFAULT_QUEUE, timeout_seconds=0, failed=reason)
        )

    def _wake_awaited(self, ids: Sequence[str]) -> None:
        """Have the jobs looked for that some of these mails wait for."""
        try:
            for queue in self.jobs.awaited(ids):
                self._wake(queue)
        except StoreUnavailable as e:  # Each runner looks for jobs once a second, too.
            log.error("%s", e)

    def _wake(self, queue: str) -> None:
        """Have this worker, and one that serves the queue, look for its jobs."""
        self.runner.wake()
        if queue not in self.heartbeat.queues:
            # Any UUID is a nudge; what id a client chose, the worker might take for a job.
            self.publisher.offer(new_id(), queue=queue)

    def _usable(self, id: str, is_usable: bool) -> str:
        if is_usable:
            return id
        usable = new_id()
        log.error(
            "a task's id of %d characters is none that can be kept; it is recorded as %s", len(id), usable
        )
        return usable

    def close(self) -> None:
        """End in order: nothing is left that anybody would have to wait for."""
        self.delivery.stop()
        self.notifier.stop()
        self.delivery.close()
        self.runner.close()
        self.notifier.close()
        self.sweeper.stop()
        self.publisher.stop()
        try:
            self.heartbeat.stop()
        except StoreUnavailable as e:
            log.error("%s", e)
        self.database.close()


def is_job_id(id: str) -> bool:
    return is_id(id) and len(id) <= ID_MAX_CHARACTERS
