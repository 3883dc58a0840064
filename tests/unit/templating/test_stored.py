"""Stored templates: what they may say, that none reaches anything or takes long, and how they are stored and looked at."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.text import SUBJECT_MAX_CHARACTERS
from mailroom.store.db.database import Database
from mailroom.store.templates import Templates, is_name
from mailroom.templating import stored
from mailroom.templating.grammar import DEPTH_MAX, TOKENS_MAX
from mailroom.templating.sandbox import PROGRAMS_MAX, SOURCE_MAX_CHARACTERS, program
from mailroom.templating.stored import (
    CSS_MAX_CHARACTERS_TIMES_TAGS,
    TAGS_MAX,
    VARIABLES_MAX_CHARACTERS,
    RenderedTemplate,
    check,
    merge,
)
from tests.measure import hold_to

HELLO = {
    "subject": "Order {{ order.number }}",
    "text": "Hello {{ name }}",
    "html": "<p>Hello {{ name }}</p>",
}
WHO = {"name": "Bob & Co", "order": {"number": "A-17"}}


def letter_of(source: str, part: str = "text") -> RenderedTemplate:
    texts: dict[str, Any] = {"subject": "", "text": None, "html": None, part: source}
    return RenderedTemplate(**texts)


def filled(source: str, part: str = "text", **variables: Any) -> str:
    found: str = getattr(merge(letter_of(source, part), variables), part)
    return found


def refused(source: str, part: str = "text", **variables: Any) -> list[FieldError]:
    """Return what is said at saving, or else at filling in; neither may cost much."""
    errors: list[FieldError] = []

    def use() -> None:
        with suppress(InvalidMessage):
            try:
                check(letter_of(source, part))
                merge(letter_of(source, part), variables)
            except InvalidMessage as e:
                errors[:] = e.errors

    hold_to(200, use)
    assert errors, "nothing was refused"
    return errors


# --- what a template may say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("as it is\r\n", "as it is\r\n"),
        ("{{ name }}", "Bob"),
        ("{{ order.items[1].name }}{{ order['items'][0]['name'] }}", "cuptea"),
        ("{{ total }} {{ none }} {{ yes }} {{ 1.5 }} {{ no }}", "12.5  true 1.5 "),
        ("{{ '%.2f € %s %5d%%'|format(total, name, 3) }}", "12.50 € Bob     3%"),
        (
            "{% for item in order.items %}{{ loop.index }}.{{ item.name }}{% if not loop.last %}, {% endif %}{% endfor %}",
            "1.tea, 2.cup",
        ),
        ("{% for item in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{% for item in order.items if item.name != 'tea' %}{{ item.name }}{% endfor %}", "cup"),
        (
            "{% for key, value in address|items %}{{ key }}={{ value }};{% endfor %}{% for key in address %}{{ key }}{% endfor %}",
            "city=Köln;zip=1;cityzip",
        ),
        ("{% if total > 10 and name == 'Bob' %}a{% elif total %}b{% else %}c{% endif %}", "a"),
        ("{{ 'a' if name in ['Ann', 'Bob'] else 'b' }}", "a"),
        ("{% set who = name ~ ' ' ~ total %}{{ who }}", "Bob 12.5"),
        ("{{ total * 2 + 1 - 3 / 2 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ -total }}", "24.5 3 3 -12.5"),
        ("{{ 'a' + 'b' }}{{ name[0] }}{{ name[1:] }}{{ name[-1] }}", "abBobb"),
        ("{{ missing|default('friend') }}{{ missing|d }}", "friend"),
        ("{% if missing is defined %}x{% endif %}{% if missing is undefined %}y{% endif %}", "y"),
        ("{{ nothing|default('x', true) }}", "x"),
        (
            "{{ name|upper }}{{ name|lower }}{{ 'a b'|title }}{{ 'ab'|capitalize }}{{ ' a '|trim }}{{ 'aXa'|replace('X', '-') }}",
            "BOBbobA BAbaa-a",
        ),
        (
            "{{ [1, 2]|join(', ') }} {{ order.items|length }} {{ [1, 2]|first }}{{ [1, 2]|last }}{{ [1, 2]|reverse|join }}",
            "1, 2 2 1221",
        ),
        (
            "{{ 2.567|round(1) }} {{ 2.5|int }} {{ '7'|int + 1 }} {{ 'x'|int(3) }} {{ '2.5'|float }} {{ (-3)|abs }}",
            "2.6 2 8 3 2.5 3",
        ),
        (
            "{{ 'one two three'|truncate(9) }} {{ 'abcdef'|truncate(4, true, '…') }} {{ 'a b/ü'|urlencode }}",
            "one... abc… a%20b%2F%C3%BC",
        ),
        ("{{ address|tojson }}", '{"city": "Köln", "zip": 1}'),
        (
            "{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ name is string }}",
            "truetruetruetrue",
        ),
        ("{# a remark {{ nothing.at.all }} #}{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("a\n{%- if yes %} b{% endif -%}\n c\n", "a bc\n"),
    ],
)
def test_a_template_is_filled_in(source: str, text: str) -> None:
    assert (
        filled(
            source,
            name="Bob",
            total=12.5,
            none=None,
            yes=True,
            no="",
            nothing=[],
            address={"city": "Köln", "zip": 1},
            order={"items": [{"name": "tea"}, {"name": "cup"}]},
        )
        == text
    )


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("<p>{{ s }}</p>", "<p>&lt;b&gt;&amp;&#34;</p>"),
        ("{{ s|safe }}", '<b>&"'),
        ("{{ '<i>'|safe ~ s }}", "<i>&lt;b&gt;&amp;&#34;"),
        ("{{ s|e }}", "&lt;b&gt;&amp;&#34;"),
        ("{{ [1, '<']|join('<br>') }}", "1&lt;br&gt;&lt;"),
        ("{{ [1, '<']|join('<br>'|safe) }}", "1<br>&lt;"),
        ("{{ '</script>'|tojson }}", '"\\u003c/script\\u003e"'),
        ("{{ s|replace('b', '<')|upper }}", "&lt;&lt;&gt;&amp;&#34;"),
    ],
)
def test_html_is_escaped_and_text_is_not(source: str, html: str) -> None:
    assert filled(source, "html", s='<b>&"') == html
    assert filled("{{ s }}", s='<b>&"') == '<b>&"'


def test_a_subject_is_one_line() -> None:
    assert (
        filled("Re: {{ a }}\n{{ b }}\u2028", "subject", a="x\r\nBcc: c@example.org\x85", b=" y")
        == "Re: x Bcc: c@example.org y"
    )
    (error,) = refused("{{ a }}", "subject", a="x" * (SUBJECT_MAX_CHARACTERS + 1))
    assert error.detail == "expected a subject of at most 998 characters, got 999, in subject"


def test_parts_that_a_template_has_not_are_none() -> None:
    assert merge(RenderedTemplate(subject="a", text="b", html=None), {}) == RenderedTemplate(
        subject="a", text="b", html=None
    )


# --- errors ---------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_its_place_part_and_line() -> None:
    texts = RenderedTemplate(
        subject="{{ subject }}",
        text="a\nb {{ users[1].name }}",
        html="<p>\n\n{% for u in users %}{{ u.name }}{% endfor %}",
    )
    with pytest.raises(InvalidMessage) as caught:
        merge(texts, {"users": [{"name": "Ann"}, {}]}, at="#/messages/3/template/variables")
    assert caught.value.errors == [
        FieldError(
            "#/messages/3/template/variables/subject",
            "expected this variable, named in subject at line 1, got none",
        ),
        FieldError(
            "#/messages/3/template/variables/users/1/name",
            "expected this variable, named in text at line 2, got none",
        ),
        FieldError(
            "#/messages/3/template/variables/users/1/name",
            "expected this variable, named in html at line 3, got none",
        ),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "{{ x }}",
        "{{ x.y }}",
        "{{ x|upper }}",
        "{{ x + 1 }}",
        "{{ 'a' ~ x }}",
        "{{ x == 1 }}",
        "{{ 1 in x }}",
        "{% if x %}{% endif %}",
        "{% for y in x %}{% endfor %}",
        "{{ x[1:] }}",
        "{{ -x }}",
        "{{ x|tojson }}",
        "{{ x is string }}",
        "{{ [1]|join(x) }}",
    ],
)
def test_a_missing_variable_is_named_whatever_is_made_of_it(source: str) -> None:
    assert refused(source) == [
        FieldError("#/variables/x", "expected this variable, named in text at line 1, got none")
    ]


def test_saving_names_every_part_that_cannot_be_read() -> None:
    with pytest.raises(InvalidMessage) as caught:
        check(RenderedTemplate(subject="{{ a", text="b\n{% if %}", html="{{ c|nl2br }}"), at="#")
    assert [error.pointer for error in caught.value.errors] == ["#/subject", "#/text", "#/html"]
    assert [
        "line 1" in caught.value.errors[0].detail,
        "line 2" in caught.value.errors[1].detail,
    ] == [
        True,
        True,
    ]
    assert "nl2br" in caught.value.errors[2].detail


# --- bounded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% include '/etc/passwd' %}", "an include"),
        ("{% import 'os' as os %}", "an import"),
        ("{% from 'a' import b %}", "an import"),
        ("{% extends 'a' %}", "an extends"),
        ("{% block a %}{% endblock %}", "a block"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "a macro"),
        ("{% call f() %}{% endcall %}", "a call"),
        ("{{ f() }}", "a call"),
        ("{% for i in range(10**9) %}x{% endfor %}", "a call"),
        ("{{ lipsum(n=10**9) }}", "a call"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "a call"),
        ("{{ '{0.__class__}'.format(1) }}", "a call"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "a call"),
        ("{% set ns = namespace(x=1) %}", "a call"),
        ("{% set ns.x = 1 %}", "one name"),
        ("{{ 2**10**9 }}", "**"),
        ("{{ 'a' * 10**9 }}", "**"),
        ("{{ 'a'|center(10**9) }}", "center"),
        ("{{ 'a'|indent(1000000000) }}", "indent"),
        ("{{ 'a'|wordwrap(1) }}", "wordwrap"),
        ("{{ [1]|map('upper') }}", "map"),
        ("{{ x|attr('__class__') }}", "attr"),
        ("{{ x|pprint }}", "pprint"),
        ("{{ 'a' is filter }}", "filter"),
        ("{{ 'a'|upper(1) }}", "upper"),
        ("{{ 'a'|truncate(lenght=3) }}", "lenght"),
        ("{{ 'a'|join(*x) }}", "without stars"),
        ("{% filter upper %}a{% endfilter %}", "a filter block"),
        ("{% set x %}a{% endset %}", "a set block"),
        ("{% with a = 1 %}{% endwith %}", "a with"),
        ("{% for a in b recursive %}{% endfor %}", "a recursive one"),
        ("{% set a = [x, x] %}", "constants"),
        ("{% set a = {'b': x} %}", "constants"),
        ("{% set a = (x, x) %}", "constants"),
        ("{{ [[-(x)], [[x]]] }}", "constants"),
        ("{{ self }}", "self"),
        ("{{ (1)[1:] }}", "a constant"),
        ("{% autoescape false %}{% endautoescape %}", "expected"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", f"at most {DEPTH_MAX} brackets"),
        ("{{ 1" + " + 1" * 2000 + " }}", "parts in each other"),
        ("{{ " + "not " * 4000 + "1 }}", "too deep"),
        ("{{ a" + ".b" * 2000 + " }}", "in each other"),
        ("{% if 1 %}" * 1000, "too deep|read"),
        ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "too deep"),
        ("{{ " + "9" * 5000 + " }}", "digits"),
        ("a {#", "comment"),
        ("x{{ a }}" * TOKENS_MAX, f"at most {TOKENS_MAX}"),
        ("a{" * SOURCE_MAX_CHARACTERS, "at most 200,000"),
        ("{{", "cannot be read"),
        ("{% for %}", "line 1"),
    ],
)
@pytest.mark.parametrize("part", ["text", "html"])
def test_what_reaches_out_or_cannot_be_bounded_is_refused_at_saving(
    source: str, said: str, part: str
) -> None:
    (error,) = refused(source, part)
    assert error.pointer == f"#/{part}" and any(one in error.detail for one in said.split("|"))


BIG = "x" * 90_000
MANY = [{"n": number} for number in range(1000)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for a in many %}{% for b in many %}{% for c in many %}x{% endfor %}{% endfor %}{% endfor %}",
            "too long",
        ),
        ("{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}", "too long"),
        ("{% for a in many %}" + "x" * 10_000 + "{% endfor %}", "too long|characters"),
        ("{% for a in many %}{{ big }}{% endfor %}", "1,000,000 characters"),
        ("{% for a in many %}{% if big in big2 %}{% endif %}{% endfor %}", "too long"),
        ("{% for a in many %}{% if 1 in many %}{% endif %}{% endfor %}", "too long"),
        ("{% for a in many %}{% if many == many2 %}{% endif %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = big[1:] %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = many[1:] %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = many|reverse %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = many|tojson %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = big|upper|lower %}{% endfor %}", "too long"),
        ("{% for a in many %}{% set b = big|replace('x', 'yy') %}{% endfor %}", "too long"),
        ("{{ big|replace('x', big) }}", "1,000,000 characters"),
        ("{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}", "1,000,000 characters"),
        ("{% set x = 'ab' %}" + "{% set x = x + x %}" * 40, "1,000,000 characters"),
        ("{% set x = [1] %}" + "{% set x = x + x %}" * 40, "a list"),
        ("{{ 'a' * 1000000000 }}", "a number beside *"),
        ("{{ many * 1000000 }}", "a number beside *"),
        ("{{ '%999999999d' % 2 }}", "a number beside %"),
        ("{{ '%999999999d' is odd }}", "a whole number"),
        ("{{ '%999999999d' is divisibleby 3 }}", "a whole number"),
        ("{{ '%999999999d'|format(1) }}", "two digits"),
        ("{{ '%*d'|format(999999999, 1) }}", "two digits"),
        ("{{ '%(a)s'|format(1) }}", "two digits"),
        ("{{ '%.999999999f'|format(1) }}", "two digits"),
        ("{{ ('%.99f' ~ big)|replace('x', '%f')|format(1) }}", "characters"),
        ("{{ '%d'|format(huge) }}", "77 digits"),
        ("{% set x = 2 %}" + "{% set x = x * x %}" * 40, "77 digits"),
        ("{{ huge * huge }}", "77 digits"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ many|join(big) }}", "a list|an object|text"),
        ("{{ numbers|join(big) }}", "1,000,000 characters"),
        ("{{ ('€' ~ big)|replace('x', '€€')" + "|urlencode" * 20 + " }}", "1,000,000 characters"),
        ("{{ many }}", "got a list"),
        ("{{ loop }}", ""),
        ("{{ many|items }}", "an object"),
        ("{% for a in big %}{% endfor %}", "a list to loop over"),
        ("{{ 1|length }}", "a list"),
        ("{{ 1 < 'a' }}", "not supported"),
        ("{% for a, b in [1] %}{% endfor %}", "unpack"),
        ("{{ 'a'['upper'] }}", "got none"),
        ("{{ {'a': 1}.keys }}", "got none"),
        ("{% for a in [1] %}{{ loop.cycle }}{% endfor %}", "got none"),
        ("{{ many[none] }}", "in the brackets"),
        ("{{ many[nothing] }}", "got none"),
        ("{{ many[0][nothing.x] }}", "got none"),
        ("{{ big.__class__ }}", "got none"),
        ("{{ lipsum }}", "got none"),
        ("{{ range }}", "got none"),
        ("{{ {1: 2}|items|first }}", "a list"),
    ],
)
@pytest.mark.parametrize("part", ["text", "html"])
def test_what_would_take_long_or_become_long_is_refused_at_filling_in(
    source: str, said: str, part: str
) -> None:
    check(letter_of(source, part))
    (error,) = refused(
        source,
        part,
        many=MANY,
        many2=[dict(one) for one in MANY],
        big=BIG,
        big2=BIG + "y",
        huge=10**400,
        numbers=list(range(1000)),
    )
    assert error.pointer.startswith("#/variables") and any(
        one in error.detail for one in said.split("|")
    )
    assert part in error.detail


@pytest.mark.parametrize("part", ["text", "html"])
def test_a_chain_of_filters_that_doubles_a_small_text_is_refused(part: str) -> None:
    (error,) = refused("{{ 'a'" + "|tojson" * 24 + "|length }}", part)
    assert "at most 1,000,000 characters" in error.detail


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"a": "x" * VARIABLES_MAX_CHARACTERS}, "200,000 characters"),
        ({"a": [0] * VARIABLES_MAX_CHARACTERS}, "200,000 characters"),
        ({"a": "\ud800"}, "Unicode"),
        ({"a": {"b\0": 1}}, "NUL"),
        ({"a": json.loads("[" * 30 + "]" * 30)}, "16 levels"),
    ],
)
def test_variables_are_bounded(variables: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidMessage, match=said) as caught:
        merge(letter_of("hello"), variables)
    assert caught.value.errors[0].pointer == "#/variables"


def test_programs_are_kept_but_not_all_of_them() -> None:
    program.cache_clear()
    for number in range(PROGRAMS_MAX + 10):
        assert filled(f"{{{{ a }}}} {number}", a=1) == f"1 {number}"
    filled(f"{{{{ a }}}} {PROGRAMS_MAX}", a=1)
    kept = program.cache_info()
    assert kept.currsize == PROGRAMS_MAX and kept.hits > PROGRAMS_MAX


def test_a_large_template_of_a_plain_kind_is_filled_in() -> None:
    rows = [
        {"name": f"part {number}", "price": number / 7, "count": number} for number in range(500)
    ]
    html = filled(
        "<table>{% for row in rows %}<tr><td>{{ loop.index }}<td>{{ row.name }}<td>{{ '%.2f'|format(row.price) }}"
        "<td>{{ row.count * row.price }}"
        "{% if row.count is odd %}<td>odd{% endif %}</tr>{% endfor %}</table>",
        "html",
        rows=rows,
    )
    assert html.count("<tr>") == 500


# --- CSS ------------------------------------------------------------------------------------------------------------


def test_css_is_inlined_and_media_rules_stay() -> None:
    html = filled(
        "<style>p { color: red } @media print { p { color: blue } }</style><p>{{ s }}</p>",
        "html",
        s="<",
    )
    assert '<p style="color: red;">&lt;</p>' in html and "@media print" in html
    assert filled("<p class=a>as it was", "html") == "<p class=a>as it was"


@pytest.mark.parametrize(
    "rule",
    [
        "a:hover { color: blue }",
        "p::after { content: '!' }",
        "td.gap { width: 9px }",
        ".Read { width: 100% }",
        "@media print { p { color: blue } }",
        "@font-face { font-family: A; src: url(a) }",
        "p, a:visited {c: d}",
    ],
)
def test_what_cannot_be_inlined_stays_in_a_style(rule: str) -> None:
    comment = "<!--[if mso]><td class=gap></td><![endif]-->"
    html = filled(f"<style>p {{ color: red }} {rule}</style><p>x{comment}</p>", "html")
    style = html[html.index("<style>") : html.index("</style>")]
    assert rule in style and '<p style="color: red;' in html


def test_css_for_elements_in_a_conditional_comment_stays_where_others_have_it_too() -> None:
    css = "<style>td { width: 600px }</style>"
    html = filled(f"{css}<table><tr><td>x</table><!--[if mso]><td><![endif]-->", "html")
    assert '<td style="width: 600px;">' in html and css in html


@pytest.mark.parametrize(
    ("media", "is_inlined"),
    [
        ("print", False),
        ("(max-width: 600px)", False),
        ("screen and (max-width: 600px)", False),
        ("all", True),
        ("screen", True),
        ("", True),
    ],
)
def test_css_of_a_style_for_some_media_is_not_inlined(media: str, is_inlined: bool) -> None:
    style = f'<style type="text/css" media="{media}">p {{ color: red }}</style>'
    html = filled(f"{style}<p>x", "html")
    assert style in html and ('<p style="color: red;">' in html) is is_inlined


@pytest.mark.parametrize(
    "part",
    [
        "<!--[if mso]><table><tr><td><![endif]-->",
        "<!--[if (gte mso 9)|(IE)]><td width=600><![endif]-->",
        "<![if !mso]><b>x</b><![endif]>",
        "<![IF !vml]><b>x</b><![ENDIF]>",
        "<![if !mso]-->x<![endif]-->",
        "<!--[if !mso]><!--><b>x</b><!--<![endif]-->",
        "<!--[if !mso]> --><b>x</b><!-- <![endif]-->",
        "<!--[if mso]><style media=print>td{a:b}</style><xml><o:A/></xml><![endif]-->",
        """<b title="<![if mso]>">x</b>""",
    ],
)
def test_conditional_comments_stay_byte_for_byte(part: str) -> None:
    html = filled(f"<style>p {{ color: red }}</style><p>a</p>{part}<p>b</p>", "html")
    assert html.replace(' style="color: red;"', "").endswith(
        f"<p>a</p>{part}<p>b</p></body></html>"
    )


@pytest.mark.parametrize(
    "doctype",
    [
        "<!doctype html>",
        "<!DOCTYPE html>",
        "",
        '<!DOCTYPE html SYSTEM "about:legacy-compat">',
        """<!DOCTYPE html PUBLIC
    "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">""",
    ],
)
@pytest.mark.parametrize("before", ["", "<!--a--><!-- <!doctype b> -->"])
def test_the_doctype_stays_byte_for_byte(before: str, doctype: str) -> None:
    html = filled(f"{before}{doctype}<html><style>p {{ color: red }}</style><p>x", "html")
    assert html.startswith(f"{before}{doctype}<html>")
    assert '<p style="color: red;">' in html


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    """A server's port, and what it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/css")
            self.end_headers()
            self.wfile.write(b"p { color: red }")

        def log_message(self, *told: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port, paths
        server.shutdown()


def test_nothing_is_fetched_and_no_file_is_opened(
    asked: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, paths = asked
    (tmp_path / "a.css").write_text("p { color: red }")
    links = [
        f"http://127.0.0.1:{port}/a.css",
        f"//127.0.0.1:{port}/a.css",
        f"file://{tmp_path}/a.css",
        f"{tmp_path}/a.css",
        "tests/a.css",
    ]
    html = (
        "".join(
            f'<link rel="stylesheet" type="text/css" href="{link}"><style>@import url("{link}");</style>'
            for link in links
        )
        + f'<style>p {{ margin: 0; background: url("{links[0]}") }}</style><base href="{links[0]}"><p>a</p><img src="{links[0]}">'
    )
    done = filled(html, "html")
    assert "margin: 0" in done and "color" not in done and "<link" not in done
    assert paths == []


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<style>p{color:red}</style>" + "<p>" * (TAGS_MAX + 1), "tags beside a style"),
        (
            "<style>"
            + "*{color:red}" * (CSS_MAX_CHARACTERS_TIMES_TAGS // 1000 // 12 + 1)
            + "</style>"
            + "<p>" * 1000,
            "less CSS",
        ),
        (
            "<style>p{color:red}</style>" + "".join(f"<b a{n}={'x' * 100}><p>" for n in range(990)),
            "less CSS|CSS inlined",
        ),
        (
            "<style>p{color:red}</style>" + "".join(f"<b a{n}><p>" for n in range(990)),
            "CSS inlined",
        ),
        ("<link>" + "<!-- </style> -->" + "<style>" + "p{a:b}" * 4000 + "<p>" * 200, ""),
    ],
)
def test_css_is_inlined_in_bounds(html: str, said: str) -> None:
    if said:
        (error,) = refused(html, "html")
        assert any(one in error.detail for one in said.split("|"))
    else:
        filled(html, "html")


def test_html_of_any_depth_does_not_end_the_process() -> None:
    """On a stack of 2 MB, as a server's threads have, a few thousand tags in each other would."""
    before = threading.stack_size()
    done = filled("<style>p{color:red}</style>" + "<div>" * (TAGS_MAX - 1), "html")
    assert done.count("<div>") == TAGS_MAX - 1 and threading.stack_size() == before
    assert (
        filled("<style>p{color:red}</style>" + "<div>" * (stored._SHALLOW_TAGS - 1), "html").count(
            "<div>"
        )
        == stored._SHALLOW_TAGS - 1
    )


# --- store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def templates(database: Database) -> Templates:
    return Templates(database)


def save(
    templates: Templates,
    name: str,
    subject: str = "a",
    text: str | None = "b",
    html: str | None = None,
) -> bool:
    return templates.save(name, subject=subject, text=text, html=html).is_new


def test_saving_makes_or_replaces(templates: Templates) -> None:
    assert save(templates, "hello", html="<p>")
    first = templates.find("hello")
    assert (
        first
        and (first.subject, first.text, first.html) == ("a", "b", "<p>")
        and first.created_at == first.updated_at
    )
    assert not save(templates, "hello", subject="c", text=None, html="<b>")
    second = templates.find("hello")
    assert second and (second.subject, second.text, second.html) == ("c", None, "<b>")
    assert second.created_at == first.created_at and second.updated_at >= first.updated_at


def test_templates_are_deleted_and_listed_by_name(templates: Templates) -> None:
    for name in ("b", "a", "d", "c"):
        save(templates, name)
    assert [row["name"] for row in templates.page(limit=3)] == ["a", "b", "c"]
    assert [row["name"] for row in templates.page(limit=3, after="c")] == ["d"]
    assert templates.delete("c") and not templates.delete("c") and templates.find("c") is None
    assert [row["name"] for row in templates.page(limit=9)] == ["a", "b", "d"]


def test_many_save_one_name_at_the_same_time(templates: Templates) -> None:
    new: list[bool] = []
    threads = [
        threading.Thread(target=lambda: new.append(save(templates, "hello"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [False] * 7 + [True]


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "A", "a b", "a/b", "é", "a\n", "a" * 101])
def test_what_is_no_name_is_not_looked_for(name: str) -> None:
    assert not is_name(name) and is_name("a" * 100) and is_name("0.a_b-c")


# --- HTTP -----------------------------------------------------------------------------------------------------------


def test_a_template_is_put_shown_and_deleted(client: FlaskClient) -> None:
    first, second = (
        client.put("/v1/templates/hello", json=HELLO),
        client.put("/v1/templates/hello", json=HELLO | {"subject": "b"}),
    )
    assert (first.status_code, second.status_code) == (201, 200)
    told: Any = first.json
    assert set(told) == {"name", "subject", "text", "html", "created_at", "updated_at"} and told[
        "created_at"
    ].endswith("Z")
    assert client.get("/v1/templates/hello").json == second.json
    gone = client.delete("/v1/templates/hello")
    assert (gone.status_code, gone.data) == (204, b"")
    assert [
        client.get("/v1/templates/hello").status_code,
        client.delete("/v1/templates/hello").status_code,
    ] == [404, 404]


def test_templates_are_listed_a_page_at_a_time(client: FlaskClient) -> None:
    for name in ("b", "c", "a"):
        client.put(f"/v1/templates/{name}", json=HELLO)
    page: Any = client.get("/v1/templates?limit=2").json
    assert ([row["name"] for row in page["data"]], page["has_more"]) == (
        ["a", "b"],
        True,
    ) and "text" not in page["data"][0]
    page = client.get("/v1/templates?limit=2&after=b").json
    assert ([row["name"] for row in page["data"]], page["has_more"]) == (["c"], False)
    answer: Any = client.get("/v1/templates?limit=0&after=A%00").json
    assert [error["pointer"] for error in answer["errors"]] == ["?limit", "?after"]


@pytest.mark.parametrize(
    ("name", "body", "pointers"),
    [
        ("hello", {"subject": "a"}, ["#"]),
        ("hello", {"text": "a"}, ["#/subject"]),
        ("hello", HELLO | {"htm": "a"}, ["#/htm"]),
        ("hello", HELLO | {"text": 1}, ["#/text"]),
        ("hello", HELLO | {"text": "a\0"}, ["#/text"]),
        ("hello", HELLO | {"html": "\ud800"}, ["#/html"]),
        ("hello", HELLO | {"html": "{{ a"}, ["#/html"]),
        ("hello", HELLO | {"subject": "{{ f() }}", "text": "{% x %}"}, ["#/subject", "#/text"]),
        ("Hello", HELLO, ["name"]),
        ("hello", HELLO | {"text": "a" * (SOURCE_MAX_CHARACTERS + 1)}, ["#/text"]),
    ],
)
def test_what_is_no_template_is_refused(
    client: FlaskClient, name: str, body: Any, pointers: list[str]
) -> None:
    answer = client.put(f"/v1/templates/{name}", json=body)
    problem: Any = answer.json
    assert (
        answer.status_code == 422 and [error["pointer"] for error in problem["errors"]] == pointers
    )
    assert client.get(f"/v1/templates/{name}").status_code == 404


def test_a_preview_shows_what_a_mail_would_say(client: FlaskClient) -> None:
    client.put("/v1/templates/hello", json=HELLO)
    assert client.post("/v1/templates/hello/preview", json={"variables": WHO}).json == {
        "subject": "Order A-17",
        "text": "Hello Bob & Co",
        "html": "<p>Hello Bob &amp; Co</p>",
    }
    client.put(
        "/v1/templates/hello", json={"subject": "a", "html": "<p>Hello <b>{{ name }}</b></p>"}
    )
    assert client.post("/v1/templates/hello/preview", json={"variables": WHO}).json == {
        "subject": "a",
        "text": "Hello Bob & Co",
        "html": "<p>Hello <b>Bob &amp; Co</b></p>",
    }
    client.put("/v1/templates/hello", json={"subject": "a", "text": "b"})
    assert client.post("/v1/templates/hello/preview", json={}).json == {
        "subject": "a",
        "text": "b",
        "html": None,
    }


def test_a_preview_names_what_is_missing(client: FlaskClient) -> None:
    client.put("/v1/templates/hello", json=HELLO)
    answer = client.post(
        "/v1/templates/hello/preview", json={"variables": {"order": {}, "name": "Bob"}}
    )
    problem: Any = answer.json
    assert answer.status_code == 422
    assert problem["errors"] == [
        {
            "pointer": "#/variables/order/number",
            "detail": "expected this variable, named in subject at line 1, got none",
        }
    ]
    assert client.post("/v1/templates/other/preview", json={}).status_code == 404
    assert client.post("/v1/templates/hello/preview", json={"variables": []}).status_code == 422


# --- commands -------------------------------------------------------------------------------------------------------


def run(app: Flask, *arguments: str, input: str | None = None) -> Result:
    return app.test_cli_runner().invoke(args=["templates", *arguments], input=input)


def test_commands_save_show_preview_list_and_delete(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>Hello {{ name }}, für Sie")
    saved = run(
        app, "save", "hello", "--subject", "Hi {{ name }}", "--html", str(tmp_path / "a.html")
    )
    assert (saved.exit_code, saved.output) == (0, "hello: created\n")
    assert (
        run(
            app,
            "save",
            "hello",
            "--subject",
            "Hi {{ name }}",
            "--text",
            "-",
            input="Dear {{ name }}",
        ).output
        == "hello: replaced\n"
    )
    assert (
        run(app, "show", "hello").output == "Subject: Hi {{ name }}\n\n--- text\nDear {{ name }}\n"
    )
    assert (
        run(app, "preview", "hello", "--variables", '{"name": "Bob"}').output
        == "Subject: Hi Bob\n\n--- text\nDear Bob\n"
    )
    assert run(app, "list").output.startswith("hello  20")
    assert run(app, "delete", "hello").output == "hello: deleted\n"
    assert run(app, "list").output == ""


def test_commands_tell_in_json(app: Flask) -> None:
    saved = run(app, "save", "hello", "--subject", "a", "--text", "-", "--json", input="b {{ c }}")
    assert json.loads(saved.output)["text"] == "b {{ c }}"
    assert json.loads(run(app, "show", "hello", "--json").output) == json.loads(saved.output)
    previewed = run(app, "preview", "hello", "--variables", '{"c": 1}', "--json")
    assert json.loads(previewed.output) == {"subject": "a", "text": "b 1", "html": None}
    assert [
        json.loads(line)["name"] for line in run(app, "list", "--json").output.splitlines()
    ] == ["hello"]
    assert json.loads(run(app, "delete", "hello", "--json").output) == {
        "name": "hello",
        "deleted": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "there is no template with this name"),
        (["delete", "nobody"], "there is no template with this name"),
        (["preview", "nobody"], "there is no template with this name"),
        (["save", "A", "--subject", "a", "--text", "-"], "expected 1 to 100"),
        (["save", "a", "--subject", "{{ a", "--text", "-"], "#/subject"),
        (["save", "a", "--subject", "a"], "expected text, html or both"),
        (["preview", "a", "--variables", "{"], "expected JSON"),
        (["preview", "a", "--variables", "[]"], "JSON object"),
    ],
)
def test_commands_say_in_a_sentence_what_is_wrong(
    app: Flask, arguments: list[str], said: str
) -> None:
    done = run(app, *arguments, input="text")
    assert done.exit_code != 0 and said in done.output and "Traceback" not in done.output
