"""Writes the Postman collection: `make postman`."""

import json
from pathlib import Path

from tools.postman.collection import collection

FILE = Path(__file__).resolve().parents[2] / "docs/postman/mailasync.postman_collection.json"


def text() -> str:
    """Return the collection as the file has it."""
    return json.dumps(collection(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
