"""The pages of docs/: every link leads somewhere, the site is built from them, and they lead into the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import mailroom
from tests.tools.documents import PAGES, PROJECT, anchors, links, table
from tools import settings_page

#: Markdown that a reader opens on GitHub.
READ = {
    **PAGES,
    **{
        name: (PROJECT / name).read_text()
        for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; strict: a link or anchor that leads nowhere ends it."""
    made = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(made)],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.parametrize("name", READ)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    lost = []
    for path, anchor in links(READ[name]):
        file = (PROJECT / name).parent / path if path else PROJECT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            lost.append(f"{path}#{anchor}")
    assert lost == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_no_heading_twice(name: str) -> None:
    found = anchors(PAGES[name])
    assert PAGES[name].startswith("# ") and len(set(found)) == len(found)


def test_readme_is_short_and_leads_to_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250
    led_to = {path for path, _ in links(PAGES["README.md"])}
    assert {name for name in PAGES if name not in ("README.md", "docs/index.md")} <= led_to


def test_the_index_leads_to_every_page() -> None:
    led_to = {path for path, _ in links(PAGES["docs/index.md"])}
    named = {name.removeprefix("docs/") for name in PAGES}
    assert named - {"README.md", "index.md"} <= led_to


def test_the_site_has_every_page(site: Path) -> None:
    named = {Path(name).with_suffix(".html").name for name in PAGES} - {"README.html"}
    assert named <= {file.name for file in site.glob("*.html")}


def test_the_pages_of_the_site_ask_no_other_site_for_anything(site: Path) -> None:
    fetched = re.compile(
        r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*"""
    )
    found = {file.name: fetched.findall(file.read_text()) for file in site.rglob("*.html")}
    assert {name: what for name, what in found.items() if what} == {}
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    assert styles and not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles)


def test_what_makes_the_theme_ask_another_site_is_not_set() -> None:
    config = YAML(typ="safe", pure=True).load(PROJECT / "mkdocs.yml")
    assert config["theme"]["font"] is False and "repo_url" not in config
    assert not any("mermaid" in text for text in PAGES.values())


def test_the_page_of_the_settings_is_what_default_settings_says() -> None:
    assert PAGES["docs/settings.md"] == settings_page.page(), "make docs writes it anew"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_what_leads_into_the_code_finds_it(page: str) -> None:
    rows = table(page, "you look for")
    assert len(rows) > 5
    for what, file, names in rows:
        text = (PROJECT / file.strip("`")).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^ *(?:def|class) {name}\b", text, re.MULTILINE), (
                f"{what}: {name} in {file}"
            )


def test_the_folders_that_the_architecture_names_are_those_of_the_code() -> None:
    named = [
        folder.strip("`") for folder, _ in table("docs/architecture.md", "folder of `mailroom/`")
    ]
    assert sorted(named) == sorted(
        file.parent.name for file in (PROJECT / "mailroom").glob("*/__init__.py")
    )


def test_the_words_of_the_architecture_are_those_of_the_map() -> None:
    glossary = str(mailroom.__doc__).partition("The words:")[2]
    words = re.findall(r"^    (\w+(?: \w+)?) {2,}", glossary, re.MULTILINE)
    assert [word for word, _ in table("docs/architecture.md", "word")] == words


def test_the_pages_that_the_code_names_are_there() -> None:
    named = []
    for folder in ("mailroom", "examples", "deploy"):
        for file in (PROJECT / folder).rglob("*"):
            if file.suffix in (".py", ".html", "") and file.is_file():
                named += re.findall(r'(docs/[\w-]+\.md)(?:, "([^"]+)")?', file.read_text())
    assert len(named) >= 5
    assert [page for page, _ in named if page not in PAGES] == []
    assert all(f"## {heading}\n" in PAGES[page] for page, heading in named if heading)
