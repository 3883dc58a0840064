"""docs/features.md: each yes of ours is a link to a test that exists, and everything else is a plain no."""

import ast
import re
from pathlib import Path

import pytest

from tests.services.processes import PROJECT

FEATURES = (PROJECT / "docs" / "features.md").read_text()
#: `[words](../tests/test_x.py "tests/test_x.py::test_name")`
LINK = re.compile(r'\[[^\]]+\]\(\.\./([^ )]+) "([^"]+)"\)')
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in FEATURES.splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]


def names_in(file: Path) -> set[str]:
    """The names that pytest has for the tests in `file`, without their parameters."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_each_test_that_is_named_exists() -> None:
    links = LINK.findall(FEATURES)
    assert len(links) > 50 and all(title.startswith(f"{file}::") for file, title in links)
    there = {
        f"{file}::{name}"
        for file in {file for file, _ in links}
        if (PROJECT / file).exists()
        for name in names_in(PROJECT / file)
    }
    assert [title for _, title in links if title not in there] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_cell_of_ours_has_its_test_or_is_a_no(row: list[str]) -> None:
    assert len(row) == 6 and all(row)
    assert LINK.match(row[1]) or row[1].startswith("**no**")
    assert not any(LINK.search(cell) for cell in (row[0], *row[2:]))


def test_what_we_do_not_have_has_a_place_of_its_own() -> None:
    before, _, after = FEATURES.partition("## What we do not have")
    assert "**no**" not in before and after.count("**no**") > 10 and not LINK.search(after)
