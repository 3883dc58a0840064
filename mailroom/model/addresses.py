"""Reads an address, as people and programs write it."""

import re
from functools import lru_cache
from typing import Any

import email_validator
from email_validator import EmailNotValidError, validate_email

from mailroom.model.errors import refuse
from mailroom.model.message import Address
from mailroom.model.text import encodable, refuse_control, short_repr

#: Name and address together, as they come; a header line is at most 998 characters (RFC 5322, 2.1.1).
ADDRESS_MAX_CHARACTERS = 998

#: Names that reach no mail server in the world, but may reach one's own: an intranet's, a test's, the inbox's.
for _name in ("local", "localhost", "test", "invalid"):
    if _name in email_validator.SPECIAL_USE_DOMAIN_NAMES:
        email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(_name)

#: A name as people write it, J. Müller <mueller@example.org>; RFC 5322 wants quotes for the dot and the ü.
_UNQUOTED = re.compile(r"\A([^\"<>@,;:\\()\[\]]+)(?=<[^<>]*>\Z)")

#: What needs no parser: no quotes, no comments, no Unicode, no name. Its domain is looked at like any other, once.
_PLAIN = re.compile(r"([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@([a-z0-9.-]{1,253})", re.ASCII)
#: RFC 5321, 4.5.3.1.1; in UTF-8, and with the quotes.
_LOCAL_MAX_BYTES = 64
#: What comes before the @-sign without quotes, and begins or ends with a dot, or has two in a row.
_ODD_DOTS = re.compile(r"(\A|<)((?=\.|[^@]*\.[.@])[\w.!#$%&'*+/=?^`{|}~-]+)(?=@[^@\"]*\Z)")


def parse_address(value: object) -> Address:
    """Read "bob@example.org", "Bob <bob@example.org>" or {"email": "bob@example.org", "name": "Bob"}.

    The part before the @-sign has quotes only where it needs them (RFC 5321, 4.1.2): one form for each.

    Raises:
      PydanticCustomError: it is no address; the text says why and shows what came.
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
        seen = validate_email(
            _with_quotes(value),
            check_deliverability=False,
            allow_display_name=True,
            globally_deliverable=False,
            allow_smtputf8=True,
            allow_quoted_local=True,
        )
    except (EmailNotValidError, RecursionError) as e:
        refuse(f"expected an address, got {short_repr(value)}: {e}")
    if problem := _no_mail_domain(seen.ascii_domain) or _too_long(seen.local_part):
        refuse(f"expected an address, got {short_repr(value)}: {problem}")
    return Address(f"{seen.local_part}@{seen.ascii_domain}", (seen.display_name or "").strip())


def _with_quotes(value: str) -> str:
    """Put quotes where people leave them away: round a name, and round dots as in abc..def.@docomo.ne.jp.

    Phones in Japan had such addresses; RFC 5322, 3.4.1 has them only in quotes.
    """
    return _ODD_DOTS.sub(r'\1"\2"', _UNQUOTED.sub(r'"\1" ', value))


def _from_object(value: dict[Any, Any]) -> Address:
    if (
        value.keys() - {"email", "name"}
        or "email" not in value
        or not all(isinstance(part, str) for part in value.values())
    ):
        refuse(f'expected {{"email": "bob@example.org", "name": "Bob"}}, got {short_repr(value)}')
    address = parse_address(value["email"])
    name = value.get("name", address.name)
    _refuse_line(name)
    return Address(address.address, name.strip())


def _refuse_line(value: str) -> None:
    refuse_control(value, expected="an address")
    if len(value) > ADDRESS_MAX_CHARACTERS:
        refuse(f"expected an address of at most {ADDRESS_MAX_CHARACTERS} characters, got {len(value)}")
    encodable(value)


@lru_cache(1024)
def _plain_domain(domain: str) -> str:
    """The domain as it goes into an envelope; "" where the parser has to say what is wrong with it."""
    try:
        seen = validate_email(f"a@{domain}", check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        return ""
    return "" if _no_mail_domain(seen.ascii_domain) else str(seen.ascii_domain)


def _no_mail_domain(domain: str) -> str:
    if "." not in domain and domain != "localhost":
        return "the part after the @-sign should have a period"
    return (
        "the part after the @-sign should be a name, not an IP address"
        if domain.rpartition(".")[2].isdigit()
        else ""
    )


def _too_long(local_part: str) -> str:
    if (length := len(local_part.encode())) <= _LOCAL_MAX_BYTES:
        return ""
    return f"the part before the @-sign has at most {_LOCAL_MAX_BYTES} bytes, not {length}"
