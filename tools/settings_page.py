"""Writes docs/settings.md from default_settings.py: `python -m tools.settings_page`; `make docs` runs it."""

import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import default_settings

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "settings.md"
TOP = """# Settings

<!-- Made of default_settings.py by `make docs`: change that file, not this one. -->

There are three places for a setting. The first that has it wins:

1. the environment variable `MAILASYNC_` + name, such as `MAILASYNC_PORT=5001`;
2. the same as a line in `.env`, beside `default_settings.py`. git ignores that file. Where the package is
   [installed](install.md), `.env` is in the [state directory](install.md#install-it-for-yourself);
3. `default_settings.py` itself. **git tracks it: never commit a password in it.**

A secret can also come from a file: `MAILASYNC_` + name + `_FILE` is its path, as Docker and Kubernetes hand secrets out.

A value that is wrong, or a name that does not exist, stops the start with a sentence that says what was expected.
`flask config` lists every setting with its value and where that comes from; secrets are shown as `***`.
"""
#: Where a setting is explained at length.
MORE = {
    "MAIL_PASSWORD": "accounts-and-gmail.md#gmail",
    "ACCOUNTS_FILE": "accounts-and-gmail.md#several-accounts",
    "SMTP_CONNECTIONS": "accounts-and-gmail.md#how-accounts-share-connections",
    "RETRY_SCHEDULE": "accounts-and-gmail.md#what-happens-when-the-server-says-no",
    "WEB_THREADS": "http-api.md#slow-and-idle-clients",
    "HOST": "keys.md",
    "API_KEY": "keys.md",
    "PUBLIC_URL": "suppressions.md#one-click-unsubscribe",
    "BROKER_URL": "operations.md#rights-in-rabbitmq",
    "SERVE_CELERY_QUEUE": "clients.md#from-a-celery-client",
    "DATABASE_URL": "operations.md#postgresql",
    "HOME": "install.md#install-it-for-yourself",
    "RETENTION_DAYS": "operations.md#retention",
    "WEBHOOKS_TO_LOOPBACK": "webhooks.md",
    "JOBS": "jobs.md#a-job-of-your-own",
    "JOB_SLOTS": "jobs.md#slots-and-queues",
    "LOG_FILE": "operations.md#logs",
}
_BLOCK = re.compile(
    r"^# --- (?P<title>.+) ---$|(?P<comment>(?:^#:.*\n)+)(?P<name>[A-Z0-9_]+):", re.MULTILINE
)
_NAMES = re.compile(
    rf"(?<![\w`/])({'|'.join(sorted(default_settings.__annotations__, key=len)[::-1])})\b"
)


class Setting(NamedTuple):
    """A setting as default_settings.py has it, below its heading."""

    title: str
    name: str
    meaning: str


def settings() -> list[Setting]:
    title, found = "", []
    for block in _BLOCK.finditer((PROJECT / "default_settings.py").read_text()):
        if block["title"]:
            title = block["title"]
        else:
            words = " ".join(
                line.removeprefix("#:").strip() for line in block["comment"].splitlines()
            )
            found.append(Setting(title, block["name"], words))
    return found


def default(name: str) -> str:
    value = getattr(default_settings, name)
    if value == "":
        return "–"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def meaning(setting: Setting) -> str:
    """Return a setting's comment as Markdown, with a link to where there is more."""
    text = setting.meaning.replace('"": ', "Empty: ")
    text = re.sub(
        r"(?<!\S)([\w+]+://\S*|\[\S+\])(?=[,;.:]*(?:\s|$))", lambda found: code(found[0]), text
    )
    text = re.sub(
        r"(?:(?<=^)|(?<=[.;] ))(ssl|starttls|none|on|off|auto|resend|hold)(?=: )", r"`\1`", text
    )
    text = _NAMES.sub(r"`\1`", text)
    more = MORE.get(setting.name)
    return f"{text} [More]({more})" if more else text


def code(word: str) -> str:
    bare = word.rstrip(",;.:")
    return f"`{bare}`{word[len(bare) :]}"


def page() -> str:
    """Return docs/settings.md: a table for each heading of default_settings.py."""
    lines = [TOP]
    for title, group in groupby(settings(), lambda setting: setting.title):
        lines += [f"## {title}", "", "| name | default | meaning |", "|---|---|---|"]
        lines += [f"| `{one.name}` | {default(one.name)} | {meaning(one)} |" for one in group]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
