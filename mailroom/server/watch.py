"""Gives up late bodies every second, and closes idle connections when there are too many."""

import logging
import threading
import time
from functools import partial

from mailroom.process.supervisor import SupervisedThread
from mailroom.server.body import Bodies
from mailroom.server.connections import Connections
from mailroom.server.gateway import Gateway

log = logging.getLogger("mailasync.web")

INTERVAL_SECONDS = 1.0
STOP_INTERVAL_SECONDS = 0.2

_stopping = threading.Event()


def watch(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    """Start the thread that does this until the process ends."""
    SupervisedThread(
        "late bodies", partial(_watch, gateway, bodies, connections), _stopping
    ).start()


def stop() -> None:
    """End all half-sent requests: this process is to end, and would be killed if it waited for them."""
    _stopping.set()


def _watch(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    while not _stopping.wait(INTERVAL_SECONDS):
        _check(gateway, bodies, connections)
    while True:  # New ones may arrive until the end.
        bodies.stop()
        connections.close_idle(gateway.running, kept=0)
        time.sleep(STOP_INTERVAL_SECONDS)


def _check(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    if late := bodies.give_up_late():
        log.warning("%d requests were given up, as their bodies did not arrive in time", late)
    if connections.are_too_many() and (closed := connections.close_idle(gateway.running)):
        log.warning(
            "%d idle connections of the busiest address were closed, as there were too many", closed
        )
