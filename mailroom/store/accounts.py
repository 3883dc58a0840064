"""Sender accounts: whether each can send, what it sent in the last 24 hours, and so how much room it has.

Rows are locked in the order accounts, messages, usage, by whoever needs more than one of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, and_, func, select, update

from mailroom.model.account import AccountError, AccountState, Budget, Free
from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.db.schema import accounts, insertion, messages, now_ms, recipients, usage
from mailroom.store.db.statements import Prepared

BUCKET_MS = 10 * 60_000
DAY_MS = 24 * 3600_000
#: How long one mail that tries an account in trouble keeps the others from it.
PROBE_MS = 60_000
#: Where there is no limit.
PLENTY = 1_000_000_000
#: Trouble that comes while there is some already is written only if it is worse.
_SEVERITY = {AccountState.OK: 0, AccountState.PAUSED: 1, AccountState.PARKED: 2, AccountState.HALTED: 3}


@dataclass
class Allowance:
    """The room of one account: what it may begin to send now."""

    account: str
    messages: int
    recipients: int
    unlimited: bool = False
    is_probe: bool = False
    until: int | None = None  #: when there may be more, in milliseconds since 1970
    words: str = ""  #: what it lacks, as `waits for …` goes on

    def holds(self, people: int) -> bool:
        return self.messages >= 1 and self.recipients >= people

    def take(self, people: int) -> None:
        self.messages -= 1
        self.recipients -= people


@dataclass(frozen=True)
class Accounts:
    """The accounts of the settings, as the outbox knows them."""

    database: Database
    budgets: Sequence[Budget]
    free: Callable[[str], Free] | None = None  #: how many more mails of an account this worker can take

    def register(self) -> None:
        """Make the rows that are missing. A login that was refused is tried again, as a worker starts, perhaps with the right one."""
        self.database.write(self._register, None)

    def rooms(self, connection: Connection, *, locking: bool = False) -> list[Allowance]:
        """The room of each account; `locking` keeps others from dividing the same room, where there is a limit."""
        rows = {
            row.name: row
            for row in _ROOMS[locking and any(budget.is_limited for budget in self.budgets)](connection)
        }
        now = next((row.now for row in rows.values()), 0)
        rooms = (self._room(connection, budget, rows.get(budget.account), now) for budget in self.budgets)
        return [self._narrowed(room) for room in rooms]

    def capacity(self) -> dict[str, int]:
        """Count, for each account that has room, the messages waiting for it that can come due now."""
        rooms = self.database.read(self.rooms)
        return {room.account: most for room in rooms if (most := min(room.messages, room.recipients)) > 0}

    def standing(self) -> list[dict[str, Any]]:
        """Return what is known of each account: its row, limits, and what it sent in the last 24 hours."""
        return self.database.read(self._standing)

    def try_now(self, name: str) -> bool:
        """Let one mail try this account at once, and not when it would be tried; False if it can send, or is none of ours."""
        return name in {budget.account for budget in self.budgets} and self.database.write(
            _try_now, name, alone=True
        )

    def _room(self, connection: Connection, budget: Budget, row: Any, now: int) -> Allowance:
        if row is not None and row.state != AccountState.OK:
            words = f"account {budget.account}, {row.state}: {row.reason}"
            if row.until is not None and row.until <= now:
                return Allowance(budget.account, 1, PLENTY, is_probe=True, until=now + PROBE_MS, words=words)
            return Allowance(budget.account, 0, 0, until=row.until, words=words)
        if not budget.is_limited:
            return Allowance(budget.account, PLENTY, PLENTY, unlimited=True)
        # What is begun first: what ends between the two looks is then counted twice, and not never.
        begun = _begun(connection, budget.account)
        sent, oldest = used(connection, budget.account), _oldest(connection, budget.account)
        return Allowance(
            budget.account,
            (budget.messages or PLENTY) - sent[0] - begun[0],
            (budget.recipients or PLENTY) - sent[1] - begun[1],
            until=(oldest + 1) * BUCKET_MS + DAY_MS if oldest else now + DAY_MS,
            words=f"account {budget.account}, what it may send in 24 hours is used up",
        )

    def _narrowed(self, room: Allowance) -> Allowance:
        """Leave as much of it as this worker has connections for; one in trouble is tried at any rate."""
        if self.free is None or room.is_probe or room.messages < 1:
            return room
        free = self.free(room.account)
        if room.messages <= free.mails:
            return room
        return replace(room, messages=free.mails, unlimited=False, until=None, words=free.words)

    def _register(self, connection: Connection, asked: list[None]) -> list[None]:
        known = {row.name: row for row in connection.execute(_STATES.with_for_update())}
        for budget in sorted(self.budgets, key=lambda budget: budget.account):
            row = known.get(budget.account)
            if row is None:
                connection.execute(
                    insertion(connection, accounts)
                    .values(
                        name=budget.account,
                        state=AccountState.OK,
                        since=now_ms(),
                        failures=0,
                        credentials=budget.credentials,
                    )
                    .on_conflict_do_nothing()
                )
            elif row.credentials != budget.credentials or row.state == AccountState.HALTED:
                again = {} if row.state == AccountState.OK else {"until": now_ms()}
                connection.execute(
                    update(accounts)
                    .values(credentials=budget.credentials, **again)
                    .where(accounts.c.name == row.name)
                )
        return asked

    def _standing(self, connection: Connection) -> list[dict[str, Any]]:
        rows = {row["name"]: dict(row) for row in connection.execute(select(accounts)).mappings()}
        return [
            rows.get(
                budget.account,
                {
                    "name": budget.account,
                    "state": AccountState.OK,
                    "reason": None,
                    "since": None,
                    "until": None,
                },
            )
            | dict(zip(("messages", "recipients"), used(connection, budget.account), strict=True))
            | {"budget": budget}
            for budget in self.budgets
        ]


_STATES = select(accounts, now_ms().label("now")).order_by(accounts.c.name)
_ROOMS = {False: Prepared(lambda dialect: _STATES), True: Prepared(lambda dialect: _STATES.with_for_update())}


def _try_now(connection: Connection, names: list[str]) -> list[bool]:
    return [
        bool(
            connection.execute(
                update(accounts)
                .values(until=now_ms())
                .where(accounts.c.name == name, accounts.c.state != AccountState.OK)
            ).rowcount
        )
        for name in names
    ]


def begin_probe(connection: Connection, account: str) -> None:
    """Keep other mails from an account while one tries it."""
    connection.execute(update(accounts).values(until=now_ms() + PROBE_MS).where(accounts.c.name == account))


def lock(connection: Connection, names: Iterable[str]) -> None:
    """Keep others from these accounts until the transaction ends."""
    connection.execute(
        select(accounts.c.name)
        .where(accounts.c.name.in_(sorted(names)))
        .order_by(accounts.c.name)
        .with_for_update()
    )


def note_ends(
    connection: Connection, ends: Iterable[tuple[str, bool, AccountError | None]]
) -> dict[str, int]:
    """Write what the ends of attempts (account, whether it was a probe, its trouble) say of the accounts.

    Return, for each account that has trouble, when it is tried again.
    """
    until: dict[str, int] = {}
    worth_it = sorted(
        ((account, is_probe, trouble) for account, is_probe, trouble in ends if trouble or is_probe),
        key=lambda end: end[0],
    )
    for account, is_probe, trouble in worth_it:
        row = connection.execute(
            select(accounts, now_ms().label("now")).where(accounts.c.name == account).with_for_update()
        ).one_or_none()
        if row is None:
            continue
        if trouble is None:
            _set(
                connection,
                account,
                state=AccountState.OK,
                reason=None,
                since=now_ms(),
                until=None,
                failures=0,
            )
            continue
        is_worse = _SEVERITY[trouble.state] > _SEVERITY[AccountState(row.state)]
        if is_probe or is_worse or row.until is None:
            wait_ms = (
                int(1000 * trouble.waits[min(row.failures, len(trouble.waits) - 1)]) if trouble.waits else 0
            )
            since = {} if row.state == trouble.state else {"since": now_ms()}
            _set(
                connection,
                account,
                state=trouble.state,
                reason=trouble.reason,
                until=row.now + wait_ms,
                failures=row.failures + 1,
                **since,
            )
            until[account] = row.now + wait_ms
        else:
            until.setdefault(account, row.until)
    return until


def note_sent(connection: Connection, sent: Iterable[tuple[str, int]]) -> None:
    """Count messages (account, recipients that took it) as sent now."""
    sums: dict[str, list[int]] = {}
    for account, people in sent:
        one = sums.setdefault(account, [0, 0])
        one[0] += 1
        one[1] += people
    for account, (count, people) in sorted(sums.items()):
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
    """Messages and recipients in the last 24 hours, by stretches of ten minutes."""
    row = connection.execute(
        select(
            func.coalesce(func.sum(usage.c.messages), 0), func.coalesce(func.sum(usage.c.recipients), 0)
        ).where(usage.c.account == account, usage.c.bucket >= (now_ms() - DAY_MS) // BUCKET_MS)
    ).one()
    return int(row[0]), int(row[1])


def _begun(connection: Connection, account: str) -> tuple[int, int]:
    """Messages and recipients that workers have in hand."""
    row = connection.execute(
        select(func.count(messages.c.id.distinct()), func.count(recipients.c.id))
        .join(
            recipients,
            and_(recipients.c.id == messages.c.id, recipients.c.state.in_([State.QUEUED, State.DEFERRED])),
        )
        .where(messages.c.owner.is_not(None), messages.c.account == account)
    ).one()
    return int(row[0]), int(row[1])


def _oldest(connection: Connection, account: str) -> int | None:
    found: int | None = connection.scalar(
        select(func.min(usage.c.bucket)).where(
            usage.c.account == account, usage.c.bucket >= (now_ms() - DAY_MS) // BUCKET_MS
        )
    )
    return found


def _set(connection: Connection, account: str, **values: Any) -> None:
    connection.execute(update(accounts).values(**values).where(accounts.c.name == account))
