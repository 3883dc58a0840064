"""Mail merge: fills in a stored template with the variables of one recipient, and inlines its CSS."""

import re
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from css_inline import CSSInliner, InlineError

from mailroom.model.errors import FieldError, InvalidMessage, pointer
from mailroom.model.text import SUBJECT_MAX_CHARACTERS, is_unicode, one_line
from mailroom.templating.grammar import Unfit
from mailroom.templating.sandbox import RENDERED_MAX_CHARACTERS, Unknown, program

#: Characters in all variables of one mail; each item and each name counts as one more.
VARIABLES_MAX_CHARACTERS = 200_000
VARIABLES_DEPTH_MAX = 16
#: Limits if there is CSS to inline. The work of the inliner, and its result, can grow with the product of
#: any two of these.
TAGS_MAX = 2000
CSS_MAX_CHARACTERS_TIMES_TAGS = 5_000_000
HTML_MAX_CHARACTERS_TIMES_TAGS = 200_000_000
#: The inliner recurses into nested tags; 5,000 of them overflow a stack of 2 MB, which ends the process.
_SHALLOW_TAGS = 200
_DEEP_STACK_BYTES = 64 << 20
_HAS_CSS = re.compile(r"<(?:style|link)[\s/>]", re.IGNORECASE)
_TAG = re.compile(r"<[a-zA-Z]")
#: Fetches nothing and opens no file: linked style sheets are dropped, and @import stays for the mail program.
#: All rules stay in style elements, too: `a:hover`, `@media`, and rules for elements inside Outlook's
#: conditional comments, which the inliner does not see, have no other place.
_INLINER = CSSInliner(load_remote_stylesheets=False, keep_style_tags=True)
#: The inliner's parser rewrites these (WHATWG HTML, 13.2.5.41 and 13.2.5.53): the doctype, with what may come
#: before it, and conditional comments that all programs read.
_DOCTYPE = re.compile(
    r"(?>\s+|<!--.*?-->|<\?[^>]*>)*+(<!doctype\b[^>]*>)", re.IGNORECASE | re.DOTALL
)
_CONDITION = re.compile(r"<!(\[(?:if|endif)\b[^<>]*)>", re.IGNORECASE)
#: A style element for some media only, whose rules are not inlined.
_STYLE_FOR_MEDIA = re.compile(
    r"""<style(?=\s[^<>]*(?<=\s)media\s*=\s*+(?!(["'])\s*(?:all|screen)?\s*\1|(?:all|screen)[\s>]))""",
    re.IGNORECASE,
)


class Sources(Protocol):
    """The texts of a stored template."""

    @property
    def subject(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def html(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class RenderedTemplate:
    """The mail of one recipient; text or HTML is None if the template has none."""

    subject: str
    text: str | None
    html: str | None


def check(sources: Sources, *, at: str = "#") -> None:
    """Check the texts of a template; `at` is the JSON pointer of the object with them.

    Raises:
      InvalidMessage: a text cannot be read, or uses what is not allowed.
    """
    errors = []
    for part, source in _parts(sources):
        try:
            program(source, is_html=part == "html")
        except Unfit as e:
            errors.append(FieldError(f"{at}/{part}", f"{e}{e.where}"))
    if errors:
        raise InvalidMessage(errors)


def merge(
    sources: Sources, variables: dict[str, Any], *, at: str = "#/variables"
) -> RenderedTemplate:
    """Fill in one mail; `at` is the JSON pointer of the variables in the request.

    Raises:
      InvalidMessage: a variable is missing or has the wrong type, or the mail would be too long or take too
        long. There is an error for each part (subject, text, html) with its line; that of a missing variable
        points to the variable.
    """
    try:
        size = _measure(variables)
    except Unfit as e:
        raise InvalidMessage([FieldError(at, str(e))]) from None
    rendered: dict[str, str] = {}
    errors = []
    for part, source in _parts(sources):
        try:
            text = program(source, is_html=part == "html").fill(variables, size=size)
            rendered[part] = _FINISH[part](text)
        except (Unfit, InlineError) as e:
            errors.append(_error_of(e, part, variables, at))
    if errors:
        raise InvalidMessage(errors)
    return RenderedTemplate(
        subject=rendered["subject"], text=rendered.get("text"), html=rendered.get("html")
    )


def _error_of(e: Unfit | InlineError, part: str, variables: dict[str, Any], at: str) -> FieldError:
    if isinstance(e, Unknown):
        detail = f"expected this variable, named in {part}{e.where}, got none"
        return FieldError(at + pointer(e.path(variables)), detail)
    if isinstance(e, Unfit):
        return FieldError(at, f"{e}, in {part}{e.where}")
    return FieldError(at, f"expected HTML whose CSS can be inlined, got another, in {part}")


def _parts(sources: Sources) -> list[tuple[str, str]]:
    """Return the name and the text of each part that the template has."""
    parts = (("subject", sources.subject), ("text", sources.text), ("html", sources.html))
    return [(part, source) for part, source in parts if source is not None]


def _subject_line(text: str) -> str:
    line = one_line(text)
    if len(line) > SUBJECT_MAX_CHARACTERS:
        raise Unfit(
            f"expected a subject of at most {SUBJECT_MAX_CHARACTERS} characters, got {len(line)}"
        )
    return line


def _inlined(html: str) -> str:
    """Return the HTML with its CSS inlined. Raises Unfit if that would take too long."""
    first = _HAS_CSS.search(html)
    if not first:
        return html
    tags, css = len(_TAG.findall(html)), max(0, _css_end(html) - first.start())
    if tags > TAGS_MAX:
        raise Unfit(f"expected at most {TAGS_MAX} tags beside a style element, got {tags}")
    if (
        css * tags > CSS_MAX_CHARACTERS_TIMES_TAGS
        or len(html) * tags > HTML_MAX_CHARACTERS_TIMES_TAGS
    ):
        raise Unfit(
            f"expected less CSS or fewer tags, got {css} characters in style elements and {tags} tags"
        )
    inlined = _inline(html) if tags <= _SHALLOW_TAGS else _inline_on_deep_stack(html)
    if len(inlined) > RENDERED_MAX_CHARACTERS:
        raise Unfit(
            f"expected at most {RENDERED_MAX_CHARACTERS:,} characters with CSS inlined, got {len(inlined):,}"
        )
    return inlined


def _inline(html: str) -> str:
    """Inline the CSS; the doctype and conditional comments stay exactly as they are."""
    mark = secrets.token_hex(8)  # In comments and attributes, which the parser keeps.
    ignored = f' data-css-inline="ignore" data-{mark}=""'
    marked = _CONDITION.sub(
        rf"<!--{mark}\g<1>{mark}-->", _STYLE_FOR_MEDIA.sub(rf"\g<0>{ignored}", html)
    )
    inlined = _INLINER.inline(marked)
    inlined = inlined.replace(f"--{mark}", "").replace(f"{mark}--", "").replace(ignored, "")
    before, after = _DOCTYPE.match(html), _DOCTYPE.match(inlined)
    if before and after:
        return inlined[: after.start(1)] + before[1] + inlined[after.end(1) :]
    return inlined


def _css_end(html: str) -> int:
    """Return the offset at which the last style element ends, or a later one.

    A `</style` in a comment or an attribute after that element makes it later.
    """
    lowered = html.lower()
    end = lowered.rfind("</style")
    return len(html) if lowered.rfind("<style") > end else end


#: Guards the interpreter's stack size, which is that of every thread that starts.
_stack_size_lock = threading.Lock()


def _inline_on_deep_stack(html: str) -> str:
    """Inline the CSS in a thread whose stack is large enough for deeply nested tags."""
    inlined: Future[str] = Future()

    def work() -> None:
        try:
            inlined.set_result(_inline(html))
        except BaseException as e:
            inlined.set_exception(e)

    with _stack_size_lock:
        before = threading.stack_size(_DEEP_STACK_BYTES)
        try:
            threading.Thread(target=work, name="css").start()
        finally:
            threading.stack_size(before)
    return inlined.result()


def _measure(variables: Mapping[str, Any]) -> int:
    """Return the size of the variables, in characters.

    Raises:
      Unfit: they are too large or nested too deep, or have text that a mail cannot hold.
    """
    size, depth = 0, 0
    level: list[Any] = [variables]
    while level:
        depth += 1
        if depth > VARIABLES_DEPTH_MAX + 1:
            raise Unfit(f"expected at most {VARIABLES_DEPTH_MAX} levels, got more")
        items = [inner for outer in level for inner in _inside(outer)]
        texts = [item for item in items if isinstance(item, str)]
        size += len(items) + sum(map(len, texts))
        if size > VARIABLES_MAX_CHARACTERS:
            raise Unfit(
                f"expected at most {VARIABLES_MAX_CHARACTERS:,} characters in all variables, got more"
            )
        if any("\0" in text or not is_unicode(text) for text in texts):
            raise Unfit("expected Unicode text without NUL in all variables, got another")
        level = [item for item in items if isinstance(item, dict | list)]
    return size


def _inside(value: Any) -> list[Any]:
    """Return the items of a list, or the names and values of an object."""
    return [*value.keys(), *value.values()] if isinstance(value, Mapping) else value


_FINISH: dict[str, Callable[[str], str]] = {"subject": _subject_line, "text": str, "html": _inlined}
