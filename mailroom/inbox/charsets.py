"""Decodes text as browsers do: by what a charset label means in practice (WHATWG Encoding, 4.2)."""

import codecs
import re

#: Python codecs, and the superset that senders really use under that name.
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
#: Charset labels that Python does not know, and the codec for each.
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
#: Codecs that we ignore: ASCII says nothing about other bytes; Python decodes the others in quadratic time.
_IGNORED = {"ascii", "idna", "punycode"}
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
#: How far a browser looks for <meta charset> (WHATWG HTML, 13.2.3.2).
_META_IN_BYTES = 1024
_META = re.compile(
    rb"""<meta\s[^<>]{0,500}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE
)
#: The beginning of an encoded word, up to its text (RFC 2047, 2; with a language: RFC 2231, 5).
_WORD = re.compile(r"=\?([^?*\s]{1,40})(\*[^?\s]{0,40})?(?=\?[bq]\?)", re.IGNORECASE)


def decode(data: bytes, label: str = "", *, is_html: bool = False) -> str:
    """Decode bytes without ever failing; without a usable label as UTF-8, or else as windows-1252."""
    for mark, name in _BOMS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    codec = codec_of(label) or (_codec_in_meta(data) if is_html else "")
    if not codec:
        return _guessed(data)
    try:
        return data.decode(codec, "replace")
    except Exception:  # Some codecs raise in spite of "replace".
        return _guessed(data)


def codec_of(label: str) -> str:
    """Return the Python codec for a charset label; "" if it is unknown or of no use."""
    label = label.strip().lower()
    try:
        codec = codecs.lookup(_LABELS.get(label, label))
        b"".decode(codec.name)  # Raises for codecs such as base64, which are not for text.
    except Exception:  # The label is unknown, or has a NUL in it.
        return ""
    return "" if codec.name in _IGNORED else _WIDER.get(codec.name, codec.name)


def with_wider_words(header: str) -> str:
    """Replace the charset labels in the encoded words of a header by codecs that Python knows."""
    return _WORD.sub(lambda match: f"=?{codec_of(match[1]) or 'utf-8'}{match[2] or ''}", header)


def _guessed(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _codec_in_meta(data: bytes) -> str:
    """Return the codec that the HTML declares; "" if none. HTML that can be read as ASCII is not UTF-16."""
    match = _META.search(data, 0, _META_IN_BYTES)
    codec = codec_of(match[1].decode("ascii", "replace")) if match else ""
    return "utf-8" if codec.startswith(("utf-16", "utf-32")) else codec
