"""A mail tells how its job ended, whatever the job returned and whoever wrote the template."""

import random
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.message import Address, Attachment, Message
from mailroom.model.text import SUBJECT_MAX_CHARACTERS
from mailroom.smtp.mime import compose
from mailroom.templating import job as template
from mailroom.templating.job import RENDERED_MAX_CHARACTERS, check, fill, filled_in
from mailroom.templating.sandbox import program
from tests.measure import hold_to
from tests.unit.smtp.test_mime import body, lines, read

BOB = (Address("bob@example.org"),)
ALICE = Address("alice@example.org")
DONE = JobFacts(
    id="0198f6a0",
    name="thumbnail",
    status="succeeded",
    result={"width": 640, "sizes": [1, 2]},
    seconds=3.25,
)
FAILED = JobFacts(
    id="0198f6a0",
    name="thumbnail",
    status="failed",
    error="ValueError: no such image",
    seconds=3.25,
)
LATE = replace(FAILED, status="timed_out", error="it took more than 60 seconds")


def message(text: str | None = None, *, subject: str = "", html: str | None = None) -> Message:
    return Message(to=BOB, subject=subject, text=text, html=html, template=True)


def text_of(template: str, result: Any = None, **facts: Any) -> str:
    filled = fill(message(template), replace(DONE, result=result, **facts))
    assert filled.text is not None and not filled.template
    return filled.text


def html_of(template: str, result: Any) -> str:
    return str(fill(message(html=template), replace(DONE, result=result)).html)


def mail(asked: Message, job: JobFacts) -> Any:
    claim = Claim(
        id="1",
        attempt=1,
        message_id="1@example.org",
        created_at_ms=0,
        message=asked,
        pending=(0,),
        job=job,
    )
    return read(compose(filled_in(claim), sender=ALICE))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no facts", "no facts"),
        ("{{ job.id }}", "0198f6a0"),
        ("{{job.name}} {{ job.status }}", "thumbnail succeeded"),
        ("{{ job.seconds }} s", "3.25 s"),
        ("[{{ job.error }}]", "[]"),
        ("{{ job.result.width }}", "640"),
        ("{{ job['result']['width'] }}", "640"),
        ("{{ job.result.sizes[1] }}{{ job.result.sizes.0 }}{{ job.result.sizes[-1] }}", "212"),
        ("{{ job.result }}", '{"width":640,"sizes":[1,2]}'),
        ("a{# a remark, {{ job.nothing }} #}b", "ab"),
        ("{{ '{{' }} and {{ '{%' }} and {{ \"}}\" }}", "{{ and {% and }}"),
        ("{% raw %}{{ job.id }}{% endraw %}", "{{ job.id }}"),
        ("a  {{- ' b ' -}}  c", "a b c"),
        ("}} %} #} { }", "}} %} #} { }"),
        ("two\nlines\n\n", "two\nlines\n\n"),
        ("{{ none }}{{ true }}{{ 1 }}{{ 2.5 }}", "true12.5"),
        ("{{ 'a' 'b' }}", "ab"),
        ("{% if job.status == 'succeeded' %}ready{% else %}{{ job.error }}{% endif %}", "ready"),
        (
            "{% for size in job.result.sizes %}{{ loop.index }}: {{ size }} px\n{% endfor %}",
            "1: 1 px\n2: 2 px\n",
        ),
        (
            "{% set width = job.result.width %}{{ width // 2 }}{{ ' px' if width else '' }}",
            "320 px",
        ),
        (
            "{{ job.seconds * 1000 }}{{ ' ' ~ job.name }}{{ job.result.sizes[:1] }}",
            "3250.0 thumbnail[1]",
        ),
        ("{{ job.result.height is defined }}", "false"),
    ],
)
def test_a_template_is_filled_in(template: str, text: str) -> None:
    check(message(template))
    assert fill(message(template), DONE).text == text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is\n  it is", "as it is\n  it is"),
        (None, ""),
        (7, "7"),
        (0.1, "0.1"),
        (True, "true"),
        ([], "[]"),
        (["ü", None], '["ü",null]'),
        ({"a": {"b": False}}, '{"a":{"b":false}}'),
        ("a\0b\ud800c", "a\ufffdb\ufffdc"),
        (["\ud800"], '["\ufffd"]'),
        ("{{ job.id }}", "{{ job.id }}"),
        ("{% raw %}", "{% raw %}"),
        ("日本語 👩‍👩‍👧", "日本語 👩‍👩‍👧"),
    ],
)
def test_a_result_is_shown_as_a_person_reads_it(result: Any, text: str) -> None:
    assert text_of("{{ job.result }}", result) == text


@pytest.mark.parametrize(
    ("expression", "result", "text"),
    [
        ("job.result|upper", "grüße", "GRÜSSE"),
        ("job.result|lower", "A", "a"),
        ("job.result|trim", " a\n", "a"),
        ("job.result|length", [1, 2], "2"),
        ("job.result|length", "abc", "3"),
        ("job.result|join(', ')", ["a", 1, None, True], "a, 1, , true"),
        ("job.result|join", ["a", "b"], "ab"),
        ("job.result|round", 2.6, "3"),
        ("job.result|round(1)", 2.66, "2.7"),
        ("job.result|round(-2)", 1234, "1200"),
        ("job.result|round(2)", 5, "5"),
        ("job.result|round(-999999999999)", 1234, "0"),
        ("job.result|tojson", 'a"<b>', '"a\\"<b>"'),
        ("job.result|tojson", None, "null"),
        ("job.result.x|default('none')", {}, "none"),
        ("job.result.x.y[3]|default('none')|upper", 7, "NONE"),
        ("job.result.x|default", {}, ""),
        ("job.result|default('none')", None, ""),
        ("job.result|default('none', true)", "", "none"),
        ("job.result['a b'].items", {"a b": {"items": 1}}, "1"),
        ("job.result.0", {"0": "zero"}, "zero"),
        ("job.result|default(-1)", 1, "1"),
        ("job.result|round", True, "1"),
        ("job.result.a|default(job.id)", {}, "0198f6a0"),
        ("'%.1f'|format(job.result)", 2.25, "2.2"),
        ("job.result|tojson", [1, {"a": "ü"}], '[1, {"a": "ü"}]'),
    ],
)
def test_a_filter_does_what_its_name_says(expression: str, result: Any, text: str) -> None:
    check(message(f"{{{{ {expression} }}}}"))
    assert text_of(f"{{{{ {expression} }}}}", result) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 10**10**10 }}", "got the operator ** at line 1"),
        ("{{ job.id, job.name }}", "expected a list of constants, got another"),
        ("{{ job.result() }}", "got a call"),
        ("{{ job.result.items() }}", "got a call"),
        ("{{ range(9) }}", "got a call"),
        ("{{ cycler }}", "expected job, got 'cycler'"),
        ("{{ self }}", "got self, which has a meaning of its own"),
        ("{{ lipsum.x }}", "expected job, got 'lipsum'"),
        ("{{ job.id if other else 'b' }}", "expected job, got 'other'"),
        (
            "{% for size in job.result %}{{ size }}{{ sizes }}{% endfor %}",
            "expected job, got 'sizes'",
        ),
        ("{{ job.result[other] }}", "expected job, got 'other'"),
        ("{{ 'a'|default(other) }}", "expected job, got 'other'"),
        ("{{ result }}", "did you mean job.result?"),
        ("{{ job }}", "expected one of job.error, job.file.name, job.id"),
        ("{% for fact in job %}{{ fact }}{% endfor %}", "got job at line 1"),
        ("one\ntwo\n{{ job.reslt }}", "got job.reslt; did you mean job.result? at line 3"),
        ("{{ job['staus'] }}", "did you mean job.status?"),
        ("{{ job['sta' ~ 'tus'] }}", "got job.[…]"),
        ("{{ job.file }}", "did you mean job.file.name?"),
        ("{{ job.file.content }}", "got job.file.content"),
        ("{{ job.file.name.suffix }}", "got job.file.name.suffix"),
        ("{{ job.0 }}", "got job.0"),
        ("{{ job.__class__ }}", "got job.__class__"),
        ("{{ job._x }}", "got job._x"),
        ("{{ job.result|attr('x') }}", "expected one of the filters abs, capitalize,"),
        ("{{ job.result|lowr }}", "did you mean lower?"),
        ("{{ job.result|join(',', 1) }}", "expected arguments that join takes"),
        ("{{ job.result|trim(*job.result) }}", "expected arguments of trim without stars"),
        ("{{ " + "9" * 5000 + " }}", "expected numbers of a few digits"),
        ("{{ " + "(" * 5000, "expected at most 15 brackets in brackets"),
        ("{{ " + "- " * 1500 + "1 }}", "expected a template, got one that is nested too deep"),
        ("{{ job.id", "unexpected end of template"),
        ("\n{{ job.id }", "got one that cannot be read: unexpected '}' at line 2"),
        ("{{ }}", "Expected an expression"),
        (
            "x" * (RENDERED_MAX_CHARACTERS + 1),
            "expected at most 2,000,000 characters, got 2,000,001",
        ),
        ("{{ 'a }}", "unexpected char"),
        ("{# a", "Missing end of comment tag"),
        ("a{#", "a comment without an end"),
        (
            "{{ job.id }} " * 2000,
            "expected at most 5000 names, signs and texts, got more at line 1",
        ),
        ("a\n{% macro x() %}{% endmacro %}", "got a macro at line 2"),
        ("a\n{% include 'x' %}", "got an include at line 2"),
        ("a\n{% import 'x' as y %}", "got an import at line 2"),
        ("a\n{% extends 'x' %}", "got an extends at line 2"),
        ("a\n{%- block x %}{% endblock %}", "got a block at line 2"),
        ("a\n{% call x() %}{% endcall %}", "got a call at line 2"),
        ("a\n{% filter upper %}x{% endfilter %}", "got a filter block at line 2"),
        ("a\n{% do x %}", "unknown tag 'do'"),
        ("a\n{% nothing", "unknown tag 'nothing'"),
        ("a\n100 {% off", "unknown tag 'off'"),
    ],
)
def test_what_no_template_may_say_is_refused_with_words(source: str, words: str) -> None:
    for asked, field in (
        (message(source), "contents"),
        (message(html=source), "contents"),
        (message(subject=source), "subject"),
    ):
        with pytest.raises(InvalidMessage) as e:
            check(asked, at="#/notify")
        (wrong,) = e.value.errors
        assert wrong.pointer == f"#/notify/{field}"
        assert words in wrong.detail and len(wrong.detail) < 450 and "\n" not in wrong.detail
        assert fill(asked, DONE).subject == "Job thumbnail: succeeded", (
            "stored all the same, it is a mail in our words"
        )


def test_subject_and_contents_are_both_told_to_be_wrong() -> None:
    with pytest.raises(InvalidMessage) as e:
        check(message("{{ x }}", subject="{{ y }}"))
    assert [wrong.pointer for wrong in e.value.errors] == ["#/subject", "#/contents"]


@pytest.mark.parametrize(
    "piece",
    [
        "{{",
        "{{ ",
        "{%",
        "{#",
        "{",
        "}",
        "{{ '",
        "{{ job.id }}",
        "{{ job.result|trim",
        "{% raw %}",
        "{{-",
        "\n{{",
        "{{ 1",
        "1_",
    ],
)
def test_no_template_takes_long_to_read(piece: str) -> None:
    for source in (
        piece * (1_000_000 // len(piece)),
        piece + " " * 1_000_000,
        piece + "9" * 1_000_000,
        "x" * 1_000_000 + piece,
    ):
        hold_to(400, partial(_wrong, message(source)))


@pytest.mark.parametrize(
    "source",
    ["{% set job = job %}{{ job.nothing }}", "{% for job in job.result %}{{ job.x }}{% endfor %}"],
)
def test_a_template_may_not_set_job_itself(source: str) -> None:
    with pytest.raises(InvalidMessage, match="expected another name than job"):
        check(message(source))


def test_a_result_is_text_in_html() -> None:
    hostile = '<script>alert("x")</script>&\'"'
    html = html_of('<p title="{{ job.result }}">{{ job.result|tojson }}</p>', hostile)
    escaped = '<p title="&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;&#39;&#34;">'
    assert html.startswith(escaped + "&#34;&lt;script&gt;")
    assert html.count("<") == 2
    assert html_of("<p>{{ job.result|tojson }}</p>", "é") == "<p>&#34;é&#34;</p>"
    assert (
        html_of("<p>{{ job.result }}</p>", {"a": "<b>"})
        == "<p>{&#34;a&#34;:&#34;&lt;b&gt;&#34;}</p>"
    )
    assert html_of("<p>{{ job.result ~ '<i>' }}</p>", "<b>") == "<p>&lt;b&gt;&lt;i&gt;</p>"
    assert html_of("<p>{{ '<b>' }}</p>", None) == "<p>&lt;b&gt;</p>"
    assert text_of("{{ job.result }}", hostile) == hostile


@pytest.mark.parametrize(
    ("result", "subject"),
    [
        ("x\r\nBcc: eve@example.org", "It is x Bcc: eve@example.org"),
        ("a\n\n\n\tb\0", "It is a b"),
        ("\u2028\x85\x1b[0m", "It is  [0m"),
        ("\ud800", "It is \ufffd"),
        ("ü" * 2000, "It is " + "ü" * (SUBJECT_MAX_CHARACTERS - 6)),
        (["a\nb"], 'It is ["a\\nb"]'),
        ("<&>", "It is <&>"),
        ("\n" * 1000, "It is"),
        ("=?utf-8?q?x?=", "It is =?utf-8?q?x?="),
    ],
)
def test_a_result_is_one_line_in_a_subject(result: Any, subject: str) -> None:
    got = mail(message("x", subject="It is {{ job.result }}"), replace(DONE, result=result))
    assert got["Subject"] == subject
    assert "Bcc" not in got


def test_a_file_is_known_by_its_name() -> None:
    photo = Attachment("ü.png", "image/png", b"\x89PNG")
    assert text_of("{{ job.file.name }}", file=photo) == "ü.png"
    assert text_of("{{ job.file.name|default('no file') }}") == "no file"
    assert "could not be filled in: there is no job.file." in text_of("{{ job.file.name }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ job.status }}",
        "{{ job.error }}",
        "{{ job['error']|default('none') }}",
        "{% if job.status == 'failed' %}failed{% endif %}",
        "{{ 'failed' if job.error else '' }}",
    ],
)
def test_a_message_that_provides_for_failure_goes_out_as_it_was_written(template: str) -> None:
    for asked in (
        message(f"a {template}", subject="b"),
        message(html=f"<p>{template}</p>"),
        message("a", subject=template),
    ):
        check(asked)
        filled = fill(asked, FAILED)
        assert "failed" in str(filled) or "no such image" in str(filled)
        assert (filled.text is None, filled.html is None) == (
            asked.text is None,
            asked.html is None,
        )
        assert not filled.subject.startswith("Failed:")


@pytest.mark.parametrize(("job", "words"), [(FAILED, "failed"), (LATE, "timed out")])
def test_a_message_for_success_does_not_go_out_after_failure(job: JobFacts, words: str) -> None:
    for asked in (message("It is ready."), message(html="<p>Ready {# job.error #}</p>")):
        filled = fill(replace(asked, subject="Your photo {{ job.id }}"), job)
        assert filled == Message(
            to=BOB,
            subject="Failed: Your photo 0198f6a0",
            text=(
                f"Job thumbnail {words} after 3.2 seconds.\n\nError: {job.error}\n\n"
                "The mail you were to get was written for its success, so its text is left out.\n\nJob id: 0198f6a0\n"
            ),
        )


@pytest.mark.parametrize(
    "subject", ["", "{{ job.result.width }} pixels", "{{ job.result|length }}"]
)
def test_a_failure_whose_subject_cannot_be_told_has_the_name_of_the_job(subject: str) -> None:
    assert fill(message("It is ready.", subject=subject), FAILED).subject == "Failed: thumbnail"


@pytest.mark.parametrize(
    ("job", "subject", "text"),
    [
        (
            DONE,
            "Job thumbnail succeeded",
            'Job thumbnail succeeded after 3.2 seconds.\n\nResult: {"width":640,"sizes":[1,2]}\n\nJob id: 0198f6a0\n',
        ),
        (
            FAILED,
            "Job thumbnail failed",
            "Job thumbnail failed after 3.2 seconds.\n\nError: ValueError: no such image\n\nJob id: 0198f6a0\n",
        ),
        (
            replace(LATE, error="", seconds=0),
            "Job thumbnail timed out",
            "Job thumbnail timed out.\n\nError: none was told\n\nJob id: 0198f6a0\n",
        ),
        (
            replace(DONE, file=Attachment("a.png", "image/png", b"x")),
            "Job thumbnail succeeded",
            "Job thumbnail succeeded after 3.2 seconds.\n\nIts file is attached.\n\nJob id: 0198f6a0\n",
        ),
    ],
)
def test_a_message_without_words_gets_ours(job: JobFacts, subject: str, text: str) -> None:
    for asked in (message(), message("")):
        assert fill(asked, job) == Message(to=BOB, subject=subject, text=text)


@pytest.mark.parametrize(
    ("source", "result", "why"),
    [
        ("{{ job.result.width }}", {"height": 1}, "there is no job.result.width"),
        ("{{ job.result.a.b.c }}", {"a": 1}, "there is no job.result.a.b"),
        ("{{ job.result.width }}", None, "there is no job.result.width"),
        ("{{ job.result[2] }}", [1, 2], "there is no job.result.2"),
        ("{{ job.result.items }}", {}, "there is no job.result.items"),
        ("{{ job.result.upper }}", "a", "there is no job.result.upper"),
        ("{{ job.result.a.x }}", {"b": None, "a": None}, "there is no job.result.a.x"),
        ("{{ job.result.__class__.__mro__ }}", "a", "there is no job.result.__class__"),
        ("{{ job.result.a|upper|default }}", {}, "there is no job.result.a"),
        ("{% for size in job.result %}{{ size.px }}{% endfor %}", [{}], "there is no px"),
        (
            "{{ job.result[none] }}",
            7,
            "expected a name or a whole number in the brackets, got another at line 1",
        ),
        ("{{ 'a' * 1000000000 }}", 7, "expected a number beside *, got a text at line 1"),
        (
            "{{ job.result|length }}",
            7,
            "expected a text, a list or an object, got a number at line 1",
        ),
        ("{{ job.result|join }}", "a", "expected a list, got a text at line 1"),
        ("{{ job.result|join }}", [[]], "expected a text or a number, got a list at line 1"),
        ("{{ job.result|round }}", "7", "expected a number, got a text at line 1"),
        (
            "{{ job.result|round }}",
            float("inf"),
            "cannot convert float infinity to integer at line 1",
        ),
        ("{{ job.result }}", {"a": object()}, "TypeError"),
        ("{{ job.result }}" * 3, "x" * 1_000_000, "it would have more than 2,000,000 characters"),
    ],
)
def test_a_mail_that_cannot_be_filled_in_goes_out_in_our_words(
    source: str, result: Any, why: str
) -> None:
    job = replace(DONE, result=result)
    check(message(source))
    filled = fill(message(f"Hello, {source}", subject="Photo {{ job.id }}"), job)
    assert filled.subject == "Photo 0198f6a0"
    assert filled.text is not None and filled.html is None
    parts = filled.text.split("\n\n")
    assert parts[0] == "Job thumbnail succeeded after 3.2 seconds."
    assert parts[1].startswith("Result: ") and len(parts[1]) <= 1010 and "\n" not in parts[1]
    assert parts[2:] == [
        f"The text of this mail could not be filled in: {why}.",
        "Job id: 0198f6a0\n",
    ]
    assert fill(message(source), job).subject == "Job thumbnail: succeeded"
    assert body(mail(message(html=f"<p>{source}</p>"), job), "plain").startswith(
        "Job thumbnail succeeded"
    )


def test_a_subject_that_cannot_be_told_leaves_the_text_as_it_is() -> None:
    filled = fill(message("{{ job.id }}", subject="{{ job.result.nothing }}"), DONE)
    assert (filled.subject, filled.text) == ("Job thumbnail: succeeded", "0198f6a0")


def test_a_message_for_both_ends_that_cannot_be_filled_in_tells_the_error() -> None:
    filled = fill(message("{{ job.status }}: {{ job.result.width }} pixels"), FAILED)
    assert filled.subject == "Job thumbnail: failed"
    assert filled.text == (
        "Job thumbnail failed after 3.2 seconds.\n\nError: ValueError: no such image\n\n"
        "The text of this mail could not be filled in: there is no job.result.width.\n\nJob id: 0198f6a0\n"
    )


def test_as_much_as_is_allowed_is_filled_in() -> None:
    half = RENDERED_MAX_CHARACTERS // 2
    assert text_of("{{ job.result }}{{ job.result }}", "x" * half) == "x" * 2 * half
    assert "more than 2,000,000" in text_of("{{ job.result }}{{ job.result }}.", "x" * half)
    assert "more than 2,000,000" in str(
        fill(message(html="<p>{{ job.result }}</p>"), replace(DONE, result="<" * half)).text
    )


LONG_SOURCES = (
    "{{ job.result }}" * 50,
    "{{ job.result|trim|upper|lower }}" * 50,
    "{{ job.result|tojson|length }}" * 200,
    "{{ job.result|join|length }}" * 200,
    "{{ job.result" + "|tojson" * 25 + "|length }}",
    "{{ job.result" + "|upper" * 25 + "|length }}",
)
LONG_RESULTS: tuple[Any, ...] = (
    "x" * 1_000_000,
    '"\\' * 500_000,
    "\n" * 1_000_000,
    "ΐ" * 1_000_000,
    list(range(150_000)),
    [[]] * 300_000,
    [""] * 300_000,
    [True] * 200_000,
)


@pytest.mark.parametrize(
    "number", range(24)
)  # Each source meets four of the results, and each result three of the sources.
def test_no_result_takes_long_to_fill_in(number: int) -> None:
    source, result = (
        LONG_SOURCES[number % 6],
        LONG_RESULTS[number % 8 if number < 12 else (number + 1) % 8],
    )
    asked = message(source, subject=source)
    check(asked)

    def fill_in() -> None:
        filled = fill(asked, replace(DONE, result=result))
        assert len(filled.subject) <= SUBJECT_MAX_CHARACTERS
        assert filled.size <= RENDERED_MAX_CHARACTERS

    hold_to(600, fill_in)


def test_a_message_is_the_same_each_time_it_is_filled_in() -> None:
    asked = message("{{ job.result }} {{ job.error }}", subject="{{ job.name }}")
    assert fill(asked, DONE) == fill(asked, DONE) == fill(asked, replace(DONE))


def test_a_template_is_compiled_once_and_a_huge_one_is_not_kept() -> None:
    program.cache_clear()
    for job in (DONE, FAILED, LATE):
        fill(message("{{ job.id }}"), job)
        fill(message("{{ job.id }}" + "x" * template.CACHED_MAX_CHARACTERS), job)
    kept = program.cache_info()
    assert kept.misses == kept.currsize == 2  # The empty subject is the other one.


def test_a_template_is_filled_in_within_some_microseconds() -> None:
    text = "Your job {{ job.name }} {{ job.status }} after {{ job.seconds|round(1) }} s: {{ job.result.width }} px."
    asked = message(text, subject="{{ job.name }}")
    fill(asked, DONE)

    def fill_in_often() -> None:
        for _ in range(500):
            fill(asked, DONE)

    # It costs one; a template that is read each time costs a hundred and more.
    hold_to(20, fill_in_often)


#: What templates are made of, what they are not made of, and what has broken one sometime.
PIECES = (
    "{{",
    "}}",
    "{{ ",
    " }}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{{-",
    "-}}",
    "{",
    "}",
    "job",
    ".",
    "job.",
    "result",
    "status",
    "error",
    "id",
    "name",
    "seconds",
    "file",
    "width",
    "[",
    "]",
    "(",
    ")",
    "|",
    "default",
    "join",
    "round",
    "length",
    "upper",
    "tojson",
    "trim",
    "'",
    '"',
    "'a'",
    ", ",
    "0",
    "-1",
    "1e9",
    "0x1f",
    "*",
    "**",
    "~",
    "=",
    "if",
    "else",
    "is",
    "not",
    "true",
    "none",
    "raw",
    "endraw",
    "for",
    "__class__",
    "_",
    "\\",
    "\\ud800",
    "\\x00",
    "\\N{DIGIT ONE}",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "ü",
    "日本",
    "👩‍👩‍👧",
    "<b>",
    "</b>",
    "&amp;",
    "\u2028",
    "\x85",
    "hello",
    "x" * 90,
)
WHOLE = (
    "{{ job.result }}",
    "{{ job.result.width }}",
    "{{ job.result.a[0]|default('x') }}",
    "{{ job.error|upper }}",
    "{{ job.status }}",
    "{{ job.result|join(', ') }}",
    "{{ job.seconds|round(1) }}",
    "{{ job.file.name }}",
    "{{ job.result|tojson|length }}",
    "{{ '{{' }}",
    "{# x #}",
    "{{ job.result[-1]|trim }}",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    0.1,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "a",
    "ü",
    "\0",
    "\ud800",
    "\r\nBcc: eve@example.org",
    "{{ job.id }}",
    "<script>",
    "x" * 3000,
    "\u2028",
    "=?utf-8?q?x?=",
    "--=_",
    [],
    {},
    {"width": 3},
    {"a": ["\udfff\0"]},
    [[1], {"width": None}],
    {"a": {"b": "\n.\n"}},
)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:invalid escape sequence:DeprecationWarning"
)  # A client's "\d"; Jinja shows it as it stands.
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_not_refused_makes_a_mail(seed: int) -> None:
    dice, accepted = random.Random(seed), 0
    for _ in range(200):
        source = "".join(
            dice.choices(
                WHOLE if dice.random() < 0.5 else PIECES + WHOLE, k=dice.choice((1, 2, 3, 8))
            )
        )
        subject = re.sub(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029]",
            "",
            "".join(dice.choices(WHOLE + PIECES, k=dice.choice((0, 1, 2)))),
        )
        asked = (
            message(html=f"<p>{source}</p>", subject=subject)
            if dice.random() < 0.3
            else message(source, subject=subject)
        )
        filled = fill(asked, _job(dice))  # Checked or not, it does not raise.
        assert not filled.template
        if wrong := _wrong(asked):
            assert all(
                e.pointer in ("#/subject", "#/contents") and e.detail.startswith("expected")
                for e in wrong
            )
            continue
        accepted += 1
        job = _job(dice)
        filled, got = fill(asked, job), mail(asked, job)
        assert got["Subject"] == filled.subject and len(filled.subject) <= SUBJECT_MAX_CHARACTERS
        assert body(got, "plain" if filled.html is None else "html") == lines(
            str(filled.text if filled.html is None else filled.html)
        )
        assert "Bcc" not in got and not re.search(
            "[\0\ud800-\udfff]", str(filled.text) + str(filled.html) + filled.subject
        )
        assert (job.file is not None and job.status == "succeeded") == (
            got.get_content_type() == "multipart/mixed"
        )
    assert accepted > 50


def _wrong(asked: Message) -> list[FieldError]:
    try:
        check(asked)
    except InvalidMessage as e:
        return e.errors
    return []


def _job(dice: random.Random) -> JobFacts:
    words = [value for value in VALUES if isinstance(value, str)]
    file = Attachment(
        dice.choice(words), dice.choice(words), dice.choice(words).encode("utf-8", "replace")
    )
    return JobFacts(
        id=dice.choice(words),
        name=dice.choice(words),
        status=dice.choice(("succeeded", "succeeded", "failed", "timed_out")),
        error=dice.choice(words),
        result=dice.choice(VALUES),
        seconds=dice.choice((0.0, 0.1, 1e9)),
        file=file if dice.random() < 0.3 else None,
    )
