"""What we call ourselves to mail servers: a name that they take, or our own address."""

import socket
from collections.abc import Iterator

import pytest

from mailroom.config.accounts import next_hop
from mailroom.config.environment import load
from mailroom.model import host_names
from mailroom.model.account import NextHop
from mailroom.model.host_names import default_ehlo_name, host_name, literal, parse_ehlo_name
from mailroom.smtp.pool import Sessions
from tests.services.smtpd import ScriptedSMTP


@pytest.fixture(autouse=True)
def forget_name() -> Iterator[None]:
    """Have the name of this machine looked up in each test."""
    host_names._full_name.cache_clear()
    yield
    host_names._full_name.cache_clear()


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("mail.example.org", "mail.example.org"),
        ("mail.example.org.", "mail.example.org"),
        ("Mail-1.Example.ORG", "Mail-1.Example.ORG"),
        ("relay", "relay"),
        ("grüße.example.org", "xn--gre-6ka8l.example.org"),
        ("例え.jp", "xn--r8jz45g.jp"),
        ("my_host.example.org", ""),
        ("app_worker_1.app_default", ""),
        ("-a.example.org", ""),
        ("a-.example.org", ""),
        ("a..org", ""),
        ("192.0.2.1", ""),
        ("2001:db8::1", ""),
        ("", ""),
        (".", ""),
        ("a b.org", ""),
        ("a.org\n", ""),
        ("x" * 64 + ".org", ""),
        ("x." * 127 + "org", ""),
        ("ü" * 64 + ".org", ""),
        ("a.org\r\nMAIL", ""),
        ("\u0660.org", ""),
        ("example.123", ""),
    ],
)
def test_a_host_name_has_letters_digits_and_hyphens(name: str, taken: str) -> None:
    assert host_name(name) == taken


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("mail.example.org", "mail.example.org"),
        ("grüße.example.org", "xn--gre-6ka8l.example.org"),
        ("relay", "relay"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8:0::1]", "[IPv6:2001:db8::1]"),
        ("[ipv6:::1]", "[IPv6:::1]"),
    ],
)
def test_the_setting_is_a_host_name_or_an_address_in_brackets(text: str, taken: str) -> None:
    assert parse_ehlo_name(text) == taken


@pytest.mark.parametrize(
    "text",
    [
        "my_host",
        "192.0.2.1",
        "::1",
        "[::1]",
        "[IPv6:192.0.2.1]",
        "[192.0.2.256]",
        "[mail.example.org]",
        "a b",
        "-",
        "[]",
    ],
)
def test_any_other_setting_is_told_with_what_is_expected(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"expected a host name like mail\.example\.org, or .*, got "
    ) as told:
        parse_ehlo_name(text)
    assert repr(text) in str(told.value)


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("mx1.example.net", "mx1.example.net"),
        ("grüße.example.net", "xn--gre-6ka8l.example.net"),
        ("laptop", "example.org"),
        ("3f2a1b4c5d6e", "example.org"),
        ("app_worker_1.app_default", "example.org"),
        ("localhost.localdomain", "example.org"),
        ("localhost", "example.org"),
        ("192.0.2.1", "example.org"),
        ("1.0.0.127.in-addr.arpa", "example.org"),
        ("", "example.org"),
    ],
)
def test_the_default_is_this_machines_full_name_or_the_senders_domain(
    machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: machine)
    assert default_ehlo_name("example.org") == name


@pytest.mark.parametrize("domain", ["localhost", "", "[192.0.2.1]", "under_score.example.org"])
def test_there_may_be_no_name_at_all(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "laptop")
    assert default_ehlo_name(domain) == ""


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.1", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("fe80::1%eth0", "[IPv6:fe80::1]"),
    ],
)
def test_an_address_is_written_as_ehlo_has_it(address: str, said: str) -> None:
    assert literal(address) == said


@pytest.mark.parametrize(
    ("setting", "sender", "said"),
    [
        ("mail.example.org", "example.org", "mail.example.org"),
        ("", "example.org", "example.org"),
        ("", "localhost", "[127.0.0.1]"),
    ],
)
def test_a_server_hears_the_setting_the_senders_domain_or_the_address_of_the_connection(
    setting: str, sender: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "app_worker_1.app_default")
    with ScriptedSMTP() as smtpd:
        sessions = Sessions(
            NextHop(
                host=smtpd.host,
                port=smtpd.port,
                security="none",
                ehlo_name=setting,
                sender_domain=sender,
            )
        )
        with sessions.borrow():
            pass
        sessions.close()
        assert smtpd.commands[0] == (1, f"ehlo {said}")


def test_each_account_has_the_domain_of_its_sender() -> None:
    hop = next_hop(
        load(
            {
                "MAILASYNC_ENV_FILE": "",
                "MAILASYNC_MAIL_FROM": "Alice <alice@grüße.example.org>",
                "MAILASYNC_EHLO_NAME": "mail.grüße.example.org",
            }
        )
    )
    assert (hop.ehlo_name, hop.sender_domain) == (
        "mail.xn--gre-6ka8l.example.org",
        "xn--gre-6ka8l.example.org",
    )
