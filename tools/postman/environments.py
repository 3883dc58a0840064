"""The environments of the collection: where each way to run the service has its API and its inbox."""

from typing import Any

_PAGES_OF_INBOX = "http://127.0.0.1:8025"
_API = "http://127.0.0.1:5000"

#: The address of the inbox, by the name of the file and of the environment.
ENVIRONMENTS = {
    "run": ("mailasync: make run", _API),
    "pair": ("mailasync: web, worker and inbox", _PAGES_OF_INBOX),
    "compose": ("mailasync: Docker Compose", _PAGES_OF_INBOX),
}


def environment(name: str) -> dict[str, Any]:
    """Return an environment in Postman's format; the API key is empty, and a secret."""
    title, inbox = ENVIRONMENTS[name]
    return {
        "name": title,
        "values": [
            _value("baseUrl", _API, "default"),
            _value("inboxUrl", inbox, "default"),
            _value("apiKey", "", "secret"),
        ],
        "_postman_variable_scope": "environment",
    }


def _value(key: str, value: str, kind: str) -> dict[str, Any]:
    return {"key": key, "value": value, "type": kind, "enabled": True}
