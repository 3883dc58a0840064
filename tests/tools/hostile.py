"""Makes requests that are valid, and then spoils them: a grammar of all that clients may send, and what has broken services somewhere."""

import base64
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from tests.unit.smtp.test_mime import NAMES, PIECES

#: Stored before the first request; each variable is `name`.
TEMPLATES: dict[str, dict[str, str]] = {
    "letter": {
        "subject": "For {{ name }}",
        "text": "Dear {{ name }}!",
        "html": "<p>Dear {{ name }}!</p>",
    },
    "plain": {"subject": "Plain", "text": "{{ name }}"},
    "styled": {"subject": "Styled", "html": "<style>p {color: red}</style><p>{{ name }}</p>"},
}
#: What stands where a path or a port of this run has to be.
CANARY, PORT = "@canary@", "@port@"
STRINGS = (
    "",
    " ",
    "a",
    "\0",
    "a\0b",
    "\r\n",
    "a\r\nBcc: eve@example.net",
    "a\nX-Evil: 1",
    "a\rb",
    "\n.\n",
    ".\r\n",
    "\r\n.\r\nMAIL FROM:<e@example.net>",
    "\r\n\r\n<script>",
    "\ud800",
    "a\udfffb",
    "\u202etxt.exe",
    "\u2066x\u2069",
    "\u2028",
    "\x85",
    "\ufeff",
    "\u200b",
    "e\u0301" * 20,
    "👩‍👩‍👧",
    "=?utf-8?q?=0d=0aBcc:_eve@example.net?=",
    "=?utf-8?b?DQpCY2M6IGU=?=",
    "=?x?q?y?=",
    "=?utf-8?q?" + "a" * 100,
    "\x1b[31m",
    "\x7f",
    CANARY,
    f"file://{CANARY}",
    f"@{CANARY}",
    f"<{CANARY}>",
    f"../../../../../../..{CANARY}",
    "/etc/passwd",
    "..\\..\\secret",
    "~/.ssh/id_rsa",
    f"http://127.0.0.1:{PORT}/canary",
    f"<img src='http://127.0.0.1:{PORT}/x'>",
    f"<link rel=stylesheet href='file://{CANARY}'><p>x</p>",
    f"<style>@import url(http://127.0.0.1:{PORT}/c.css);</style><p>x</p>",
    f"<link rel=stylesheet href='http://127.0.0.1:{PORT}/c.css'><p>y</p>",
    f"<!DOCTYPE x [<!ENTITY e SYSTEM 'file://{CANARY}'>]><p>&e;</p>",
    f"<iframe src='{CANARY}'></iframe>",
    "<" + "a" * 3000,
    "<!--" * 500,
    "<p " * 999,
    "{{ 7 * 7 }}",
    "{{ config }}",
    "{{ ''.__class__.__mro__ }}",
    "{% for a in range(999999999) %}x{% endfor %}",
    f"{{% include '{CANARY}' %}}",
    "{{ job.result }}",
    "{{ name }}",
    "{{",
    "%}",
    "{#",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "${7*7}",
    "#{7*7}",
    "%s%n",
    "'; DROP TABLE messages; --",
    '" OR 1=1',
    "$(id)",
    "`id`",
    "| id",
    "; id",
    "null",
    "true",
    "0",
    "-1",
    "NaN",
    "1e999",
    "x" * 998,
    "y" * 5000,
    "ü" * 999,
    "a" * 70 + "\n" + "b" * 2000,
    "word " * 400,
    "." * 200,
    "\n.a\n..b\n.",
    "From x\nFrom y",
    "--=_\n--=_x--",
    "\t",
    "\u00a0",
    "％０ａ",
    "a;b=c",
    '"',
    "\\",
    '\\"',
    "2026-01-31T12:00:00Z",
    "9999-12-31T23:59:59Z",
    "0000-00-00T00:00:00Z",
    "text/html; charset=utf-7",
    "multipart/mixed",
    "message/rfc822",
    "image/png\r\nX: 1",
)
ADDRESSES = (
    '"a b"@example.org',
    '"a\\"b"@example.org',
    '"@evil.example"@example.org',
    "@a,@b:c@example.org",
    "<@a.example,@b.example:c@example.org>",
    "user%host@example.org",
    "user!host@example.org",
    "a@[127.0.0.1]",
    "a@[IPv6:::1]",
    "a@127.0.0.1",
    "a@b@example.org",
    "a@example.org,b@example.org",
    "a@example.org; b@example.org",
    "a@example.org>",
    "<a@example.org",
    "a@example.org> SIZE=1",
    "a@example.org NOTIFY=SUCCESS",
    "a @example.org",
    "a@exam ple.org",
    "a@example.org\r\nRCPT TO:<e@example.net>",
    "a@example.org\nDATA",
    "a@example.org\0",
    "|id@example.org",
    "-oQ/tmp@example.org",
    '"a@example.org',
    '"a\r\nRCPT TO:<e@example.net>"@example.org',
    '"a@b"@example.org',
    "a..b@example.org",
    "a(comment)@example.org",
    "(x)a@example.org",
    "a@example..org",
    ".a@example.org",
    "a.@example.org",
    "a@-example.org",
    "a@xn--example.org",
    "a@xn--mnchen-3ya.example.org",
    "jürgen@example.org",
    "bob@münchen.example.org",
    "bob@例え.テスト",
    "bob@ｅxample.org",
    "a＠example.org",
    "a@example。org",
    "postmaster",
    "@example.org",
    "a@",
    "x" * 64 + "@example.org",
    "x" * 65 + "@example.org",
    "a@" + "b" * 63 + ".example.org",
    "a@" + "b" * 64 + ".org",
    "undisclosed-recipients:;",
    "group: a@example.org, b@example.org;",
    "mailto:a@example.org",
    "Bob <a@example.org> (x)",
    "Bob <a@example.org>, c@example.org",
    '"Bob\r\nBcc: e@example.net" <a@example.org>',
    "=?utf-8?q?a=40example.net?= <a@example.org>",
    "Bob <<a@example.org>>",
    "a@example.org\u202e",
    "A@EXAMPLE.ORG",
    "a+b@example.org",
    "a/b@example.org",
    "a=b@example.org",
    "a'b@example.org",
    "a`b@example.org",
    "$a@example.org",
    "{a}@example.org",
    "a*@example.org",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**300,
    1.5,
    -0.0,
    1e308,
    5e-324,
    [],
    {},
    [[]],
    [None],
    [[[[]]]],
    {"": ""},
    {"a": {"b": {}}},
    ["a"] * 30,
    [{}] * 25,
    {"email": "a@example.org"},
    {"email": "a@example.org", "name": "\r\nBcc: e@example.net"},
    {"$ref": CANARY},
    {"__proto__": {"a": 1}},
    {f"k{number}": "v" for number in range(60)},
    [1, "a", None, {}],
    [f"n{number}@example.org" for number in range(101)],
)
KEYS = (
    "Bcc",
    "bcc ",
    "sender",
    "From",
    "headers",
    "attachments",
    "path",
    "file",
    "url",
    "href",
    "subjekt",
    "",
    "\0",
    "a/b~c",
    "\ud800",
    "x" * 3000,
    "__class__",
    "to\r\n",
    "job",
    "id",
    "message_id",
    "dry_run",
    "constructor",
    "ü" * 300,
)
HEADERS = (
    "Bcc",
    "From",
    "To",
    "Date",
    "Message-ID",
    "Sender",
    "Content-Type",
    "MIME-Version",
    "DKIM-Signature",
    "Received",
    "Return-Path",
    "X-A\r\nBcc",
    "X-A:",
    "X A",
    "",
    "X-Ü",
    "x-" + "a" * 74,
    "X-" + "b" * 75,
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "References",
    "In-Reply-To",
    "X-Ok",
    "x-ok",
    "Keywords",
    "Priority",
    "Auto-Submitted",
    "Feedback-ID",
    "Comments",
    "List-" + "c" * 40,
    "Reply-To",
    "Cc",
    "Subject",
    "Content-Disposition",
    "\0",
)
HEADER_VALUES = (
    "<a@example.org>",
    "auto-generated",
    "word " * 100 + "end",
    "z" * 890,
    "Grüße 日本",
    "=?utf-8?q?no?=",
    "a  b",
    "x:y",
    "<https://example.org/u>, <mailto:u@example.org>",
    "",
)
MEDIA_TYPES = (
    "text/plain",
    "application/pdf",
    "image/png",
    "image/svg+xml",
    "text/html",
    "application/x-sh",
)
FILE_NAMES = (
    "a.txt",
    "Grüße.pdf",
    "../../etc/passwd",
    "..\\x.exe",
    "a/b",
    "con",
    ".bashrc",
    'q"u.txt',
    "a\r\nb",
    "\u202egpj.exe",
    "long" * 80,
    "=?utf-8?q?x?=",
    "a;b=c.txt",
    "..",
    "%2e%2e%2f",
)
CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "text/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    'multipart/form-data; boundary="a"; boundary=b',
    "multipart/mixed; boundary=x",
    "application/json, text/plain",
    "application/JSON",
    "",
    "a",
    "application/problem+json",
    "multipart/form-data; boundary*=utf-8''%ff",
    "x" * 500,
)
REQUEST_HEADERS = (
    ("Idempotency-Key", '"a"'),
    ("Idempotency-Key", "k" * 257),
    ("Idempotency-Key", '"un"closed"'),
    ("Idempotency-Key", "\xff"),
    ("Idempotency-Key", "same"),
    ("Prefer", "wait=99999999999999"),
    ("Prefer", "wait=-1, wait=x"),
    ("X-Request-Id", "<script>"),
    ("X-Request-Id", "r" * 5000),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "br, deflate"),
    ("Transfer-Encoding", "chunked"),
    ("Accept", "text/html"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("Expect", "100-continue"),
    ("Range", "bytes=0-1"),
    ("Cookie", "a=" + "b" * 4000),
    ("If-None-Match", "*"),
    ("Authorization", "Basic !!!"),
    ("Authorization", "Bearer \xff"),
    ("Origin", "null"),
    ("Host", "evil.example"),
    ("Host", "localhost\x0b"),
    ("X-Forwarded-For", "1.2.3.4"),
)


@dataclass(frozen=True)
class Request:
    """What is sent, and what it says where it is JSON that a reader can read."""

    number: int
    path: str
    data: bytes
    method: str = "POST"
    content_type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    environ: dict[str, Any] = field(default_factory=dict)  #: what a server would have made of a lie
    asked: Any = None  #: the body, as any reader of JSON reads it
    files: tuple[tuple[str, str, str, bytes], ...] = ()  #: of a form: field, name, type, content


@dataclass
class Maker:
    """Makes the requests of one run; each depends on the seed and its number only, and on where the canary is."""

    seed: int
    canary: str
    port: int
    _dice: random.Random = field(default_factory=random.Random)

    @property
    def secret(self) -> str:
        """What stands in the canary's file."""
        return f"#c0ffee{self.seed:04d}"

    def request(self, number: int) -> Request:
        self._dice = random.Random(f"{self.seed}:{number}")
        kinds: dict[Callable[[int], Request], int] = {
            self._message: 40,
            self._tutorial: 12,
            self._batch: 12,
            self._job: 10,
            self._form: 9,
            self._template: 6,
            self._preview: 4,
            self._suppression: 3,
            self._webhook: 3,
            self._list: 4,
            self._action: 2,
        }
        (made,) = self._dice.choices([*kinds], [*kinds.values()])
        request = made(number)
        for chance, change in (
            (0.12, self._garbled),
            (0.05, self._mislabeled),
            (0.06, self._with_header),
        ):
            if self._dice.random() < chance:
                request = change(request)
        return request

    def hostile_result(self, id: str) -> Any:
        """What a job returned."""
        dice = random.Random(f"{self.seed}:{id}")
        return dice.choice(
            [
                None,
                1.5,
                *map(self._own, dice.choices(STRINGS, k=2)),
                {"a": ["\r\nBcc: e@example.net"]},
                ["x" * 5000],
            ]
        )

    # The kinds of requests

    def _message(self, number: int) -> Request:
        return self._json(number, "/v1/messages", self._spoiled(self._mail(number)))

    def _tutorial(self, number: int) -> Request:
        few = {"to": self._person(number), "subject": self._text(30), "contents": self._text(300)}
        return self._json(number, "/", self._spoiled(few))

    def _batch(self, number: int) -> Request:
        dice = self._dice
        messages = [
            {"to": self._person(number), **self._some(self._mail(number))}
            for _ in range(dice.choice((1, 2, 3, 8)))
        ]
        if dice.random() < 0.3:
            return self._json(number, "/v1/messages/batch", self._spoiled(messages))
        common = {"subject": "News", **self._some(self._mail(number))}
        return self._json(
            number, "/v1/messages/batch", self._spoiled({"common": common, "messages": messages})
        )

    def _job(self, number: int) -> Request:
        dice = self._dice
        notify = {
            "to": self._person(number),
            "subject": dice.choice(("Done", "{{ job.name }}", self._text(20))),
            "contents": dice.choice(
                (
                    "{{ job.result }}",
                    "{{ job.result|tojson }}",
                    "{{ job.status }}",
                    self._text(200),
                    "<p>{{ job.result }}</p>",
                )
            ),
        }
        asked = {
            "name": "simulate",
            "args": {"seconds": 0},
            "notify": notify,
            "notify_on": dice.choice(("success", "failure", "both")),
        }
        if dice.random() < 0.3:  # The same, asked for by the mail.
            return self._json(
                number,
                "/v1/messages",
                self._spoiled({**notify, "job": {"name": "simulate", "args": {"seconds": 0}}}),
            )
        return self._json(number, "/v1/jobs", self._spoiled(asked))

    def _form(self, number: int) -> Request:
        dice = self._dice
        mail = {name: value for name, value in self._mail(number).items() if name != "attachments"}
        mail = self._spoiled(mail) if dice.random() < 0.4 else mail
        files = tuple(
            (
                dice.choice(
                    (
                        "attachments",
                        "attachments",
                        "logo@x",
                        "<x>",
                        "a b",
                        "..",
                        "message",
                        "\u202e",
                    )
                ),
                self._own(dice.choice(FILE_NAMES)),
                dice.choice((*MEDIA_TYPES, "message/rfc822", "", "a/b; c=d")),
                dice.randbytes(dice.choice((0, 1, 57, 3000))),
            )
            for _ in range(dice.choice((0, 1, 2, 5)))
        )
        boundary = f"b{dice.getrandbits(64):x}"
        field = dice.choice(("message", "message", "message", "job", "x"))
        parts = [
            f'Content-Disposition: form-data; name="{field}"\r\n\r\n'.encode() + self._written(mail)
        ]
        for name, file, kind, content in files:
            about = f'Content-Disposition: form-data; name="{_quoted(name)}"; filename="{_quoted(file)}"\r\n'
            about += f"Content-Type: {kind}\r\n" if kind else ""
            parts.append(about.encode("utf-8", "replace") + b"\r\n" + content)
        data = (
            b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
            + f"--{boundary}--\r\n".encode()
        )
        return Request(
            number,
            "/v1/messages",
            data,
            content_type=f"multipart/form-data; boundary={boundary}",
            asked=mail,
            files=files,
        )

    def _template(self, number: int) -> Request:
        name = self._dice.choice(
            ("a", "b.c", "x" * 100, "..", "%2e%2e%2fetc", "%00", "A", "é", "styled%0d%0a")
        )
        asked = {
            "subject": self._text(50),
            "text": self._text(300),
            "html": f"<style>p {{color: red}}</style>{self._text(200)}<p>{{{{ name }}}}</p>",
        }
        return self._json(
            number, f"/v1/templates/{quote(name, safe='%')}", self._spoiled(asked), method="PUT"
        )

    def _preview(self, number: int) -> Request:
        asked = {"variables": {"name": self._text(100)}}
        return self._json(
            number,
            f"/v1/templates/{self._dice.choice((*TEMPLATES, 'a', 'nobody', '..'))}/preview",
            self._spoiled(asked),
        )

    def _suppression(self, number: int) -> Request:
        gone = f"gone{number}@example.org"  # With other domains in the end, as all the others shall get their mail.
        asked: dict[str, Any] = self._dice.choice(
            ({"address": gone}, {"addresses": [gone, f"x{gone}"]})
        )
        spoiled = json.dumps(self._spoiled({**asked, "detail": self._text(20)}), ensure_ascii=False)
        return self._json(
            number,
            "/v1/suppressions",
            json.loads(spoiled.replace("@", "@gone.").replace("＠", "＠gone.")),
        )

    def _webhook(self, number: int) -> Request:
        urls = (
            "https://example.org/hook",
            f"http://127.0.0.1:{self.port}/canary",
            "https://127.1/",
            "https://[::1]/",
            "https://localhost/",
            "https://2130706433/",
            "gopher://x/",
            f"file://{self.canary}",
            "https://example.org@127.0.0.1/",
            "https://example.org\\@127.0.0.1/",
            "https://ex\nample.org/",
            "https://[fe80::1%25eth0]/",
            "//x",
            "https://a:99999/",
        )
        return self._json(
            number,
            "/v1/webhooks",
            self._spoiled(
                {
                    "url": self._dice.choice(urls),
                    "events": self._dice.choice(([], ["message.sent"], ["x"])),
                }
            ),
        )

    def _list(self, number: int) -> Request:
        dice = self._dice
        names = dice.sample(
            ("limit", "after", "status", "to", "tag", "since", "until", "reason", "name", "queue"),
            3,
        )
        values = dice.choices(
            (*STRINGS, *ADDRESSES, "0", "-1", "10000000000000", "1.x", "9" * 30), k=3
        )
        query = "&".join(
            f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}"
            for name, value in zip(names, values, strict=True)
        )
        path = dice.choice(
            (
                "/v1/messages",
                "/v1/jobs",
                "/v1/suppressions",
                "/v1/templates",
                "/v1/webhooks/own/deliveries",
                "/v1/accounts",
                "/v1/messages/%00",
                "/v1/messages/" + "x" * 300,
                "/v1/suppressions/a%00@b",
                "/v1/suppressions/a%40example.org%0d%0a",
                "/v1/jobs/%ff/file",
                "/unsubscribe/%00",
                "/static/web/..%2f..%2fapp.py",
                "/static/web/%2fetc%2fpasswd",
                "/v1/messages/..%2f..%2fetc/raw",
                "/docs",
                "/openapi.json",
                "/metrics",
                f"/{quote(self.canary)}",
            )
        )
        return Request(
            number,
            path,
            b"",
            method=dice.choice(("GET", "GET", "GET", "DELETE", "HEAD", "PUT", "TRACE")),
            content_type=None,
            query=query,
        )

    def _action(self, number: int) -> Request:
        action = self._dice.choice(("cancel", "hold", "release", "retry", "reschedule", "resend"))
        return self._json(
            number,
            f"/v1/messages/{quote(self._dice.choice(('nobody', 'x' * 201, '..', chr(0))))}/{action}",
            self._spoiled({"delay": 1}),
        )

    # Their parts

    def _mail(self, number: int) -> dict[str, Any]:
        dice = self._dice
        mail: dict[str, Any] = {
            "to": [self._person(number) for _ in range(dice.choice((1, 1, 2, 7)))],
            "subject": self._text(60),
        }
        mail |= dice.choice(
            (
                {"text": self._text(800)},
                {"html": f"<p>{self._text(500)}</p>"},
                {"contents": self._text(500)},
                {"text": self._text(300), "html": f"<div>{self._text(300)}</div>"},
                {
                    "template": {
                        "name": dice.choice([*TEMPLATES]),
                        "variables": {"name": self._text(60)},
                    }
                },
                {},
            )
        )
        more: dict[str, Callable[[], Any]] = {
            "cc": lambda: self._person(number),
            "bcc": lambda: [self._person(number)],
            "reply_to": lambda: self._person(number),
            "from": lambda: dice.choice(
                (
                    "ops@example.org",
                    "Ops <ops@example.org>",
                    {"email": "ö@example.org", "name": "Ö, X"},
                    "eve@example.net",
                )
            ),
            "headers": lambda: {
                dice.choice(HEADERS): self._own(dice.choice((*HEADER_VALUES, *STRINGS)))
                for _ in range(dice.choice((1, 3)))
            },
            "attachments": self._attachments,
            "tags": lambda: [self._own(dice.choice(("a", "b", *STRINGS)))],
            "metadata": lambda: {"order": self._own(dice.choice(STRINGS))},
            "priority": lambda: dice.choice(("low", "normal", "high")),
            "delay": lambda: dice.choice((0, 1, 60, 1e9)),
            "expires_in": lambda: dice.choice((3600, 1e5)),
            "max_attempts": lambda: dice.choice((1, 100, 101)),
            "unsubscribe": lambda: True,
            "webhook_url": lambda: dice.choice(
                (
                    "https://example.org/h",
                    f"http://127.0.0.1:{self.port}/canary",
                    f"file://{self.canary}",
                )
            ),
            "dry_run": lambda: True,
        }
        for name in dice.sample([*more], dice.choice((0, 1, 2, 4))):
            mail[name] = more[name]()
        return mail

    def _person(self, number: int) -> Any:
        dice = self._dice
        address, name = f"p{dice.randrange(1000)}.{number}@example.org", dice.choice(NAMES)
        plain = all(character.isalpha() or character == " " for character in name) and name
        return dice.choice(
            (
                address,
                address,
                {"email": address, "name": name},
                {"email": address},
                f"{name} <{address}>" if plain else address,
            )
        )

    def _attachments(self) -> list[dict[str, Any]]:
        dice = self._dice
        content = [
            dice.randbytes(dice.choice((0, 1, 56, 57, 58, 4000)))
            for _ in range(dice.choice((1, 2, 21)))
        ]
        return [
            {
                "filename": self._own(dice.choice(FILE_NAMES)),
                "content": self._base64(each),
                "content_type": dice.choice(MEDIA_TYPES),
            }
            | (
                {"content_id": dice.choice(("logo@x", "<x>", "a b", "", "x\r\ny"))}
                if dice.random() < 0.3
                else {}
            )
            for each in content
        ]

    def _base64(self, content: bytes) -> str:
        plain = base64.b64encode(content).decode()
        return self._dice.choice(
            (
                plain,
                plain,
                plain,
                plain.rstrip("="),
                base64.urlsafe_b64encode(content).decode(),
                plain.replace("A", "A\r\n"),
                plain + "=",
                f"data:image/png;base64,{plain}",
                "*" + plain,
            )
        )

    def _text(self, most: int) -> str:
        dice = self._dice
        if dice.random() < 0.7:
            word = [piece for piece in PIECES if most > 250 or piece.isprintable()]
            return "".join(dice.choices(word, k=dice.choice((0, 1, 3, 8))))[:most]
        return self._own(dice.choice(STRINGS))

    def _some(self, mail: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in mail.items()
            if name not in ("to", "dry_run") and self._dice.random() < 0.3
        }

    def _own(self, text: str) -> str:
        return text.replace(CANARY, self.canary).replace(PORT, str(self.port))

    # What spoils them

    def _spoiled(self, asked: Any) -> Any:
        asked = json.loads(json.dumps(asked))
        for _ in range(self._dice.choices((0, 1, 2, 4), (35, 40, 18, 7))[0]):
            asked = self._changed(asked)
        return asked

    def _changed(self, asked: Any) -> Any:
        """One place in it is something else, or more, or missing."""
        dice = self._dice
        places = [*_places(asked)]
        if not places or dice.random() < 0.02:
            return dice.choice([asked, [asked], self._value()])
        holder, key = dice.choice(places)
        value = holder[key]
        match dice.randrange(6):
            case 0:
                holder[key] = self._value()
            case 1 if isinstance(value, str):
                at = dice.randrange(len(value) + 1)
                holder[key] = value[:at] + self._own(dice.choice(STRINGS)) + value[at:]
            case 2 if isinstance(value, str) and "@" in value:
                holder[key] = dice.choice(ADDRESSES)
            case 3 if isinstance(holder, dict):
                holder[dice.choice(KEYS)] = self._value()
            case 4:
                del holder[key]
            case _:
                holder[key] = dice.choice(
                    [
                        [value],
                        {key if isinstance(key, str) else "a": value},
                        self._own(dice.choice(STRINGS)),
                        dice.choice(ADDRESSES),
                    ]
                )
        return asked

    def _value(self) -> Any:
        dice = self._dice
        value = dice.choice(
            (dice.choice(VALUES), self._own(dice.choice(STRINGS)), dice.choice(ADDRESSES))
        )
        return json.loads(self._own(json.dumps(value)))

    def _written(self, asked: Any) -> bytes:
        if self._dice.random() < 0.5 and not _has_surrogates(asked):
            return json.dumps(
                asked, ensure_ascii=False, indent=self._dice.choice((None, 2))
            ).encode()
        return json.dumps(asked).encode()

    def _json(self, number: int, path: str, asked: Any, *, method: str = "POST") -> Request:
        return Request(number, path, self._written(asked), method=method, asked=asked)

    def _garbled(self, request: Request) -> Request:
        """Other bytes, which are no JSON any more, or another one."""
        dice, data = self._dice, request.data
        at = dice.randrange(len(data) + 1)
        text = data.decode("utf-8", "replace")
        made: bytes = dice.choice(
            (
                data[:at],
                data[:at] + dice.randbytes(3) + data[at:],
                data + b"x",
                b"\xef\xbb\xbf" + data,
                text.encode("utf-16"),
                gzip.compress(data),
                zlib.compress(data),
                b"[" * 5000,
                b'{"a":' * 3000,
                data.replace(b":", b": NaN,", 1),
                data.replace(b'"to"', b'"to": "eve@example.net", "to"', 1),
                b'{"to": "a@example.org", "delay": ' + b"9" * 5000 + b"}",
                b'{"to": "a@example.org", "delay": 1e400}',
                data.replace(b'"', b"'"),
                data + data,
                b"/* */" + data,
                b"\0" * 100,
                b"",
                b"null",
                b'"' + CANARY.encode() + b'"',
                data.replace(b"}", b",}", 1),
                b'{"to": "a@example.org", "text": "' + b"\\u0041" * 5000 + b'"}',
                b'{"to": "a@example.org", "text": "\\ud83d"}',
                b'{"to": "a@example.org", "text": "\xc0\x80"}',
                b'{"to": "a@example.org", "subject": "\xed\xa0\x80"}',
                b'{"to": "a@example.org", "html": "' + b"<p> " * 200_000 + b'"}',
                b'{"\\u0074o": "b@example.org"}',
            )
        )
        return request if made == data else replace(request, data=made, files=(), asked=_read(made))

    def _mislabeled(self, request: Request) -> Request:
        """Another content type, or a length that is a lie."""
        dice = self._dice
        if dice.random() < 0.6:
            kind = dice.choice(CONTENT_TYPES)
            is_json = kind.lower().startswith("application/json")
            return replace(
                request, content_type=kind, asked=request.asked if is_json else None, files=()
            )
        lie = dice.choice(
            (
                {"CONTENT_LENGTH": "0"},
                {"CONTENT_LENGTH": str(max(0, len(request.data) - 3))},
                {"CONTENT_LENGTH": str(len(request.data) + 1000)},
                {"CONTENT_LENGTH": "-1"},
                {"CONTENT_LENGTH": "x"},
                {"CONTENT_LENGTH": "9" * 30},
                {"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
            )
        )
        return replace(request, environ=lie)

    def _with_header(self, request: Request) -> Request:
        name, value = self._dice.choice(REQUEST_HEADERS)
        return replace(request, headers={name: value})


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in it, as what holds it and its key there."""
    for key in (
        [*value]
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    ):
        yield value, key
        yield from _places(value[key])


def _has_surrogates(value: Any) -> bool:
    return "\\ud" in json.dumps(value) and any(
        "\ud800" <= character <= "\udfff" for character in json.dumps(value, ensure_ascii=False)
    )


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _read(data: bytes) -> Any:
    try:
        return json.load(io.TextIOWrapper(io.BytesIO(data), "utf-8"))
    except (ValueError, RecursionError):
        return None
