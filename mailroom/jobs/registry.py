"""Registers job types by name. A job is a plain function that knows nothing of Celery or mail.

@job("thumbnail", queue="images", timeout_seconds=60)
def thumbnail(image: bytes, width: int, progress: Progress) -> File: ...
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar, get_type_hints
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mailroom.model.errors import FieldError, InvalidMessage, MailroomError
from mailroom.model.text import unicode_text

DEFAULT_QUEUE = "jobs"
DEFAULT_TIMEOUT_SECONDS = 3600.0

F = TypeVar("F", bound=Callable[..., Any])

#: Limit for a job's result as JSON.
RESULT_MAX_BYTES = 1_000_000
#: A result goes through four JSON parsers, one of them for the mail, and each has a depth limit of its own.
RESULT_DEPTH_MAX = 100
#: Limit for the file that a job returns.
FILE_MAX_BYTES = 10_000_000
#: An error names at most so many wrong arguments, and of each name so many characters.
ERRORS_MAX = 20
NAME_MAX_CHARACTERS = 80
VALUE_MAX_CHARACTERS = 80
#: How pydantic's messages begin: "Input should be a valid number", "String should have at most 3 characters",
#: "Invalid JSON: lone surrogate".
_EXPECTED = re.compile(r"\A(?:\w+ should (?:be|have) |Invalid )")


class UnknownJob(MailroomError):
    """No job type of that name is registered in this process; a module may be missing in JOBS."""


class Progress(Protocol):
    """Reports the progress of a job; a job function gets it by an argument of this type."""

    def __call__(self, fraction: float, step: str = "") -> None:
        """Report how far the job is, from 0 to 1, and what it does now."""

    def wait(self, seconds: float) -> None:
        """Sleep; raises Interrupted as soon as the job is no longer wanted here."""


class Interrupted(Exception):
    """Raised inside a job whose worker stops, or which was canceled: do not catch it."""


@dataclass(frozen=True)
class File:
    """A file that a job returns: clients can download it, and the job's mail has it as an attachment."""

    name: str
    content: bytes
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a job, checked so that it can be stored."""

    value: Any  #: as JSON has it
    file: File | None = None


def result_of(returned: Any) -> Result:
    """Check what a job function returned, and return what is stored.

    Raises:
      ValueError, TypeError: it is no JSON, or too large.
    """
    if isinstance(returned, File):
        return _file_result(returned)
    size = len(json.dumps(returned, allow_nan=False))
    if size > RESULT_MAX_BYTES:
        raise ValueError(f"its result has {size} bytes as JSON; {RESULT_MAX_BYTES} are the most")
    if _is_too_deep(returned):
        raise ValueError(f"its result is nested too deeply; {RESULT_DEPTH_MAX} levels are the most")
    return Result(value=_unicode(returned))


def _file_result(file: File) -> Result:
    content = file.content
    if not isinstance(content, bytes):
        raise TypeError(f"a file's content is bytes, got {type(content).__name__}")
    size = len(content)
    if size > FILE_MAX_BYTES:
        raise ValueError(f"its file has {size} bytes; {FILE_MAX_BYTES} are the most")
    description = {
        "name": file.name,
        "content_type": file.content_type,
        "size": size,
    }
    return Result(value=_unicode(description), file=file)


def _unicode(value: Any) -> Any:
    """Return JSON without lone surrogates, which only some JSON parsers accept (RFC 8259, 8.2)."""
    text = json.dumps(value, ensure_ascii=False)
    clean = unicode_text(text)
    return json.loads(clean) if clean != text else value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(RESULT_DEPTH_MAX + 1):
        level = [inner for outer in level for inner in _items(outer)]
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


@dataclass(frozen=True, kw_only=True)
class JobType:
    """A registered function and how it is run."""

    name: str
    function: Callable[..., Any]
    queue: str
    isolated: bool  #: runs in a child process; else in a thread, for jobs that only wait
    app_context: bool  #: runs in the context of the Flask application of FLASK_APP, or of app.py
    timeout_seconds: float
    max_attempts: int  #: more than 1 only if running it twice does no harm
    progress_argument: str | None
    arguments: type[BaseModel]

    def check(self, args: dict[str, Any]) -> dict[str, Any]:
        """Convert the arguments to the annotated types; `bytes` come as base64 (RFC 4648).

        Raises:
          InvalidMessage: with every wrong argument.
        """
        try:
            return dict(self.arguments.model_validate_json(json.dumps(args, allow_nan=False)))
        except ValidationError as e:
            errors = e.errors(include_url=False)[:ERRORS_MAX]
            raise InvalidMessage([self._field_error(error) for error in errors]) from None
        except (TypeError, ValueError, RecursionError) as e:
            # The queue also carries what JSON does not have: NaN, and any depth.
            raise InvalidMessage(
                [FieldError("#/args", f"expected JSON, got what is none: {e}")]
            ) from None

    @property
    def description(self) -> str:
        return inspect.getdoc(self.function) or ""

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments."""
        schema = self.arguments.model_json_schema()
        for field in schema.get("properties", {}).values():
            if field.pop("format", "") == "binary":
                field["contentEncoding"] = "base64"
        return schema

    def call(self, args: dict[str, Any], progress: Progress) -> Any:
        if self.progress_argument:
            args = {**args, self.progress_argument: progress}
        return self.function(**args)

    def _field_error(self, error: Any) -> FieldError:
        """Translate an error of pydantic into the wording of a message's field errors."""
        path = "#/args"
        for part in error["loc"]:
            name = str(part)[:NAME_MAX_CHARACTERS]
            path += f"/{quote(name)}"
        return FieldError(path, self._detail(error))

    def _detail(self, error: Any) -> str:
        if error["type"] == "missing":
            return "expected this argument, got none"
        if error["type"] == "extra_forbidden":
            known = ", ".join(self.arguments.model_fields) or "no argument"
            return f"expected one of {known}, got an argument that is none of them"
        value = json.dumps(error["input"], default=repr)
        if len(value) > VALUE_MAX_CHARACTERS:
            value = value[: VALUE_MAX_CHARACTERS - 3] + "..."
        expected = _EXPECTED.sub("expected ", error["msg"])
        return f"{expected}, got {value}"


_types: dict[str, JobType] = {}
_NEEDS_PROCESS = "an application context is for jobs in a process of their own"


def job(
    name: str,
    *,
    queue: str = DEFAULT_QUEUE,
    isolated: bool = True,
    app_context: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    max_attempts: int = 1,
) -> Callable[[F], F]:
    """Register a function under `name`: its annotations are its arguments, its docstring describes it."""
    if app_context and not isolated:
        raise ValueError(f"job {name!r}: {_NEEDS_PROCESS}; leave isolated=False away")

    def register(function: F) -> F:
        _check_name(name, function)
        progress_argument, arguments = _arguments(name, function)
        _types[name] = JobType(
            name=name,
            function=function,
            queue=queue,
            isolated=isolated,
            app_context=app_context,
            timeout_seconds=timeout_seconds,
            max_attempts=max_attempts,
            progress_argument=progress_argument,
            arguments=arguments,
        )
        return function

    return register


def _check_name(name: str, function: Callable[..., Any]) -> None:
    if name in _types and _types[name].function.__module__ != function.__module__:
        both = f"{_types[name].function.__module__} and {function.__module__}"
        raise ValueError(f"two job types are named {name!r}, in {both}")


def _arguments(name: str, function: Callable[..., Any]) -> tuple[str | None, type[BaseModel]]:
    """Return the argument of a function that takes its progress, if any, and a model of the others."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    progress_argument = next((name for name in parameters if hints.get(name) is Progress), None)
    fields: dict[str, Any] = {}
    for parameter in parameters.values():
        if parameter.name != progress_argument:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra="forbid", val_json_bytes="base64")
    return progress_argument, create_model(name, __config__=config, **fields)


def job_type(name: str) -> JobType:
    """Return the type of this name.

    Raises:
      UnknownJob: there is none.
    """
    try:
        return _types[name]
    except KeyError:
        raise UnknownJob(f"expected one of {', '.join(sorted(_types))}, got {name!r}") from None


def is_known(name: str) -> bool:
    """Tell whether a type of this name is registered in this process."""
    return name in _types


def job_types() -> list[JobType]:
    """Return the types that are registered in this process, sorted by name."""
    return [_types[name] for name in sorted(_types)]


def queues() -> list[str]:
    """Return the queues of all job types, the default one first."""
    return list(dict.fromkeys([DEFAULT_QUEUE, *(kind.queue for kind in _types.values())]))


def modules(listed: str) -> list[str]:
    """Return the modules of JOBS, ours first; thumbnail only if Pillow is installed, an extra."""
    names = ["mailroom.jobs.builtin"]
    if find_spec("PIL"):
        names.append("mailroom.jobs.thumbnail")
    stripped = (name.strip() for name in listed.split(","))
    names += [name for name in stripped if name]
    return names
