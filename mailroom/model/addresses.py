"""Reads mail addresses, as people and programs write them."""

import re
from functools import lru_cache, partial
from typing import Any

import email_validator
from email_validator import EmailNotValidError, validate_email

from mailroom.model.errors import refuse
from mailroom.model.message import Address
from mailroom.model.text import encodable, refuse_control, short_repr

#: Of name and address together, as the client wrote them: the longest header line (RFC 5322, 2.1.1).
ADDRESS_MAX_CHARACTERS = 998

#: Domains that no public mail server has, but a private one may have: in an intranet, a test, the inbox.
for _name in ("local", "localhost", "test", "invalid"):
    if _name in email_validator.SPECIAL_USE_DOMAIN_NAMES:
        email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(_name)

#: A display name without quotes, as in J. Müller <mueller@example.org>; RFC 5322 requires them here.
_UNQUOTED = re.compile(r"\A([^\"<>@,;:\\()\[\]]+)(?=<[^<>]*>\Z)")

#: An address that needs no parser: no quotes, comments, Unicode or name. Its domain is still checked.
_PLAIN = re.compile(r"([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@([a-z0-9.-]{1,253})", re.ASCII)
#: RFC 5321, 4.5.3.1.1; counted in UTF-8 and with quotes.
_LOCAL_MAX_BYTES = 64
#: A part before the @-sign without quotes that begins or ends with a dot, or has two in a row.
_ODD_DOTS = re.compile(r"(\A|<)((?=\.|[^@]*\.[.@])[\w.!#$%&'*+/=?^`{|}~-]+)(?=@[^@\"]*\Z)")
#: The parser, without looking up a domain, and for all the forms of addresses that we accept.
_parse = partial(
    validate_email,
    check_deliverability=False,
    allow_display_name=True,
    globally_deliverable=False,
    allow_smtputf8=True,
    allow_quoted_local=True,
)


def parse_address(value: object) -> Address:
    """Read "bob@example.org", "Bob <bob@example.org>" or {"email": "bob@example.org", "name": "Bob"}.

    The part before the @-sign gets quotes only if it needs them (RFC 5321, 4.1.2).

    Raises:
      PydanticCustomError: it is not an address; the text says why and shows the value.
    """
    if isinstance(value, dict):
        return _from_object(value)
    if not isinstance(value, str):
        refuse(f"expected an address, got {short_repr(value)}")
    plain = _PLAIN.fullmatch(value)
    if plain and len(plain[1]) <= _LOCAL_MAX_BYTES and (domain := _plain_domain(plain[2])):
        return Address(f"{plain[1]}@{domain}")
    _refuse_line(value)
    try:
        parsed = _parse(_with_quotes(value))
    except (EmailNotValidError, RecursionError) as e:
        refuse(f"expected an address, got {short_repr(value)}: {e}")
    if problem := _no_mail_domain(parsed.ascii_domain) or _too_long(parsed.local_part):
        refuse(f"expected an address, got {short_repr(value)}: {problem}")
    name = (parsed.display_name or "").strip()
    return Address(f"{parsed.local_part}@{parsed.ascii_domain}", name)


def _with_quotes(value: str) -> str:
    """Add the quotes that people leave out: around a name, and around dots as in abc..def.@docomo.ne.jp.

    Phones in Japan had such addresses; RFC 5322, 3.4.1 allows them only in quotes.
    """
    return _ODD_DOTS.sub(r'\1"\2"', _UNQUOTED.sub(r'"\1" ', value))


def _from_object(value: dict[Any, Any]) -> Address:
    are_texts = all(isinstance(part, str) for part in value.values())
    if value.keys() - {"email", "name"} or "email" not in value or not are_texts:
        refuse(f'expected {{"email": "bob@example.org", "name": "Bob"}}, got {short_repr(value)}')
    address = parse_address(value["email"])
    name = value.get("name", address.name)
    _refuse_line(name)
    return Address(address.address, name.strip())


def _refuse_line(value: str) -> None:
    refuse_control(value, expected="an address")
    if len(value) > ADDRESS_MAX_CHARACTERS:
        refuse(
            f"expected an address of at most {ADDRESS_MAX_CHARACTERS} characters, got {len(value)}"
        )
    encodable(value)


@lru_cache(1024)
def _plain_domain(domain: str) -> str:
    """Return the domain for the envelope; "" if it is wrong, and the parser has to say why."""
    try:
        parsed = validate_email(
            f"a@{domain}", check_deliverability=False, globally_deliverable=False
        )
    except EmailNotValidError:
        return ""
    return "" if _no_mail_domain(parsed.ascii_domain) else str(parsed.ascii_domain)


def _no_mail_domain(domain: str) -> str:
    """Say why a domain gets no mail; "" if it may get some."""
    if "." not in domain and domain != "localhost":
        return "the part after the @-sign should have a period"
    if domain.rpartition(".")[2].isdigit():
        return "the part after the @-sign should be a name, not an IP address"
    return ""


def _too_long(local_part: str) -> str:
    if (length := len(local_part.encode())) <= _LOCAL_MAX_BYTES:
        return ""
    return f"the part before the @-sign has at most {_LOCAL_MAX_BYTES} bytes, not {length}"
