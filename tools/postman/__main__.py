"""Writes the Postman collection and its environments: `make postman`."""

import json
from pathlib import Path

from tools.postman.collection import collection
from tools.postman.environments import ENVIRONMENTS, environment

DIRECTORY = Path(__file__).resolve().parents[2] / "docs" / "postman"
FILE = DIRECTORY / "mailasync.postman_collection.json"


def files() -> dict[Path, str]:
    """Return the text of each file."""
    texts = {FILE: collection()}
    for name in ENVIRONMENTS:
        texts[DIRECTORY / f"{name}.postman_environment.json"] = environment(name)
    return {
        file: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for file, content in texts.items()
    }


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
