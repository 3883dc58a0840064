"""Looks every second for bodies that are late, and for connections when they become scarce."""

import logging
import threading
import time
from functools import partial

from mailroom.process.supervisor import SupervisedThread
from mailroom.server.body import Bodies
from mailroom.server.connections import Connections
from mailroom.server.gateway import Gateway

log = logging.getLogger("mailasync.web")

LOOK_SECONDS = 1.0
STOP_LOOK_SECONDS = 0.2

_stopping = threading.Event()


def watch(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    """Start looking; a thread does it until this process has ended."""
    SupervisedThread("late bodies", partial(_watch, gateway, bodies, connections), _stopping).start()


def stop() -> None:
    """End all that is half sent: this process is asked to end, and would be killed if it waited for that."""
    _stopping.set()


def _watch(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    while not _stopping.wait(LOOK_SECONDS):
        _look(gateway, bodies, connections)
    while True:  # Some may come in this moment.
        bodies.stop()
        connections.close_idle(gateway.running, kept=0)
        time.sleep(STOP_LOOK_SECONDS)


def _look(gateway: Gateway, bodies: Bodies, connections: Connections) -> None:
    if late := bodies.give_up_late():
        log.warning("%d requests were given up, as their bodies did not come in time", late)
    if connections.are_scarce() and (closed := connections.close_idle(gateway.running)):
        log.warning("%d idle connections of the busiest address were closed, as there were too many", closed)
