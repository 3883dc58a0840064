"""Holds the picture of the house against the code: who imports whom, and that importing does nothing.

app, mailasync (wire) -> web, serving -> api -> mail, jobs, relay, sweeper, webhook -> store -> mail.message, mail.errors
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FILES = [*PROJECT.glob("*.py"), *PROJECT.glob("mailroom/**/*.py"), *PROJECT.glob("migrations/**/*.py")]
TREES = {".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text()) for file in FILES}
SERVICES = "address_guard broker consumer mail jobs relay sweeper webhook store supervisor settings lazy ids text"
TRADE = "mail.message mail.errors settings lazy ids text"
#: What each part may import of ours besides itself; the longest name that fits a module is its part.
MAY_IMPORT = {
    "app": f"mailasync web api inbox serving commands doctor embedded logs terminal route {SERVICES}",
    "serving": "api supervisor", "embedded": "supervisor lazy", "supervisor": "", "terminal": "", "log_file": "terminal",
    "mailasync": f"logs terminal route order station quiet task_arguments {SERVICES}",
    "station": f"route order {SERVICES}", "order": "mail jobs store ids", "route": "mail settings",
    "commands": f"api doctor {SERVICES}", "doctor": f"route peer {SERVICES}", "web": f"api {SERVICES}",
    "api": f"order route logs peer {SERVICES}",
    "jobs": f"store supervisor mail.schedule {TRADE}",
    "relay": f"broker store supervisor {TRADE}", "broker": "",
    "sweeper": f"relay jobs store supervisor {TRADE}",
    "http_answer": "", "webhook": f"address_guard http_answer mail.schedule store supervisor {TRADE}", "address_guard": "", "peer": "",
    "store": TRADE, "mail": "supervisor settings lazy", "mail.message": TRADE, "mail.errors": TRADE,
    "inbox": "supervisor",
    "consumer": "broker", "events": "broker", "task_arguments": "store",
    "logs": "log_file settings", "settings": "default_settings", "lazy": "", "ids": "", "text": "", "quiet": "",
    "migrations": "store", "default_settings": "", "mailroom": ""}
MAY_KNOW = {"sqlalchemy": "store migrations", "alembic": "store migrations", "flask": "app web api inbox",
            "werkzeug": "app web api inbox serving", "granian": "serving",
            "yagmail": "mail.transport mail.oauth2", "celery": "app mailasync embedded quiet consumer events",
            "amqp": "mailasync relay broker events",
            "kombu": "mailasync relay embedded broker consumer",
            "jinja2": "mail.template mail.sandbox mail.filters", "css_inline": "mail.letter",
            "PIL": "jobs.thumbnail", "prometheus_client": "api.metrics"}
#: Who starts a thread by hand, which ends with one piece of work. The supervisor keeps all others running.
SHORT_THREADS = frozenset({"doctor", "jobs.runner", "jobs.child", "mail.letter", "store.keys", "supervisor"})
DOES_NOTHING = """import sys, threading; told = []
def hook(event, args):  # urllib3 looks whether there is IPv6 by binding port 0 for a moment.
    if event in ("socket.connect", "socket.bind", "sqlite3.connect", "os.fork") and args[1:] != (("::1", 0),): told.append(event)
sys.addaudithook(hook)
import mailasync, app; app.create_app()
sys.exit("; ".join(told + [thread.name for thread in threading.enumerate()[1:]]) or None)"""


def imports(name: str) -> set[str]:
    plain = {alias.name for node in ast.walk(TREES[name]) if isinstance(node, ast.Import) for alias in node.names}
    lazy = {str(node.args[0].value) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Lazy"
            and isinstance(node.args[0], ast.Constant)}
    return plain | lazy | {full if (full := f"{node.module}.{alias.name}") in TREES else str(node.module)
                    for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom) for alias in node.names}


def is_in(name: str, parts: str) -> bool:
    return any(f"{name}.".removeprefix("mailroom.").startswith(f"{part}.") for part in parts.split())


def test_imports_obey_the_picture() -> None:
    for name in TREES:
        part = max((part for part in MAY_IMPORT if is_in(name, part)), key=len, default="mailroom")
        for other in imports(name):
            assert other not in TREES or is_in(other, f"{part} {MAY_IMPORT[part]}"), f"{name} imports {other}"
            assert (package := other.split(".")[0]) not in MAY_KNOW or is_in(name, MAY_KNOW[package]), f"{name} knows {other}"
    assert list(TopologicalSorter({name: imports(name) & TREES.keys() for name in TREES}).static_order()), "raises where there is a circle"


def test_every_module_is_short_and_imports_at_its_top_by_name() -> None:
    for name, tree in TREES.items():
        inside = [node for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(outer)]
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in inside), f"{name} imports inside a function"
        assert not any(isinstance(node, ast.alias) and node.name == "*" for node in ast.walk(tree)), f"{name} imports *"
    assert {str(file): lines for file in FILES if (lines := len(file.read_text().splitlines())) > 400} == {}


def test_threads_that_last_are_supervised() -> None:
    by_hand = {name for name, tree in TREES.items() for node in ast.walk(tree)
               if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread")}
    assert {name.removeprefix("mailroom.") for name in by_hand} == SHORT_THREADS


def test_importing_opens_no_connection_and_starts_no_thread() -> None:
    subprocess.run([sys.executable, "-c", DOES_NOTHING], cwd=PROJECT, check=True, timeout=60)
