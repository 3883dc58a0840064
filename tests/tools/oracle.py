"""Says what has to arrive when a request was accepted, by rules of its own: it shares no code with what reads and writes mails."""

import base64
import email
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import idna

from tests.services.smtpd import Delivery
from tests.tools.hostile import TEMPLATES, Request

SENDER = "alice@example.org"
OURS = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"]
Person = tuple[str, str]  #: address and name


@dataclass(frozen=True)
class Asked:
    """One mail that was accepted, as the client asked for it."""

    request: Request
    mail: dict[str, Any]
    job: bool | None = None  #: set where it waited for one, so that its text tells of that

    @property
    def may_expire(self) -> bool:
        return "expires_in" in self.mail or "expires_at" in self.mail


def asked_mails(request: Request, answer: Any) -> Iterator[tuple[str, Asked]]:
    """The mails that an answer says were accepted, by their ids."""
    if (
        answer.get("dry_run")
        or request.method != "POST"
        or (request.asked is None and b"form-data" in request.data)
    ):
        return  # A garbled form can be read in more than one way.
    if request.path == "/v1/messages/batch":
        asked = request.asked if isinstance(request.asked, dict) else {"messages": request.asked}
        for told, own in zip(answer["data"], asked["messages"], strict=True):
            yield told["id"], Asked(request, _merged(asked.get("common", {}), own))
    elif request.path == "/v1/jobs" and answer.get("message"):
        yield answer["message"]["id"], Asked(request, request.asked["notify"], job=True)
    elif request.path in ("/", "/v1/messages"):
        mail = dict(request.asked)
        files = [
            {
                "filename": name or "file",
                "content": base64.b64encode(content).decode(),
                "content_type": kind.partition(";")[0] or "application/octet-stream",
                "content_id": "" if place == "attachments" else place,
            }
            for place, name, kind, content in request.files
        ]
        mail["attachments"] = [*mail.get("attachments", []), *files]
        yield answer["id"], Asked(request, mail, job=True if mail.get("job") else None)


def _merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    mail = {**common, **{name: value for name, value in own.items() if name != "variables"}}
    if own.get("variables"):
        mail["template"] = {
            **mail["template"],
            "variables": {**mail["template"].get("variables", {}), **own["variables"]},
        }
    return mail


def differences(delivery: Delivery, asked: Asked, secret: str) -> Iterator[str]:
    """What about the mail that arrived is not as it was asked for."""
    mail, text = asked.mail, delivery.data.decode("utf-8")
    seen = (
        email.message_from_string(text, policy=policy.default)
        if not text.isascii()
        else email.message_from_bytes(delivery.data, policy=policy.default)
    )
    plain = email.message_from_string(text)
    for kind in (seen, plain):
        if defects := [part.defects for part in kind.walk() if part.defects]:
            yield f"the parser found {defects}"
    if secret in text or any(
        secret.encode() in (part.get_payload(decode=True) or b"")
        for part in plain.walk()
        if not part.is_multipart()
    ):
        yield "the mail holds what is in the canary's file"
    to, cc, bcc = everyone(mail)
    if Counter(delivery.rcpt_tos) != Counter(address for address, _ in (*to, *cc, *bcc)):
        yield f"the envelope is for {delivery.rcpt_tos}, asked were {(to, cc, bcc)}"
    sender = people(mail.get("from"))[:1] or [(SENDER, "")]
    if delivery.mail_from != sender[0][0]:
        yield f"the envelope is from {delivery.mail_from!r}"
    reply_to = once(people(mail.get("reply_to")))
    headers = {} if asked.job and not mail.get("headers") else mail.get("headers") or {}
    unsubscribe = ["List-Unsubscribe", "List-Unsubscribe-Post"] if mail.get("unsubscribe") else []
    wanted = [
        *OURS,
        *(["Cc"] if cc else []),
        *(["Reply-To"] if reply_to else []),
        *unsubscribe,
        *headers,
    ]
    if Counter(plain.keys()) != Counter(wanted):
        yield f"the header fields are {plain.keys()}, expected {wanted}"
        return
    for field, listed in (("From", sender), ("To", to), ("Cc", cc), ("Reply-To", reply_to)):
        if field in plain and (found := addresses(plain[field], text)) != listed:
            yield f"{field} is {found}, expected {listed}"
    for name, value in headers.items():
        if str(seen[name]) != value:
            yield f"{name} is {str(seen[name])!r}, expected {value!r}"
    yield from _text_differences(seen, asked)
    yield from _file_differences(seen, mail)


def _text_differences(seen: EmailMessage, asked: Asked) -> Iterator[str]:
    mail = asked.mail
    subject, plain, rich = mail.get("subject") or "", mail.get("text"), mail.get("html")
    contents = mail.get("contents")
    if template := mail.get("template"):
        source, name = (
            TEMPLATES.get(template["name"]),
            template["variables"].get("name") if template.get("variables") else None,
        )
        if source is None or not isinstance(name, str):
            return
        subject = (
            subject
            or " ".join(
                re.split(
                    r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+",
                    source["subject"].replace("{{ name }}", name),
                )
            ).strip()
        )
        plain = source["text"].replace("{{ name }}", name) if "text" in source else None
        rich = (
            source["html"].replace("{{ name }}", html.escape(name))
            if "html" in source and "<style" not in source["html"]
            else None
        )
    elif plain is None and rich is None:
        contents = contents or ""
        plain, rich = (
            (None, contents)
            if contents.strip().startswith("<") and contents.strip().endswith(">")
            else (contents, None)
        )
    if asked.job and ("{" in f"{subject}{plain}{rich}" or not (subject or plain or rich)):
        return  # It tells of the job.
    subject = subject.strip() if asked.job else subject
    if str(seen["Subject"]) != subject:
        yield f"the subject is {str(seen['Subject'])!r}, expected {subject!r}"
    for kind, text in (("plain", plain), ("html", rich)):
        part = seen.get_body((kind,))
        found = None if part is None else part.get_content().replace("\r\n", "\n")
        if found is None or (
            text is not None
            and _unescaped(found, template)
            != _unescaped(text.replace("\r\n", "\n").replace("\r", "\n"), template)
        ):
            yield f"the {kind} text is {found!r:.300}, expected {text!r:.300}"


def _unescaped(text: str, template: object) -> str:
    """Whichever way a template escaped a quote."""
    return html.unescape(text) if template else text


def _file_differences(seen: EmailMessage, mail: dict[str, Any]) -> Iterator[str]:
    parts = [part for part in seen.walk() if part.get_content_disposition()]
    found = Counter(
        (part.get_content_type(), _bytes_of(part), (part["Content-ID"] or "").strip("<>"))
        for part in parts
    )
    wanted = Counter(
        (
            file.get("content_type", "application/octet-stream").lower(),
            base64.b64decode("".join(file["content"].split())),
            file.get("content_id", ""),
        )
        for file in mail.get("attachments") or []
    )
    if found != wanted:
        told, expected = (
            [(kind, len(content), id) for kind, content, id in files] for files in (found, wanted)
        )
        yield f"the files are {told}, expected {expected}"
    names = [part["Content-Disposition"].params["filename"] for part in parts]
    for name in names:
        if (
            re.search(r"[/\\\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]", name)
            or name.strip(". ") == ""
        ):
            yield f"a file is named {name!r}"
    plain = Counter(
        file["filename"]
        for file in mail.get("attachments") or []
        if re.fullmatch(r"[\w=?;%-][\w .()=?;%-]{0,60}\w", file["filename"])
    )
    if plain - Counter(names):
        yield f"the files are named {names}, expected {plain} among them"


def _bytes_of(part: Any) -> bytes:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def everyone(mail: dict[str, Any]) -> tuple[list[Person], list[Person], list[Person]]:
    """Each address where it stands first."""
    seen: set[str] = set()
    lists = []
    for field in ("to", "cc", "bcc"):
        kept = [person for person in once(people(mail.get(field))) if person[0] not in seen]
        seen |= {address for address, _ in kept}
        lists.append(kept)
    to, cc, bcc = lists
    return to, cc, bcc


def once(listed: list[Person]) -> list[Person]:
    return [
        person
        for number, person in enumerate(listed)
        if person[0] not in [address for address, _ in listed[:number]]
    ]


def people(value: Any) -> list[Person]:
    return (
        []
        if value is None
        else [_person(item) for item in value]
        if isinstance(value, list)
        else [_person(value)]
    )


def _person(value: Any) -> Person:
    if isinstance(value, dict):
        address, name = _person(value["email"])
        return address, value.get("name", name).strip()
    found = re.fullmatch(r"\s*(.*?)\s*<([^<>]*)>\s*", value)
    name, address = (found[1], found[2]) if found else ("", value)
    if name.startswith('"') and name.endswith('"') and len(name) > 1:
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    local, _, domain = address.strip().rpartition("@")
    local = _quoted(unicodedata.normalize("NFC", local))
    return f"{local}@{idna.encode(domain, uts46=True).decode().lower()}", name.strip()


def _quoted(local: str) -> str:
    """With quotes where it needs them (RFC 5321, 4.1.2)."""
    bare = re.sub(r"\\(.)", r"\1", local[1:-1]) if local.startswith('"') else local
    is_plain = all(bare.split(".")) and not set(bare) & set(' "(),:;<>@[\\]')
    return bare if is_plain else '"' + re.sub(r'(["\\])', r"\\\1", bare) + '"'


def addresses(field: str, text: str) -> list[Person]:
    """As a reader shows them: encoded words joined (RFC 2047, 6.2)."""
    unfolded = re.sub(r"\r?\n(?=[ \t])", "", field)
    return [
        (address, str(make_header(decode_header(name))))
        for name, address in getaddresses([unfolded])
    ]
