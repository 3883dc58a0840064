"""`flask doctor` and GET /v1/accounts, on real processes: what is well is ok, and what is not says what to do."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.services import wait_until
from tests.services.certificates import make_certificates
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP


def examined(made: Service) -> tuple[int, dict[str, Any]]:
    """Exit code, and the findings by what was looked at."""
    done = subprocess.run([".venv/bin/python", "-m", "flask", "doctor", "--json"], cwd=made.project, env=made.environment, check=False,
                          capture_output=True, text=True, timeout=60)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {one["what"]: one for one in found}


def test_where_all_is_well_each_line_is_ok(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.worker()
    code, found = examined(pair)
    assert [*found] == ["versions", "database", "broker", "worker", "login of account default", "budget of account default"]
    assert (code, {one["ok"] for one in found.values()}) == (0, {True})
    assert "guest:**@" in found["broker"]["words"]
    assert found["budget of account default"]["words"] == "no limit"
    assert smtpd.payloads == []


def test_what_is_not_well_says_what_to_do(tmp_path: Path) -> None:
    with service(tmp_path, BROKER_URL="pyamqp://guest:geheim@127.0.0.1:9//", DATABASE_URL=f"sqlite:///{tmp_path}/none.sqlite3",
                 SMTP_HOST="127.0.0.1", SMTP_PORT="9", SMTP_SECURITY="none") as made:
        code, found = examined(made)
        assert (code, [what for what, one in found.items() if one["ok"]]) == (1, ["versions"])
        assert "run `flask db upgrade`" in found["database"]["words"]
        assert "start RabbitMQ" in found["broker"]["words"]
        assert "check MAILASYNC_SMTP_HOST" in found["login of account default"]["words"]
        made.upgrade()
        code, found = examined(made)
        assert (code, found["database"]["ok"]) == (1, True)
        assert found["worker"]["words"].startswith("none is running on this database; start one: celery")
        assert "geheim" not in json.dumps(found)


@pytest.mark.parametrize(("reply", "words"), [
    ("535 5.7.8 no", "535 5.7.8 no; user or password is wrong"), ("534 5.7.9 no", "534 5.7.9 no; Gmail wants an app password")])
def test_a_login_that_is_refused_is_told_and_halts_the_account(tmp_path: Path, broker_url: str, sqlite_url: str, reply: str,
                                                              words: str) -> None:
    certificates = make_certificates(tmp_path)
    with ScriptedSMTP(auth={"alice@example.org": "secret"}, tls="ssl", certificate=certificates.valid) as smtpd, service(
            tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, SMTP_HOST="localhost", SMTP_PORT=str(smtpd.port),
            SMTP_CA_FILE=str(certificates.ca_file), MAIL_USERNAME="alice@example.org", MAIL_PASSWORD="secret") as made:
        made.upgrade()
        made.web()
        made.worker()
        _, found = examined(made)
        assert "lets us in as alice@example.org; TLSv1" in found["login of account default"]["words"]
        smtpd.reply("AUTH", reply, times=None)
        assert words in examined(made)[1]["login of account default"]["words"]
        id = made.post("/v1/messages")
        wait_until(lambda: made.message(id)["status"] == "deferred", 15, what="it is refused")
        [account] = made.get("/v1/accounts")["data"]
        assert (account["name"], account["status"]) == ("default", "halted")
        assert account["why"].startswith(f"the server refused the login: {reply}; its mails are kept, and one is tried at 20")
        assert made.message(id)["why"].endswith(f": {reply}")
        code, found = examined(made)
        assert (code, found["budget of account default"]["ok"]) == (1, False)


def test_accounts_show_what_is_left(tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str],
                                    smtpd: ScriptedSMTP) -> None:
    (tmp_path / "accounts.toml").write_text('[[account]]\nname = "ops"\nfrom = "ops@example.org"\nmessages_per_day = 2\n')
    with service(tmp_path, **{**to_smtpd, "BROKER_URL": broker_url, "DATABASE_URL": sqlite_url,
                              "ACCOUNTS_FILE": str(tmp_path / "accounts.toml")}) as made:
        made.upgrade()
        made.web()
        made.worker()
        ids = [made.post("/v1/messages") for _ in range(3)]
        wait_until(lambda: sorted(made.message(id)["status"] for id in ids) == ["deferred", "sent", "sent"], 20, what="two are sent")
        [account] = made.get("/v1/accounts")["data"]
        assert account | {"since": None} == {
            "name": "ops", "from": "ops@example.org", "next_hop": f"{smtpd.host}:{smtpd.port}", "status": "ok",
            "why": "mail goes by this account", "since": None, "tried_again_at": None,
            "messages": {"limit": 2, "sent": 2, "left": 0}, "recipients": None}
        [waits] = [one for one in map(made.message, ids) if one["status"] == "deferred"]
        assert "what it may send in 24 hours is used up" in waits["why"]
        assert {mail.mail_from for mail in smtpd.payloads} == {"ops@example.org"}
