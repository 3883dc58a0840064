"""The job types, by name. A job is a plain function; it knows nothing of Celery or mail.

@job("thumbnail", queue="images", timeout_seconds=60)
def thumbnail(image: bytes, width: int, progress: Progress) -> File: ...
"""

import inspect
import json
import re
from collections.abc import Callable
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


#: What a job may return: as JSON, and the file of it.
RESULT_MAX_BYTES = 1_000_000
#: A result goes through four readers of JSON; each gives up at a depth of its own, and one of them reads it for the mail.
RESULT_DEPTH_MAX = 100
FILE_MAX_BYTES = 10_000_000
#: Wrong arguments that are told, and how much of each one's name.
ERRORS_MAX = 20
NAME_MAX_CHARACTERS = 80
#: How pydantic begins: "Input should be a valid number", "String should have at most 3 characters", "Invalid JSON: lone surrogate".
_EXPECTED = re.compile(r"\A(?:\w+ should (?:be|have) |Invalid )")


class UnknownJob(MailroomError):
    """No job type of that name is registered in this process; a module may be missing in JOBS."""


class Progress(Protocol):
    """The progress of a job, which may ask for it by an argument of this type."""

    def __call__(self, fraction: float, step: str = "") -> None:
        """Say how far it is, from 0 to 1, and what it does now."""

    def wait(self, seconds: float) -> None:
        """Sleep, but end with `Interrupted` as soon as the job is no longer wanted here."""


class Interrupted(Exception):
    """Raised inside a job whose worker stops, or which somebody canceled: let it pass."""


@dataclass(frozen=True)
class File:
    """A file that a job made, and returns: clients can fetch it, and its mail carries it."""

    name: str
    content: bytes
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result that a job returned, fit to be kept."""

    value: Any  #: as JSON has it
    file: File | None = None


def result_of(returned: Any) -> Result:
    """Return what is kept of it. Raises ValueError or TypeError: it is no JSON, or too much."""
    if isinstance(returned, File):
        if not isinstance(returned.content, bytes):
            raise TypeError(f"a file's content is bytes, got {type(returned.content).__name__}")
        if len(returned.content) > FILE_MAX_BYTES:
            raise ValueError(f"its file has {len(returned.content)} bytes; {FILE_MAX_BYTES} are the most")
        about = {"name": returned.name, "content_type": returned.content_type, "size": len(returned.content)}
        return Result(value=_unicode(about), file=returned)
    if (size := len(json.dumps(returned, allow_nan=False))) > RESULT_MAX_BYTES:
        raise ValueError(f"its result has {size} bytes as JSON; {RESULT_MAX_BYTES} are the most")
    if _is_too_deep(returned):
        raise ValueError(f"its result is nested too deeply; {RESULT_DEPTH_MAX} levels are the most")
    return Result(value=_unicode(returned))


def _unicode(value: Any) -> Any:
    """Return the JSON without lone surrogates, which only some readers of JSON take (RFC 8259, 8.2)."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(clean) if (clean := unicode_text(text)) != text else value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(RESULT_DEPTH_MAX + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


@dataclass(frozen=True, kw_only=True)
class JobType:
    """A registered function, and how it is to be run."""

    name: str
    function: Callable[..., Any]
    queue: str
    isolated: bool  #: in a child process; else in a thread, for jobs that only wait
    app_context: bool  #: inside the context of the Flask application that FLASK_APP, or app.py, has
    timeout_seconds: float
    max_attempts: int  #: more than 1 only where running it twice does no harm
    progress_argument: str | None
    arguments: type[BaseModel]

    def check(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the annotations want them; for `bytes` they are base64 (RFC 4648).

        Raises:
          InvalidMessage: with every wrong argument.
        """
        try:
            return dict(self.arguments.model_validate_json(json.dumps(args, allow_nan=False)))
        except ValidationError as e:
            raise InvalidMessage(
                [self._wrong(error) for error in e.errors(include_url=False)[:ERRORS_MAX]]
            ) from None
        except (
            TypeError,
            ValueError,
            RecursionError,
        ) as e:  # Over the queue comes what JSON does not have: NaN, and any depth.
            raise InvalidMessage([FieldError("#/args", f"expected JSON, got what is none: {e}")]) from None

    @property
    def description(self) -> str:
        return inspect.getdoc(self.function) or ""

    def schema(self) -> dict[str, Any]:
        """The arguments as JSON Schema."""
        schema = self.arguments.model_json_schema()
        for field in schema.get("properties", {}).values():
            if field.pop("format", "") == "binary":
                field["contentEncoding"] = "base64"
        return schema

    def call(self, args: dict[str, Any], progress: Progress) -> Any:
        return self.function(**args, **({self.progress_argument: progress} if self.progress_argument else {}))

    def _wrong(self, error: Any) -> FieldError:
        """In the words that the fields of a message get."""
        known = ", ".join(self.arguments.model_fields) or "no argument"
        detail = {
            "missing": "expected this argument, got none",
            "extra_forbidden": f"expected one of {known}, got an argument that is none of them",
        }.get(error["type"])
        came = json.dumps(error["input"], default=repr)
        told = f"{_EXPECTED.sub('expected ', error['msg'])}, got {came if len(came) <= 80 else came[:77] + '...'}"
        return FieldError(
            "#/args" + "".join(f"/{quote(str(part)[:NAME_MAX_CHARACTERS])}" for part in error["loc"]),
            detail or told,
        )


_types: dict[str, JobType] = {}


def job(
    name: str,
    *,
    queue: str = DEFAULT_QUEUE,
    isolated: bool = True,
    app_context: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    max_attempts: int = 1,
) -> Callable[[F], F]:
    """Register a function under `name`; its annotations say what arguments it takes, its docstring what it does."""
    if app_context and not isolated:
        raise ValueError(
            f"job {name!r}: an application context is for jobs in a process of their own; leave isolated=False away"
        )

    def register(function: F) -> F:
        if name in _types and _types[name].function.__module__ != function.__module__:
            raise ValueError(
                f"two job types are named {name!r}, in {_types[name].function.__module__} and {function.__module__}"
            )
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        asks = next((name for name in parameters if hints.get(name) is Progress), None)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
            for p in parameters.values()
            if p.name != asks
        }
        _types[name] = JobType(
            name=name,
            function=function,
            queue=queue,
            isolated=isolated,
            app_context=app_context,
            timeout_seconds=timeout_seconds,
            max_attempts=max_attempts,
            progress_argument=asks,
            arguments=create_model(
                name, __config__=ConfigDict(extra="forbid", val_json_bytes="base64"), **fields
            ),
        )
        return function

    return register


def job_type(name: str) -> JobType:
    """Raises UnknownJob."""
    try:
        return _types[name]
    except KeyError:
        raise UnknownJob(f"expected one of {', '.join(sorted(_types))}, got {name!r}") from None


def is_known(name: str) -> bool:
    """Tell whether a type of this name is registered in this process."""
    return name in _types


def job_types() -> list[JobType]:
    """All that are registered in this process, by name."""
    return [_types[name] for name in sorted(_types)]


def queues() -> list[str]:
    """The queues that job types ask for, the default one first."""
    return list(dict.fromkeys([DEFAULT_QUEUE, *(kind.queue for kind in _types.values())]))


def modules(listed: str) -> list[str]:
    """The modules of JOBS, ours first; thumbnail needs Pillow, which is not installed by default."""
    ours = ["mailroom.jobs.builtin", *(["mailroom.jobs.thumbnail"] if find_spec("PIL") else [])]
    return [*ours, *(name.strip() for name in listed.split(",") if name.strip())]
