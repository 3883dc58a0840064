"""Prints how readable the house is, before and after: `python -m tests.tools.house 5460a1e`, or without a revision for now alone."""

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.services.processes import PROJECT
from tests.unit.test_architecture import (
    COLUMNS_MAX,
    FUNCTION_LINES_MAX,
    LINES_MAX,
    MODULES_MAX,
    function_lines,
    functions,
    idle_docstrings,
)

SERVICE = ("app.py", "mailasync.py", "mailroom/**/*.py")
NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
)
Tree = dict[str, str]  #: the service's files, and README, by name


def read(root: Path) -> Tree:
    found = {file for pattern in SERVICE for file in root.glob(pattern)}
    return {
        str(file.relative_to(root)): file.read_text()
        for file in [*sorted(found), root / "README.md"]
    }


def read_at(revision: str) -> Tree:
    """Read them as they were at a commit."""
    packed = subprocess.run(
        ["git", "archive", revision], cwd=PROJECT, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(directory, filter="data")
        return read(Path(directory))


def code(tree: Tree) -> Tree:
    return {name: text for name, text in tree.items() if name.endswith(".py")}


def lines(tree: Tree) -> list[str]:
    return [line for text in code(tree).values() for line in text.splitlines()]


def nodes(tree: Tree) -> list[ast.AST]:
    return [node for text in code(tree).values() for node in ast.walk(ast.parse(text))]


def modules_in_a_folder(tree: Tree) -> str:
    """Count the fullest folder, and the loose modules of mailroom/."""
    sizes = Counter(
        name.rpartition("/")[0] for name in code(tree) if not name.endswith("__init__.py")
    )
    folder, size = max(
        ((folder, size) for folder, size in sizes.items() if folder), key=lambda pair: pair[1]
    )
    return f"{size} ({folder.removeprefix('mailroom/')}), {sizes['mailroom']} loose"


def longest_module(tree: Tree) -> str:
    sizes = {name: len(text.splitlines()) for name, text in code(tree).items()}
    name = max(sizes, key=lambda name: sizes[name])
    return f"{sizes[name]} ({name.removeprefix('mailroom/')})"


def longest_function(tree: Tree) -> str:
    found = [
        (function_lines(function), function.name)
        for text in code(tree).values()
        for function in functions(ast.parse(text))
    ]
    length, name = max(found)
    return f"{length} ({name})"


def tokens_a_code_line(tree: Tree) -> str:
    """Divide tokens by the lines that have any; docstrings and comments count for neither."""
    count, used = 0, set()
    for name, text in code(tree).items():
        before = tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            is_docstring = token.type == tokenize.STRING and before in (
                tokenize.NEWLINE,
                tokenize.INDENT,
            )
            if token.type not in NO_CODE and not is_docstring:
                count += 1
                used |= {(name, line) for line in range(token.start[0], token.end[0] + 1)}
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                before = token.type
    return f"{count / len(used):.1f}"


def long_lines(tree: Tree) -> str:
    return str(sum(len(line) > COLUMNS_MAX for line in lines(tree)))


def docstrings(tree: Tree) -> str:
    """Count those that begin with a banned word."""
    return str(sum(len(list(idle_docstrings(ast.parse(text)))) for text in code(tree).values()))


def classes_twice(tree: Tree) -> str:
    names = Counter(node.name for node in nodes(tree) if isinstance(node, ast.ClassDef))
    return str(sum(count > 1 for count in names.values()))


def readme(tree: Tree) -> str:
    return str(len(tree["README.md"].splitlines()))


MEASURES: tuple[tuple[str, str, Callable[[Tree], str]], ...] = (
    ("modules in the fullest folder", f"{MODULES_MAX}, 0 loose", modules_in_a_folder),
    ("lines of the longest module", str(LINES_MAX), longest_module),
    ("lines of the longest function", str(FUNCTION_LINES_MAX), longest_function),
    ("tokens a code line", "8", tokens_a_code_line),
    (f"lines over {COLUMNS_MAX} columns", "0", long_lines),
    ("docstrings that begin with a banned word", "0", docstrings),
    ("class names that are there twice", "0", classes_twice),
    ("lines of README", "250", readme),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.house", description=__doc__)
    parser.add_argument("before", nargs="?", help="a commit to compare with")
    before = parser.parse_args().before
    trees = [read_at(before)] if before else []
    trees.append(read(PROJECT))
    print("| measure | at most |", *([f"{before} |"] if before else []), "now |")
    print("|---|---|" + "---|" * len(trees))
    for name, at_most, measure in MEASURES:
        print(f"| {name} | {at_most} | {' | '.join(measure(tree) for tree in trees)} |")


if __name__ == "__main__":
    main()
