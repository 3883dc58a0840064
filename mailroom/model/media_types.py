"""Reads media types: image/png, or text/csv; charset=utf-8 (RFC 2045, 5.1; RFC 6838, 4.2)."""

import re
from typing import NamedTuple

OCTET_STREAM = "application/octet-stream"
#: Not message/… and multipart/…, which may not be in base64 (RFC 2045, 6.4).
_NAME = re.compile(
    r"(?!message/|multipart/)[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    r"""\s*;\s*([A-Za-z0-9!#$%&'*+.^_`{|}~-]+)=([A-Za-z0-9!#$%&'*+.^_`{|}~-]+|"[ !#-\[\]-~]*")""",
    re.ASCII,
)
#: The parameter with the file's name, also as in RFC 2231 (name*, name*0); composing writes it itself.
_FILE_NAME = re.compile(r"name(?:\*.*)?")


class MediaType(NamedTuple):
    """A type such as text/csv, in lower case, and its parameters as they were written."""

    name: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.name, *self.parameters])


def parse_media_type(value: str) -> MediaType | None:
    """Read a media type; None if it is not one, or not one that a file may have."""
    name = _NAME.match(value)
    if name is None:
        return None
    position, parameters = name.end(), {}
    while position < len(value):
        parameter = _PARAMETER.match(value, position)
        if parameter is None or parameter[1].lower() in parameters:
            return None
        parameters[parameter[1].lower()] = f"{parameter[1].lower()}={parameter[2]}"
        position = parameter.end()
    kept = tuple(text for key, text in parameters.items() if not _FILE_NAME.fullmatch(key))
    return MediaType(name[0].lower(), kept)
