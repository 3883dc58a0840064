"""Reads what this repository says in Markdown: README and the pages of docs/, with their code, tables and headings."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
#: README and the pages of docs/, by their path; README comes first.
PAGES = {
    str(file.relative_to(PROJECT)): file.read_text()
    for file in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
}
TEXT = "\n\n".join(PAGES.values())
#: Code in them: blocks by language, and what stands between backticks.
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", TEXT, re.DOTALL | re.MULTILINE)
CODE = "\n".join([block for _, block in BLOCKS] + re.findall(r"`([^`\n]+)`", TEXT))


def table(page: str, first: str) -> list[list[str]]:
    """Return the rows of all tables of a page whose first heading is `first`, as cells."""
    rows: list[list[str]] = []
    for part in PAGES[page].split(f"\n| {first} |")[1:]:
        lines = part.split("\n\n")[0].strip().splitlines()[2:]
        rows += [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return rows


def block_with(language: str, part: str) -> str:
    block: str = next(block for kind, block in BLOCKS if kind == language and part in block)
    return block


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> list[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return [
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    ]


def links(text: str) -> list[tuple[str, str]]:
    """Return what a page links to inside this repository: path and anchor, either of them may be empty."""
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?(?: \"[^\"]*\")?\)", prose(text))
    return [(path, anchor) for path, anchor in found if not re.match(r"\w+://", path)]
