"""Finds default_settings.py, which is beside mailroom/ in a clone, and in mailroom/ in an installed wheel."""

from importlib import import_module

from mailroom.process.installation import IS_INSTALLED

default_settings = import_module(
    "mailroom.default_settings" if IS_INSTALLED else "default_settings"
)
