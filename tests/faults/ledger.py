"""Counts what the sweeper had to recover, by triggers in the run's own database: the product neither knows nor is changed."""

from collections import Counter

from sqlalchemy import Engine, text

#: A nudge that was confirmed and came to nothing, so that the row was published once more.
LOST = "lost"
#: A nudge that was not confirmed within 5 s, so that the sweeper published the row.
UNPUBLISHED = "unpublished"

_LOST = "OLD.state = 'queued' AND NEW.state = 'queued' AND NEW.published_at > OLD.published_at"
_UNPUBLISHED = (
    "OLD.state = 'queued' AND NEW.state = 'queued' "  # A claim says so too of what is not confirmed yet.
    "AND OLD.published_at IS NULL AND NEW.published_at - NEW.created_at >= 5000"
)
_TABLE = "CREATE TABLE IF NOT EXISTS faults_ledger (message VARCHAR(200), kind VARCHAR(20))"


def install(engine: Engine) -> None:
    statements = [_TABLE]
    for kind, condition in ((LOST, _LOST), (UNPUBLISHED, _UNPUBLISHED)):
        insert = f"INSERT INTO faults_ledger VALUES (NEW.id, '{kind}')"
        if engine.dialect.name == "sqlite":
            statements.append(
                f"CREATE TRIGGER faults_{kind} AFTER UPDATE OF published_at ON messages WHEN {condition} BEGIN {insert}; END"
            )
        else:
            statements += [
                f"CREATE FUNCTION faults_{kind}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; RETURN NULL; END $$",
                f"CREATE TRIGGER faults_{kind} AFTER UPDATE OF published_at ON messages FOR EACH ROW WHEN ({condition}) "
                f"EXECUTE FUNCTION faults_{kind}()",
            ]
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def recovered(engine: Engine) -> Counter[str]:
    """How many nudges were recovered, by kind."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT kind, count(*) AS many FROM faults_ledger GROUP BY kind")
        )
        return Counter({str(row.kind): int(row.many) for row in rows})


def silence_heartbeat(engine: Engine, pid: int) -> None:
    """From now on the heartbeat of the worker with this process id is not kept, as if its thread had died."""
    with engine.begin() as connection:
        id = connection.execute(
            text("SELECT id FROM workers WHERE name LIKE :name"), {"name": f"mailasync-{pid}-%"}
        ).scalar_one()
        if engine.dialect.name == "sqlite":
            connection.execute(
                text(
                    f"CREATE TRIGGER faults_silence BEFORE UPDATE ON workers WHEN OLD.id = '{id}' "
                    "BEGIN SELECT RAISE(IGNORE); END"
                )
            )
        else:
            connection.execute(
                text(
                    "CREATE FUNCTION faults_silence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
                )
            )
            connection.execute(
                text(
                    f"CREATE TRIGGER faults_silence BEFORE UPDATE ON workers FOR EACH ROW WHEN (OLD.id = '{id}') "
                    "EXECUTE FUNCTION faults_silence()"
                )
            )
