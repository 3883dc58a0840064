"""Makes a program of a stored template that can reach nothing but its variables, and ends soon.

Jinja's sandbox bounds neither time nor size. So what a template may say is listed here, node by node; whatever can cost more than a
little is done by functions of this module; and these, like each turn of a loop, spend of a number that is set before each rendering.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from types import CodeType, TracebackType
from typing import Any, NoReturn

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    nodes,
    pass_context,
)
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing as MISSING

from mailroom.model.errors import MailroomError
from mailroom.model.text import one_line
from mailroom.templating.filters import FILTERS, TESTS, Misfit, joined, missing, scalar, sized, weight

SOURCE_MAX_CHARACTERS = 200_000
RENDERED_MAX_CHARACTERS = 1_000_000
#: Steps of one rendering: about one for each name and sign that is passed, and for ten characters that are made.
WORK_MAX = 500_000
#: Names, signs and texts between them; 1,000 times `{{ order.number }}`.
TOKENS_MAX = 5000
#: Brackets in brackets, statements in statements, operators in operators.
DEPTH_MAX = 15
#: Distinct texts that are kept as programs.
PROGRAMS_MAX = 128
_FILE = "<template>"
_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_EXPRESSIONS = (nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand,
                nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.CondExpr, nodes.Concat, nodes.Add, nodes.Sub, nodes.Mul,
                nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword)
_OPERATORS = {nodes.Add: "+", nodes.Sub: "-", nodes.Mul: "*", nodes.Div: "/", nodes.FloorDiv: "//", nodes.Mod: "%"}
#: What a loop tells of itself; `loop.cycle` and `loop.changed` would be called.
_OF_LOOPS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem"})
_KINDS = {nodes.Call: "a call", nodes.Macro: "a macro", nodes.CallBlock: "a call", nodes.Include: "an include", nodes.Import: "an import",
          nodes.FromImport: "an import", nodes.Extends: "an extends", nodes.Pow: "the operator **", nodes.Block: "a block",
          nodes.FilterBlock: "a filter block", nodes.AssignBlock: "a set block", nodes.With: "a with", nodes.NSRef: "a namespace"}


class Unfit(MailroomError):
    """A template cannot be read, or cannot be filled in with what there is; the text says why, in one line."""

    def __init__(self, detail: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(detail)


class Unknown(Unfit):
    """A template names what is not there: `name` in `holder`, one of the variables' own objects, or None for the variables."""

    def __init__(self, name: object, holder: object, line: int | None) -> None:
        self.name = name
        self.holder = holder
        super().__init__("got none", line)


class Program:
    """A text, to be filled in as often as one likes, in any thread."""

    def __init__(self, source: str, *, is_html: bool) -> None:
        self._environment = _HTML if is_html else _TEXT
        self._plain = None if "{" in source else source
        self._length = len(source)
        self._template = None if "{" not in source else Template.from_code(self._environment, _code(self._environment, source), {})

    def fill(self, variables: dict[str, Any], *, size: int) -> str:
        """Return the text; `size` is what `measure` said of the variables.

        Raises:
          Unfit: something is missing or has the wrong type, or it would become too long, or take too long.
        """
        if self._plain is not None or self._template is None:
            return self._plain or ""
        context = _Spending(self._environment, variables, self._template.name, self._template.blocks)
        context.size = size + self._length
        found, length = [], 0
        try:
            for chunk in self._template.root_render_func(context):
                found.append(chunk)
                length += len(chunk)
                if length > RENDERED_MAX_CHARACTERS:
                    raise Misfit(f"it would have more than {RENDERED_MAX_CHARACTERS:,} characters")
        except (Misfit, TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as e:
            _explain(e, self._template)
        return "".join(found)


@lru_cache(PROGRAMS_MAX)
def program(source: str, *, is_html: bool) -> Program:
    """Raises Unfit: it is no template, or one that says more than it may."""
    return Program(source, is_html=is_html)


class _Spending(Context):
    """The variables of one rendering, and what it may still cost."""

    left = WORK_MAX
    size = 0  #: of all variables and constants, so that nothing that is compared is larger

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Misfit("it would take too long")


class Bounded(Extension):
    """Ends the reading where a template is too long to be read in time."""

    tokens_max, depth_max = TOKENS_MAX, DEPTH_MAX

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        return self._filtered(stream)

    def _filtered(self, stream: TokenStream) -> Iterator[Token]:
        depth = 0
        for token in islice(stream, self.tokens_max):
            depth += (token.type in ("lparen", "lbracket", "lbrace")) - (token.type in ("rparen", "rbracket", "rbrace"))
            if depth > self.depth_max:  # Not left to Python's stack, which is not as deep at each attempt.
                self.refuse(f"expected at most {self.depth_max} brackets in brackets, got more", token.lineno)
            yield token
        if not stream.eos:
            self.refuse(f"expected at most {self.tokens_max} names, signs and texts, got more", stream.current.lineno)

    def refuse(self, words: str, line: int) -> NoReturn:
        raise Unfit(words, line)


class _Miss(str):
    """The words of an error about a name that is missing, for `_explain`."""

    name: object
    holder: object


class _Missing(StrictUndefined):
    """A name that is missing; whatever is made of it but `is defined` and `default` raises."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        said = _Miss(super()._undefined_message)
        said.name, said.holder = self._undefined_name, None if self._undefined_obj is MISSING else self._undefined_obj
        return said


class _Environment(ImmutableSandboxedEnvironment):
    """Knows data only: no attribute of a Python object can be reached, but what a loop tells of itself."""

    context_class = _Spending
    intercepted_binops = frozenset(_OPERATORS.values())

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        name: Any = argument  # Jinja's own types forget that a number may be missing.
        for value in (obj, argument):
            if isinstance(value, Undefined):
                missing(value)
        if not isinstance(argument, str | int):
            raise Misfit("expected a name or a whole number in the brackets, got another")
        if isinstance(obj, dict):
            return obj[argument] if isinstance(argument, str) and argument in obj else self.undefined(obj=obj, name=name)
        if isinstance(obj, list | tuple | str) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            return obj[argument]
        if isinstance(obj, LoopContext) and argument in _OF_LOOPS:
            return getattr(obj, argument)
        return self.undefined(obj=obj, name=name)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        context.spend(2)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return joined(context, [left, right])
        for value in (left, right):
            sized(value, int | float, f"a number beside {operator}")
            if isinstance(value, int) and value.bit_length() > 256:
                raise Misfit(f"expected a number of at most 77 digits beside {operator}, got a larger one")
        return self.binop_table[operator](left, right)


@pass_context
def _shown(context: _Spending, value: Any) -> Any:
    """Return what `{{ … }}` becomes."""
    text = scalar(value)
    context.spend(1 + weight(text))
    return text


@pass_context
def _turns(context: _Spending, value: Any, body: int) -> Any:
    """Return what a loop goes over, paid for before its first turn."""
    sized(value, list | dict | tuple, "a list to loop over")
    context.spend(len(value) * body + 1)
    return value


@pass_context
def _weighed(context: _Spending, value: Any) -> Any:
    """Return what is compared or cut, paid for.

    Nothing made in a template has a list in a list, so no value is larger than what came in.
    """
    if isinstance(value, Undefined):
        missing(value)
    context.spend(1 + (context.size if isinstance(value, list | dict | tuple) else weight(value)))
    return value


@pass_context
def _concat(context: _Spending, values: Any) -> Any:
    return joined(context, [scalar(value) for value in values])


def _environment(*, is_html: bool) -> _Environment:
    made = _Environment(autoescape=is_html, undefined=_Missing, optimized=False, keep_trailing_newline=True, cache_size=0,
                        extensions=[Bounded], finalize=_shown)
    made.globals.clear()
    made.filters = {**FILTERS, "_turns": _turns, "_weighed": _weighed, "_concat": _concat}
    made.tests = dict(TESTS)
    return made


_TEXT, _HTML = _environment(is_html=False), _environment(is_html=True)


def _code(environment: _Environment, source: str) -> CodeType:
    if len(source) > SOURCE_MAX_CHARACTERS:
        raise Unfit(f"expected at most {SOURCE_MAX_CHARACTERS:,} characters, got {len(source):,}")
    if source.endswith(("{#", "{#-", "{#+")):  # Jinja would leave it away without a word.
        raise Unfit("expected a template, got one that ends in a comment without an end")
    try:
        tree = environment.parse(source)
        _check(tree)
        return environment.compile(_rewritten(tree), filename=_FILE)
    except TemplateSyntaxError as e:
        raise Unfit(f"expected a template, got one that cannot be read: {one_line(e.message or '', most=200)}", e.lineno) from None
    except ValueError:  # More digits than int() takes.
        raise Unfit("expected numbers of a few digits, got a larger one") from None
    except (RecursionError, SyntaxError):  # Twenty loops in each other are too many for Python.
        raise Unfit("expected a template, got one that is nested too deep") from None


def _check(tree: nodes.Template) -> None:
    """Raises Unfit at the first node that is not in the lists above, or too deep."""
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > 2 * DEPTH_MAX:
            raise Unfit(f"expected at most {2 * DEPTH_MAX} parts in each other, got more", node.lineno)
        if not isinstance(node, _STATEMENTS + _EXPRESSIONS):
            _refuse("if, for, set and expressions of names, constants, operators and filters", _KINDS.get(type(node), _named(node)), node)
        if (refusal := _refusal(node)):
            _refuse(*refusal, node)
        waiting.extend((child, depth + 1) for child in reversed(list(node.iter_child_nodes())))


def _refusal(node: nodes.Node) -> tuple[str, str] | None:
    """Return what was expected and what came, where a node of the right kind says too much."""
    if isinstance(node, nodes.For) and node.recursive:
        return "a loop that is not recursive", "a recursive one"
    if isinstance(node, nodes.Assign) and not isinstance(node.target, nodes.Name):
        return "one name before =", "others"
    if isinstance(node, nodes.Name) and node.name in ("self", "super", "caller", "varargs", "kwargs"):
        return "a variable", f"{node.name}, which has a meaning of its own"
    if isinstance(node, nodes.List | nodes.Dict | nodes.Pair) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        # Else one could put a list into itself thirty times, and would have a billion of it.
        constant = nodes.Const | nodes.List | nodes.Dict | nodes.Tuple | nodes.Pair | nodes.Neg
        return None if all(isinstance(inner, constant) for inner in node.iter_child_nodes()) else ("a list of constants", "another")
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Const) and not isinstance(node.node.value, str):
        return "a variable before the brackets", "a constant"
    if isinstance(node, nodes.Filter | nodes.Test):
        return _wrong_use(node, FILTERS if isinstance(node, nodes.Filter) else TESTS)
    return None


def _wrong_use(node: nodes.Filter | nodes.Test, known: Mapping[str, Any]) -> tuple[str, str] | None:
    if node.name not in known:
        return f"one of the {'filters' if known is FILTERS else 'tests'} {', '.join(sorted(known))}", node.name[:80]
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return f"arguments of {node.name} without stars", "others"
    given = [None] * (len(node.args) + (2 if known is FILTERS else 1))
    named = {str(word.key): None for word in node.kwargs if isinstance(word, nodes.Keyword)}
    try:
        inspect.signature(known[node.name]).bind(*given, **named)
    except TypeError as e:
        return f"arguments that {node.name} takes", str(e)
    return None


def _rewritten(tree: nodes.Template) -> nodes.Template:
    """Return the template with what can cost much done by functions of this module."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _through("_turns", loop.iter, nodes.Const(_weight_of(loop)))
    _replace(tree)
    return tree


def _replace(node: nodes.Node) -> None:
    for field, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, field, _replaced(value))
        elif isinstance(value, list):
            setattr(node, field, [_replaced(one) if isinstance(one, nodes.Node) else one for one in value])


def _replaced(node: nodes.Node) -> nodes.Node:
    _replace(node)
    if isinstance(node, nodes.Concat):
        return _through("_concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _through("_weighed", node)
    if isinstance(node, nodes.Compare | nodes.Operand):
        node.expr = _through("_weighed", node.expr)
    return node


def _through(filter: str, node: nodes.Node, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, filter, list(arguments), [], None, None, lineno=node.lineno, environment=node.environment)


def _weight_of(loop: nodes.For) -> int:
    """Steps of one turn."""
    texts = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
    return 1 + sum(1 for _ in loop.find_all(nodes.Node)) + texts // 100


def _explain(error: Exception, template: Template) -> NoReturn:
    """Raise what was raised in a template as an error of ours, with its line."""
    line = _line_of(error.__traceback__, template)
    said = error.args[0] if error.args else None
    if isinstance(error, UndefinedError) and isinstance(said, _Miss) and said.name is not None:
        raise Unknown(said.name, said.holder, line) from None
    raise Unfit(one_line(error, most=300) or type(error).__name__, line) from None


def _line_of(traceback: TracebackType | None, template: Template) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILE:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


def _named(node: nodes.Node) -> str:
    return f"a {type(node).__name__.lower()}"


def _refuse(expected: str, got: str, node: nodes.Node) -> NoReturn:
    raise Unfit(f"expected {expected}, got {got}", node.lineno)
