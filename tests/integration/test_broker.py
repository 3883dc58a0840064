"""The broker over TLS: its certificate is judged before it is told a password, whoever of ours connects."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection

from mailroom.broker.queues import broker_error
from mailroom.config.environment import load
from mailroom.config.settings import SettingsError
from tests.services import free_port, wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.processes import service
from tests.services.rabbitmq import RabbitMQ
from tests.services.tls_front import TLSFront

PASSWORD = "s3cret-of-the-broker"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secured(rabbitmq: RabbitMQ, broker_url: str) -> Iterator[str]:
    """The URL of a user on a vhost of the test's own, without the port."""
    vhost = broker_url.rpartition("/")[2]
    rabbitmq.add_user(vhost, vhost, password=PASSWORD)
    yield f"amqps://{vhost}:{PASSWORD}@{{}}/{vhost}"
    rabbitmq.delete_user(vhost)


def log_in(url: str, ca_file: Path | None) -> str:
    """Return "" where we are let in, else why not."""
    connection = Connection(
        url, ssl={"ca_certs": str(ca_file)} if ca_file else False, connect_timeout=10
    )
    try:
        retries = max(0, len(connection.alt) - 1)
        connection.ensure_connection(max_retries=retries, interval_start=0, interval_step=0)
    except Exception as e:
        return broker_error(e)
    finally:
        connection.collect()
    return ""


def test_a_certificate_for_another_host_gets_no_password(
    rabbitmq: RabbitMQ, secured: str, certificates: Certificates
) -> None:
    with TLSFront(certificates.wrong_host, rabbitmq.ports["amqp"]) as front:
        for host, reason in (
            ("127.0.0.1", "IP address mismatch"),
            ("localhost", "Hostname mismatch"),
        ):
            said = log_in(secured.format(f"{host}:{front.port}"), certificates.ca_file)
            assert reason in said and "set MAILASYNC_BROKER_CA_FILE" in said
            assert front.received == b""


@pytest.mark.parametrize(
    "kind", ["expired", "self_signed", "unknown_ca", "valid, and nobody known"]
)
def test_a_certificate_that_nobody_vouches_for_gets_no_password(
    rabbitmq: RabbitMQ, secured: str, certificates: Certificates, kind: str
) -> None:
    known, _, is_unknown = kind.partition(", and ")
    with TLSFront(getattr(certificates, known), rabbitmq.ports["amqp"]) as front:
        said = log_in(
            secured.format(f"localhost:{front.port}"), None if is_unknown else certificates.ca_file
        )
        assert (said.startswith("its certificate is not trusted: "), front.received) == (True, b"")


def test_the_host_of_each_of_several_brokers_is_compared(
    rabbitmq: RabbitMQ, secured: str, certificates: Certificates
) -> None:
    gone = secured.format(f"broker-1.invalid:{free_port()}")
    with TLSFront(certificates.valid, rabbitmq.ports["amqp"]) as front:
        for host in ("localhost", "127.0.0.1"):
            assert (
                log_in(f"{gone};{secured.format(f'{host}:{front.port}')}", certificates.ca_file)
                == ""
            )
    with TLSFront(certificates.wrong_host, rabbitmq.ports["amqp"]) as front:
        said = log_in(f"{gone};{secured.format(f'localhost:{front.port}')}", certificates.ca_file)
        assert ("Hostname mismatch" in said, front.received) == (True, b"")


def test_mail_goes_over_tls_and_a_server_in_its_place_is_told_of(
    tmp_path: Path,
    rabbitmq: RabbitMQ,
    secured: str,
    certificates: Certificates,
    sqlite_url: str,
    to_smtpd: dict[str, str],
) -> None:
    settings = {**to_smtpd, "DATABASE_URL": sqlite_url, "BROKER_CA_FILE": str(certificates.ca_file)}
    with (
        TLSFront(certificates.valid, rabbitmq.ports["amqp"]) as front,
        service(tmp_path, BROKER_URL=secured.format(f"localhost:{front.port}"), **settings) as pair,
    ):
        pair.upgrade()
        pair.web()
        worker = pair.worker()
        assert pair.final(pair.post("/v1/messages"))["status"] == "sent"
        # When another answers at that address
        front.answer_with(certificates.wrong_host)
        # Then it gets nothing, and web, worker and doctor say why
        wait_until(
            lambda: "not trusted" in pair.get("/readyz")["checks"]["broker"],
            60,
            what="readyz tells",
        )
        worker.says("Hostname mismatch")
        doctor = pair.run("-m", "flask", "doctor", name="doctor")
        doctor.says("its certificate is not trusted")
        assert front.received == b""
        # And all goes on when the right one is back
        front.answer_with(certificates.valid)
        assert pair.final(pair.post("/v1/messages"), timeout=60)["status"] == "sent"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"BROKER_URL": "amqps://b//?ca_certs=/ca.pem"},
            "got 'ca_certs'; certificates are always verified",
        ),
        (
            {"BROKER_URL": "amqps://a//;amqps://b//?ssl_cert_reqs=none"},
            "by MAILASYNC_BROKER_CA_FILE",
        ),
        (
            {"BROKER_URL": "pyamqp://b//?connect_timeout=1"},
            "expected no option but heartbeat or login_method",
        ),
        (
            {"BROKER_URL": "amqps://alice:s3?cret@b//"},
            "write %3F for a question mark in the password",
        ),
        ({"BROKER_URL": "pyamqp://b//", "BROKER_CA_FILE": __file__}, "nothing is encrypted"),
        ({"BROKER_CA_FILE": __file__}, "nothing is encrypted"),
        (
            {"BROKER_URL": "amqps://b//", "BROKER_CA_FILE": "/nowhere"},
            "BROKER_CA_FILE: expected a readable file",
        ),
    ],
)
def test_what_would_be_trusted_by_mistake_stops_the_start(
    settings: dict[str, str], told: str
) -> None:
    given = {f"MAILASYNC_{name}": value for name, value in settings.items()}
    with pytest.raises(SettingsError) as e:
        load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_DATABASE_URL": "postgresql://db/mail", **given})
    assert told in e.value.message
    assert "s3" not in e.value.message
