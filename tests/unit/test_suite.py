"""What holds for every test: none judges by the clock, so that a slow or busy machine fails none.

A bound on work is counted, or compared with other work of the same run (tests/measure.py); a deadline only ends a wait.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.services import DEADLINE_SECONDS
from tests.services.locks import is_unordered
from tests.services.processes import PROJECT

TESTS = PROJECT / "tests"

CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time"}
#: Who may read a clock that only measures how long things take.
MAY_READ_CLOCKS = {
    "measure.py": "compares work with other work",
    "services/__init__.py": "ends waits",
    "faults/load.py": "posts at a rate",
    "jobs_for_tests.py": "a job keeps a processor busy for so long",
    "services/smtpd.py": "notes when a mail came, for benchmarks",
    "tools/check_clients.py": "a command",
    "tools/fuzz.py": "a command",
    "tools/read_bounces.py": "a command",
    "faults/mutations.py": "a command",
    "faults/scale.py": "a command",
    "faults/soak.py": "a command",
    "faults/gmail.py": "a command",
}
SLEEPS = {"sleep", "wait_for_timeout"}
#: Who may sleep; all others wait until something holds.
MAY_SLEEP = {
    "services/__init__.py": "between two looks, and while a fault lasts",
    "services/smtpd.py": "a slow server is slow",
    "jobs_for_tests.py": "jobs take their time",
    "unit/jobs/test_job_faults.py": "a job sleeps that looks at nothing",
    "unit/api/test_idempotency.py": "a link is lost a moment after the server got a COMMIT, not before",
    "acceptance/test_browser.py": "what may not happen by itself is given the time to",
    "tools/pictures.py": "a command",
    "faults/soak.py": "a command",
}
WAITS = {"wait_until", "wait", "join", "result", "exception", "settimeout", "acquire"}
#: Waits that end soon, as nothing is to come, or as they come again and again.
MAY_END_SOON = {
    "services/__init__.py": "socket.create_connection",
    "faults/rig.py": "sqlite3.connect",
    "faults/scenarios.py": "held.reached.wait",
    "acceptance/test_browser.py": "bar.get_attribute",
    "unit/jobs/test_child_process.py": "threading.Event().wait run",
    "acceptance/test_flower.py": "urllib.request.urlopen",
    "integration/test_postgres.py": "both_have_one.wait",
    "unit/jobs/test_runner.py": "self._ended.wait",
    "integration/test_services.py": "connect wait_until",
    "integration/test_smtpd.py": "raw.link.settimeout",
    "unit/webhooks/test_webhooks.py": "over.wait",
    "jobs_for_tests.py": "progress.wait",
    "unit/jobs/test_job_faults.py": "progress.wait",
}


def faults(tree: ast.Module, file: str) -> Iterator[str]:
    """Where and how a module judges by the clock, sleeps, or ends a wait too soon."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if (
                name.removesuffix("_ns") in CLOCKS and file not in MAY_READ_CLOCKS
            ):
                yield f"{file}:{node.lineno} reads time.{name}: count, or compare by tests/measure.py"
            case ast.ImportFrom(module="time"):
                yield f"{file}:{node.lineno} imports from time: import time itself, so that what it reads is seen"
            case ast.Call(func=ast.Attribute(attr=name)) if (
                name in SLEEPS and file not in MAY_SLEEP
            ):
                yield f"{file}:{node.lineno} sleeps: use wait_until, or let_pass for a fault that lasts"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from (f"{file}:{line} judges by the clock" for line in judgements(node))
        if (
            isinstance(node, ast.Call)
            and is_short(node)
            and ast.unparse(node.func) not in MAY_END_SOON.get(file, "").split()
        ):
            yield f"{file}:{node.lineno} ends a wait before {DEADLINE_SECONDS:g} s: {ast.unparse(node)[:80]}"


def judgements(function: ast.AST) -> Iterator[int]:
    """The lines where an assertion, or an `if` that raises, compares how much time has passed."""
    read: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and is_time(node.value, read):
            read |= {
                name.id
                for target in node.targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name)
            }
    for node in ast.walk(function):
        raises = isinstance(node, ast.If) and any(
            isinstance(inner, ast.Raise) for inner in ast.walk(node)
        )
        if isinstance(node, ast.Assert) or raises:
            assert isinstance(node, ast.Assert | ast.If)
            if any(
                is_elapsed(part, read)
                for compare in compares(node.test)
                for part in ast.walk(compare)
            ):
                yield node.lineno


def compares(test: ast.expr) -> Iterator[ast.Compare]:
    yield from (node for node in ast.walk(test) if isinstance(node, ast.Compare))


def is_elapsed(node: ast.AST, read: set[str]) -> bool:
    match node:
        case ast.Name(id="elapsed" | "took") | ast.Attribute(attr="elapsed" | "took"):
            return True
        case ast.BinOp(op=ast.Sub()):
            return is_time(node, read)
    return False


def is_time(value: ast.expr, read: set[str]) -> bool:
    """Whether a clock is read in it, or something that was read from one."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    calls = {ast.unparse(node.func) for node in ast.walk(value) if isinstance(node, ast.Call)}
    return bool(names & read) or any(map(is_reading, calls))


def is_reading(call: str) -> bool:
    return (
        call == "time.time"
        or call.endswith((".now", ".utcnow"))
        or call.rpartition(".")[2].removesuffix("_ns") in CLOCKS
    )


def is_short(call: ast.Call) -> bool:
    """Whether a number that is written there ends a wait early."""
    name = ast.unparse(call.func).rpartition(".")[2]
    numbers = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    if name in WAITS:
        numbers += call.args[1:2] if name == "wait_until" else call.args[:1]
    return any(
        isinstance(number, ast.Constant)
        and isinstance(number.value, int | float)
        and not isinstance(number.value, bool)
        and 0 < number.value < DEADLINE_SECONDS
        for number in numbers
    )


@pytest.mark.parametrize(
    "file", [file.relative_to(TESTS).as_posix() for file in sorted(TESTS.rglob("*.py"))]
)
def test_no_test_judges_by_the_clock(file: str) -> None:
    assert [*faults(ast.parse((TESTS / file).read_text()), file)] == []


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    began = time.monotonic()",
        "x = time.perf_counter_ns()",
        "from time import monotonic",
        "time.sleep(1)",
        "page.wait_for_timeout(5)",
        "def f():\n    began = time.time()\n    work()\n    assert time.time() - began < 5",
        "def f():\n    began = datetime.now(UTC)\n    took = datetime.now(UTC) - began\n    if took > limit:\n        raise AssertionError",
        "def f():\n    assert answer.elapsed < 1",
        "thread.join(5)",
        "wait_until(holds, 5)",
        "wait_until(holds, timeout=5, what='x')",
        "requests.get(url, timeout=10)",
        "done.result(59.9)",
    ],
)
def test_what_judges_by_the_clock_is_found(code: str) -> None:
    assert [*faults(ast.parse(code), "test_x.py")]


@pytest.mark.parametrize(
    "code",
    [
        "now = time.time()",
        "def f():\n    before = time.time()\n    assert before <= row.at <= time.time()",
        "thread.join()",
        "thread.join(60)",
        "wait_until(holds)",
        "wait_until(holds, timeout=90)",
        "', '.join(words)",
        "def f():\n    assert a - b < 5",
    ],
)
def test_what_does_not_is_left_alone(code: str) -> None:
    assert [*faults(ast.parse(code), "test_x.py")] == []


ORDERED = "SELECT jobs.id FROM jobs WHERE jobs.state = %(s)s ORDER BY jobs.id FOR UPDATE"
MANY = "UPDATE jobs SET step=%(x)s WHERE jobs.id IN (%(a)s, %(b)s)"
ONE = "UPDATE jobs SET step=%(x)s WHERE jobs.id = %(id)s AND jobs.state = %(s)s"
FREE = "SELECT jobs.id FROM jobs WHERE jobs.state = %(s)s FOR UPDATE SKIP LOCKED"
FOUND = f"WITH found AS ({ORDERED}) {MANY}"
ANYHOW = ORDERED.replace("ORDER BY jobs.id ", "")
GONE = "DELETE FROM jobs WHERE jobs.id IN (%(a)s, %(b)s)"
PEOPLE = "UPDATE recipients SET state=%(x)s WHERE recipients.id = %(id)s"
MESSAGE = "UPDATE messages SET state=%(x)s WHERE messages.id = %(id)s"


@pytest.mark.parametrize(
    ("statements", "unordered"),
    [
        ([ONE], []),
        ([FOUND], []),
        ([FREE, MANY], []),
        ([ORDERED, MANY], []),
        ([MANY], [MANY]),
        ([ONE, MANY], [MANY]),
        ([ANYHOW], [ANYHOW]),
        ([GONE], [GONE]),
        ([PEOPLE], [PEOPLE]),
        ([MESSAGE, PEOPLE], []),
    ],
)
def test_what_locks_rows_in_no_order_is_found(statements: list[str], unordered: list[str]) -> None:
    held: set[str] = set()
    assert [statement for statement in statements if is_unordered(statement, held)] == unordered
