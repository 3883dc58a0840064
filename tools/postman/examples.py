"""The saved answers of the collection: what a service answered when all requests were sent, one after another.

`make postman-examples` records them anew.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "examples.json"
#: The fields of a header that say something about the answer; others are about the server or the moment.
HEADERS = (
    "Content-Type",
    "Location",
    "Idempotency-Replayed",
    "Preference-Applied",
    "WWW-Authenticate",
    "Retry-After",
)
#: A longer text, such as a page, is cut after some lines, and a long object has its long members emptied.
BODY_MAX_CHARACTERS = 8_000
MEMBER_MAX_CHARACTERS = 1_000
LINES_KEPT = 25


@dataclass(frozen=True)
class Example:
    """An answer to a request of the collection."""

    status: int
    headers: dict[str, str]
    body: str


def read_examples() -> dict[str, Example]:
    """Return the saved answers by the names of their requests."""
    return {name: Example(**kept) for name, kept in json.loads(FILE.read_text()).items()}


def write_examples(examples: Mapping[str, Example]) -> None:
    kept = {name: asdict(example) for name, example in examples.items()}
    FILE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def examples_in(report: Mapping[str, Any], private: Mapping[str, str]) -> dict[str, Example]:
    """Return the answers in a report of newman, with each text of `private` replaced by its value."""
    return {
        execution["item"]["name"]: _example(execution["response"], private)
        for execution in report["run"]["executions"]
    }


def _example(response: Mapping[str, Any], private: Mapping[str, str]) -> Example:
    sent = {one["key"].title(): one["value"] for one in response["header"]}
    headers = {name: sent[name.title()] for name in HEADERS if name.title() in sent}
    body = bytes(response.get("stream", {}).get("data", [])).decode()
    if not body:
        headers.pop("Content-Type", None)
    return Example(response["code"], headers, _shortened(_without(body, private.items())))


def _without(text: str, private: Iterable[tuple[str, str]]) -> str:
    """Replace what belongs to the machine that recorded, and what looks like a secret."""
    for found, shown in private:
        text = text.replace(found, shown)
    return re.sub(r"whsec_[A-Za-z0-9+/=_-]+", "whsec_…", text)


def _shortened(body: str) -> str:
    """Indent JSON, as Postman does, and cut what is too long to be read."""
    try:
        value = json.loads(body)
    except ValueError:
        is_long = len(body) > BODY_MAX_CHARACTERS
        return "\n".join([*body.splitlines()[:LINES_KEPT], "…"]) if is_long else body
    if len(body) > BODY_MAX_CHARACTERS and isinstance(value, dict):
        value = {name: _emptied(member) for name, member in value.items()}
    return json.dumps(value, indent=2, ensure_ascii=False)


def _emptied(member: Any) -> Any:
    """Return an empty object, list or text in place of a long one."""
    is_long = len(json.dumps(member)) > MEMBER_MAX_CHARACTERS
    return type(member)() if is_long else member
