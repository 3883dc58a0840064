"""Decodes text as browsers do: by what a charset's label means in practice (WHATWG Encoding, 4.2)."""

import codecs
import re

#: Codecs of the library, and those that hold all that is sent under their names.
_WIDER = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}
#: Labels that the library does not know.
_LABELS = {
    "x-gbk": "gb18030",
    "x-sjis": "cp932",
    "x-euc-jp": "euc_jp",
    "x-x-big5": "big5hkscs",
    "windows-949": "cp949",
    "windows-874": "cp874",
    "dos-874": "cp874",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "iso-8859-6-i": "iso8859-6",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-cp1250": "cp1250",
    "x-cp1251": "cp1251",
    "x-cp1252": "cp1252",
    "gb_2312-80": "gb18030",
    "windows-31j": "cp932",
    "x-mac-roman": "mac-roman",
    "koi": "koi8-r",
    "koi8": "koi8-r",
    "koi8_r": "koi8-r",
    "koi8-ru": "koi8-u",
    "x-windows-949": "cp949",
    "unicode-1-1-utf-8": "utf-8",
    "utf8mb4": "utf-8",
}
#: Codecs that say too little, and those that the standard library decodes in quadratic time.
_OF_NO_USE = {"ascii", "idna", "punycode"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
#: Where a browser looks for it (WHATWG HTML, 13.2.3.2).
_META_IN_BYTES = 1024
_META = re.compile(
    rb"""<meta\s[^<>]{0,500}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE
)
#: An encoded word up to its text (RFC 2047, 2; RFC 2231, 5 for the language).
_WORD = re.compile(r"=\?([^?*\s]{1,40})(\*[^?\s]{0,40})?(?=\?[bq]\?)", re.IGNORECASE)


def decode(data: bytes, label: str = "", *, is_html: bool = False) -> str:
    """Return the text, whatever its charset is; where no label helps, it is UTF-8 or else windows-1252."""
    for mark, name in _BOMS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    codec = codec_of(label) or (_codec_in_meta(data) if is_html else "")
    if not codec:
        return _guessed(data)
    try:
        return data.decode(codec, "replace")
    except Exception:  # A codec that gives up.
        return _guessed(data)


def codec_of(label: str) -> str:
    """Name the codec for a charset's label; "" where it says nothing of bytes beyond ASCII, or means none."""
    label = label.strip().lower()
    try:
        found = codecs.lookup(_LABELS.get(label, label))
        b"".decode(found.name)  # Raises where it is for no text.
    except Exception:  # Unknown, or NUL in its name.
        return ""
    return "" if found.name in _OF_NO_USE else _WIDER.get(found.name, found.name)


def with_wider_words(header: str) -> str:
    """Name those codecs in the encoded words of a header, for the library to decode them."""
    return _WORD.sub(lambda found: f"=?{codec_of(found[1]) or 'utf-8'}{found[2] or ''}", header)


def _guessed(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _codec_in_meta(data: bytes) -> str:
    """Look into the HTML itself. It is read as ASCII for that, so it is not in UTF-16, whatever it says."""
    found = _META.search(data, 0, _META_IN_BYTES)
    codec = codec_of(found[1].decode("ascii", "replace")) if found else ""
    return "utf-8" if codec.startswith(("utf-16", "utf-32")) else codec
