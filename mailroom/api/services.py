"""What the HTTP side needs of the rest; app.py puts it together."""

from collections.abc import Callable
from dataclasses import dataclass

from flask import current_app

from mailroom.mail.message import Message
from mailroom.relay import Relay
from mailroom.settings import Settings
from mailroom.store.outbox import Acceptance, Outbox


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    outbox: Outbox
    relay: Callable[[], Relay | None]  #: the publisher of this process, once it serves
    send: Callable[[str], object]  #: sendMail.delay
    run: Callable[[str], object]  #: runJob.delay
    acceptance: Callable[[Message, float], Acceptance]  #: from a message, and the seconds of simulated work before it


def services() -> Services:
    found: Services = current_app.extensions["mailasync"]
    return found
