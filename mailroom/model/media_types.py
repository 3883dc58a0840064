"""Reads media types: image/png, or text/csv; charset=utf-8 (RFC 2045, 5.1; RFC 6838, 4.2)."""

import re
from typing import NamedTuple

OCTET_STREAM = "application/octet-stream"
#: A message or a multipart may not be in base64 (RFC 2045, 6.4).
_NAME = re.compile(
    r"(?!message/|multipart/)[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", re.IGNORECASE
)
_PARAMETER = re.compile(
    r"""\s*;\s*([A-Za-z0-9!#$%&'*+.^_`{|}~-]+)=([A-Za-z0-9!#$%&'*+.^_`{|}~-]+|"[ !#-\[\]-~]*")""", re.ASCII
)
#: The file's name, also in the forms of RFC 2231 (name*, name*0): it is written beside the type, once.
_FILE_NAME = re.compile(r"name(?:\*.*)?")


class MediaType(NamedTuple):
    """A type such as text/csv, in lower case, and its parameters as they were written."""

    name: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.name, *self.parameters])


def parse_media_type(value: str) -> MediaType | None:
    """Read it; None if it is none, or one that may not stand for a file."""
    name = _NAME.match(value)
    if name is None:
        return None
    at, parameters = name.end(), {}
    while at < len(value):
        parameter = _PARAMETER.match(value, at)
        if parameter is None or parameter[1].lower() in parameters:
            return None
        parameters[parameter[1].lower()] = f"{parameter[1].lower()}={parameter[2]}"
        at = parameter.end()
    kept = tuple(text for key, text in parameters.items() if not _FILE_NAME.fullmatch(key))
    return MediaType(name[0].lower(), kept)
