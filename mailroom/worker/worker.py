"""Makes a process a worker: heartbeat, sweeper, delivery of mail, jobs and webhooks, on one database."""

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mailroom.broker.publisher import CHUNK_MAX, Publisher
from mailroom.config.accounts import accounts, schedule
from mailroom.config.settings import Settings
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.jobs import registry
from mailroom.jobs.process_pool import Children
from mailroom.jobs.runner import Runner
from mailroom.mailbox.reader import MailboxReader
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON, StoreUnavailable
from mailroom.model.ids import is_id, new_id
from mailroom.model.message import Message, State
from mailroom.process.installation import PROGRAM
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.counters import count_each
from mailroom.store.events.deliveries import WebhookDeliveries
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import ID_MAX_CHARACTERS, Jobs, NewJob
from mailroom.store.mailboxes import Mailboxes
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


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options that Celery started the worker with."""

    name: str
    queues: Sequence[str]
    connections: int
    #: Describes threads of this process that have ended, for other processes to report.
    thread_errors: Callable[[], Sequence[str]] = tuple


class Worker:
    """The parts that make a process a worker, and the tasks that they do."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        options: WorkerOptions,
        *,
        publisher: Publisher,
        reader: SubmissionReader,
        sweeps: Sweeps,
    ) -> None:
        """Make and start all parts."""
        self.settings, self.database, self.options = settings, database, options
        self.publisher, self.reader = publisher, reader
        self.outbox = Outbox(database)
        self.jobs = Jobs(database, settings.LEASE_SECONDS)
        self.refusal = ""  #: what RabbitMQ refuses to our consumer, in words
        self._owner = str(uuid.uuid4())
        self._accounts = accounts(settings)
        self._limits = tuple(account.sending_limit for account in self._accounts)
        self._admission = self._make_admission()
        self._claims = self._make_claims()
        self._job_claims = JobClaims(database, self._owner, settings.LEASE_SECONDS)
        self.heartbeat = self._make_heartbeat()
        self.delivery = self._make_delivery()
        self.runner = self._make_runner()
        self.notifier = self._make_notifier()
        self.mailbox_readers = self._make_mailbox_readers()
        self._start(sweeps)

    def _start(self, sweeps: Sweeps) -> None:
        shared_accounts = Accounts(self.database, self._limits, self._admission.free)
        shared_accounts.register()
        self.runner.start()
        self.notifier.start()
        self.sweeper = self._make_sweeper(sweeps, shared_accounts)
        self.sweeper.start()
        for reader in self.mailbox_readers:
            reader.start()

    def _make_admission(self) -> Admission:
        hops = {account.name: str(account.hop) for account in self._accounts}
        return Admission(self.options.connections, hops)

    def _make_claims(self) -> Claims:
        return Claims(
            self.database,
            self._owner,
            self.settings.LEASE_SECONDS,
            self._limits,
            self._admission.free,
        )

    def _make_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self.database,
            self._owner,
            self.options.name,
            self.options.queues,
            hanging=self._admission.hanging,
            threads=self.options.thread_errors,
            broker_error=self._broker_error,
        )

    def _make_delivery(self) -> Delivery:
        senders = {
            account.name: Sender(account.sender, Sessions(account.hop))
            for account in self._accounts
        }
        mailboxes = frozenset(account.name for account in self._accounts if account.mailbox)
        attempts = AttemptRunner(
            senders, schedule(self.settings), self.settings.ON_UNCERTAIN, mailboxes
        )
        return Delivery(self._claims, attempts, self._admission, on_unclaimed=self._wake_awaited)

    def _make_runner(self) -> Runner:
        job_queues = registry.queues()
        return Runner(
            self._job_claims,
            [queue for queue in self.options.queues if queue in job_queues],
            slots=self.settings.JOB_SLOTS,
            processes=self.settings.JOB_PROCESSES,
            children=Children(registry.modules(self.settings.JOBS)),
            on_queued=self._publish_mail,
        )

    def _make_notifier(self) -> Notifier:
        return Notifier(
            WebhookDeliveries(self.database, self._owner, self.settings.LEASE_SECONDS),
            AddressGuard(self.settings.WEBHOOKS_TO_LOOPBACK == "on"),
            threads=THREADS if QUEUE in self.options.queues else 0,
        )

    def _make_mailbox_readers(self) -> list[MailboxReader]:
        settings = self.settings
        mailboxes = Mailboxes(self.database, self._owner, settings.LEASE_SECONDS)
        return [
            MailboxReader(
                account.name,
                account.mailbox,
                mailboxes,
                settings.BOUNCES_EVERY_SECONDS,
                settings.BOUNCES_FOLDER,
            )
            for account in self._accounts
            if account.mailbox
        ]

    def _make_sweeper(self, sweeps: Sweeps, shared_accounts: Accounts) -> Sweeper:
        # A nudge takes one of as many threads as there are connections.
        appetite = max(1, self.options.connections // 2) * CHUNK_MAX
        return Sweeper(
            Clock(self.database),
            sweeps,
            self._claims,
            self.heartbeat,
            self._job_claims,
            shared_accounts,
            Expiry(self.database),
            Retention(self.database, self.settings.RETENTION_DAYS),
            self.publisher,
            self.runner.watch,
            self.notifier.watch,
            self.settings.LEASE_SECONDS,
            appetite=appetite,
        )

    def __str__(self) -> str:
        hops = ", ".join(dict.fromkeys(str(account.hop) for account in self._accounts))
        return f"worker {self.heartbeat.name}: mail goes to {hops}; outbox {self.database}"

    def _broker_error(self) -> str:
        """Say why this worker gets nothing from its queues, "" if it does."""
        # The publisher notices as well if no connection can be opened.
        return self.refusal or (self.publisher.down[1] if self.publisher.down else "")

    def _publish_mail(self, id: str) -> None:
        self.publisher.offer(id, queue="mail")

    def deliver(self, ids: list[str], *, outbox_id: str) -> bool:
        """Deliver the mails that a nudge names; return False if the nudge has to go back to the queue."""
        if outbox_id != self.database.outbox_id:
            log.error(
                "this worker reads outbox %s (%s), but the nudge is from outbox %s: web and worker need "
                "the same MAILASYNC_DATABASE_URL, unless the nudge is from before `%s db restored`",
                self.database.outbox_id,
                self.database,
                outbox_id,
                PROGRAM,
            )
            return True
        return self.delivery.deliver(ids)

    def accept(self, id: str, mail: object) -> bool:
        """Accept a mail that another Celery client sent; return False if the task has to be repeated.

        If it is no mail, a failed mail with the task's id is recorded, with the reason.
        """
        if isinstance(mail, str) and is_id(mail) and self.outbox.details(mail):
            # sendMail.delay(id), from a process that runs no publisher
            return self.delivery.deliver([mail])
        id = self._usable(id, is_id(id))
        try:
            accepted = self.reader.mail(
                mail, work_seconds=self.settings.SIMULATED_WORK_SECONDS, id=id
            )
            if accepted.dry_run:
                detail = "expected a mail to be sent, as nobody is told here what would be"
                raise InvalidMessage([FieldError("#/dry_run", detail)])
        except (MalformedJSON, InvalidMessage) as e:
            self._fail_mail(id, str(e))
            return True
        if self.outbox.accept(accepted):
            if accepted.job:
                self._wake(accepted.job.queue)
            elif accepted.state is State.QUEUED:
                self.publisher.offer(id, queue=accepted.queue)
        return True

    def accept_job(self, id: str, params: object) -> None:
        """Accept a job that another Celery client sent.

        If it is no job, a failed job with the task's id is recorded, with the reason.
        """
        id = self._usable(id, is_job_id(id))
        try:
            submission = self.reader.job(params, id=id)
        except (MalformedJSON, InvalidMessage) as e:
            self._fail_job(id, str(e))
            return
        if submission.mail:
            self.outbox.accept(submission.mail)
        else:
            self.jobs.accept(submission.job)
        self._wake(submission.job.queue)

    def refuse(self, id: str, task_name: str, reason: str) -> None:
        """Record a task that cannot be read as a failed mail or job with its id; count one without an id."""
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
            NewMessage(
                id=id, message=Message(to=()), message_id=f"{new_id()}@localhost", failed=reason
            )
        )

    def _fail_job(self, id: str, reason: str) -> None:
        log.error("task %s is no job that can be accepted; see GET /v1/jobs/%s", id, id)
        self.jobs.accept(
            NewJob(
                id=id,
                name="",
                args={},
                queue=registry.DEFAULT_QUEUE,
                timeout_seconds=0,
                failed=reason,
            )
        )

    def _wake_awaited(self, ids: Sequence[str]) -> None:
        """Have the jobs run that some of these mails wait for."""
        try:
            for queue in self.jobs.awaited(ids):
                self._wake(queue)
        except StoreUnavailable as e:  # Each runner looks for jobs once a second, too.
            log.error("%s", e)

    def _wake(self, queue: str) -> None:
        """Have the jobs on this queue run, by this worker or by one that serves the queue."""
        self.runner.wake()
        if queue not in self.heartbeat.queues:
            # Any UUID is a nudge. The id of the job may be one that a client chose, and look like a job's
            # name.
            self.publisher.offer(new_id(), queue=queue)

    def _usable(self, id: str, is_usable: bool) -> str:
        """Return the id of a task, or a new one in its place if it cannot be stored."""
        if is_usable:
            return id
        new = new_id()
        log.error(
            "a task's id of %d characters cannot be stored; it is recorded as %s", len(id), new
        )
        return new

    def close(self) -> None:
        """Stop all parts, each before those that it needs; nothing is left for others to wait for."""
        self.delivery.stop()
        self.notifier.stop()
        for reader in self.mailbox_readers:
            reader.stop()
        self.delivery.close()
        self.runner.close()
        self.notifier.close()
        for reader in self.mailbox_readers:
            reader.join()
        self.sweeper.stop()
        self.publisher.stop()
        try:
            self.heartbeat.stop()
        except StoreUnavailable as e:
            log.error("%s", e)
        self.database.close()


def is_job_id(id: str) -> bool:
    return is_id(id) and len(id) <= ID_MAX_CHARACTERS
