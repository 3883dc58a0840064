"""Finds the files that belong to the code, in a clone of the repository and in an installed wheel.

In a clone, app.py, default_settings.py, migrations/ and docs/clients/ are beside mailroom/. The wheel has
them in mailroom/ (pyproject.toml says so), as everything that is installed shares one top, where `app` is a
name that others want too. So there it is `mailroom.app`.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

IS_INSTALLED = (_PACKAGE / "default_settings.py").exists()
#: The directory of app.py and default_settings.py.
PROJECT = _PACKAGE if IS_INSTALLED else _PACKAGE.parent
#: The module of app.py.
APPLICATION = "mailroom.app" if IS_INSTALLED else "app"
#: This Python, for a module of ours. -P, as the wheel may be used in any directory: no file there hides a
#: module of ours, of Python or of others.
PYTHON = (sys.executable, "-P") if IS_INSTALLED else (sys.executable,)
#: The programs as a person types them: the one that has our commands, a worker, and the web process.
PROGRAM = "mailasync" if IS_INSTALLED else "flask"
WORKER = "mailasync worker" if IS_INSTALLED else "celery -A mailasync worker"
START_WORKER = WORKER if IS_INSTALLED else f"{WORKER} --loglevel=INFO"
WEB = "mailasync web" if IS_INSTALLED else "app.py"


def home(chosen: str) -> Path:
    """Return the directory of `.env`: the one that MAILASYNC_HOME has chosen, or else the clone.

    For an installed wheel it is a directory of the user's instead, as nothing is written beside its code.
    """
    if chosen:
        return Path(chosen).expanduser().absolute()
    return user_state(os.environ, sys.platform) if IS_INSTALLED else PROJECT


def data_directory(chosen: str) -> Path:
    """Return the directory of the database files: that of `home`, in a clone its instance/."""
    return home(chosen) if chosen or IS_INSTALLED else PROJECT / "instance"


def user_state(environ: Mapping[str, str], platform: str) -> Path:
    """Return where this user's programs keep what they have to remember, for ours.

    By the XDG Base Directory Specification, 0.8, which has a relative path ignored; by Apple's File System
    Programming Guide on a Mac.
    """
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mailasync"
    chosen = Path(environ.get("XDG_STATE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".local" / "state") / "mailasync"
