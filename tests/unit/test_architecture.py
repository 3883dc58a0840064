"""Holds the picture of the house against the code: who imports whom, how docstrings begin, and that importing does nothing.

app, mailasync -> server, cli -> web -> api -> submission, jobs, worker, webhooks, mailbox, smtpd -> broker, delivery
-> smtp, templating, store -> config -> model, process
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter

from tests.services.processes import PROJECT

FILES = [
    *PROJECT.glob("*.py"),
    *PROJECT.glob("mailroom/**/*.py"),
    *PROJECT.glob("migrations/**/*.py"),
]
TREES = {
    ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        file.read_text()
    )
    for file in FILES
}
PACKAGES = {
    ".".join(file.relative_to(PROJECT).parts[:-1]) for file in FILES if file.name == "__init__.py"
}
MODULES_MAX = 15  #: in a folder
LINES_MAX, COLUMNS_MAX, FUNCTION_LINES_MAX = 400, 110, 30

DOCUMENTED = [
    *FILES,
    *PROJECT.glob("benchmarks/**/*.py"),
    *PROJECT.glob("examples/**/*.py"),
    *PROJECT.glob("tools/**/*.py"),
]
#: A docstring begins with a verb, or names the thing; these do neither.
IDLE_WORDS = re.compile(
    r"(What|Whether|Who|Which|How|Where|When|Why|The same|It|Those|They|As|One|Any)\b"
)

STORE = "store store.db store.events store.jobs store.keys store.messages store.maintenance"
API = "api api.auth api.http api.routes"
#: Every folder may import these two, but the inbox, which could be taken out and used elsewhere.
BASE = "model process"
#: What each folder of mailroom, and each module beside it, may import of ours besides itself. A folder is its modules, without
#: those of the folders in it.
MAY_IMPORT = {
    "app": f"mailasync server cli {API} worker config {STORE} {BASE}",
    "mailasync": "worker broker",
    "server": f"mailroom web api.openapi {API} inbox smtpd worker config {STORE} {BASE}",
    "cli": f"{API} worker mailbox submission smtpd broker smtp config {STORE} {BASE}",
    "web": f"{API} submission jobs inbox smtp {STORE} {BASE}",
    "api.openapi": f"{API} submission {STORE} {BASE}",
    "api.routes": f"api.http api.auth api submission jobs webhooks broker smtp templating config {STORE} {BASE}",
    "api.http": f"api.auth api submission jobs broker {STORE} {BASE}",
    "api.auth": f"api submission {STORE} {BASE}",
    "api": f"submission broker config {STORE} {BASE}",
    "worker": f"submission jobs webhooks mailbox broker delivery smtp config {STORE} {BASE}",
    "submission": f"jobs templating {STORE} {BASE}",
    "jobs": f"{STORE} {BASE}",
    "webhooks": f"{STORE} {BASE}",
    "mailbox": f"smtp {STORE} {BASE}",
    "smtpd": f"submission {STORE} {BASE}",
    "delivery": f"smtp templating {BASE}",  # It gets the store as an argument.
    "broker": BASE,
    "smtp": BASE,
    "templating": BASE,
    "store.maintenance": f"store.messages store.jobs store.events store.keys store store.db {BASE}",
    "store.messages": f"store.jobs store.events store.keys store store.db {BASE}",
    "store.jobs": f"store.events store store.db {BASE}",
    "store.events": f"store store.db {BASE}",
    "store.keys": f"store.db {BASE}",
    "store": f"store.db {BASE}",
    "store.db": BASE,
    "inbox": "process",
    "config": f"default_settings {BASE}",
    "model": "process",
    "process": "",
    "mailroom": "",
    "migrations": "store.db",
    "default_settings": "",
}
#: Who may know a package that is not ours: folders with all that is in them, or modules.
MAY_KNOW = {
    "sqlalchemy": "store migrations",
    "alembic": "store migrations",
    "flask": "app web api inbox server cli.context",
    "werkzeug": "app web api inbox server",
    "granian": "server",
    "yagmail": "smtp.session smtp.oauth2",
    "celery": "mailasync broker worker.runtime worker.signals worker.tasks server.embedded_worker",
    "kombu": "broker worker.celery_config worker.runtime server.embedded_worker",
    "amqp": "broker",
    "jinja2": "templating",
    "css_inline": "templating.stored",
    "PIL": "jobs.thumbnail",
    "imapclient": "mailbox.client mailbox.failures",
    "flufl": "mailbox.plain_bounces",
    "aiosmtpd": "inbox smtpd.connection",
    "prometheus_client": "api.routes.metrics",
    "tools": "",  # The service needs none of them.
}
#: Who starts a thread by hand, which ends with one piece of work. The supervisor keeps all others running.
SHORT_THREADS = frozenset(
    {
        "cli.doctor",
        "jobs.runner",
        "jobs.child_process",
        "templating.stored",
        "store.keys.api_keys",
        "process.supervisor",
    }
)
DOES_NOTHING = """import sys, threading; told = []
def hook(event, args):  # urllib3 looks whether there is IPv6 by binding port 0 for a moment.
    if event in ("socket.connect", "socket.bind", "sqlite3.connect", "os.fork") and args[1:] != (("::1", 0),): told.append(event)
sys.addaudithook(hook)
import mailasync, app; app.create_app()
from tests.services.processes import PROJECT
sys.exit("; ".join(told + [thread.name for thread in threading.enumerate()[1:]]) or None)"""


def imports(name: str) -> set[str]:
    """Return what a module imports: modules of ours by their full names, of others at least the package."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named & TREES.keys() or {str(node.module)}
            found |= {str(node.module)} if named - TREES.keys() else set()
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "Lazy"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


def ours(name: str) -> set[str]:
    return imports(name) & TREES.keys()


def short(name: str) -> str:
    return name.removeprefix("mailroom.")


def folder(name: str) -> str:
    """Return the folder of a module, as the picture calls it."""
    if name.startswith("migrations."):
        return "migrations"
    return short(name if name in PACKAGES else name.rpartition(".")[0] or name)


def is_in(name: str, parts: str) -> bool:
    return any(f"{short(name)}.".startswith(f"{part}.") for part in parts.split())


def idle_docstrings(tree: ast.Module) -> list[str]:
    """Return the first lines of the docstrings that begin with an idle word."""
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    return [text.splitlines()[0] for text in docstrings if IDLE_WORDS.match(text)]


def test_imports_obey_the_picture() -> None:
    for name in TREES:
        here = folder(name)
        for other in ours(name):
            assert folder(other) in [here, *MAY_IMPORT[here].split()], f"{name} imports {other}"


def test_the_picture_has_one_direction_and_nothing_that_is_not_there() -> None:
    assert {folder(name) for name in TREES} == MAY_IMPORT.keys()
    assert list(
        TopologicalSorter(
            {name: others.split() for name, others in MAY_IMPORT.items()}
        ).static_order()
    )
    assert list(TopologicalSorter({name: ours(name) for name in TREES}).static_order()), (
        "raises where there is a circle"
    )


def test_packages_of_others_are_known_where_they_belong() -> None:
    for name in TREES:
        for other in imports(name):
            package = other.split(".")[0]
            assert package not in MAY_KNOW or is_in(name, MAY_KNOW[package]), (
                f"{name} knows {other}"
            )


def test_folders_are_small_and_no_module_is_loose() -> None:
    sizes = Counter(
        folder(name) for name in TREES if name.startswith("mailroom.") and name not in PACKAGES
    )
    assert {name: size for name, size in sizes.items() if size > MODULES_MAX} == {}
    assert sizes["mailroom"] == 0


def test_every_module_imports_at_its_top_by_name() -> None:
    for name, tree in TREES.items():
        inside = [node for function in functions(tree) for node in ast.walk(function)]
        imports = [node for node in inside if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not imports, f"{name} imports inside a function"
        aliases = [node for node in ast.walk(tree) if isinstance(node, ast.alias)]
        assert "*" not in {alias.name for alias in aliases}, f"{name} imports *"


def test_modules_functions_and_lines_are_short() -> None:
    for file in FILES:
        lines = file.read_text().splitlines()
        assert len(lines) <= LINES_MAX, f"{file} has {len(lines)} lines"
        long = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX]
        assert not long, f"{file}: lines {long} have more than {COLUMNS_MAX} columns"
    for name, tree in TREES.items():
        long_functions = [
            function.name
            for function in functions(tree)
            if function_lines(function) > FUNCTION_LINES_MAX
        ]
        assert name.startswith("migrations.") or not long_functions, f"{name}: {long_functions}"


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count from `def` to its last line, docstring included."""
    return (function.end_lineno or 0) - function.lineno + 1


def test_docstrings_begin_with_a_verb_or_name_the_thing() -> None:
    found = {
        file.relative_to(PROJECT).as_posix(): idle_docstrings(ast.parse(file.read_text()))
        for file in DOCUMENTED
    }
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_idle_docstrings_are_found_in_modules_classes_and_functions() -> None:
    code = (
        '"""What is here."""\nclass A:\n    """One thing."""\n'
        '    async def f(self):\n        """The same, later.\n\n        More.\n        """'
    )
    assert idle_docstrings(ast.parse(code)) == ["What is here.", "One thing.", "The same, later."]


def test_other_docstrings_are_left_alone() -> None:
    code = '"""Tells what is here."""\ndef f():\n    """Return the same."""\ndef g():\n    """Item of a list."""\ndef h(): ...'
    assert idle_docstrings(ast.parse(code)) == []


def test_each_class_has_a_name_of_its_own() -> None:
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_threads_that_last_are_supervised() -> None:
    by_hand = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread")
    }
    assert {short(name) for name in by_hand} == SHORT_THREADS


def test_importing_opens_no_connection_and_starts_no_thread() -> None:
    subprocess.run([sys.executable, "-c", DOES_NOTHING], cwd=PROJECT, check=True, timeout=60)
