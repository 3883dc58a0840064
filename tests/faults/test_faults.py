"""Each fault once, at one moment, judged by the mail server's log. `make soak` has them all, at random, for long."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import scenarios
from tests.faults.judge import Verdict
from tests.faults.load import Post
from tests.faults.rig import Rig, private_servers, running
from tests.services import free_port, let_pass
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def rig(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker_url: str,
    rabbitmq: RabbitMQ,
    smtpd: ScriptedSMTP,
) -> Iterator[Rig]:
    """Web and a worker, on a vhost of the shared node and on the database that the test's mark names."""
    kind = getattr(request, "param", "sqlite")
    url = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgres_url")
    vhost = broker_url.rpartition("/")[2]
    with running(Rig(tmp_path, smtpd, url, broker_url, broker=rabbitmq, vhost=vhost)) as made:
        yield made


on_sqlite = pytest.mark.parametrize("rig", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("rig", ["postgresql"], indirect=True)


def assert_good(verdict: Verdict, *, duplicated: int = 0) -> None:
    """`duplicated`: as many mails at most may have come twice, each recorded."""
    assert verdict.good, f"{verdict}\n" + "\n".join(verdict.problems)
    assert verdict.ok == verdict.accepted
    assert verdict.duplicated <= duplicated, str(verdict)


@pytest.mark.parametrize(
    ("rig", "moments"),
    [
        ("sqlite", ("after RCPT", "in the payload")),
        ("postgresql", ("before the fence", "after the dot")),
    ],
    indirect=["rig"],
)
def test_a_worker_killed_in_the_middle_of_a_mail_loses_nothing(
    rig: Rig, moments: tuple[str, str]
) -> None:
    for moment in moments:
        scenarios.worker_killed(rig, moment)
        assert_good(
            rig.verdict(), duplicated=1 if moment in ("in the payload", "after the dot") else 0
        )


@on_sqlite
def test_a_worker_killed_before_it_claimed_its_nudges_doubles_nothing(rig: Rig) -> None:
    scenarios.worker_killed_before_claim(rig)
    assert_good(rig.verdict())


@on_sqlite
def test_a_worker_killed_between_the_reply_and_its_commit_says_that_it_is_uncertain(
    rig: Rig,
) -> None:
    scenarios.worker_killed_before_commit(rig)
    assert_good(rig.verdict(), duplicated=1)


@on_postgresql
def test_a_worker_that_is_asked_to_stop_finishes_what_is_past_the_fence(rig: Rig) -> None:
    scenarios.worker_stopped(rig)
    assert_good(rig.verdict())


@on_sqlite
def test_a_worker_frozen_for_longer_than_its_lease_sends_nothing_that_others_have_sent(
    rig: Rig,
) -> None:
    scenarios.worker_frozen_past_its_lease(rig)
    assert_good(rig.verdict())


@on_postgresql
def test_a_worker_that_lost_its_mail_does_not_pass_the_fence_of_the_new_owner(rig: Rig) -> None:
    scenarios.worker_frozen_while_another_has_its_mail(rig)
    assert_good(rig.verdict())


@on_postgresql
def test_a_worker_whose_heartbeat_is_not_kept_begins_no_payload(rig: Rig) -> None:
    scenarios.heartbeat_lost(rig)
    assert_good(rig.verdict())


@on_sqlite
def test_replies_read_while_sqlite_is_locked_are_not_forgotten(rig: Rig) -> None:
    scenarios.database_away_after_the_dot(rig)
    verdict = rig.verdict()
    assert_good(verdict)
    assert verdict.uncertain_attempts == 0


@on_sqlite
def test_nudges_that_meet_a_locked_database_go_back_to_the_queue(rig: Rig) -> None:
    assert scenarios.nudges_met_by_a_locked_database(rig) == 0
    assert_good(rig.verdict())


@on_postgresql
def test_mail_for_a_deleted_queue_is_known_to_be_unpublished(rig: Rig) -> None:
    scenarios.queue_gone(rig)
    assert_good(rig.verdict())
    assert rig.nudges_recovered.get("lost", 0) == 0


@on_sqlite
def test_a_web_process_killed_while_it_answers_keeps_what_it_has_promised(rig: Rig) -> None:
    scenarios.web_killed_at_work(rig)
    assert_good(rig.verdict())


@on_postgresql
def test_a_poison_mail_among_hundreds_fails_and_the_others_are_sent_once(rig: Rig) -> None:
    id = scenarios.poison(rig)
    told = rig.service.message(id)
    assert told["why"].startswith("failed: crashed")
    rig.load.posts[:] = [post for post in rig.load.posts if post.id != id]
    assert len(rig.load.posts) == 299
    # Its first victim had others in hand, and those past their final dot are open in SMTP itself; from then on it is alone.
    assert_good(rig.verdict(), duplicated=int(rig.service.settings.get("SMTP_CONNECTIONS", 10)))


@on_sqlite
def test_a_full_disk_is_told_to_the_client_and_loses_nothing(rig: Rig) -> None:
    rig.post(20, "before")
    with rig.disk_full():
        refused = [rig.load.post(label="disk full") for _ in range(3)]
    assert [post.status for post in refused] == [503, 503, 503]
    rig.post(20, "after")
    assert_good(rig.verdict())


@on_sqlite
def test_sqlite_locked_by_another_process_for_ten_seconds_loses_nothing(rig: Rig) -> None:
    rig.load.begin(30, "locked")
    rig.load.wait_posted(10)
    with rig.database_away():
        assert rig.load.post(label="locked").status == 503
        assert rig.load.post(label="locked").status == 503
    rig.load.end()
    assert_good(rig.verdict())


@on_postgresql
def test_a_wiped_vhost_a_deleted_queue_and_closed_connections_lose_nothing(
    rig: Rig, rabbitmq: RabbitMQ
) -> None:
    harms: dict[str, Callable[[], None]] = {
        "queue deleted": lambda: rabbitmq.delete_queue(rig.vhost, "mail"),
        "vhost wiped": lambda: rabbitmq.wipe_vhost(rig.vhost),
        "connections closed": lambda: rabbitmq.close_connections_of(rig.vhost),
    }
    quiet = rig.post(10, "quiet")
    for label, harm in harms.items():
        rig.load.begin(30, label)
        rig.load.wait_posted(10)
        harm()
        rig.load.end()
        assert rig.settle(60), f"60 s after {label} {rig.unfinished()} are not final"
    assert_accepts_at_once(rig, quiet)
    assert_good(rig.verdict())


@on_postgresql
def test_workers_whose_clocks_are_wrong_by_an_hour_steal_nothing_and_lose_nothing(rig: Rig) -> None:
    fast = rig.add_worker_with_clock(3600)
    rig.add_worker_with_clock(-3600)
    rig.post(30, "clocks")
    assert rig.settle(60)
    assert not any("were given back" in worker.text() for worker in rig.workers)
    with scenarios.caught(rig, "RCPT", mails=30):
        rig.kill_worker(fast)
    assert_good(rig.verdict())


def test_of_two_brokers_named_in_its_url_the_second_is_used_where_the_first_is_dead(
    tmp_path: Path, broker_url: str, sqlite_url: str, smtpd: ScriptedSMTP
) -> None:
    dead = f"pyamqp://guest:guest@127.0.0.1:{free_port()}//"
    with running(Rig(tmp_path, smtpd, sqlite_url, f"{dead};{broker_url}")) as rig:
        rig.post(5, "first is dead")
        assert_good(rig.verdict(20))


def assert_accepts_at_once(rig: Rig, quiet: list[Post]) -> None:
    """No answer waited for the broker: that takes hundreds of times as long as one in quiet."""
    assert {post.status for post in rig.load.posts} == {202}
    usual, beside_faults = (
        statistics.fmean(post.seconds for post in posts) for posts in (quiet, rig.load.posts)
    )
    assert beside_faults < 30 * usual


@pytest.mark.parametrize(
    ("database", "faults"),
    [("sqlite", ("killed", "memory alarm")), ("postgresql", ("restarted", "frozen"))],
)
def test_no_fault_of_the_broker_slows_an_answer_or_loses_a_mail(
    tmp_path: Path, private_rabbitmq: RabbitMQ, database: str, faults: tuple[str, ...]
) -> None:
    node = private_rabbitmq
    with (
        private_servers(tmp_path / "servers", database=database, node=node) as servers,
        running(make_rig(servers)) as rig,
    ):
        quiet = rig.post(10, "quiet")
        for fault in faults:
            rig.load.begin(30, fault)
            rig.load.wait_posted(10)
            begin, end = {
                "killed": (node.kill, node.start),
                "restarted": (node.stop, node.start),
                "frozen": (node.pause, node.resume),
                "memory alarm": (
                    lambda: node.set_memory_alarm(True),
                    lambda: node.set_memory_alarm(False),
                ),
            }[fault]
            begin()
            rig.load.end()
            rig.post(10, fault)
            end()
            assert rig.settle(60), (
                f"60 s after the broker was {fault} {rig.unfinished()} are not final"
            )
        assert_accepts_at_once(rig, quiet)
        assert_good(rig.verdict())


def test_confirmed_nudges_outlive_the_broker_and_unpublished_mail_outlives_web(
    tmp_path: Path, private_rabbitmq: RabbitMQ
) -> None:
    with (
        private_servers(tmp_path / "servers", database="sqlite", node=private_rabbitmq) as servers,
        running(make_rig(servers)) as rig,
    ):
        scenarios.broker_killed_with_nudges_in_it(rig)
        assert_good(rig.verdict())
        assert rig.nudges_recovered.get("lost", 0) == 0
        scenarios.web_killed_before_publish(rig)
        assert_good(rig.verdict())


def test_postgresql_restarted_and_frozen_loses_nothing(
    tmp_path: Path, smtpd: ScriptedSMTP, broker_url: str
) -> None:
    with (
        postgres_of_its_own(tmp_path / "postgres") as cluster,
        running(
            Rig(tmp_path, smtpd, cluster.url("mail"), broker_url, postgres=cluster, worker_count=2)
        ) as rig,
    ):
        assert isinstance(rig.postgres, Postgres)
        rig.load.begin(40, "restarted")
        rig.load.wait_posted(10)
        rig.postgres.restart()
        rig.load.end()
        assert rig.settle(60)
        rig.load.begin(40, "frozen")
        rig.load.wait_posted(10)
        rig.postgres.pause()
        let_pass(4)
        rig.postgres.resume()
        rig.load.end()
        assert_good(rig.verdict())


@contextmanager
def postgres_of_its_own(directory: Path) -> Iterator[Postgres]:
    cluster = Postgres(directory)
    try:
        cluster.start()
        cluster.create_database("mail")
        yield cluster
    finally:
        cluster.close()


def make_rig(servers: dict[str, Any], **more: Any) -> Rig:
    return Rig(**servers, **more)
