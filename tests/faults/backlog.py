"""Makes a large backlog in seconds: copies of one accepted mail, made by the database itself, whatever columns a table has."""

from sqlalchemy import Engine, inspect, text

#: Ids of copies look like any other and sort before those of new mails.
ID = "00000000-0000-7000-8000-"
STEP = 100_000


def copy(engine: Engine, template: str, *, first: int, count: int) -> None:
    """Add `count` queued and unpublished copies of the message with the id `template`, numbered from `first`."""
    sqlite = engine.dialect.name == "sqlite"
    number = (
        f"printf('{ID}%012x', series.n)" if sqlite else f"'{ID}' || lpad(to_hex(series.n), 12, '0')"
    )
    series = (
        "WITH RECURSIVE series(n) AS (SELECT :low UNION ALL SELECT n + 1 FROM series WHERE n < :high)"
        if sqlite
        else "WITH series AS (SELECT generate_series(CAST(:low AS bigint), CAST(:high AS bigint)) AS n)"
    )
    anew = {"id": number, "state": "'queued'"}  # Whatever became of the template.
    instead = {
        "messages": {
            **anew,
            "message_id": f"{number} || '@example.org'",
            "published_at": "NULL",
            "owner": "NULL",
            "attempt": "0",
            "reason": "NULL",
        },
        "contents": {"id": number},
        "recipients": {**anew, "reply": "NULL"},
    }
    for low in range(first, first + count, STEP):
        high = min(low + STEP, first + count) - 1
        with engine.begin() as connection:
            for table in instead:
                columns = [column["name"] for column in inspect(connection).get_columns(table)]
                chosen = ", ".join(instead[table].get(name, f"t.{name}") for name in columns)
                connection.execute(
                    text(
                        f"INSERT INTO {table} ({', '.join(columns)}) {series} SELECT {chosen} FROM {table} AS t, series "
                        f"WHERE t.id = :template"
                    ),
                    {"low": low, "high": high, "template": template},
                )
    if not sqlite:  # PostgreSQL would do that soon; SQLite never does, and keeps to plans for what it counted once.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))


def copied(first: int, count: int) -> list[str]:
    """The ids of the copies with these numbers."""
    return [f"{ID}{number:012x}" for number in range(first, first + count)]
