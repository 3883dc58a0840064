"""What a worker received, without what its events would tell."""

from typing import Any

from celery.worker.request import Request


class QuietRequest(Request):
    """A stock client's message shows its whole mail in `argsrepr`, and events would tell that to whoever listens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr, self._kwargsrepr = "()", "{}"
