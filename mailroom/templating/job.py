"""Fills in what a mail says of its job, `{{ job.… }}`, by the sandbox and filters of the stored templates.

A template names nothing but `job`, and of that only what there is. A mail was promised, so filling in never
fails: what cannot be filled in becomes a mail in our words.
"""

import difflib
from dataclasses import replace
from typing import Any

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.message import Message
from mailroom.model.text import SUBJECT_MAX_CHARACTERS, short, unicode_text, without_control
from mailroom.templating.grammar import Path, Reference, Unfit
from mailroom.templating.sandbox import Program, Rules, Unknown, compact_json, program

#: Text or HTML when filled in; a result may be named often.
RENDERED_MAX_CHARACTERS = 2_000_000
#: Steps of the sandbox, each about ten characters that are made on the way there.
WORK_MAX = 1_000_000
#: What our own texts show of a result or an error.
EXCERPT_MAX_CHARACTERS = 1000
#: A longer template is compiled each time, and not kept.
KEPT_MAX_CHARACTERS = 50_000

FIELDS = ("error", "file.name", "id", "name", "result", "seconds", "status")
_LISTED = ", ".join(f"job.{field}" for field in FIELDS)
_RULES = Rules(
    source_max_characters=RENDERED_MAX_CHARACTERS,
    rendered_max_characters=RENDERED_MAX_CHARACTERS,
    work_max=WORK_MAX,
    is_lenient=True,
)


def check(message: Message, *, at: str = "#") -> None:
    """Raises InvalidMessage: subject or contents cannot be read, or name what is not there."""
    wrong = []
    for field, source, is_html in _parts(message):
        try:
            _program(source, is_html=is_html)
        except Unfit as e:
            wrong.append(FieldError(f"{at}/{field}", f"{e}{e.where}"))
    if wrong:
        raise InvalidMessage(wrong)


def filled_in(claim: Claim) -> Claim:
    """Return the claim with everything filled in that its mail says of its job."""
    if claim.job is None or not claim.message.template:
        return claim
    return replace(claim, message=fill(claim.message, claim.job))


def fill(message: Message, job: JobFacts) -> Message:
    """Return the message with everything filled in, template=False; never raises.

    Where that cannot be, or the job did not succeed and the message says nothing about that, it is a message
    in our words.
    """
    if not (message.subject or message.text or message.html):
        return _ours(message, f"Job {job.name} {_ended(job)}", _report(job))
    subject = _subject(message.subject, job)
    if job.status != "succeeded" and not _minds_failure(message):
        remark = "The mail you were to get was written for its success, so its text is left out."
        return _ours(message, f"Failed: {subject or job.name}", _report(job, remark))
    ours = _line(f"Job {job.name}: {_ended(job)}", SUBJECT_MAX_CHARACTERS)
    try:
        text = _body(message.text, job, is_html=False)
        html = _body(message.html, job, is_html=True)
    except Exception as e:  # What a job returned may hold anything; the mail was promised.
        remark = f"The text of this mail could not be filled in: {_line(_reason(e), 300)}."
        return _ours(message, subject or ours, _report(job, remark))
    if subject is None:
        subject = ours
    return replace(message, subject=subject, text=text, html=html, template=False)


def _parts(message: Message) -> list[tuple[str, str, bool]]:
    """Return each text of a message with the field that it came in, and whether it is HTML."""
    parts = [("subject", message.subject, False)]
    if message.text is not None:
        parts.append(("contents", message.text, False))
    if message.html is not None:
        parts.append(("contents", message.html, True))
    return parts


def _program(source: str, *, is_html: bool) -> Program:
    """Return the program of a template that names nothing but its job.

    Raises:
      Unfit: it is none.
    """
    if len(source) <= KEPT_MAX_CHARACTERS:
        made = program(source, is_html=is_html, rules=_RULES)
    else:
        made = Program(source, is_html=is_html, rules=_RULES)
    for reference in made.references:
        _refuse_others(reference)
    return made


def _refuse_others(reference: Reference) -> None:
    """Raises Unfit: the template names what is not of a job."""
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
    return ".".join(["job", *("[…]" if part is None else str(part) for part in path)])


def _minds_failure(message: Message) -> bool:
    """Tell whether the writer of the message thought of both ends."""
    try:
        programs = [_program(source, is_html=is_html) for _, source, is_html in _parts(message)]
    except Unfit:
        return False
    named = {reference.path[0] for made in programs for reference in made.references}
    return not named.isdisjoint({"status", "error"})


def _filled(source: str, job: JobFacts, *, is_html: bool) -> str:
    """Raises Unfit, and whatever else the result of a job may lead to."""
    made = _program(source, is_html=is_html)
    names_result = any(reference.path[0] == "result" for reference in made.references)
    # What is compared is never longer than the result as JSON; a step is ten of its characters.
    size = len(compact_json(job.result)) // 10 if names_result else 0
    facts = _facts(job)
    try:
        return made.fill({"job": facts}, size=size)
    except Unknown as e:
        paths = [_missing_part(facts, reference.path) for reference in made.references]
        path = next((path for path in paths if path and path[-1] == e.name), None)
        raise Unfit(f"there is no {_dotted(path) if path else e.name}") from None


def _missing_part(facts: dict[str, Any], path: Path) -> Path | None:
    """Return the beginning of the path that leads to nothing; None where all of it is there, or not known."""
    value: Any = facts
    for number, part in enumerate(path, start=1):
        if part is None:
            return None
        if isinstance(value, dict) and str(part) in value:
            value = value[str(part)]
        elif isinstance(value, list | str) and isinstance(part, int) and -len(value) <= part < len(value):
            value = value[part]
        else:
            return path[:number]
    return None


def _facts(job: JobFacts) -> dict[str, Any]:
    facts = {
        "id": job.id,
        "name": job.name,
        "status": job.status,
        "result": job.result,
        "error": job.error,
        "seconds": job.seconds,
    }
    return facts | ({"file": {"name": job.file.name}} if job.file else {})


def _subject(source: str, job: JobFacts) -> str | None:
    """Return the subject in one line; None: it cannot be filled in."""
    try:
        return _line(_filled(source, job, is_html=False), SUBJECT_MAX_CHARACTERS)
    except Exception:  # As in fill; the text is what says why.
        return None


def _body(source: str | None, job: JobFacts, *, is_html: bool) -> str | None:
    if source is None:
        return None
    return unicode_text(_filled(source, job, is_html=is_html)).replace("\0", "\ufffd")


def _reason(error: Exception) -> str:
    """Say why a text could not be filled in."""
    return f"{error}{error.where}" if isinstance(error, Unfit) else type(error).__name__


def _ours(message: Message, subject: str, text: str) -> Message:
    line = _line(subject, SUBJECT_MAX_CHARACTERS)
    return replace(message, subject=line, text=text, html=None, template=False, attachments=())


def _report(job: JobFacts, *remarks: str) -> str:
    """Say how the job ended, for the person who gets the mail."""
    if job.status != "succeeded":
        end = f"Error: {_line(job.error, EXCERPT_MAX_CHARACTERS) or 'none was told'}"
    else:
        end = "Its file is attached." if job.file else f"Result: {_excerpt(job.result)}"
    took = f" after {job.seconds:.1f} seconds" if job.seconds else ""
    first = f"Job {_line(job.name, 200)} {_ended(job)}{took}."
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
    """Return the text in one line; its spaces stay, but at its ends."""
    return unicode_text(without_control(text))[:most].strip()
