"""`flask doctor` and GET /v1/accounts, on real processes: what is well is ok, and what is not says what to do."""

import json
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import text

from mailroom.cli.doctor import Doctor, Finding
from mailroom.config.accounts import accounts
from mailroom.config.environment import load
from mailroom.config.settings import Settings
from mailroom.store.db.database import Database
from mailroom.store.db.schema import messages
from mailroom.store.keys.api_keys import ApiKeys, Scope
from mailroom.store.maintenance.health import Durability
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.submission.message import message_from
from tests.services import wait_until
from tests.services.certificates import make_certificates
from tests.services.dovecot import Dovecot
from tests.services.postgres import Postgres
from tests.services.processes import Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP


def examined(made: Service) -> tuple[int, dict[str, Any]]:
    """Exit code, and the findings by what was looked at."""
    done = made.call("-m", "flask", "doctor", "--json")
    found = [json.loads(line) for line in done.lines]
    return done.code, {one["what"]: one for one in found}


def test_where_all_is_well_each_line_is_ok(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.worker()
    code, found = examined(pair)
    assert [*found] == [
        "versions",
        "database",
        "broker",
        "durability",
        "worker",
        "queue",
        "keys",
        "PUBLIC_URL",
        "login of account default",
        "pipelining of account default",
        "budget of account default",
    ]
    assert (code, {one["ok"] for one in found.values()}) == (0, {True})
    assert "guest:**@" in found["broker"]["words"]
    assert re.search(r"answers; RabbitMQ \d+\.\d+", found["broker"]["words"])
    assert re.search(r"; (SQLite|PostgreSQL) \d+\.\d+.*, \d+\.\d MB$", found["database"]["words"])
    assert (found["queue"]["words"], found["budget of account default"]["words"]) == (
        "nothing waits",
        "no limit",
    )
    assert found["keys"]["words"].startswith("none: whoever works on this machine as this user")
    assert smtpd.payloads == []


def test_what_is_not_well_says_what_to_do(tmp_path: Path) -> None:
    with service(
        tmp_path,
        BROKER_URL="pyamqp://guest:geheim@127.0.0.1:9//",
        DATABASE_URL=f"sqlite:///{tmp_path}/none.sqlite3",
        SMTP_HOST="127.0.0.1",
        SMTP_PORT="9",
        SMTP_SECURITY="none",
    ) as made:
        code, found = examined(made)
        assert (code, [what for what, one in found.items() if one["ok"]]) == (
            1,
            ["versions", "PUBLIC_URL"],
        )
        assert "run `flask db upgrade`" in found["database"]["words"]
        assert "start RabbitMQ" in found["broker"]["words"]
        assert "check MAILASYNC_SMTP_HOST" in found["login of account default"]["words"]
        made.upgrade()
        code, found = examined(made)
        assert (code, found["database"]["ok"]) == (1, True)
        assert found["worker"]["words"].startswith(
            "none is running on this database; start one: celery"
        )
        assert "geheim" not in json.dumps(found)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("535 5.7.8 no", "535 5.7.8 no; user or password is wrong"),
        ("534 5.7.9 no", "534 5.7.9 no; Gmail wants an app password"),
    ],
)
def test_a_login_that_is_refused_is_told_and_halts_the_account(
    tmp_path: Path, broker_url: str, sqlite_url: str, reply: str, words: str
) -> None:
    certificates = make_certificates(tmp_path)
    with (
        ScriptedSMTP(
            auth={"alice@example.org": "secret"}, tls="ssl", certificate=certificates.valid
        ) as smtpd,
        service(
            tmp_path,
            BROKER_URL=broker_url,
            DATABASE_URL=sqlite_url,
            SMTP_HOST="localhost",
            SMTP_PORT=str(smtpd.port),
            SMTP_CA_FILE=str(certificates.ca_file),
            MAIL_USERNAME="alice@example.org",
            MAIL_PASSWORD="secret",
        ) as made,
    ):
        made.upgrade()
        made.web()
        made.worker()
        _, found = examined(made)
        assert (
            "lets us in as alice@example.org; TLSv1" in found["login of account default"]["words"]
        )
        assert re.fullmatch(r"valid for \d+ days", found["certificate of account default"]["words"])
        smtpd.reply("AUTH", reply, times=None)
        assert words in examined(made)[1]["login of account default"]["words"]
        id = made.post("/v1/messages")
        wait_until(lambda: made.message(id)["status"] == "deferred", what="it is refused")
        [account] = made.get("/v1/accounts")["data"]
        assert (account["name"], account["status"]) == ("default", "halted")
        assert account["why"].startswith(
            f"the server refuses this account: {reply}; its mails are kept, and one is tried at 20"
        )
        assert made.message(id)["why"].endswith(f": {reply}")
        code, found = examined(made)
        assert (code, found["budget of account default"]["ok"]) == (1, False)


def test_accounts_show_what_is_left(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    (tmp_path / "accounts.toml").write_text(
        '[[account]]\nname = "ops"\nfrom = "ops@example.org"\nmessages_per_day = 2\n'
    )
    with service(
        tmp_path,
        **{
            **to_smtpd,
            "BROKER_URL": broker_url,
            "DATABASE_URL": sqlite_url,
            "ACCOUNTS_FILE": str(tmp_path / "accounts.toml"),
        },
    ) as made:
        made.upgrade()
        made.web()
        made.worker()
        ids = [made.post("/v1/messages") for _ in range(3)]
        wait_until(
            lambda: (
                sorted(made.message(id)["status"] for id in ids) == ["deferred", "sent", "sent"]
            ),
            what="two are sent",
        )
        [account] = made.get("/v1/accounts")["data"]
        assert account | {"since": None} == {
            "name": "ops",
            "from": "ops@example.org",
            "next_hop": f"{smtpd.host}:{smtpd.port}",
            "status": "ok",
            "why": "mail goes by this account",
            "since": None,
            "tried_again_at": None,
            "messages": {"limit": 2, "sent": 2, "left": 0},
            "recipients": None,
            "mailbox": None,
        }
        [waits] = [one for one in map(made.message, ids) if one["status"] == "deferred"]
        assert "what it may send in 24 hours is used up" in waits["why"]
        assert {mail.mail_from for mail in smtpd.payloads} == {"ops@example.org"}


def test_a_server_that_hangs_is_told_and_keeps_nobody_long(
    tmp_path: Path, private_rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        service(
            tmp_path,
            BROKER_URL=private_rabbitmq.url(),
            DATABASE_URL=sqlite_url,
            SMTP_HOST="127.0.0.1",
            SMTP_SECURITY="none",
            SMTP_PORT=str(silent.getsockname()[1]),
            PUBLIC_URL="https://mail.example.org",
        ) as made,
    ):
        made.upgrade()
        private_rabbitmq.pause()
        try:
            code, found = examined(made)
        finally:
            private_rabbitmq.resume()
        assert (code, found["broker"]["ok"], found["login of account default"]["ok"]) == (
            1,
            False,
            False,
        )
        assert (
            "Connection" in found["login of account default"]["words"]
            or "timed out" in found["login of account default"]["words"]
        )
        assert found["PUBLIC_URL"]["words"].startswith("https://mail.example.org; a proxy there")


def test_a_mail_that_waits_for_long_and_a_missing_key_are_told(database: Database) -> None:
    Outbox(database).accept(
        NewMessage(id="late", message=message_from({"to": "bob@example.org"}), message_id="late@x")
    )
    earlier = messages.update().values(created_at=messages.c.created_at - 400_000)
    database.write(lambda connection, items: [connection.execute(earlier) and None], None)
    url = database.url.render_as_string(hide_password=False)
    settings = load(
        {"MAILASYNC_ENV_FILE": "", "MAILASYNC_DATABASE_URL": url, "MAILASYNC_HOST": "0.0.0.0"}
    )
    doctor = Doctor(settings, database, [], None)
    found = {one.what: one for one in doctor.examine()}
    assert (found["queue"].ok, found["keys"].ok) == (False, False)
    assert found["queue"].words.startswith("1 queued; the oldest of the queued waits for 4")
    assert found["keys"].words.endswith("run `flask keys create NAME`")
    ApiKeys(database).create("ci", scopes=[Scope.SEND])
    assert Finding("keys", True, "1 in the database; every request needs one") in doctor.examine()


def with_mailbox(dovecot: Dovecot, **changes: str) -> Settings:
    variables = {
        "ENV_FILE": "",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": "9",
        "SMTP_CA_FILE": str(dovecot.certificates.ca_file),
        "MAIL_USERNAME": dovecot.user,
        "MAIL_PASSWORD": dovecot.password,
        "IMAP_HOST": dovecot.host,
        "IMAP_PORT": str(dovecot.port),
    }
    return load({f"MAILASYNC_{name}": value for name, value in (variables | changes).items()})


def found_of_mailbox(settings: Settings, sqlite_url: str) -> Finding:
    database = Database(sqlite_url)
    findings = [*Doctor(settings, database, accounts(settings), None).examine()]
    database.close()
    [found] = [one for one in findings if one.what == "mailbox of account default"]
    return found


def test_a_mailbox_is_logged_in_to_and_its_sent_folder_found(
    dovecot: Dovecot, sqlite_url: str
) -> None:
    found = found_of_mailbox(with_mailbox(dovecot), sqlite_url)
    assert found.ok
    assert found.words == (
        f"{dovecot.host}:{dovecot.port} lets us in as {dovecot.user}; "
        f"it tells of new mail at once; sent mails are in {dovecot.sent!r}"
    )


def test_a_mailbox_that_cannot_be_read_says_what_to_do(dovecot: Dovecot, sqlite_url: str) -> None:
    refused = found_of_mailbox(with_mailbox(dovecot, MAIL_PASSWORD="wrong"), sqlite_url)
    assert not refused.ok
    assert "refused the login" in refused.words and "allow IMAP" in refused.words
    assert "wrong;" not in refused.words
    away = found_of_mailbox(with_mailbox(dovecot, IMAP_PORT="9"), sqlite_url)
    assert not away.ok
    assert "could not be reached" in away.words and "check MAILASYNC_IMAP_HOST" in away.words


def test_a_mailbox_that_hangs_keeps_nobody_long(sqlite_url: str, dovecot: Dovecot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        found = found_of_mailbox(with_mailbox(dovecot, IMAP_PORT=port), sqlite_url)
    assert not found.ok
    assert "in time" in found.words


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path, sqlite_url: str) -> None:
    soon = datetime.now(UTC) + timedelta(days=3)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("localhost", not_after=soon).private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "soon.pem")
    )
    with ScriptedSMTP(tls="ssl", certificate=tmp_path / "soon.pem") as smtpd:
        settings = load(
            {
                "MAILASYNC_ENV_FILE": "",
                "MAILASYNC_SMTP_HOST": "localhost",
                "MAILASYNC_SMTP_PORT": str(smtpd.port),
                "MAILASYNC_SMTP_CA_FILE": str(tmp_path / "ca.pem"),
            }
        )
        database = Database(sqlite_url)
        found = {
            one.what: one for one in Doctor(settings, database, accounts(settings), None).examine()
        }
        database.close()
    assert found["login of account default"].ok
    assert (
        found["certificate of account default"].ok,
        found["certificate of account default"].words,
    ) == (
        False,
        "valid for 3 days: whoever runs that server has to renew it",
    )


@pytest.mark.parametrize(
    ("commits", "standbys", "hosts", "told"),
    [
        ("on", "", 1, ""),
        ("on", "two", 2, ""),
        ("remote_apply", "two", 2, ""),
        ("off", "", 1, "synchronous_commit is off"),
        ("on", "", 2, "no commit waits for the stand-by"),
        ("local", "two", 2, "no commit waits for the stand-by"),
    ],
)
def test_what_a_commit_may_not_outlive_is_told(
    commits: str, standbys: str, hosts: int, told: str
) -> None:
    found = Durability(
        fsync="on", synchronous_commit=commits, synchronous_standby_names=standbys, hosts=hosts
    )
    assert [told in danger for danger in found.dangers()] == [True] * bool(told)


def test_commits_that_wait_for_no_disk_and_no_stand_by_are_told(
    postgres: Postgres, postgres_url: str
) -> None:
    database = ready(postgres_url)
    assert found_durable(postgres_url) == (True, "what is committed is on disk")
    with database.engine.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE {database.url.database} SET synchronous_commit = off")
        )
    database.close()
    host = f"host=127.0.0.1:{postgres.ports['postgres']}"
    is_well, words = found_durable(f"postgresql://postgres@/{database.url.database}?{host}&{host}")
    assert (
        not is_well and "synchronous_commit is off" in words and "run `flask db restored`" in words
    )


def found_durable(url: str) -> tuple[bool, str]:
    database = Database(url)
    settings = load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_DATABASE_URL": url})
    [found] = [
        one for one in Doctor(settings, database, [], None).examine() if one.what == "durability"
    ]
    database.close()
    return found.ok, found.words
