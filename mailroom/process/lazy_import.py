"""Modules that few processes ever need: to load all of them at every start is a third of the time that it takes, and of its memory."""

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module, which is loaded when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
