"""A hook of MkDocs: what docs/ links to elsewhere in the repository is on no page of the site, and becomes its name."""

import re
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
#: `[words](../path "title")`, with or without a title.
_OUTSIDE = re.compile(
    r'\[(?P<words>[^\]]+)\]\((?P<path>\.\./[^)# ]+)(?:#[^) ]*)?(?: "(?P<title>[^"]*)")?\)'
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the file's name beside the words of each such link; called by MkDocs for each page."""
    return _OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    if not (PROJECT / "docs" / link["path"]).resolve().exists():
        return link[0]  # MkDocs says then that it leads nowhere.
    if link["title"]:
        return f'<abbr title="{link["title"]}">{link["words"]}</abbr>'
    name = link["path"].removeprefix("../")
    return link["words"] if name in link["words"] else f"{link['words']} (`{name}`)"
