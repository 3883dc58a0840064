"""The publisher: confirmed chunks to a real RabbitMQ, and what happens when it cannot."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from kombu import Connection, Producer

from mailroom.broker import publisher
from mailroom.broker.publisher import CHUNK_MAX, Publisher
from mailroom.process import supervisor
from tests.services import free_port, wait_until
from tests.services.logs import broken_log
from tests.services.rabbitmq import RabbitMQ


class Post:
    """A publisher, and what became of the ids it was offered."""

    def __init__(self, url: str, *, on_poll: Callable[[], None] = lambda: None) -> None:
        self.url = url
        self.nudges: list[tuple[str, list[str]]] = []
        self.published: list[str] = []
        self.unpublished: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.notes = 0
        self.publisher = Publisher(
            self.connect,
            self.publish,
            on_confirmed=self.note,
            on_unpublished=self.unpublished.extend,
            polled_queues=("mail", "mail.bulk"),
            on_poll=on_poll,
        )
        self.publisher.start()

    def note(self, queue: str, ids: Sequence[str], seconds_ago: float) -> None:
        self.notes += 1
        self.published += ids

    def connect(self) -> Connection:
        options = {"confirm_publish": True, "read_timeout": 2, "write_timeout": 2}
        connection = Connection(self.url, connect_timeout=2, transport_options=options)
        return connection.ensure_connection(max_retries=0, interval_start=0)

    def publish(self, producer: Producer, queue: str, ids: Sequence[str]) -> None:
        assert self.hold.wait(60)
        producer.publish(
            list(ids), routing_key=queue, serializer="json", mandatory=True, confirm_timeout=2
        )
        self.nudges.append((queue, list(ids)))

    def has_nudged(self, count: int) -> bool:
        return len(self.nudges) == count

    def declare(self, *queues: str) -> None:
        with self.connect() as connection:
            for queue in queues:
                connection.SimpleQueue(queue).close()


@pytest.fixture
def post(broker_url: str) -> Iterator[Post]:
    made = Post(broker_url)
    made.declare("mail", "jobs")
    yield made
    made.publisher.stop()


@pytest.fixture
def unreachable() -> Iterator[Post]:
    made = Post(f"pyamqp://guest@127.0.0.1:{free_port()}//")
    yield made
    made.publisher.stop()


def test_a_thread_that_ended_in_an_outage_is_started_anew(unreachable: Post) -> None:
    with broken_log():
        unreachable.publisher.offer("first", queue="mail")
        wait_until(supervisor.troubles, 60, what="the thread has ended")
    unreachable.publisher.offer("second", queue="mail")
    wait_until(lambda: unreachable.unpublished == ["second"], 60, what="it goes on")


def until(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, what=what)


def test_ids_that_wait_share_nudges_in_the_order_they_came(post: Post) -> None:
    post.hold.clear()
    ids = [f"id-{n}" for n in range(2 * CHUNK_MAX + 50)]
    for id in ids:
        post.publisher.offer(id, queue="mail")
    post.hold.set()
    until(lambda: len(post.published) == len(ids), "all are published")
    assert post.published == ids
    assert len(post.nudges) <= 4
    assert max(len(chunk) for _, chunk in post.nudges) == CHUNK_MAX
    assert post.publisher.down is None


def test_the_first_goes_and_is_noted_at_once_and_a_rush_is_noted_together(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "NOTE_SECONDS", 1.0)
    post.publisher.offer("first", queue="mail")
    until(lambda: post.nudges, "it is published")
    post.hold.clear()
    post.publisher.offer("second", queue="mail")
    until(lambda: post.published == ["first"], "it is noted before the next goes")
    post.hold.set()
    until(lambda: len(post.published) == 2, "the next is noted")
    post.notes = 0
    post.nudges.clear()
    post.published.clear()
    for number in range(100):
        post.publisher.offer(f"id-{number}", queue="mail")
        wait_until(partial(post.has_nudged, number + 1), what="it is published")
    until(lambda: len(post.published) == 100, "all are noted")
    assert len(post.nudges) == 100
    assert post.notes <= 40  # at most one in NOTE_SECONDS


def test_a_nudge_is_for_one_queue_and_a_row_that_must_be_alone_shares_none(post: Post) -> None:
    post.hold.clear()
    post.publisher.offer("first", queue="mail")
    until(lambda: not post.publisher._waiting, "the thread has the first")
    for id, queue, alone in (
        ("a", "mail", False),
        ("b", "jobs", False),
        ("c", "mail", False),
        ("d", "mail", True),
        ("e", "mail", False),
        ("f", "mail", False),
    ):
        post.publisher.offer(id, queue=queue, alone=alone)
    post.hold.set()
    until(lambda: len(post.published) == 7, "all are published")
    assert post.nudges[1:] == [
        ("mail", ["a"]),
        ("jobs", ["b"]),
        ("mail", ["c"]),
        ("mail", ["d"]),
        ("mail", ["e", "f"]),
    ]


def test_offering_never_waits_and_what_is_not_taken_is_told(unreachable: Post) -> None:
    for n in range(300):
        unreachable.publisher.offer(f"id-{n}", queue="mail")
    until(lambda: len(unreachable.unpublished) == 300, "all are reported")
    assert unreachable.published == []
    assert unreachable.publisher.down is not None
    assert "refused" in unreachable.publisher.down[1]


def test_a_nudge_that_no_queue_takes_is_not_published(post: Post) -> None:
    post.publisher.offer("id", queue="nowhere")
    until(lambda: post.unpublished == ["id"], "it is reported")
    post.publisher.offer("next", queue="mail")
    until(lambda: post.published == ["next"], "the publisher goes on")


def test_a_broker_that_dies_idle_is_noticed_and_so_is_its_return(
    private_rabbitmq: RabbitMQ,
) -> None:
    post = Post(private_rabbitmq.url())
    post.declare("mail")
    try:
        post.publisher.offer("before", queue="mail")
        until(lambda: post.published == ["before"], "it is published")
        until(lambda: post.publisher.queue == (1, 0), "the queue is looked at")
        until(
            lambda: post.publisher.empty_queues == ["mail.bulk"],
            "and the other, which is not there",
        )
        private_rabbitmq.kill()
        until(lambda: post.publisher.down, "the outage is noticed")
        private_rabbitmq.start()
        until(lambda: post.publisher.down is None, "the return is noticed")
        post.publisher.offer("after", queue="mail")
        until(lambda: post.published == ["before", "after"], "it goes on")
    finally:
        post.publisher.stop()


def test_a_frozen_broker_does_not_hold_the_publisher_when_it_stops(
    private_rabbitmq: RabbitMQ,
) -> None:
    post = Post(private_rabbitmq.url())
    post.declare("mail")
    post.publisher.offer("before", queue="mail")
    until(lambda: post.published == ["before"], "it is published")
    private_rabbitmq.pause()
    post.publisher.offer("during", queue="mail")
    until(lambda: post.unpublished == ["during"], "it is given up")
    stopping = threading.Thread(target=post.publisher.stop)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()
    private_rabbitmq.resume()


def test_a_broker_that_has_no_queue_yet_is_not_down(broker_url: str) -> None:
    post = Post(broker_url)
    post.publisher.offer("id", queue="mail")
    until(lambda: post.publisher.queue == (0, 0), "the broker is looked at")
    until(lambda: post.publisher.down is None, "the broker counts as up")
    post.declare("mail")
    post.publisher.offer("next", queue="mail")
    until(lambda: post.published == ["next"], "it goes on")
    post.publisher.stop()


def test_what_waits_is_published_before_the_end(post: Post) -> None:
    for n in range(50):
        post.publisher.offer(f"id-{n}", queue="mail")
    post.publisher.stop()
    assert len(post.published) == 50


def test_what_may_not_be_published_is_down_until_it_may(
    rabbitmq: RabbitMQ, broker_url: str, post: Post
) -> None:
    vhost = broker_url.rpartition("/")[2]
    looks: list[object] = []
    url = rabbitmq.add_user(vhost, vhost, write="^$")
    refused = Post(url, on_poll=lambda: looks.append(refused.publisher.queue))
    try:
        refused.publisher.offer("id", queue="mail")
        until(lambda: refused.unpublished == ["id"], "it is refused")
        assert (
            refused.publisher.down
            and "the right to write exchange 'amq.default'" in refused.publisher.down[1]
        )
        for _ in range(3):  # Looking is allowed, and proves nothing.
            looks.clear()
            refused.publisher.poll_soon()
            until(lambda: looks, "the queue was looked at")
        assert looks[-1] == (0, 0)
        assert refused.publisher.down
        rabbitmq.add_user(vhost, vhost)
        until(
            lambda: refused.publisher.offer("again", queue="mail") and refused.published,
            "it is published then",
        )
        until(lambda: refused.publisher.down is None, "all is well")
    finally:
        refused.publisher.stop()
        rabbitmq.delete_user(vhost)
