"""Takes mail over SMTP in the process that serves, by the same keys and limits as over HTTP."""

import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Flask

from mailroom.api.auth import guard, peer
from mailroom.api.auth.senders import account_sender_of
from mailroom.api.auth.wrong_keys import wrong_keys
from mailroom.api.services import Services
from mailroom.config.settings import PREFIX, Settings, SettingsError, is_loopback
from mailroom.model.host_names import host_and_port
from mailroom.model.ids import MailId
from mailroom.server.process import at_exit, end_child
from mailroom.smtpd.auth import Access
from mailroom.smtpd.raw_message import Acceptance
from mailroom.smtpd.server import Listener, SubmissionPortTaken, SubmissionServer
from mailroom.store.keys.api_keys import ApiKey

#: The port of `flask up`, where SUBMISSION_PORT names none.
UP_PORT = 2525


def start_submission(app: Flask, settings: Settings, *, port: int, is_needed: bool = True) -> str:
    """Listen until the process ends, and return where, in words; do nothing if the port is 0.

    If that is not possible the process ends; with `is_needed` False, only if it is not the port.
    """
    if not port:
        return "off"
    try:
        server = make_server(app, settings, port)
        server.start()
    except SubmissionPortTaken as e:
        if is_needed:
            end_child(e)
        return f"off: {e}"
    except (SettingsError, OSError) as e:
        end_child(e)
    at_exit(server.stop)
    return f"{host_and_port(settings.HOST, server.port)}{_remark(settings)}"


def make_server(app: Flask, settings: Settings, port: int) -> SubmissionServer:
    """Make the server; raises SettingsError if its certificate cannot be used."""
    ours: Services = app.extensions["mailasync"]
    listener = Listener(
        host=settings.HOST,
        port=port,
        host_name=settings.EHLO_NAME or ours.reader.domain,
        mail_max_bytes=settings.REQUEST_MAX_BYTES,
        tls=_tls(settings),
        tls_at_once=settings.SUBMISSION_SECURITY == "ssl",
    )
    return SubmissionServer(listener, access=_access(app, ours), acceptance=_acceptance(ours))


def _remark(settings: Settings) -> str:
    if settings.SUBMISSION_CERT_FILE or settings.listens_on_loopback:
        return ""
    return f" (no login from other machines without TLS: set {PREFIX}SUBMISSION_CERT_FILE)"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.SUBMISSION_CERT_FILE:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.SUBMISSION_CERT_FILE, settings.SUBMISSION_KEY_FILE or None)
    except OSError as e:  # ssl.SSLError is one.
        raise SettingsError(
            f"{PREFIX}SUBMISSION_CERT_FILE: expected a certificate with its key in PEM, "
            f"got {settings.SUBMISSION_CERT_FILE!r}: {e}"
        ) from None
    return context


def _access(app: Flask, ours: Services) -> Access:
    return Access(
        find_key=lambda secret: guard.key_with_secret(secret, ours.settings.API_KEY, ours.api_keys),
        is_valid=lambda key: guard.is_valid(key, ours),
        local_key=partial(_local_key, ours),
        note_wrong=wrong_keys(app).note,
    )


def _local_key(ours: Services, ends: Mapping[str, Any]) -> ApiKey | None:
    """Return the key that stands for this machine's own user, as over HTTP; None for all others."""
    if not is_loopback(ends["REMOTE_ADDR"]) or guard.needs_key_of(ours):
        return None
    return None if peer.is_own(ends) is False else guard.LOCAL


def _acceptance(ours: Services) -> Acceptance:
    def send(id: MailId) -> None:
        ours.publisher()  # It is started by the first request or mail.
        ours.send(id)

    return Acceptance(
        reader=ours.reader,
        outbox=ours.outbox,
        keys=ours.keys,
        account_sender=partial(account_sender_of, ours),
        send=send,
    )
