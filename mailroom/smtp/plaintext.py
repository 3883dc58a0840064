"""Makes the text form of an HTML mail, for readers and programs that show no HTML."""

import re
from functools import cache
from typing import Any

from mailroom.process.lazy_import import Lazy

# Together they take 60 ms to load, which only HTML mail needs.
lxml_html = Lazy("lxml.html")
etree = Lazy("lxml.etree")
engine = Lazy("inscriptis.html_engine")
config = Lazy("inscriptis.model.config")
profiles = Lazy("inscriptis.css_profiles")
elements = Lazy("inscriptis.model.html_element")
properties = Lazy("inscriptis.html_properties")

#: Columns are made equally wide, so a table's text can grow to rows times its longest cell; in characters.
TABLES_MAX_CHARACTERS_TIMES_ROWS = 50_000_000
_LINKS = ("http:", "https:", "mailto:", "tel:", "sms:")
_RULE = "-" * 40
#: A display declaration in a style attribute; inscriptis knows three values of it, and no `!important`.
_DISPLAY = re.compile(r"(?<![\w-])display\s*:\s*([\w-]+)[^;]*", re.IGNORECASE)
_KNOWN_DISPLAYS = frozenset({"none", "inline", "block"})
#: Elements that browsers show as blocks, and inscriptis inline.
_BLOCKS = "caption center dd details dl dt fieldset form legend option section summary"
_LIKE_BLOCKS = frozenset({"flex", "grid", "table", "list-item", "flow-root"})
#: Characters that XML cannot hold (XML 1.0, 2.2).
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def plain_text(html: str) -> str:
    """Return what a person would read: no tags, scripts or hidden parts; links and pictures in words.

    Never raises, whatever the HTML holds; the time it takes grows with the length of the HTML.
    """
    tree = _parse(html)
    if tree is None:
        return ""
    _write_out(tree)
    rows = html.lower().count("<tr")
    is_huge = len(html) * rows > TABLES_MAX_CHARACTERS_TIMES_ROWS
    text = _text_lines(tree) if is_huge else _layout(tree)
    text = text.replace("\xa0", " ")
    stripped = "\n".join(line.rstrip() for line in text.split("\n"))
    compact = re.sub(r"\n{3,}", "\n\n", stripped)
    return compact.strip("\n")


def _parse(html: str) -> Any:
    """Return the tree that lxml makes of any input; None if there is nothing in it."""
    without_mark = html.removeprefix("\ufeff")
    data = _NOT_XML.sub("\ufffd", without_mark).strip().encode()
    if not data:
        return None
    parser = lxml_html.HTMLParser(
        encoding="utf-8",
        huge_tree=True,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return lxml_html.document_fromstring(data, parser=parser)
    except etree.LxmlError:  # It has tags and comments, and nothing to be seen.
        return None


def _write_out(tree: Any) -> None:
    """Put into words what would be lost without HTML: pictures, rules, links; mark what is hidden."""
    for styled in tree.iter():
        style = styled.get("style") or ""
        declared = _DISPLAY.findall(style)
        if declared:
            others = _DISPLAY.sub("", style)
            display = _display(declared[-1].lower())
            styled.set("style", f"{others};{display}")
        if styled.get("hidden") is not None:
            styled.set("style", "display:none")
    for image in [*tree.iter("img")]:
        image.tag = "span"
        image.text = image.get("alt") or ""
    for rule in [*tree.iter("hr")]:
        rule.tag = "p"
        rule.text = _RULE
    for link in [*tree.iter("a")]:
        target = (link.get("href") or "").strip()
        is_link = target.lower().startswith(_LINKS)
        if is_link and not _says_target(link, target):
            link.append(_span(f" ({target})"))


def _says_target(link: Any, target: str) -> bool:
    label = link.text_content().strip()
    return target in (label, f"mailto:{label}")


def _display(value: str) -> str:
    """Return the declaration that inscriptis knows; "": the default of the element's name."""
    if value in _KNOWN_DISPLAYS:
        return f"display:{value}"
    if value in _LIKE_BLOCKS:
        return "display:block"
    return ""


def _span(text: str) -> Any:
    span = etree.Element("span")
    span.text = text
    return span


def _layout(tree: Any) -> str:
    """Return the text as inscriptis lays it out, with tables in columns."""
    try:
        return str(engine.Inscriptis(tree, _config()).get_text())
    except RecursionError:  # Hundreds of nested tags, which no mail for people has.
        return _text_lines(tree)


def _text_lines(tree: Any) -> str:
    """Return the texts alone, each on a line of its own."""
    for hidden in [*tree.iter("script", "style", "title", "template")]:
        hidden.drop_tree()
    lines = (" ".join(text.split()) for text in tree.itertext())
    return "\n".join(filter(None, lines))


@cache
def _config() -> Any:
    """Return inscriptis' browser-like profile with the elements that it lacks."""
    element = elements.HtmlElement
    display = properties.Display
    css = profiles.CSS_PROFILES["strict"].copy()
    for name in _BLOCKS.split():
        css[name] = element(display=display.block)
    for name in ("datalist", "template", "object"):
        css[name] = element(display=display.none)
    css["blockquote"] = element(
        display=display.block,
        margin_before=1,
        margin_after=1,
        padding_inline=2,
    )
    return config.ParserConfig(css=css)
