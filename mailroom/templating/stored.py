"""Mail merge: makes a letter of a stored template and the variables of one recipient."""

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

#: Characters in all variables of one letter; an item and a name count as well.
VARIABLES_MAX_CHARACTERS = 200_000
VARIABLES_DEPTH_MAX = 16
#: Where there is CSS to inline. The inliner's work, and what it makes, can grow with the product of each
#: two of these.
TAGS_MAX = 2000
CSS_MAX_CHARACTERS_TIMES_TAGS = 5_000_000
HTML_MAX_CHARACTERS_TIMES_TAGS = 200_000_000
#: The inliner follows tags in tags by recursion, and a stack of 2 MB ends before 5,000 of them, and the
#: process with it.
_SHALLOW_TAGS = 200
_DEEP_STACK_BYTES = 64 << 20
_HAS_CSS = re.compile(r"<(?:style|link)[\s/>]", re.IGNORECASE)
_TAG = re.compile(r"<[a-zA-Z]")
#: Nothing is fetched, and no file opened: what a link names is left away, and @import stays, for the reader's
#: program. So do all rules, beside what is inlined: there is no other place for `a:hover` and `@media`, nor
#: for those of elements inside Outlook's conditional comments, which the inliner does not see.
_INLINER = CSSInliner(load_remote_stylesheets=False, keep_style_tags=True)
#: The inliner's parser rewrites these (WHATWG HTML, 13.2.5.41 and 13.2.5.53): the doctype, after what may
#: come before it, and conditional comments that other programs read as well.
_DOCTYPE = re.compile(r"(?>\s+|<!--.*?-->|<\?[^>]*>)*+(<!doctype\b[^>]*>)", re.IGNORECASE | re.DOTALL)
_CONDITION = re.compile(r"<!(\[(?:if|endif)\b[^<>]*)>", re.IGNORECASE)
#: A style element for some media, whose rules are not for the elements' own styles.
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
    """The mail that one recipient gets; text or HTML is None where the template has none."""

    subject: str
    text: str | None
    html: str | None


def check(sources: Sources, *, at: str = "#") -> None:
    """Raises InvalidMessage: texts of the template cannot be read, or say more than they may; with lines."""
    wrong = []
    for part, source in _parts(sources):
        try:
            program(source, is_html=part == "html")
        except Unfit as e:
            wrong.append(FieldError(f"{at}/{part}", f"{e}{e.where}"))
    if wrong:
        raise InvalidMessage(wrong)


def merge(sources: Sources, variables: dict[str, Any], *, at: str = "#/variables") -> RenderedTemplate:
    """Fill in one letter; `at` is where in a request the variables stand, a JSON pointer.

    Raises:
      InvalidMessage: a variable is missing or of the wrong type, or the letter would be too long or take too
        long. Each part (subject, text, html) says so with its line; what a variable has to do with, at the
        variable.
    """
    try:
        size = _measure(variables)
    except Unfit as e:
        raise InvalidMessage([FieldError(at, str(e))]) from None
    done: dict[str, str] = {}
    wrong = []
    for part, source in _parts(sources):
        try:
            done[part] = _FINISH[part](program(source, is_html=part == "html").fill(variables, size=size))
        except Unknown as e:
            path = e.path(variables)
            wrong.append(
                FieldError(at + pointer(path), f"expected this variable, named in {part}{e.where}, got none")
            )
        except InlineError:
            wrong.append(FieldError(at, f"expected HTML whose CSS can be inlined, got another, in {part}"))
        except Unfit as e:
            wrong.append(FieldError(at, f"{e}, in {part}{e.where}"))
    if wrong:
        raise InvalidMessage(wrong)
    return RenderedTemplate(subject=done["subject"], text=done.get("text"), html=done.get("html"))


def _parts(sources: Sources) -> list[tuple[str, str]]:
    parts = (("subject", sources.subject), ("text", sources.text), ("html", sources.html))
    return [(part, source) for part, source in parts if source is not None]


def _subject_line(text: str) -> str:
    line = one_line(text)
    if len(line) > SUBJECT_MAX_CHARACTERS:
        raise Unfit(f"expected a subject of at most {SUBJECT_MAX_CHARACTERS} characters, got {len(line)}")
    return line


def _inlined(html: str) -> str:
    """The HTML with its CSS in the elements' own styles; the same HTML if it has none."""
    first = _HAS_CSS.search(html)
    if not first:
        return html
    tags, css = len(_TAG.findall(html)), max(0, _css_end(html) - first.start())
    if tags > TAGS_MAX:
        raise Unfit(f"expected at most {TAGS_MAX} tags beside a style element, got {tags}")
    if css * tags > CSS_MAX_CHARACTERS_TIMES_TAGS or len(html) * tags > HTML_MAX_CHARACTERS_TIMES_TAGS:
        raise Unfit(
            f"expected less CSS or fewer tags, got {css} characters in style elements and {tags} tags"
        )
    done = _inline(html) if tags <= _SHALLOW_TAGS else _deep(html)
    if len(done) > RENDERED_MAX_CHARACTERS:
        raise Unfit(
            f"expected at most {RENDERED_MAX_CHARACTERS:,} characters with CSS inlined, got {len(done):,}"
        )
    return done


def _inline(html: str) -> str:
    """Inline the CSS; the doctype and conditional comments stay byte for byte."""
    mark = secrets.token_hex(8)  # In comments and attributes, which the parser keeps.
    ignored = f' data-css-inline="ignore" data-{mark}=""'
    marked = _CONDITION.sub(rf"<!--{mark}\g<1>{mark}-->", _STYLE_FOR_MEDIA.sub(rf"\g<0>{ignored}", html))
    done = _INLINER.inline(marked).replace(f"--{mark}", "").replace(f"{mark}--", "").replace(ignored, "")
    was, made = _DOCTYPE.match(html), _DOCTYPE.match(done)
    return done[: made.start(1)] + was[1] + done[made.end(1) :] if was and made else done


def _css_end(html: str) -> int:
    """Return where the last style element ends.

    What a comment or an attribute holds may make that later, and never earlier.
    """
    small = html.lower()
    end = small.rfind("</style")
    return len(html) if small.rfind("<style") > end else end


_stack_size = threading.Lock()


def _deep(html: str) -> str:
    """Inline on a stack that is large enough."""
    done: Future[str] = Future()

    def work() -> None:
        try:
            done.set_result(_inline(html))
        except BaseException as e:
            done.set_exception(e)

    with _stack_size:  # It is the interpreter's, for every thread that starts.
        before = threading.stack_size(_DEEP_STACK_BYTES)
        try:
            threading.Thread(target=work, name="css").start()
        finally:
            threading.stack_size(before)
    return done.result()


def _measure(variables: Mapping[str, Any]) -> int:
    """Return how much is in the variables, in characters.

    Raises:
      Unfit: they are more than a letter needs, or what JSON or a mail cannot hold.
    """
    size, depth = 0, 0
    level: list[Any] = [variables]
    while level:
        depth += 1
        if depth > VARIABLES_DEPTH_MAX + 1:
            raise Unfit(f"expected at most {VARIABLES_DEPTH_MAX} levels, got more")
        texts = [inner for outer in level for inner in _inside(outer)]
        size += len(texts) + sum(len(text) for text in texts if isinstance(text, str))
        if size > VARIABLES_MAX_CHARACTERS:
            raise Unfit(
                f"expected at most {VARIABLES_MAX_CHARACTERS:,} characters in all variables, got more"
            )
        if any("\0" in text or not is_unicode(text) for text in texts if isinstance(text, str)):
            raise Unfit("expected Unicode text without NUL in all variables, got another")
        level = [inner for inner in texts if isinstance(inner, dict | list)]
    return size


def _inside(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, Mapping) else value


_FINISH: dict[str, Callable[[str], str]] = {"subject": _subject_line, "text": str, "html": _inlined}
