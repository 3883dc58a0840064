"""Compiles templates into programs that can read nothing but their variables, and that end soon.

Jinja's sandbox bounds neither time nor size. So grammar.py lists the parts of the language that are allowed;
operations that can be expensive are done by functions of ours; and these, like each step of a loop, are paid
from a budget of each rendering.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from types import CodeType, TracebackType
from typing import Any, NoReturn

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    Undefined,
    UndefinedError,
    nodes,
    pass_context,
)
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing as MISSING

from mailroom.model.text import one_line
from mailroom.templating import grammar
from mailroom.templating.filters import (
    FILTERS,
    MAIL_FILTERS,
    TESTS,
    Misfit,
    checked,
    joined,
    missing,
    scalar,
    weight,
)
from mailroom.templating.grammar import Bounded, Reference, Unfit, parse, too_deep

SOURCE_MAX_CHARACTERS = 200_000
RENDERED_MAX_CHARACTERS = 1_000_000
#: Steps of one rendering: about one for each name and operator, and for each ten characters made.
WORK_MAX = 500_000
#: Compiled programs that are cached.
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
#: The attributes of `loop` that a template may read; `cycle` and `changed` are functions.
_LOOP_ATTRIBUTES = frozenset(
    [
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
    ]
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The bounds of one kind of templates, and how strict these are."""

    source_max_characters: int = SOURCE_MAX_CHARACTERS
    rendered_max_characters: int = RENDERED_MAX_CHARACTERS
    work_max: int = WORK_MAX
    #: Lists and objects are written as JSON, and a part of something missing is missing, too; if False, both
    #: are errors.
    is_lenient: bool = False


class Unknown(Unfit):
    """A variable is missing: `name` in the object `holder`, or at the top if that is None."""

    def __init__(self, name: object, holder: object, line: int | None) -> None:
        self.name = name
        self.holder = holder
        super().__init__("got none", line)

    def path(self, variables: dict[str, Any]) -> list[Any]:
        """Return the path in the variables at which the missing one should be.

        It is at the top if `holder` is a value that the template made.
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
    """A compiled template, which can be filled in many times and in any thread."""

    def __init__(self, source: str, *, is_html: bool, rules: Rules) -> None:
        if len(source) > rules.source_max_characters:
            raise Unfit(
                f"expected at most {rules.source_max_characters:,} characters, got {len(source):,}"
            )
        self.references: tuple[Reference, ...] = ()
        self.own_names: frozenset[str] = frozenset()
        self._rules = rules
        self._source = source
        self._environment = _environment(is_html, rules.is_lenient)
        if self._is_plain:
            return
        tree = parse(self._environment, source)
        self.references, self.own_names = tuple(grammar.references(tree)), grammar.own_names(tree)
        if any(tree.find_all((nodes.For, nodes.If))):
            _ = self._template  # Compiled now, as it may be nested too deep for Python.

    def fill(self, variables: dict[str, Any], *, size: int) -> str:
        """Return the text; `size` is the cost, in steps, of an operation on all variables.

        Raises:
          Unfit: a variable is missing or has the wrong type, or the text would be too long, or take too long.
        """
        if self._is_plain:
            return self._source
        max_characters = self._rules.rendered_max_characters
        context = _Budget(self._environment, variables, self._template.name, self._template.blocks)
        context.size, context.left = size + len(self._source), self._rules.work_max
        chunks, length = [], 0
        try:
            for chunk in self._template.root_render_func(context):
                chunks.append(chunk)
                length += len(chunk)
                if length > max_characters:
                    raise Misfit(f"it would have more than {max_characters:,} characters")
        except _TEMPLATE_ERRORS as e:
            _explain(e, self._template)
        return "".join(chunks)

    @property
    def _is_plain(self) -> bool:
        return "{" not in self._source

    @cached_property
    def _template(self) -> Template:
        """Return the code, compiled when first needed: a request only checks the template."""
        tree = self._environment.parse(self._source)  # A new tree, as it is changed.
        return Template.from_code(self._environment, _code(self._environment, tree), {})


#: The errors of a template whose variables have other types or values than it expects.
_TEMPLATE_ERRORS = (
    Misfit,
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)

STORED = Rules()


@lru_cache(PROGRAMS_MAX)
def program(source: str, *, is_html: bool, rules: Rules = STORED) -> Program:
    """Compile a template, or take it from the cache. Raises Unfit if it is not a template, or not allowed."""
    return Program(source, is_html=is_html, rules=rules)


class _Budget(Context):
    """The variables of one rendering, and the steps that it has left."""

    left = 0
    size = 0  #: of all variables and constants; no value that is compared is larger

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Misfit("it would take too long")


class _MissingMessage(str):
    """The message of the error about a missing variable, with the variable, for `_explain`."""

    name: object
    holder: object


class _Missing(StrictUndefined):
    """A missing variable; everything but `is defined` and `default` raises on it."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        message = _MissingMessage(super()._undefined_message)
        message.name = self._undefined_name
        message.holder = None if self._undefined_obj is MISSING else self._undefined_obj
        return message


class _Environment(ImmutableSandboxedEnvironment):
    """Reads items of data only; no attribute of a Python object, except a few of a loop."""

    context_class = _Budget
    intercepted_binops = frozenset(_OPERATORS.values())

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        name: Any = argument  # Jinja's type hints only allow a str.
        for value in (obj, argument):
            if isinstance(value, Undefined):
                missing(value)
        if not isinstance(argument, str | int):
            raise Misfit("expected a name or a whole number in the brackets, got another")
        if isinstance(obj, dict) and str(argument) in obj:
            return obj[str(argument)]
        if isinstance(obj, list | tuple | str) and isinstance(argument, int):
            if -len(obj) <= argument < len(obj):
                return obj[argument]
            return self.undefined(obj=obj, name=name)
        if isinstance(obj, LoopContext) and argument in _LOOP_ATTRIBUTES:
            return getattr(obj, argument)
        return self.undefined(obj=obj, name=name)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        context.spend(2)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return joined(context, [left, right])
        for value in (left, right):
            checked(value, int | float, f"a number beside {operator}")
            if isinstance(value, int) and value.bit_length() > 256:
                raise Misfit(
                    f"expected a number of at most 77 digits beside {operator}, got a larger one"
                )
        return self.binop_table[operator](left, right)


class _LenientEnvironment(_Environment):
    """Treats a part of something missing as missing, so that `a.b.c|default` works without `a.b`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        return obj if isinstance(obj, Undefined) else super().getitem(obj, argument)


#: Writes compact JSON; json.dumps would make an encoder at each call.
compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@pass_context
def _output(context: _Budget, value: Any) -> Any:
    """Return the text of `{{ … }}`."""
    text = scalar(value)
    context.spend(1 + weight(text))
    return text


@pass_context
def _output_json(context: _Budget, value: Any) -> Any:
    """Return the text of `{{ … }}`, lists and objects as JSON."""
    is_whole = isinstance(value, list | tuple | dict)
    text = compact_json(value) if is_whole else scalar(value)
    context.spend(1 + weight(text))
    return text


@pass_context
def _looped(context: _Budget, value: Any, cost_of_step: int) -> Any:
    """Return the list of a loop, after paying for all its steps."""
    checked(value, list | dict | tuple, "a list to loop over")
    context.spend(len(value) * cost_of_step + 1)
    return value


@pass_context
def _weighed(context: _Budget, value: Any) -> Any:
    """Return a value that is compared or sliced, after paying for that.

    Templates cannot put lists into lists, so no value is larger than all variables.
    """
    if isinstance(value, Undefined):
        missing(value)
    is_whole = isinstance(value, list | dict | tuple)
    context.spend(1 + (context.size if is_whole else weight(value)))
    return value


@pass_context
def _concat(context: _Budget, values: Any) -> Any:
    """Join the values of the operator ~."""
    return joined(context, [scalar(value) for value in values])


@cache
def _environment(is_html: bool, is_lenient: bool) -> _Environment:
    kind, finalize = (_LenientEnvironment, _output_json) if is_lenient else (_Environment, _output)
    environment = kind(
        autoescape=is_html,
        undefined=_Missing,
        optimized=False,
        keep_trailing_newline=True,
        cache_size=0,
        extensions=[Bounded],
        finalize=finalize,
    )
    environment.globals.clear()
    filters = MAIL_FILTERS if is_lenient else FILTERS
    environment.filters = {**filters, "_looped": _looped, "_weighed": _weighed, "_concat": _concat}
    environment.tests = dict(TESTS)
    return environment


def _code(environment: _Environment, tree: nodes.Template) -> CodeType:
    try:
        return environment.compile(_rewritten(tree), filename=_FILE)
    except (RecursionError, SyntaxError):  # Python allows twenty nested loops.
        raise too_deep() from None


def _rewritten(tree: nodes.Template) -> nodes.Template:
    """Replace the expensive operations of a template by calls of functions of this module."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _through("_looped", loop.iter, nodes.Const(grammar.cost_of_step(loop)))
    _replace(tree)
    return tree


def _replace(node: nodes.Node) -> None:
    for field, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, field, _replaced(value))
        elif isinstance(value, list):
            setattr(node, field, [_replaced(item) for item in value])


def _replaced(node: Any) -> Any:
    """Return the node to put in the place of this one; a list of Jinja's may also have other values."""
    if not isinstance(node, nodes.Node):
        return node
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
    return nodes.Filter(
        node,
        name,
        list(arguments),
        [],
        None,
        None,
        lineno=node.lineno,
        environment=node.environment,
    )


def _explain(error: Exception, template: Template) -> NoReturn:
    """Raise an error of a template as Unknown or Unfit, with its line."""
    line = _line_of(error.__traceback__, template)
    message = error.args[0] if isinstance(error, UndefinedError) and error.args else None
    if isinstance(message, _MissingMessage) and message.name is not None:
        raise Unknown(message.name, message.holder, line) from None
    raise Unfit(one_line(error, most=300) or type(error).__name__, line) from None


def _line_of(traceback: TracebackType | None, template: Template) -> int | None:
    """Return the line of the template at which an error was raised."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILE:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line
