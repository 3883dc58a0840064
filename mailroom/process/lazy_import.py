"""Loads modules that few processes need only when they are used.

To load all of them at every start takes a third of its time, and of the memory.
"""

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module, which is imported when one of its attributes is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
