"""Sender accounts: whether each can send, how much it sent in 24 hours, and how much it may send now.

Rows are locked in the order accounts, messages, usage, by whoever needs more than one of these tables.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, select, update

from mailroom.model.account import AccountError, AccountState, Capacity, SendingLimit
from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.schema import accounts, messages, recipients, usage
from mailroom.store.db.statements import Prepared

BUCKET_MS = 10 * 60_000
DAY_MS = 24 * 3600_000
#: How long an account that could not send gets no other mail while one mail probes it.
PROBE_MS = 60_000
#: An allowance without a limit.
PLENTY = 1_000_000_000
#: While an account cannot send, another error changes its state only if it is worse.
_SEVERITY = {
    AccountState.OK: 0,
    AccountState.PAUSED: 1,
    AccountState.PARKED: 2,
    AccountState.HALTED: 3,
}


@dataclass
class Allowance:
    """The amount that one account may begin to send now."""

    account: str
    messages: int
    recipients: int
    unlimited: bool = False
    is_probe: bool = False
    until: int | None = None  #: when there may be more, in milliseconds since 1970
    words: str = ""  #: what a message that finds no allowance waits for, to follow "waits for"

    def holds(self, people: int) -> bool:
        return self.messages >= 1 and self.recipients >= people

    def take(self, people: int) -> None:
        self.messages -= 1
        self.recipients -= people


class AccountReport(NamedTuple):
    """The end of an attempt, as far as it is about the account; without an error the account can send."""

    account: str
    is_probe: bool
    error: AccountError | None


@dataclass(frozen=True)
class Accounts:
    """The accounts of the settings, as the database knows them."""

    database: Database
    limits: Sequence[SendingLimit]
    #: how many more mails of an account this worker can take
    free: Callable[[str], Capacity] | None = None

    def register(self) -> None:
        """Make the rows that are missing, and let an account whose login was refused try again.

        A worker that starts may have the right password now.
        """
        self.database.write(self._register, None)

    def allowances(self, connection: Connection, *, locking: bool = False) -> list[Allowance]:
        """Return the allowance of each account.

        `locking` keeps other transactions from dividing the same allowance, where sending is limited, and
        from probing the same account.
        """
        locks_all = locking and any(limit.is_limited for limit in self.limits)
        rows = {row.name: row for row in _STATES[locks_all](connection)}
        now = next((row.now for row in rows.values()), 0)
        allowances = [
            self._narrowed(self._allowance(connection, limit, rows.get(limit.account), now))
            for limit in self.limits
        ]
        if locking and not locks_all:
            _lock_probes(connection, [allowance for allowance in allowances if allowance.is_probe])
        return allowances

    def capacity(self) -> dict[str, int]:
        """Return how many waiting messages may be queued now, by account, without accounts that have none."""
        allowances = self.database.read(self.allowances)
        most = {
            allowance.account: min(allowance.messages, allowance.recipients)
            for allowance in allowances
        }
        return {account: count for account, count in most.items() if count > 0}

    def details(self) -> list[dict[str, Any]]:
        """Return the row of each account, with its limits and how much it sent in the last 24 hours."""
        return self.database.read(self._details)

    def try_now(self, name: str) -> bool:
        """Let one mail probe this account at once; False if it can send anyway, or is not in the settings."""
        is_ours = name in {limit.account for limit in self.limits}
        return is_ours and self.database.write(_try_now, name, alone=True)

    def _allowance(
        self, connection: Connection, limit: SendingLimit, row: Any, now: int
    ) -> Allowance:
        if row is not None and row.state != AccountState.OK:
            words = f"account {limit.account}, {row.state}: {row.reason}"
            if row.until is not None and row.until <= now:
                return Allowance(
                    limit.account, 1, PLENTY, is_probe=True, until=now + PROBE_MS, words=words
                )
            return Allowance(limit.account, 0, 0, until=row.until, words=words)
        if not limit.is_limited:
            return Allowance(limit.account, PLENTY, PLENTY, unlimited=True)
        # Mails under way are counted first: one that ends between the two counts is then counted twice, not
        # never.
        under_way = _under_way(connection, limit.account)
        sent, oldest = used(connection, limit.account), _oldest(connection, limit.account)
        return Allowance(
            limit.account,
            (limit.messages or PLENTY) - sent[0] - under_way[0],
            (limit.recipients or PLENTY) - sent[1] - under_way[1],
            until=(oldest + 1) * BUCKET_MS + DAY_MS if oldest else now + DAY_MS,
            words=f"account {limit.account}, what it may send in 24 hours is used up",
        )

    def _narrowed(self, allowance: Allowance) -> Allowance:
        """Limit an allowance to the connections of this worker, unless it is a probe."""
        if self.free is None or allowance.is_probe or allowance.messages < 1:
            return allowance
        free = self.free(allowance.account)
        if allowance.messages <= free.mails:
            return allowance
        return replace(
            allowance, messages=free.mails, unlimited=False, until=None, words=free.reason
        )

    def _register(self, connection: Connection, items: list[None]) -> list[None]:
        rows = {row.name: row for row in connection.execute(_ALL.with_for_update())}
        for limit in sorted(self.limits, key=lambda limit: limit.account):
            row = rows.get(limit.account)
            if row is None:
                _insert(connection, limit)
            elif row.credentials != limit.credentials or row.state == AccountState.HALTED:
                again = {} if row.state == AccountState.OK else {"until": now_ms()}
                _set(connection, row.name, credentials=limit.credentials, **again)
        return items

    def _details(self, connection: Connection) -> list[dict[str, Any]]:
        rows = {row["name"]: dict(row) for row in connection.execute(select(accounts)).mappings()}
        details = []
        for limit in self.limits:
            sent, people = used(connection, limit.account)
            row = rows.get(limit.account, _new_row(limit.account))
            details.append(row | {"messages": sent, "recipients": people, "limit": limit})
        return details


_ALL = select(accounts, now_ms().label("now")).order_by(accounts.c.name)
#: The rows of all accounts, by whether they are locked.
_STATES = {
    False: Prepared(lambda dialect: _ALL),
    True: Prepared(lambda dialect: _ALL.with_for_update()),
}


def _new_row(name: str) -> dict[str, Any]:
    """Return what is known of an account that no worker has registered yet."""
    return {"name": name, "state": AccountState.OK, "reason": None, "since": None, "until": None}


def _insert(connection: Connection, limit: SendingLimit) -> None:
    connection.execute(
        insertion(connection, accounts)
        .values(
            name=limit.account,
            state=AccountState.OK,
            since=now_ms(),
            failures=0,
            credentials=limit.credentials,
        )
        .on_conflict_do_nothing()
    )


def _try_now(connection: Connection, names: list[str]) -> list[bool]:
    return [_try_one_now(connection, name) for name in names]


def _try_one_now(connection: Connection, name: str) -> bool:
    cannot_send = (accounts.c.name == name, accounts.c.state != AccountState.OK)
    changed = connection.execute(update(accounts).values(until=now_ms()).where(*cannot_send))
    return changed.rowcount > 0


def _lock_probes(connection: Connection, probes: Sequence[Allowance]) -> None:
    """Lock the accounts that are to be probed, before any message is locked.

    An account that another transaction has locked, or has begun to probe meanwhile, gets no mail from us. To
    wait for it could be a deadlock, as that one may wait for messages that we have locked. SQLite has one
    writer at a time, and needs none of this.
    """
    if not probes or connection.dialect.name == "sqlite":
        return
    names = [allowance.account for allowance in probes]
    due = (
        select(accounts.c.name)
        .where(accounts.c.name.in_(names), accounts.c.until <= now_ms())
        .order_by(accounts.c.name)
        .with_for_update(skip_locked=True)
    )
    locked = set(connection.scalars(due))
    for allowance in probes:
        if allowance.account not in locked:
            allowance.messages = allowance.recipients = 0


def begin_probe(connection: Connection, account: str) -> None:
    """Keep other mails from an account while one probes it."""
    _set(connection, account, until=now_ms() + PROBE_MS)


def lock_accounts(connection: Connection, names: Iterable[str]) -> None:
    """Keep others from these accounts until the transaction ends."""
    connection.execute(
        select(accounts.c.name)
        .where(accounts.c.name.in_(sorted(names)))
        .order_by(accounts.c.name)
        .with_for_update()
    )


def note_ends(connection: Connection, reports: Iterable[AccountReport]) -> dict[str, int]:
    """Change the states of accounts by what attempts report.

    Return, for each account with an error, when it is tried again, in milliseconds since 1970.
    """
    until: dict[str, int] = {}
    relevant = [report for report in reports if report.error or report.is_probe]
    for account, is_probe, error in sorted(relevant, key=lambda report: report.account):
        row = connection.execute(
            select(accounts, now_ms().label("now"))
            .where(accounts.c.name == account)
            .with_for_update()
        ).one_or_none()
        if row is None:
            continue
        if error is None:
            _resume(connection, account)
        elif is_probe or row.until is None or _is_worse(error, row):
            until[account] = _suspend(connection, row, error)
        else:
            until.setdefault(account, row.until)
    return until


def _is_worse(error: AccountError, row: Any) -> bool:
    return _SEVERITY[error.state] > _SEVERITY[AccountState(row.state)]


def _resume(connection: Connection, account: str) -> None:
    _set(
        connection,
        account,
        state=AccountState.OK,
        reason=None,
        since=now_ms(),
        until=None,
        failures=0,
    )


def _suspend(connection: Connection, row: Any, error: AccountError) -> int:
    """Keep mails from an account for a while; return until when, in milliseconds since 1970.

    The more errors came in a row, the longer that is.
    """
    wait_seconds = error.waits[min(row.failures, len(error.waits) - 1)] if error.waits else 0
    until: int = row.now + int(1000 * wait_seconds)
    since = {} if row.state == error.state else {"since": now_ms()}
    _set(
        connection,
        row.name,
        state=error.state,
        reason=error.reason,
        until=until,
        failures=row.failures + 1,
        **since,
    )
    return until


def note_sent(connection: Connection, sent: Iterable[tuple[str, int]]) -> None:
    """Count messages (account, recipients that took it) as sent now."""
    counts: Counter[str] = Counter()
    people: Counter[str] = Counter()
    for account, reached in sent:
        counts[account] += 1
        people[account] += reached
    for account in sorted(counts):
        _add_usage(connection, account, counts[account], people[account])


def _add_usage(connection: Connection, account: str, count: int, people: int) -> None:
    new = insertion(connection, usage).values(
        account=account, bucket=now_ms() // BUCKET_MS, messages=count, recipients=people
    )
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["account", "bucket"],
            set_={"messages": usage.c.messages + count, "recipients": usage.c.recipients + people},
        )
    )


def used(connection: Connection, account: str) -> tuple[int, int]:
    """Return the messages and recipients of the last 24 hours, by intervals of ten minutes."""
    sums = select(
        func.coalesce(func.sum(usage.c.messages), 0), func.coalesce(func.sum(usage.c.recipients), 0)
    )
    row = connection.execute(sums.where(*_of_a_day(account))).one()
    return int(row[0]), int(row[1])


def _of_a_day(account: str) -> list[Any]:
    return [usage.c.account == account, usage.c.bucket >= (now_ms() - DAY_MS) // BUCKET_MS]


def _under_way(connection: Connection, account: str) -> tuple[int, int]:
    """Return the messages and recipients that workers own."""
    unsent = recipients.c.state.in_([State.QUEUED, State.DEFERRED])
    row = connection.execute(
        select(func.count(messages.c.id.distinct()), func.count(recipients.c.id))
        .join(recipients, and_(recipients.c.id == messages.c.id, unsent))
        .where(messages.c.owner.is_not(None), messages.c.account == account)
    ).one()
    return int(row[0]), int(row[1])


def _oldest(connection: Connection, account: str) -> int | None:
    """Return the first interval of the last 24 hours in which the account sent."""
    oldest: int | None = connection.scalar(
        select(func.min(usage.c.bucket)).where(*_of_a_day(account))
    )
    return oldest


def _set(connection: Connection, account: str, **values: Any) -> None:
    connection.execute(update(accounts).values(**values).where(accounts.c.name == account))
