"""Reads the settings: from the environment, then `.env`, then default_settings.py."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from dotenv import dotenv_values

from mailroom.config.checks import check_settings
from mailroom.config.defaults import default_settings
from mailroom.config.settings import PREFIX, SECRETS, Settings, SettingsError
from mailroom.process.installation import IS_INSTALLED, PROJECT, home

#: How messages call the file with all settings; a clone has it on its top.
DEFAULTS_FILE = str(PROJECT / "default_settings.py") if IS_INSTALLED else "default_settings.py"

#: A random key of so many letters and digits is one of 10^28: nobody can try them all.
API_KEY_MIN_CHARACTERS = 16

#: Variables that Kubernetes adds to every pod for a service called "mailasync" or "mailasync-…".
_KUBERNETES = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)$"
)


def load(
    environ: Mapping[str, str] | None = None, *, defaults: ModuleType = default_settings
) -> Settings:
    """Return the settings in force.

    `.env` in HOME is read unless MAILASYNC_ENV_FILE names another file, or none ("").

    Raises:
      SettingsError: a value has the wrong form, a name is unknown, or two settings contradict each other.
    """
    environ = os.environ if environ is None else environ
    variables = {**env_file_variables(environ), **environ}
    types = dict(defaults.__annotations__)
    refuse_unknown(variables, known=types)
    values = {}
    for name, kind in types.items():
        if is_set(name, variables):
            values[name] = parse(name, read(name, variables), kind)
        else:
            values[name] = getattr(defaults, name)
    settings = Settings(**values)
    check_settings(settings, variables)
    return settings


def env_file_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `.env`, or of the file that MAILASYNC_ENV_FILE names.

    Raises:
      SettingsError: it sets HOME, which says where `.env` is.
    """
    in_home = str(home(environ.get(f"{PREFIX}HOME", "")) / ".env")
    env_file = environ.get(f"{PREFIX}ENV_FILE", in_home)
    if not env_file:
        return {}
    variables = {name: value or "" for name, value in dotenv_values(env_file).items()}
    if f"{PREFIX}HOME" in variables:
        raise SettingsError(
            f"{PREFIX}HOME in {env_file} is read too late to say where that file is; "
            "set it in the environment"
        )
    return variables


def origins(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Say in words where `load` takes the value of each setting from."""
    environ = os.environ if environ is None else environ
    env_file = env_file_variables(environ)
    return {name: origin(name, environ, env_file) for name in default_settings.__annotations__}


def origin(name: str, environ: Mapping[str, str], env_file: Mapping[str, str]) -> str:
    """Say in words where the value of one setting comes from."""
    variables = {**env_file, **environ}
    if not is_set(name, variables):
        return "default_settings.py"
    variable = file_variable(name) if file_variable(name) in variables else f"{PREFIX}{name}"
    # flask copies `.env` into the environment before it runs a command: a value found in both is from `.env`.
    if env_file.get(variable) == variables[variable]:
        return f"{variable} in {environ.get(f'{PREFIX}ENV_FILE', '.env')}"
    return f"{variable} in the environment" + (", before .env" if variable in env_file else "")


def is_set(name: str, variables: Mapping[str, str]) -> bool:
    """Tell whether a variable sets this setting, directly or by a file with the secret."""
    variable = f"{PREFIX}{name}"
    is_ours = variable in variables and not is_kubernetes(variable, variables)
    return is_ours or file_variable(name) in variables


def file_variable(name: str) -> str:
    """Return the variable that names the file with a secret; "" for other settings."""
    return f"{PREFIX}{name}_FILE" if name in SECRETS else ""


def read(name: str, variables: Mapping[str, str]) -> str:
    """Return the text that sets a setting."""
    variable, secret_file = f"{PREFIX}{name}", file_variable(name)
    if secret_file not in variables:
        return variables[variable]
    if variable in variables:
        raise SettingsError(f"{variable} and {secret_file} are both set; keep one of them")
    path = variables[secret_file]
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        message = f"{secret_file}: expected a readable file with the secret, got {path!r}: {e}"
        raise SettingsError(message) from e


def parse(name: str, value: str, kind: Any) -> Any:
    """Turn the text of a variable into `kind`: str, int, float or a Literal of texts."""
    printable = "***" if name in SECRETS else repr(value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise SettingsError(f"{PREFIX}{name}: expected one of {choices}, got {printable}")
        return value
    try:
        number = kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{PREFIX}{name}: expected {expected}, got {printable}") from None
    if kind is not str and not 0 <= number <= 10**12:
        raise SettingsError(f"{PREFIX}{name}: expected a number from 0 up, got {printable}")
    return number


def is_kubernetes(variable: str, variables: Mapping[str, str]) -> bool:
    """Tell whether Kubernetes made `variable`.

    Its MAILASYNC_PORT is "tcp://10.0.0.1:5000", ours is a number.
    """
    if _KUBERNETES.search(variable):
        return True
    return variable.endswith("_PORT") and "://" in variables.get(variable, "")


def kubernetes_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that are ignored because Kubernetes made them."""
    return sorted(
        name for name in environ if name.startswith(PREFIX) and is_kubernetes(name, environ)
    )


def refuse_unknown(variables: Mapping[str, str], *, known: Mapping[str, Any]) -> None:
    """Raise SettingsError for a variable with our prefix that is no setting, and suggest the nearest name."""
    names = {f"{PREFIX}{name}" for name in known} | {f"{PREFIX}ENV_FILE"}
    names |= {file_variable(name) for name in SECRETS}
    for variable in sorted(variables):
        if (
            not variable.startswith(PREFIX)
            or variable in names
            or is_kubernetes(variable, variables)
        ):
            continue
        nearest = difflib.get_close_matches(variable, names, n=1, cutoff=0.5)
        suggestion = f"; did you mean {nearest[0]}?" if nearest else ";"
        raise SettingsError(f"{variable} is no setting{suggestion} {DEFAULTS_FILE} lists them all")


def hint_unprefixed(environ: Mapping[str, str]) -> list[str]:
    """Return variables that lack our prefix, such as the tutorial's MAIL_PASSWORD, and so are not read."""
    names = ("MAIL_USERNAME", "MAIL_PASSWORD")
    return [name for name in names if name in environ and f"{PREFIX}{name}" not in environ]


def hint_guessable(settings: Settings) -> list[str]:
    """Warn of an API_KEY that can be guessed, as wrong attempts never lock out the right key."""
    length = len(settings.API_KEY)
    if not 0 < length < API_KEY_MIN_CHARACTERS:
        return []
    return [
        f"{PREFIX}API_KEY has {length} characters and can be guessed; take a random one of "
        f"{API_KEY_MIN_CHARACTERS} or more: openssl rand -hex 24"
    ]


def notices(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Collect what the start should say about the environment, each in one line."""
    lines = []
    if ignored := kubernetes_variables(environ):
        lines.append(f"passed over, as Kubernetes made them: {', '.join(ignored)}")
    for name in hint_unprefixed(environ):
        lines.append(f"{name} is set and not read; did you mean {PREFIX}{name}?")
    return [*lines, *hint_guessable(settings)]
