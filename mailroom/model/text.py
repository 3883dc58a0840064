"""Text as every reader takes it."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def unicode_text(text: str) -> str:
    """Return text that UTF-8 can hold: with U+FFFD for each lone surrogate, such as os.fsdecode() makes."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
