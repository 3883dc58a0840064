"""Makes a program of a template that can reach nothing but its variables, and ends soon.

Jinja's sandbox bounds neither time nor size. So what a template may say is listed, in grammar.py; whatever can
cost more than a little is done by functions of ours; and these, like each step of a loop, spend of a budget
that is set before each rendering.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from types import CodeType, TracebackType
from typing import Any, NoReturn

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError, nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing as MISSING

from mailroom.model.text import one_line
from mailroom.templating.filters import FILTERS, TESTS, Misfit, joined, missing, scalar, sized, weight
from mailroom.templating.grammar import Bounded, Reference, Unfit, parse, references, too_deep

SOURCE_MAX_CHARACTERS = 200_000
RENDERED_MAX_CHARACTERS = 1_000_000
#: Steps of one rendering: about one for each name and sign that is passed, and for ten characters made.
WORK_MAX = 500_000
#: Distinct texts that are kept as programs.
PROGRAMS_MAX = 128
_FILE = "<template>"
_OPERATORS = {
    nodes.Add: "+",
    nodes.Sub: "-",
    nodes.Mul: "*",
    nodes.Div: "/",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
}
#: What a loop says of itself; `loop.cycle` and `loop.changed` would be called.
_OF_LOOPS = frozenset(
    {
        "index",
        "index0",
        "revindex",
        "revindex0",
        "first",
        "last",
        "length",
        "depth",
        "depth0",
        "previtem",
        "nextitem",
    }
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Bounds of the templates of one kind, and how strict they are."""

    source_max_characters: int = SOURCE_MAX_CHARACTERS
    rendered_max_characters: int = RENDERED_MAX_CHARACTERS
    work_max: int = WORK_MAX
    #: Lists and objects are written as JSON, and what is in something missing is missing, too; else both
    #: are errors.
    is_lenient: bool = False


class Unknown(Unfit):
    """A template names what is not there: `name` in `holder`, one of the variables' own objects, or None."""

    def __init__(self, name: object, holder: object, line: int | None) -> None:
        self.name = name
        self.holder = holder
        super().__init__("got none", line)

    def path(self, variables: dict[str, Any]) -> list[Any]:
        """Return where in the variables the missing one should be.

        That is at their top if it was looked for in what the template made.
        """
        if self.holder is None:
            return [self.name]
        waiting: list[tuple[Any, list[Any]]] = [(variables, [])]
        while waiting:
            value, path = waiting.pop()
            if value is self.holder:
                return [*path, self.name]
            if isinstance(value, dict | list):
                inside = value.items() if isinstance(value, dict) else enumerate(value)
                waiting.extend((inner, [*path, name]) for name, inner in inside)
        return [self.name]


class Program:
    """A text, to be filled in as often as one likes, in any thread."""

    def __init__(self, source: str, *, is_html: bool, rules: Rules) -> None:
        if len(source) > rules.source_max_characters:
            raise Unfit(f"expected at most {rules.source_max_characters:,} characters, got {len(source):,}")
        self.references: tuple[Reference, ...] = ()
        self._rules = rules
        self._source = source
        self._environment = _environment(is_html, rules.is_lenient)
        if self._is_plain:
            return
        tree = parse(self._environment, source)
        self.references = tuple(references(tree))
        if any(tree.find_all((nodes.For, nodes.If))):
            _ = self._template  # Now, as it may be nested too deep for Python.

    def fill(self, variables: dict[str, Any], *, size: int) -> str:
        """Return the text; `size` is the cost in steps of whatever looks at all of the variables.

        Raises:
          Unfit: something is missing or has the wrong type, or it would become too long, or take too long.
        """
        if self._is_plain:
            return self._source
        most = self._rules.rendered_max_characters
        context = _Budget(self._environment, variables, self._template.name, self._template.blocks)
        context.size, context.left = size + len(self._source), self._rules.work_max
        chunks, length = [], 0
        try:
            for chunk in self._template.root_render_func(context):
                chunks.append(chunk)
                length += len(chunk)
                if length > most:
                    raise Misfit(f"it would have more than {most:,} characters")
        except _OF_TEMPLATES as e:
            _explain(e, self._template)
        return "".join(chunks)

    @property
    def _is_plain(self) -> bool:
        return "{" not in self._source

    @cached_property
    def _template(self) -> Template:
        """The code, made when first needed: a request only checks the template, a worker fills it in."""
        tree = self._environment.parse(self._source)  # Afresh, as the tree is changed.
        return Template.from_code(self._environment, _code(self._environment, tree), {})


#: What a template raises whose variables are not what it takes them for.
_OF_TEMPLATES = (Misfit, TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)

STORED = Rules()


@lru_cache(PROGRAMS_MAX)
def program(source: str, *, is_html: bool, rules: Rules = STORED) -> Program:
    """Raises Unfit: it is no template, or one that says more than it may."""
    return Program(source, is_html=is_html, rules=rules)


class _Budget(Context):
    """The variables of one rendering, and what it may still cost."""

    left = 0
    size = 0  #: of all variables and constants, so that nothing that is compared is larger

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Misfit("it would take too long")


class _Miss(str):
    """The words of an error about a name that is missing, for `_explain`."""

    name: object
    holder: object


class _Missing(StrictUndefined):
    """A name that is missing; whatever is made of it but `is defined` and `default` raises."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        words = _Miss(super()._undefined_message)
        words.name = self._undefined_name
        words.holder = None if self._undefined_obj is MISSING else self._undefined_obj
        return words


class _Environment(ImmutableSandboxedEnvironment):
    """Knows data only: no attribute of a Python object can be reached, but what a loop says of itself."""

    context_class = _Budget
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
        if isinstance(obj, dict) and str(argument) in obj:
            return obj[str(argument)]
        if isinstance(obj, list | tuple | str) and isinstance(argument, int):
            return obj[argument] if -len(obj) <= argument < len(obj) else self.undefined(obj=obj, name=name)
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


class _LenientEnvironment(_Environment):
    """Takes what is in something missing as missing, so that `a.b.c|default` needs no `a.b`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        return obj if isinstance(obj, Undefined) else super().getitem(obj, argument)


#: Compact JSON; json.dumps would make one of these at each call.
compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@pass_context
def _written(context: _Budget, value: Any) -> Any:
    """Return what `{{ … }}` becomes."""
    text = scalar(value)
    context.spend(1 + weight(text))
    return text


@pass_context
def _written_as_json(context: _Budget, value: Any) -> Any:
    """Return what `{{ … }}` becomes, lists and objects as JSON."""
    is_whole = isinstance(value, list | tuple | dict)
    text = compact_json(value) if is_whole else scalar(value)
    context.spend(1 + weight(text))
    return text


@pass_context
def _looped(context: _Budget, value: Any, cost_of_step: int) -> Any:
    """Return what a loop goes over, paid for before its first step."""
    sized(value, list | dict | tuple, "a list to loop over")
    context.spend(len(value) * cost_of_step + 1)
    return value


@pass_context
def _weighed(context: _Budget, value: Any) -> Any:
    """Return what is compared or cut, paid for.

    Nothing made in a template has a list in a list, so no value is larger than what came in.
    """
    if isinstance(value, Undefined):
        missing(value)
    is_whole = isinstance(value, list | dict | tuple)
    context.spend(1 + (context.size if is_whole else weight(value)))
    return value


@pass_context
def _concat(context: _Budget, values: Any) -> Any:
    return joined(context, [scalar(value) for value in values])


@cache
def _environment(is_html: bool, is_lenient: bool) -> _Environment:
    kind, written = (_LenientEnvironment, _written_as_json) if is_lenient else (_Environment, _written)
    made = kind(
        autoescape=is_html,
        undefined=_Missing,
        optimized=False,
        keep_trailing_newline=True,
        cache_size=0,
        extensions=[Bounded],
        finalize=written,
    )
    made.globals.clear()
    made.filters = {**FILTERS, "_looped": _looped, "_weighed": _weighed, "_concat": _concat}
    made.tests = dict(TESTS)
    return made


def _code(environment: _Environment, tree: nodes.Template) -> CodeType:
    try:
        return environment.compile(_rewritten(tree), filename=_FILE)
    except (RecursionError, SyntaxError):  # Twenty loops in each other are too many for Python.
        raise too_deep() from None


def _rewritten(tree: nodes.Template) -> nodes.Template:
    """Return the template with what can cost much done by functions of this module."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _through("_looped", loop.iter, nodes.Const(_cost_of_step(loop)))
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


def _through(name: str, node: nodes.Node, *arguments: nodes.Expr) -> nodes.Filter:
    """Return a call of the filter `name` with `node`."""
    place = {"lineno": node.lineno, "environment": node.environment}
    return nodes.Filter(node, name, list(arguments), [], None, None, **place)


def _cost_of_step(loop: nodes.For) -> int:
    """Return how many steps of the budget one step of a loop takes."""
    texts = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
    return 1 + sum(1 for _ in loop.find_all(nodes.Node)) + texts // 100


def _explain(error: Exception, template: Template) -> NoReturn:
    """Raise what was raised in a template as an error of ours, with its line."""
    line = _line_of(error.__traceback__, template)
    words = error.args[0] if error.args else None
    if isinstance(error, UndefinedError) and isinstance(words, _Miss) and words.name is not None:
        raise Unknown(words.name, words.holder, line) from None
    raise Unfit(one_line(error, most=300) or type(error).__name__, line) from None


def _line_of(traceback: TracebackType | None, template: Template) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILE:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line
