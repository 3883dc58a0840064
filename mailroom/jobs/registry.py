"""The job types, by name. A job is a plain function; it knows nothing of Celery or mail.

    @job("thumbnail", queue="images", timeout_seconds=60)
    def thumbnail(width: int, progress: Progress) -> str: ...
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mailroom.mail.errors import FieldError, InvalidMessage, MailroomError

DEFAULT_QUEUE = "jobs"
DEFAULT_TIMEOUT_SECONDS = 3600.0

F = TypeVar("F", bound=Callable[..., Any])


class UnknownJob(MailroomError):
    """No job type of that name is registered in this process; a module may be missing in JOBS."""


class Progress(Protocol):
    """What a job may ask for by an argument of this type."""

    def __call__(self, fraction: float, step: str = "") -> None:
        """Say how far it is, from 0 to 1, and what it does now."""

    def wait(self, seconds: float) -> None:
        """Sleep, but end with `Interrupted` as soon as the job is no longer wanted here."""


class Interrupted(Exception):
    """Raised inside a job whose worker stops, or which somebody canceled: let it pass."""


@dataclass(frozen=True, kw_only=True)
class JobType:
    """One registered function, and how it is to be run."""

    name: str
    function: Callable[..., Any]
    queue: str
    isolated: bool  #: in a child process; else in a thread, for jobs that only wait
    timeout_seconds: float
    max_attempts: int  #: more than 1 only where running it twice does no harm
    progress_argument: str | None
    arguments: type[BaseModel]

    def check(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the annotations want them.

        Raises:
          InvalidMessage: with every wrong argument.
        """
        try:
            return dict(self.arguments.model_validate(args))
        except ValidationError as e:
            raise InvalidMessage([FieldError("#/args/" + "/".join(map(str, error["loc"])), error["msg"]) for error in e.errors()]) from None

    def call(self, args: dict[str, Any], progress: Progress) -> Any:
        return self.function(**args, **({self.progress_argument: progress} if self.progress_argument else {}))


_types: dict[str, JobType] = {}


def job(name: str, *, queue: str = DEFAULT_QUEUE, isolated: bool = True, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_attempts: int = 1) -> Callable[[F], F]:
    """Register a function under `name`; its annotations say what arguments it takes."""

    def register(function: F) -> F:
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        asks = next((name for name in parameters if hints.get(name) is Progress), None)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters.values() if p.name != asks}
        _types[name] = JobType(
            name=name, function=function, queue=queue, isolated=isolated, timeout_seconds=timeout_seconds, max_attempts=max_attempts,
            progress_argument=asks, arguments=create_model(name, __config__=ConfigDict(extra="forbid"), **fields))
        return function

    return register


def job_type(name: str) -> JobType:
    """Raises UnknownJob."""
    try:
        return _types[name]
    except KeyError:
        raise UnknownJob(f"expected one of {', '.join(sorted(_types))}, got {name!r}") from None


def queues() -> list[str]:
    """The queues that job types ask for, the default one first."""
    return list(dict.fromkeys([DEFAULT_QUEUE, *(kind.queue for kind in _types.values())]))


def modules(listed: str) -> list[str]:
    """The modules of JOBS, ours first."""
    return ["mailroom.jobs.shipped", *(name.strip() for name in listed.split(",") if name.strip())]
