"""Fills in what a mail tells of its job.

Jinja reads the template, and no more: what `{{ … }}` may say is little enough to be looked up here, so that nothing a client writes
is ever compiled or run, and no name of Python's can be reached.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.lexer import Token, TokenStream

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.errors import FieldError, InvalidMessage, MailroomError
from mailroom.model.message import Message
from mailroom.templating.sandbox import Bounded

#: Text or HTML with everything told; a result may be named often.
RENDERED_MAX_CHARACTERS = 2_000_000
#: All that is made on the way there, as filters can make much of little, and little of much; an item of a list counts as five.
WORK_MAX_CHARACTERS = 5 * RENDERED_MAX_CHARACTERS
#: A header line is at most 998 characters (RFC 5322, 2.1.1).
SUBJECT_MAX_CHARACTERS = 998
#: Names, signs and texts between them; 250 times `{{ job.result.width }}`.
TOKENS_MAX = 2000
#: Brackets in brackets; `{{ (job.result['a']|default('b'))|trim }}` has two.
DEPTH_MAX = 10
#: What our own texts show of a result or an error.
EXCERPT_MAX_CHARACTERS = 1000
#: Distinct templates that are kept read, and how long one of these may be.
READ_MAX = 64
READ_MAX_CHARACTERS = 50_000

_FIELDS = ("error", "file.name", "id", "name", "result", "seconds", "status")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
#: JSON has them, and no mail may.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Unfit(MailroomError):
    """A template cannot be read or filled in; the text says why, in one line."""


class _MissingName(NamedTuple):
    """A name in a template that the job has not."""

    path: str


class _Told(NamedTuple):
    """A `{{ … }}`: a place in the job's facts, or a constant, and what is made of it."""

    path: tuple[str | int, ...]  #: empty: the constant
    constant: Any = None
    filters: tuple[tuple[str, tuple[Any, ...]], ...] = ()


def check(message: Message, *, at: str = "#") -> None:
    """Raises InvalidMessage: `{{ … }}` in subject or contents cannot be read, or uses what is not there."""
    wrong = []
    for field, source in (("subject", message.subject), ("contents", message.text), ("contents", message.html)):
        try:
            _read(source or "")
        except _Unfit as e:
            wrong.append(FieldError(f"{at}/{field}", str(e)))
    if wrong:
        raise InvalidMessage(wrong)


def filled_in(claim: Claim) -> Claim:
    """Return the claim with everything told that its mail says of its job."""
    if claim.job is None or not claim.message.template:
        return claim
    return replace(claim, message=fill(claim.message, claim.job))


def fill(message: Message, job: JobFacts) -> Message:
    """Return the message with everything told, template=False; never raises.

    Where that cannot be, or the job did not succeed and the message says nothing about that, it is a message in our words.
    """
    subject, named = _subject(message.subject, job), _line(f"Job {job.name}: {_ended(job)}", SUBJECT_MAX_CHARACTERS)
    if not (message.subject or message.text or message.html):
        return _ours(message, f"Job {job.name} {_ended(job)}", _report(job))
    if job.status != "succeeded" and not _minds_failure(message):
        return _ours(message, f"Failed: {subject or job.name}",
                     _report(job, "The mail you were to get was written for its success, so its text is left out."))
    try:
        text = None if message.text is None else _Filling(job).body(message.text, str)
        html = None if message.html is None else _Filling(job).body(message.html, escape)
    except Exception as e:  # What a job returned may hold anything; the mail was promised.
        why = str(e) if isinstance(e, _Unfit) else type(e).__name__
        return _ours(message, subject or named, _report(job, f"The text of this mail could not be filled in: {_line(why, 300)}."))
    return replace(message, subject=named if subject is None else subject, text=text, html=html, template=False)


class _Filling:
    """A filling in, and what it may still cost."""

    def __init__(self, job: JobFacts) -> None:
        self._facts = {"id": job.id, "name": job.name, "status": job.status, "result": job.result, "error": job.error,
                       "seconds": job.seconds, **({"file": {"name": job.file.name}} if job.file else {})}
        self._left = WORK_MAX_CHARACTERS

    def subject(self, source: str) -> str:
        found = ""
        for piece in _read(source):
            found += _CONTROL.sub(" ", piece if isinstance(piece, str) else self._shown(piece))
            if len(found) > SUBJECT_MAX_CHARACTERS:
                break
        return found

    def body(self, source: str, escaped: Callable[[str], str]) -> str:
        found, size = [], 0
        for piece in _read(source):
            found.append(piece if isinstance(piece, str) else escaped(self._shown(piece)))
            size += len(found[-1])
            if size > RENDERED_MAX_CHARACTERS:
                raise _Unfit(f"it would have more than {RENDERED_MAX_CHARACTERS:,} characters")
        return _NO_TEXT.sub("\ufffd", "".join(found))

    def _shown(self, told: _Told) -> str:
        value: Any = self._found(told.path) if told.path else told.constant
        for name, arguments in told.filters:
            if not isinstance(value, _MissingName) or name == "default":
                self._spend(5 * len(value) if isinstance(value, list) else 0)
                value = _FILTERS[name].apply(value, *arguments)
                self._spend(len(value) if isinstance(value, str) else 0)
        if isinstance(value, _MissingName):
            raise _Unfit(f"there is no {value.path}")
        text = _text(value)
        self._spend(len(text))
        return text

    def _found(self, path: tuple[str | int, ...]) -> object:
        value: Any = self._facts
        for at, part in enumerate(path, start=1):
            if isinstance(value, dict) and str(part) in value:
                value = value[str(part)]
            elif isinstance(value, list) and isinstance(part, int) and -len(value) <= part < len(value):
                value = value[part]
            else:
                return _MissingName(_dotted(path[:at]))
        return value

    def _spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise _Unfit("it would take too long")


def _text(value: object) -> str:
    """A value as a mail shows it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _json(value)


#: Compact JSON; json.dumps would make one of these at each call.
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


# The filters: Jinja's names and arguments, without those of them that reach attributes or sort. A wrong type is told, not guessed at.

def _default(value: object, other: object = "", empty_too: bool = False) -> object:
    return other if isinstance(value, _MissingName) or (empty_too and not value) else value


def _join(value: object, separator: str = "") -> str:
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        raise _Unfit("the filter join needs a list of texts and numbers")
    return separator.join(map(_text, value))


def _length(value: object) -> int:
    if not isinstance(value, str | list | dict):
        raise _Unfit("the filter length needs a text, a list or an object")
    return len(value)


def _round(value: object, digits: int = 0) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _Unfit("the filter round needs a number")
    rounded = round(value, max(-400, min(digits, 400)))  # No float has more, and an integer would be divided by 10 ** -digits.
    return int(rounded) if digits <= 0 else rounded


class _Filter(NamedTuple):
    apply: Callable[..., object]
    arguments: tuple[type, ...] = ()  #: at most these


_FILTERS = {
    "default": _Filter(_default, (object, bool)), "join": _Filter(_join, (str,)), "length": _Filter(_length),
    "lower": _Filter(lambda value: _text(value).lower()), "round": _Filter(_round, (int,)), "tojson": _Filter(_json),
    "trim": _Filter(lambda value: _text(value).strip()), "upper": _Filter(lambda value: _text(value).upper())}


def _read(source: str) -> tuple[str | _Told, ...]:
    """Return the template in pieces: what stands as it is, and what is told.

    Raises:
      _Unfit: it cannot be read, or is more than what this module can tell.
    """
    if len(source) > RENDERED_MAX_CHARACTERS:
        raise _Unfit(f"expected at most {RENDERED_MAX_CHARACTERS:,} characters, got {len(source):,}")
    if "{" not in source:
        return (source,)
    if source.endswith(("{#", "{#-", "{#+")):  # Jinja would leave it away without a word.
        raise _Unfit("expected a template, got one that ends in a comment without an end")
    return _read_once(source) if len(source) <= READ_MAX_CHARACTERS else _read_once.__wrapped__(source)


@lru_cache(READ_MAX)
def _read_once(source: str) -> tuple[str | _Told, ...]:
    try:
        statements = _JINJA.parse(source).body
    except TemplateSyntaxError as e:
        raise _Unfit(f"expected a template, got one that cannot be read at line {e.lineno}: {_line(e.message or '', 200)}") from None
    except ValueError:  # More digits than int() takes.
        raise _Unfit("expected a number of at most 15 digits, got a larger one") from None
    except RecursionError:  # A thousand operators.
        raise _Unfit("expected a template, got one that is nested too deep") from None
    found: list[str | _Told] = []
    for statement in statements:
        if not isinstance(statement, nodes.Output):
            _refuse("{{ … }} only", "a statement", statement)
        found.extend(node.data if isinstance(node, nodes.TemplateData) else _told(node) for node in statement.nodes)
    return tuple(found)


class _Bounded(Bounded):
    """Ends the reading at a statement, too."""

    tokens_max, depth_max = TOKENS_MAX, DEPTH_MAX

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        for token in super().filter_stream(stream):
            if token.type == "block_begin":
                raise _Unfit(f"expected {{{{ … }}}} only, got a statement, {{% … %}}, at line {token.lineno}")
            yield token

    def refuse(self, words: str, line: int) -> NoReturn:
        raise _Unfit(f"{words} at line {line}")


_JINJA = Environment(keep_trailing_newline=True, extensions=[_Bounded])


def _told(node: nodes.Expr) -> _Told:
    filters = []
    while isinstance(node, nodes.Filter) and node.node is not None:
        filters.append((node.name, _arguments(node)))
        node = node.node
    applied = tuple(reversed(filters))
    if isinstance(node, nodes.Const):
        return _Told((), _constant(node), applied)
    return _Told(_path(node), None, applied)


def _path(node: nodes.Expr) -> tuple[str | int, ...]:
    """The place that `job.result.sizes[0]` names, without "job"."""
    path: list[str | int] = []
    at = node
    while isinstance(at, nodes.Getattr | nodes.Getitem):
        part = at.attr if isinstance(at, nodes.Getattr) else _constant(at.arg)
        if not isinstance(part, str | int) or isinstance(part, bool):
            _refuse("a name or a number in the brackets", _cut(repr(part)), at)
        if isinstance(part, str) and part.startswith("_"):
            _refuse("a name that does not begin with an underscore", _cut(repr(part)), at)
        path.insert(0, part)
        at = at.node
    if not isinstance(at, nodes.Name):
        _refuse("job.…, a constant or a filter" if at is node else "job before a dot or a bracket", _kind(at), at)
    if at.name != "job":
        _refuse("job", _cut(repr(at.name)), at, f"job.{at.name}" if at.name in _FIELDS else None)
    field = ".".join(map(str, path[:2] if path[:1] == ["file"] else path[:1]))
    if field not in _FIELDS or (path[0] == "file" and len(path) != 2):
        near = _nearest(f"job.{field}", "job.") if path else None
        _refuse(f"one of {', '.join(f'job.{name}' for name in _FIELDS)}", _cut(_dotted(path)), at, near)
    return tuple(path)


def _arguments(node: nodes.Filter) -> tuple[Any, ...]:
    if node.name not in _FILTERS:
        _refuse(f"one of the filters {', '.join(_FILTERS)}", _cut(repr(node.name)), node, _nearest(node.name))
    wanted = _FILTERS[node.name].arguments
    if node.kwargs or node.dyn_args or node.dyn_kwargs or len(node.args) > len(wanted):
        _refuse(f"at most {len(wanted)} argument{'s' * (len(wanted) != 1)} for {node.name}, without a name", "others", node)
    found = tuple(map(_constant, node.args))
    for argument, kind in zip(found, wanted, strict=False):
        if not isinstance(argument, kind):
            _refuse(f"{kind.__name__} as argument of {node.name}", _cut(repr(argument)), node)
    return found


def _constant(node: nodes.Expr) -> Any:
    """A text, a number, true, false or none; -1 too, which is the operator - to Jinja."""
    bare = node.node if isinstance(node, nodes.Neg) else node
    if not isinstance(bare, nodes.Const) or (bare is not node and not isinstance(bare.value, int | float)):
        _refuse("a constant", _kind(node), node)
    if isinstance(bare.value, int | float) and not abs(bare.value) < 1e15:
        _refuse("a number of at most 15 digits", "a larger one", node)
    return bare.value if bare is node else -bare.value


_KINDS = {"Call": "a call", "Compare": "a comparison", "Concat": "the operator ~", "CondExpr": "an if", "Const": "a constant",
          "Getattr": "an attribute", "Getitem": "an attribute"}


def _kind(node: nodes.Node) -> str:
    if isinstance(node, nodes.BinExpr | nodes.UnaryExpr):
        return f"the operator {node.operator}"
    return _KINDS.get(type(node).__name__, f"a {type(node).__name__.lower()}")


def _nearest(name: str, prefix: str = "") -> str | None:
    known = [f"{prefix}{field}" for field in _FIELDS] if prefix else list(_FILTERS)
    return next(iter(difflib.get_close_matches(name[:80], known, n=1)), None)


def _refuse(expected: str, got: str, node: nodes.Node, nearest: str | None = None) -> NoReturn:
    raise _Unfit(f"expected {expected}, got {got} at line {node.lineno}" + (f"; did you mean {nearest}?" if nearest else ""))


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(["job", *map(str, path)])


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _minds_failure(message: Message) -> bool:
    """Tell whether the writer of the message thought of both ends."""
    try:
        pieces = [piece for part in (message.subject, message.text, message.html) for piece in _read(part or "")]
    except _Unfit:
        return False
    return any(isinstance(piece, _Told) and piece.path[:1] in {("status",), ("error",)} for piece in pieces)


def _subject(source: str, job: JobFacts) -> str | None:
    """None: it cannot be filled in."""
    try:
        return _line(_Filling(job).subject(source), SUBJECT_MAX_CHARACTERS)
    except Exception:  # As in fill; the text is what tells why.
        return None


def _ours(message: Message, subject: str, text: str) -> Message:
    return replace(message, subject=_line(subject, SUBJECT_MAX_CHARACTERS), text=text, html=None, template=False, attachments=())


def _report(job: JobFacts, *remarks: str) -> str:
    """Say how the job ended, for the person who gets the mail."""
    if job.status != "succeeded":
        end = f"Error: {_line(job.error, EXCERPT_MAX_CHARACTERS) or 'none was told'}"
    else:
        end = "Its file is attached." if job.file else f"Result: {_excerpt(job.result)}"
    took = f" after {job.seconds:.1f} seconds" if job.seconds else ""
    return "\n\n".join([f"Job {_line(job.name, 200)} {_ended(job)}{took}.", end, *remarks, f"Job id: {_line(job.id, 200)}"]) + "\n"


def _excerpt(result: object) -> str:
    try:
        text = _json(result)
    except (RecursionError, TypeError, ValueError):
        return "one that cannot be shown"
    return _line(text if len(text) <= EXCERPT_MAX_CHARACTERS else text[:EXCERPT_MAX_CHARACTERS] + "…", EXCERPT_MAX_CHARACTERS + 1)


def _ended(job: JobFacts) -> str:
    return _line(job.status, 80).replace("_", " ")


def _line(text: str, most: int) -> str:
    return _NO_TEXT.sub("\ufffd", _CONTROL.sub(" ", text))[:most].strip()
