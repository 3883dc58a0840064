"""The part of Jinja's language that templates may use: node types, and bounds for length and depth."""

import difflib
import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from mailroom.model.errors import MailroomError
from mailroom.model.text import one_line
from mailroom.templating.filters import FILTERS, TESTS

#: Names, operators and texts between them; enough for `{{ order.number }}` 1,000 times.
TOKENS_MAX = 5000
#: Of brackets in brackets, statements in statements, operators in operators.
DEPTH_MAX = 15

_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_CONSTANTS = (nodes.Const, nodes.List, nodes.Dict, nodes.Tuple, nodes.Pair, nodes.Neg)
_EXPRESSIONS = (
    *_CONSTANTS,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Pos,
    nodes.CondExpr,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Keyword,
)
_NAMES_OF_KINDS = {
    nodes.Call: "a call",
    nodes.Macro: "a macro",
    nodes.CallBlock: "a call",
    nodes.Include: "an include",
    nodes.Import: "an import",
    nodes.FromImport: "an import",
    nodes.Extends: "an extends",
    nodes.Pow: "the operator **",
    nodes.Block: "a block",
    nodes.FilterBlock: "a filter block",
    nodes.AssignBlock: "a set block",
    nodes.With: "a with",
    nodes.NSRef: "a namespace",
}
_RESERVED = ("self", "super", "caller", "varargs", "kwargs")


class Unfit(MailroomError):
    """A template cannot be read, or cannot be filled in; the text says why, in one line."""

    def __init__(self, detail: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(detail)

    @property
    def where(self) -> str:
        """Return the line as the end of a sentence; "" if it is not known."""
        return f" at line {self.line}" if self.line else ""


#: Names and indexes, as in `job.sizes[0]`; None stands for a computed one, as in `sizes[number]`.
Path = tuple[str | int | None, ...]


class Reference(NamedTuple):
    """A variable that a template reads: its name, the path after it, and the line."""

    name: str
    path: Path
    line: int


class Bounded(Extension):
    """Stops the parser if a template has too many tokens or brackets to be parsed in time."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        depth = 0
        for token in islice(stream, TOKENS_MAX):
            depth += token.type in ("lparen", "lbracket", "lbrace")
            depth -= token.type in ("rparen", "rbracket", "rbrace")
            if depth > DEPTH_MAX:  # Python's own limit depends on the caller's depth.
                raise Unfit(
                    f"expected at most {DEPTH_MAX} brackets in brackets, got more", token.lineno
                )
            yield token
        if not stream.eos:
            line = stream.current.lineno
            raise Unfit(f"expected at most {TOKENS_MAX} names, signs and texts, got more", line)


def parse(environment: Environment, source: str) -> nodes.Template:
    """Parse a template that uses only the node types listed here.

    Raises:
      Unfit: it cannot be read, or uses others.
    """
    if source.endswith(("{#", "{#-", "{#+")):  # Jinja would silently drop it.
        raise Unfit("expected a template, got one that ends in a comment without an end")
    try:
        tree = environment.parse(source)
    except TemplateSyntaxError as e:
        reason = one_line(e.message or "", most=200)
        raise Unfit(
            f"expected a template, got one that cannot be read: {reason}", e.lineno
        ) from None
    except ValueError:  # A number with more digits than int() takes.
        raise Unfit("expected numbers of a few digits, got a larger one") from None
    except RecursionError:
        raise too_deep() from None
    _check(tree)
    return tree


def too_deep() -> Unfit:
    return Unfit("expected a template, got one that is nested too deep")


def references(tree: nodes.Template) -> Iterator[Reference]:
    """Yield the variables that a template reads, in its order, without those that it sets itself."""
    own = own_names(tree) | {"loop"} if tree.find(nodes.For) else own_names(tree)
    waiting: deque[nodes.Node] = deque([tree])
    while waiting:
        node = waiting.popleft()
        base, path, computed = _chain(node)
        children = list(computed)
        if not isinstance(base, nodes.Name):
            children += base.iter_child_nodes()
        elif base.ctx == "load" and base.name not in own:
            yield Reference(base.name, path, node.lineno)
        waiting.extendleft(reversed(children))


def own_names(tree: nodes.Template) -> frozenset[str]:
    """Return the variables that a template sets itself."""
    return frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "store")


def cost_of_step(loop: nodes.For) -> int:
    """Return the steps of the budget that one turn of a loop costs."""
    texts = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
    return 1 + sum(1 for _ in loop.find_all(nodes.Node)) + texts // 100


def _chain(node: nodes.Node) -> tuple[nodes.Node, Path, list[nodes.Node]]:
    """Split `a.b[0][c]` into the base `a`, the path (b, 0, None), and the nodes of computed indexes."""
    path: list[str | int | None] = []
    computed: list[nodes.Node] = []
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        if isinstance(node, nodes.Getattr):
            path.append(node.attr)
        elif isinstance(node.arg, nodes.Const):
            path.append(node.arg.value)
        else:
            path.append(None)
            computed.append(node.arg)
        node = node.node
    return node, tuple(reversed(path)), computed[::-1]


def _check(tree: nodes.Template) -> None:
    """Raise Unfit at the first node that is not allowed, or too deep."""
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > 2 * DEPTH_MAX:
            raise Unfit(
                f"expected at most {2 * DEPTH_MAX} parts in each other, got more", node.lineno
            )
        if not isinstance(node, _STATEMENTS + _EXPRESSIONS):
            listed = "if, for, set and expressions of names, constants, operators and filters"
            _refuse(
                listed, _NAMES_OF_KINDS.get(type(node), f"a {type(node).__name__.lower()}"), node
            )
        if refusal := _refusal(node):
            _refuse(*refusal, node)
        waiting.extend((child, depth + 1) for child in reversed(list(node.iter_child_nodes())))


def _refusal(node: nodes.Node) -> tuple[str, str] | None:
    """Return what was expected and what came, if a node of an allowed type is used in a way that is not."""
    if isinstance(node, nodes.For) and node.recursive:
        return "a loop that is not recursive", "a recursive one"
    if isinstance(node, nodes.Assign) and not isinstance(node.target, nodes.Name):
        return "one name before =", "others"
    if isinstance(node, nodes.Name) and node.name in _RESERVED:
        return "a variable", f"{node.name}, which has a meaning of its own"
    if _is_list(node) and not all(
        isinstance(inner, _CONSTANTS) for inner in node.iter_child_nodes()
    ):
        # Otherwise a list of twice itself, nested thirty times, would have a billion items.
        return "a list of constants", "another"
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Const):
        return (
            None
            if isinstance(node.node.value, str)
            else ("a variable before the brackets", "a constant")
        )
    if isinstance(node, nodes.Filter):
        return _wrong_use(node, "filters", FILTERS, own_arguments=2)
    if isinstance(node, nodes.Test):
        return _wrong_use(node, "tests", TESTS, own_arguments=1)
    return None


def _is_list(node: nodes.Node) -> bool:
    is_value = isinstance(node, nodes.Tuple) and node.ctx == "load"
    return is_value or isinstance(node, nodes.List | nodes.Dict | nodes.Pair)


def _wrong_use(
    node: nodes.Filter | nodes.Test, kind: str, known: Mapping[str, Any], *, own_arguments: int
) -> tuple[str, str] | None:
    """Check the name and arguments of a filter or test; Jinja itself passes `own_arguments` more."""
    if node.name not in known:
        near = difflib.get_close_matches(node.name[:80], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"one of the {kind} {', '.join(sorted(known))}", f"{node.name[:80]}{hint}"
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return f"arguments of {node.name} without stars", "others"
    positional = [None] * (len(node.args) + own_arguments)
    keywords = {str(pair.key): None for pair in node.kwargs if isinstance(pair, nodes.Keyword)}
    try:
        inspect.signature(known[node.name]).bind(*positional, **keywords)
    except TypeError as e:
        return f"arguments that {node.name} takes", str(e)
    return None


def _refuse(expected: str, got: str, node: nodes.Node) -> NoReturn:
    raise Unfit(f"expected {expected}, got {got}", node.lineno)
