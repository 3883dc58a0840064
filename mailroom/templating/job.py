"""Fills in `{{ job.… }}` in the mail of a job, with the sandbox and filters of stored templates.

A template may only name `job` and its FIELDS, which is checked when the mail is accepted. Filling in never
fails, as the mail was promised: if it is not possible, the mail says so in a text of ours.
"""

import difflib
from dataclasses import replace
from itertools import chain
from typing import Any

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.message import Message
from mailroom.model.text import SUBJECT_MAX_CHARACTERS, short, unicode_text, without_control
from mailroom.templating.grammar import Path, Reference, Unfit
from mailroom.templating.sandbox import Program, Rules, Unknown, compact_json, program

#: Of text or HTML when filled in.
RENDERED_MAX_CHARACTERS = 2_000_000
#: Steps of the sandbox; one is about ten characters that are made on the way.
WORK_MAX = 1_000_000
#: Of a result or an error in a text of ours.
EXCERPT_MAX_CHARACTERS = 1000
#: A longer template is compiled each time, and not cached.
CACHED_MAX_CHARACTERS = 50_000

FIELDS = ("error", "file.name", "id", "name", "result", "seconds", "status")
_LISTED = ", ".join(f"job.{field}" for field in FIELDS)
_RULES = Rules(
    source_max_characters=RENDERED_MAX_CHARACTERS,
    rendered_max_characters=RENDERED_MAX_CHARACTERS,
    work_max=WORK_MAX,
    is_lenient=True,
)


def check(message: Message, *, at: str = "#") -> None:
    """Check subject and contents.

    Raises:
      InvalidMessage: one is not a template, or names something that a job does not have.
    """
    errors = []
    for field, source, is_html in _parts(message):
        try:
            _program(source, is_html=is_html)
        except Unfit as e:
            errors.append(FieldError(f"{at}/{field}", f"{e}{e.where}"))
    if errors:
        raise InvalidMessage(errors)


def filled_in(claim: Claim) -> Claim:
    """Return the claim with the result of the job filled in in its message."""
    if claim.job is None or not claim.message.template:
        return claim
    return replace(claim, message=fill(claim.message, claim.job))


def fill(message: Message, job: JobFacts) -> Message:
    """Return the message with the result of the job filled in, and template=False; never raises.

    The text is ours if that is not possible, or if the job failed and the template does not provide for that.
    """
    if not (message.subject or message.text or message.html):
        return _ours(message, f"Job {job.name} {_ended(job)}", _report(job))
    subject = _subject(message.subject, job)
    if job.status != "succeeded" and not _provides_for_failure(message):
        remark = "The mail you were to get was written for its success, so its text is left out."
        return _ours(message, f"Failed: {subject or job.name}", _report(job, remark))
    ours = _line(f"Job {job.name}: {_ended(job)}", SUBJECT_MAX_CHARACTERS)
    try:
        text = _body(message.text, job, is_html=False)
        html = _body(message.html, job, is_html=True)
    except Exception as e:  # A job's result may be anything, and the mail was promised.
        remark = f"The text of this mail could not be filled in: {_line(_reason(e), 300)}."
        return _ours(message, subject or ours, _report(job, remark))
    if subject is None:
        subject = ours
    return replace(message, subject=subject, text=text, html=html, template=False)


def _parts(message: Message) -> list[tuple[str, str, bool]]:
    """Return the request field of each text of a message, the text, and True if it is HTML."""
    parts = [("subject", message.subject, False)]
    if message.text is not None:
        parts.append(("contents", message.text, False))
    if message.html is not None:
        parts.append(("contents", message.html, True))
    return parts


def _program(source: str, *, is_html: bool) -> Program:
    """Compile a template that names nothing but its job.

    Raises:
      Unfit: it is not a template, or names something else.
    """
    if len(source) <= CACHED_MAX_CHARACTERS:
        compiled = program(source, is_html=is_html, rules=_RULES)
    else:
        compiled = Program(source, is_html=is_html, rules=_RULES)
    if "job" in compiled.own_names:  # Else nothing that it names could be checked.
        raise Unfit("expected another name than job for a variable that the template sets")
    for reference in compiled.references:
        _check_reference(reference)
    return compiled


def _check_reference(reference: Reference) -> None:
    """Raise Unfit if the reference is not to one of a job's FIELDS."""
    name, path, line = reference
    if name != "job":
        hint = _did_you_mean(f"job.{name}") if name in FIELDS else ""
        raise Unfit(f"expected job, got {short(repr(name))}{hint}", line)
    parts = path[:2] if path[:1] == ("file",) else path[:1]
    field = ".".join(str(part) for part in parts)
    if field not in FIELDS or (field == "file.name" and len(path) > 2):
        hint = _did_you_mean(f"job.{field}") if path else ""
        raise Unfit(f"expected one of {_LISTED}, got {short(_dotted(path))}{hint}", line)


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name[:80], _LISTED.split(", "), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _dotted(path: Path) -> str:
    dotted = "job"
    for part in path:
        dotted += ".[…]" if part is None else f".{part}"
    return dotted


def _provides_for_failure(message: Message) -> bool:
    """Tell whether the template names the status or the error, and so has a text for a failed job."""
    try:
        programs = [_program(source, is_html=is_html) for _, source, is_html in _parts(message)]
    except Unfit:
        return False
    references = chain.from_iterable(compiled.references for compiled in programs)
    return any(reference.path[0] in ("status", "error") for reference in references)


def _filled(source: str, job: JobFacts, *, is_html: bool) -> str:
    """Fill in a template. Raises Unfit, and other errors that depend on the result of the job."""
    compiled = _program(source, is_html=is_html)
    names_result = any(reference.path[0] == "result" for reference in compiled.references)
    # Values that are compared are never longer than the result as JSON; ten characters cost a step.
    size = len(compact_json(job.result)) // 10 if names_result else 0
    facts = _facts(job)
    try:
        return compiled.fill({"job": facts}, size=size)
    except Unknown as e:
        paths = [_missing_part(facts, reference.path) for reference in compiled.references]
        missing = [_dotted(path) for path in paths if path and path[-1] == e.name]
        raise Unfit(f"there is no {missing[0] if missing else e.name}") from None


def _missing_part(facts: dict[str, Any], path: Path) -> Path | None:
    """Return the path up to its first missing part; None if no part is missing, or one is computed."""
    value: Any = facts
    for length, part in enumerate(path, start=1):
        if part is None:
            return None
        if isinstance(value, dict) and str(part) in value:
            value = value[str(part)]
        elif (
            isinstance(value, list | str)
            and isinstance(part, int)
            and -len(value) <= part < len(value)
        ):
            value = value[part]
        else:
            return path[:length]
    return None


def _facts(job: JobFacts) -> dict[str, Any]:
    """Return the job as the variable `job`."""
    facts = {
        "id": job.id,
        "name": job.name,
        "status": job.status,
        "result": job.result,
        "error": job.error,
        "seconds": job.seconds,
    }
    if job.file:
        facts["file"] = {"name": job.file.name}
    return facts


def _subject(source: str, job: JobFacts) -> str | None:
    """Return the subject on one line; None if it cannot be filled in."""
    try:
        return _line(_filled(source, job, is_html=False), SUBJECT_MAX_CHARACTERS)
    except Exception:  # As in fill; the text then says why.
        return None


def _body(source: str | None, job: JobFacts, *, is_html: bool) -> str | None:
    if source is None:
        return None
    return unicode_text(_filled(source, job, is_html=is_html)).replace("\0", "\ufffd")


def _reason(error: Exception) -> str:
    """Say why a text could not be filled in."""
    return f"{error}{error.where}" if isinstance(error, Unfit) else type(error).__name__


def _ours(message: Message, subject: str, text: str) -> Message:
    """Return the message with a subject and a text of ours, and without its attachments."""
    line = _line(subject, SUBJECT_MAX_CHARACTERS)
    return replace(message, subject=line, text=text, html=None, template=False, attachments=())


def _report(job: JobFacts, *remarks: str) -> str:
    """Write how the job ended, for the reader of the mail."""
    if job.status != "succeeded":
        end = f"Error: {_line(job.error, EXCERPT_MAX_CHARACTERS) or 'none was told'}"
    else:
        end = "Its file is attached." if job.file else f"Result: {_excerpt(job.result)}"
    duration = f" after {job.seconds:.1f} seconds" if job.seconds else ""
    first = f"Job {_line(job.name, 200)} {_ended(job)}{duration}."
    return "\n\n".join([first, end, *remarks, f"Job id: {_line(job.id, 200)}"]) + "\n"


def _excerpt(result: object) -> str:
    try:
        text = compact_json(result)
    except (RecursionError, TypeError, ValueError):
        return "one that cannot be shown"
    if len(text) > EXCERPT_MAX_CHARACTERS:
        text = text[:EXCERPT_MAX_CHARACTERS] + "…"
    return _line(text, EXCERPT_MAX_CHARACTERS + 1)


def _ended(job: JobFacts) -> str:
    return _line(job.status, 80).replace("_", " ")


def _line(text: str, most: int) -> str:
    """Return the text on one line, without spaces at its ends; other spaces stay."""
    return unicode_text(without_control(text))[:most].strip()
