"""Whatever a client sends is a message, or is refused with the field and the reason; nothing else comes out."""

import datetime
import json
import random
from typing import Any

import pytest

from mailroom.model.addresses import parse_address
from mailroom.model.errors import ERRORS_MAX, InvalidMessage, MalformedJSON
from mailroom.model.message import Address, Message
from mailroom.submission.message import message_from, read_message
from tests.measure import hold_to

BOB = "bob@example.org"


def refusals(value: object) -> dict[str, str]:
    """pointer: detail, of every field that is refused."""
    with pytest.raises(InvalidMessage) as raised:
        read_message(value if isinstance(value, bytes) else json.dumps(value).encode())
    assert str(raised.value).isascii() or str(raised.value).encode()
    return {error.pointer: error.detail for error in raised.value.errors}


class TestAccepted:
    def test_an_address_alone_is_enough(self) -> None:
        assert read_message(b'{"to": "bob@example.org"}') == Message(
            to=(Address(BOB),), subject="", text=""
        )

    def test_contents_are_text(self) -> None:
        assert read_message(
            b'{"to": "bob@example.org", "subject": "Hi", "contents": "a < b"}'
        ) == Message(to=(Address(BOB),), subject="Hi", text="a < b")

    @pytest.mark.parametrize(
        "contents", ["<p>Hi</p>", " \n<p>Hi</p>\n ", "<>", "<!DOCTYPE html><html></html>"]
    )
    def test_contents_between_angle_brackets_are_html(self, contents: str) -> None:
        message = message_from({"to": BOB, "contents": contents})
        assert (message.text, message.html) == (None, contents)

    @pytest.mark.parametrize(
        "contents",
        ["", " ", "<p>Hi", "Hi</p>", "/etc/passwd", "http://example.org/", "\u2028\r\n\t\x1b"],
    )
    def test_all_others_are_text_as_they_stand(self, contents: str) -> None:
        message = message_from({"to": BOB, "contents": contents})
        assert (message.text, message.html) == (contents, None)

    @pytest.mark.parametrize(
        ("text", "address", "name"),
        [
            (BOB, BOB, ""),
            ("Bob <bob@example.org>", BOB, "Bob"),
            (" Bob  <bob@example.org>", BOB, "Bob"),
            ("<bob@example.org>", BOB, ""),
            ('"Doe, Bob" <bob@example.org>', BOB, "Doe, Bob"),
            ('"a\\"b" <bob@example.org>', BOB, 'a"b'),
            ("Bøb <bob@example.org>", BOB, "Bøb"),
            ("J. Müller-Lüdenscheidt <bob@example.org>", BOB, "J. Müller-Lüdenscheidt"),
            ("日本 <bob@example.org>", BOB, "日本"),
            ("O'Neil & Sons! <bob@example.org>", BOB, "O'Neil & Sons!"),
            ("bob@MÜNCHEN.de", "bob@xn--mnchen-3ya.de", ""),
            ("Bob@EXAMPLE.org", "Bob@example.org", ""),
            ("bob@localhost", "bob@localhost", ""),
            ("bob@mail.test", "bob@mail.test", ""),
            ("bob+tag@example.org", "bob+tag@example.org", ""),
        ],
    )
    def test_an_address_may_have_a_name_and_an_international_domain(
        self, text: str, address: str, name: str
    ) -> None:
        assert message_from({"to": text}).to == (Address(address, name),)

    @pytest.mark.parametrize(
        ("text", "address", "name"),
        [
            ('"odd user"@example.net', '"odd user"@example.net', ""),
            ('"a@b"@example.net', '"a@b"@example.net', ""),
            ('"abc..def."@docomo.ne.jp', '"abc..def."@docomo.ne.jp', ""),
            ("abc..def.@docomo.ne.jp", '"abc..def."@docomo.ne.jp', ""),
            ("abc.@docomo.ne.jp", '"abc."@docomo.ne.jp', ""),
            (".abc@docomo.ne.jp", '".abc"@docomo.ne.jp', ""),
            ("J. Abe <abc.@docomo.ne.jp>", '"abc."@docomo.ne.jp', "J. Abe"),
            ("<a..b@example.net>", '"a..b"@example.net', ""),
            ('"A, B" <.a@example.net>', '".a"@example.net', "A, B"),
            ('A <"a b"@example.net>', '"a b"@example.net', "A"),
            ('"bob"@example.org', BOB, ""),
            ('"b\\ob"@example.org', BOB, ""),
            ('"a\\"b"@example.net', '"a\\"b"@example.net', ""),
            ('"x <a..b@c"@example.net', '"x <a..b@c"@example.net', ""),
            ("ü..x@example.net", '"ü..x"@example.net', ""),
            ("a." * 30 + "a.@example.net", f'"{"a." * 31}"@example.net', ""),
        ],
    )
    def test_what_is_before_the_at_sign_has_quotes_where_it_needs_them(
        self, text: str, address: str, name: str
    ) -> None:
        assert message_from({"to": text}).to == (Address(address, name),)
        assert parse_address({"email": text}) == Address(address, name)
        assert parse_address(address) == Address(address), "its own form stays"

    def test_an_address_gets_one_copy_with_quotes_or_without(self) -> None:
        message = message_from(
            {"to": ["abc.@docomo.ne.jp", '"bob"@example.org'], "cc": ['"abc."@docomo.ne.jp', BOB]}
        )
        assert (message.to, message.cc) == ((Address('"abc."@docomo.ne.jp'), Address(BOB)), ())

    def test_a_hundred_recipients_are_not_too_many(self) -> None:
        assert len(message_from({"to": [f"bob{n}@example.org" for n in range(100)]}).to) == 100

    def test_an_address_that_comes_twice_gets_one_copy_whatever_name_it_has(self) -> None:
        assert message_from(
            {"to": [BOB, "Bob <bob@example.org>", "bob@EXAMPLE.org", "carol@example.org"]}
        ).to == (Address(BOB), Address("carol@example.org"))

    def test_a_subject_may_have_998_characters(self) -> None:
        assert len(message_from({"to": BOB, "subject": "ü" * 998}).subject) == 998


class TestNotJSON:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "Expecting value at line 1, column 1"),
            (b"{", "at line 1, column 2"),
            (b'{"to": "bob@example.org",}', "at line 1, column 2"),
            (b"to=bob@example.org", "Expecting value"),
            (b"{'to': 1}", "double quotes"),
            (b"{} {}", "Extra data"),
            (b'{"to": "\x01"}', "Invalid control character"),
            (b'{"to": "a\nb"}', "Invalid control character"),
            (b"[" * 100_000, "at most 16 levels"),
            (b'{"a":' * 100_000, "at most 16 levels"),
            (b'{"to":' + b"[" * 50 + b"]" * 50 + b"}", "at most 16 levels"),
            (b'{"to": NaN}', "got NaN"),
            (b'{"to": -Infinity}', "got -Infinity"),
            (b'{"to": "a", "to": "b"}', 'got "to" 2 times'),
            (b'{"to": {"x": 1, "x": 1, "x": 1}}', 'got "x" 3 times'),
            (b'{"\\ud800": 1, "\\ud800": 2}', r'got "\\ud800" 2 times'),
            (b'{"to": ' + b"9" * 5000 + b"}", "4300 digits"),
            (b"-" + b"9" * 5000, "4300 digits"),
            (b'\xef\xbb\xbf{"to": "bob@example.org"}', "BOM"),
            ('{"to": "bob@example.org"}'.encode("utf-16"), "got byte 0xff at 0"),
            ('{"to": "bob@example.org"}'.encode("utf-16-le"), "at line 1, column 2"),
            ('{"to": "böb"}'.encode("latin-1"), "got byte 0xf6 at 9"),
            (b'{"to": "\xed\xa0\x80"}', "got byte 0xed at 8"),
            (b"\x00", "Expecting value"),
        ],
    )
    def test_is_told_with_the_place(self, data: bytes, reason: str) -> None:
        with pytest.raises(MalformedJSON, match=reason):
            read_message(data)

    @pytest.mark.parametrize(
        ("data", "shown"),
        [
            (b"[]", r"\[\]"),
            (b"null", "null"),
            (b"1", "1"),
            (b'"to"', '"to"'),
            (b"true", "true"),
            (b"1e999", "Infinity"),
            (b"9" * 4300, "999"),
            (b'["' + b"x" * 500_000 + b'"]', r"xxx\.\.\.$"),
        ],
    )
    def test_is_told_with_what_came_where_it_is_no_object(self, data: bytes, shown: str) -> None:
        with pytest.raises(MalformedJSON, match=f"expected a JSON object, got .*{shown}") as raised:
            read_message(data)
        assert len(str(raised.value)) < 200


class TestRefused:
    @pytest.mark.parametrize(
        ("value", "pointer", "detail"),
        [
            ({}, "#/to", "expected this field, got none"),
            ({"to": None}, "#/to", "expected an address, got null"),
            ({"to": 5}, "#/to", "got 5"),
            ({"to": True}, "#/to", "got true"),
            ({"to": {"address": BOB}}, "#/to", 'got {"address": "bob@example.org"}'),
            ({"to": ""}, "#/to", 'got ""'),
            ({"to": []}, "#/to", "expected 1 to 100 addresses, got 0"),
            (
                {"to": [f"bob{n}@example.org" for n in range(101)]},
                "#/to",
                "expected 1 to 100 addresses, got 101",
            ),
            ({"to": [BOB, "bob"]}, "#/to/1", 'got "bob"'),
            ({"to": [BOB, [BOB]]}, "#/to/1", 'got ["bob@example.org"]'),
            ({"to": [BOB, None]}, "#/to/1", "got null"),
            ({"to": "bob@example.org, eve@example.org"}, "#/to", "got"),
            ({"to": "bob@example.org\r\nBcc: eve@example.org"}, "#/to", r"got '\r' at 15"),
            ({"to": "bob@example.org\n"}, "#/to", r"got '\n' at 15"),
            ({"to": "Bob\x00 <bob@example.org>"}, "#/to", r"got '\x00' at 3"),
            ({"to": "Bob\u2028 <bob@example.org>"}, "#/to", r"got '\u2028' at 3"),
            ({"to": "(x\r\n y)bob@example.org"}, "#/to", r"got '\r' at 2"),
            ({"to": "(x y)bob@example.org"}, "#/to", "invalid characters"),
            ({"to": "bob@example.org> <eve@example.org"}, "#/to", "got"),
            ({"to": "eve@example.org, Bob <bob@example.org>"}, "#/to", "got"),
            ({"to": "eve@example.org <bob@example.org>"}, "#/to", "got"),
            ({"to": "Doe, Bob <bob@example.org>"}, "#/to", "when not quoted"),
            ({"to": '"Bob <bob@example.org>'}, "#/to", "got"),
            ({"to": '"b b@example.org'}, "#/to", "must have an @-sign"),
            ({"to": '"b b\\"@example.org'}, "#/to", "must have an @-sign"),
            ({"to": '"b b"b@example.org'}, "#/to", "after close quote"),
            ({"to": '"b"."b"@example.org'}, "#/to", "after close quote"),
            ({"to": 'b"b"@example.org'}, "#/to", "invalid characters"),
            ({"to": '""@example.org'}, "#/to", "something before the @-sign"),
            ({"to": '"b\tb"@example.org'}, "#/to", r"got '\t' at 2"),
            ({"to": '"b\r\nRCPT TO:<eve@example.org>"@example.org'}, "#/to", r"got '\r' at 2"),
            ({"to": {"email": '"b\nb"@example.org', "name": "Bob"}}, "#/to", r"got '\n' at 2"),
            ({"to": "b..b b@example.org"}, "#/to", "invalid characters"),
            ({"to": "b..(b)@example.org"}, "#/to", "invalid characters"),
            ({"to": "bob.@example..org"}, "#/to", "two periods"),
            ({"to": "b" * 65 + "@example.org"}, "#/to", "at most 64 bytes, not 65"),
            ({"to": "ü" * 33 + "@example.org"}, "#/to", "at most 64 bytes, not 66"),
            ({"to": "b" * 62 + ".@example.org"}, "#/to", "at most 64 bytes, not 65"),
            ({"to": '"' + "b " * 31 + 'b"@example.org'}, "#/to", "at most 64 bytes, not 65"),
            ({"to": "bob@[127.0.0.1]"}, "#/to", "IP address"),
            ({"to": "bob@[IPv6:::1]"}, "#/to", "IP address"),
            ({"to": "bob@127.0.0.1"}, "#/to", "not an IP address"),
            ({"to": "root@intranet"}, "#/to", "should have a period"),
            ({"to": "bob@example.org."}, "#/to", "period"),
            ({"to": "bob@exa_mple.org"}, "#/to", "invalid characters"),
            ({"to": "bob@xn--a.org"}, "#/to", "IDNA"),
            ({"to": "Bob\u202e <bob@example.org>"}, "#/to", "RIGHT-TO-LEFT"),
            ({"to": "b" * 250 + "@example.org"}, "#/to", "too long"),
            ({"to": "bob@" + "e" * 64 + ".org"}, "#/to", "characters"),
            ({"to": "bob@" + "e." * 200 + "org"}, "#/to", "too long"),
            ({"to": "B" * 998 + " <bob@example.org>"}, "#/to", "at most 998 characters, got 1016"),
            ({"to": BOB, "subject": None}, "#/subject", "expected a string, got null"),
            ({"to": BOB, "subject": 5}, "#/subject", "expected a string, got 5"),
            ({"to": BOB, "subject": ["x"]}, "#/subject", 'expected a string, got ["x"]'),
            ({"to": BOB, "subject": "a\r\nBcc: eve@example.org"}, "#/subject", r"got '\r' at 1"),
            ({"to": BOB, "subject": "a\tb"}, "#/subject", r"got '\t' at 1"),
            ({"to": BOB, "subject": "a\x85b"}, "#/subject", r"got '\x85' at 1"),
            ({"to": BOB, "subject": "x" * 999}, "#/subject", "at most 998 characters, got 999"),
            ({"to": BOB, "contents": 5}, "#/contents", "expected a string, got 5"),
            ({"to": BOB, "contents": {"a": 1}}, "#/contents", 'got {"a": 1}'),
            (
                {"to": BOB, "contents": "a\x00b"},
                "#/contents",
                "expected text without NUL, got one at 1",
            ),
            ({"to": BOB, "Subject": "x"}, "#/Subject", "did you mean subject?"),
            ({"to": BOB, "content": "x"}, "#/content", "did you mean contents?"),
            ({"to": BOB, "bccs": BOB}, "#/bccs", "did you mean bcc?"),
            ({"to": BOB, "a/b~c": 1}, "#/a~1b~0c", "expected one of"),
            ({"to": BOB, "a b%ü": 1}, "#/a%20b%25%C3%BC", "expected one of"),
            ({"to": BOB, "": 1}, "#/", "expected one of"),
        ],
    )
    def test_is_told_with_the_field_and_with_what_came(
        self, value: object, pointer: str, detail: str
    ) -> None:
        found = refusals(value)
        assert list(found) == [pointer]
        assert detail in found[pointer]

    @pytest.mark.parametrize(
        ("data", "pointer"),
        [
            (b'{"to": "bob\\ud800@example.org"}', "#/to"),
            (b'{"to": ["bob@example.org", "\\udfff"]}', "#/to/1"),
            (b'{"to": "bob@example.org", "subject": "\\ud83d"}', "#/subject"),
            (b'{"to": "bob@example.org", "contents": "x\\ude00y"}', "#/contents"),
            (b'{"to": "bob@example.org", "\\ud800": 1}', "#/%5Cud800"),
            (b'{"to": ["bob@example.org", {"\\ud800": 1}]}', "#/to/1"),
            (b'{"to": "bob@example.org", "a\\ud800b": {"\\udc00": "\\udc00"}}', "#/a%5Cud800b"),
        ],
    )
    def test_half_a_surrogate_pair_is_told_wherever_it_is(self, data: bytes, pointer: str) -> None:
        assert list(refusals(data)) == [pointer]

    def test_every_wrong_field_is_told_at_once(self) -> None:
        assert list(refusals({"to": "bob", "subject": 1, "contents": 2, "cc": 3})) == [
            "#/to",
            "#/cc",
            "#/subject",
            "#/contents",
        ]

    def test_a_large_value_is_not_sent_back_whole(self) -> None:
        assert all(
            len(detail) < 300
            for detail in refusals({"to": ["x" * 100_000], "subject": ["x" * 100_000]}).values()
        )


class TestNothingTakesLong:
    @pytest.mark.parametrize(
        "data",
        [
            b"{" + b",".join(b'"%d":0' % n for n in range(90_000)) + b',"89999":1}',
            b"{" + b",".join(b'"subjec%d":0' % n for n in range(60_000)) + b"}",
            b'{"to":[' + b",".join(b'"x"' for _ in range(200_000)) + b"]}",
            *(
                json.dumps({"to": piece * (900_000 // len(piece))}).encode()
                for piece in ('"', "<", "a", " ", "a.", "a@", "\\", "ä", "@")
            ),
            json.dumps({"to": ["b " * 450 + "<bob@example.org>"] * 99 + ["x"]}).encode(),
            b'{"to": "bob@example.org", "' + b"subject" * 100_000 + b'": 1}',
        ],
        ids=lambda data: f"{len(data)}-{data[:12]!r}",
    )
    def test_a_megabyte_made_to_hurt_is_refused_at_once(self, data: bytes) -> None:
        def read() -> None:
            with pytest.raises((MalformedJSON, InvalidMessage)) as raised:
                read_message(data)
            assert len(getattr(raised.value, "errors", [])) <= ERRORS_MAX

        hold_to(400, read)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


DEEP = nested(50_000)


class TestFromTheQueue:
    """Celery's JSON knows more types than JSON does, and has other limits."""

    @pytest.mark.parametrize(
        "value",
        [
            None,
            [],
            "to",
            b"to",
            5,
            10**6000,
            {"to": 10**6000},
            {"to": b"bob@example.org"},
            {"to": {1, 2}},
            {"to": {(1, 2): 3}},
            {1: 2},
            {None: 1},
            {"to": datetime.datetime.now(datetime.UTC)},
            {"to": float("nan")},
            {"to": object()},
            {"to": (BOB,)},
            {b"to": BOB},
            {"to": DEEP},
            {"to": BOB, "subject": DEEP},
            {"to": BOB, "x": DEEP},
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_message_is_refused_and_told(self, value: object) -> None:
        with pytest.raises((MalformedJSON, InvalidMessage)) as raised:
            message_from(value)
        assert 0 < len(str(raised.value)) < 500


def test_three_thousand_mangled_bodies_give_a_message_or_a_reason() -> None:
    dice = random.Random(20)
    found = {Message: 0, MalformedJSON: 0, InvalidMessage: 0}
    for _ in range(3000):
        body = mangled(
            json.dumps(random_request(dice), ensure_ascii=dice.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            ),
            dice,
        )
        try:
            message = read_message(body)
        except (MalformedJSON, InvalidMessage) as e:
            str(e).encode()  # raises where half a surrogate pair would go out again
            found[type(e)] += 1
        else:
            assert 1 <= len(message.to) <= 100
            assert all(
                to.address.partition("@")[2].isascii()
                and not set(to.address + to.name) & set("\r\n\0")
                for to in message.to
            )
            assert not set(message.subject) & set("\r\n\0")
            assert message.to_row().encode()
            found[Message] += 1
    assert min(found.values()) > 100, found


ODD: tuple[Any, ...] = (
    BOB,
    "Bob <bob@example.org>",
    "",
    None,
    1,
    -1.5,
    1e308,
    True,
    [],
    {},
    [BOB, BOB],
    "\ud800",
    "\0",
    "\r\n",
    "ü@ü.de",
    "a@b.c",
    "x" * 2000,
    "<p>x</p>",
    [None],
    {"\udfff": 1},
    "bob@localhost",
    "bob@[::1]",
    "\u202e",
    "=?utf-8?q?x?=",
    10**400,
)


def random_request(dice: random.Random) -> dict[str, Any]:
    value: dict[str, Any] = {"to": BOB, "subject": "Hello", "contents": "Hello Bob\n"}
    for _ in range(dice.choice((0, 0, 1, 2))):
        value[dice.choice(("to", "subject", "contents", "cc", "\ud800", ""))] = dice.choice(ODD)
    return value


def mangled(body: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice((0, 0, 0, 1, 1, 3))):
        at = dice.randrange(len(body) + 1)
        piece = dice.choice(
            (
                b"",
                b"\x00",
                b"\xff",
                b"[",
                b"{",
                b'"',
                b",",
                b"\\ud800",
                b"\\u0000",
                b"\r\n",
                b"NaN",
                b"9" * 5000,
                b"[" * 2000,
                body,
                bytes([dice.randrange(256)]),
            )
        )
        body = body[:at] + piece + body[at + dice.choice((0, 0, 1, 5)) :]
    return body
