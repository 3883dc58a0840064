"""app.py and mailasync.py are as the reader of the tutorial knows them."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def functions(file: str) -> dict[str, ast.FunctionDef]:
    """Return the functions of a module by what decorates them first, or else by their name."""
    found = [
        node
        for node in ast.walk(ast.parse((PROJECT / file).read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    return {
        ast.unparse(node.decorator_list[0]) if node.decorator_list else node.name: node
        for node in found
    }


def test_the_route_of_the_tutorial_calls_send_mail_delay_with_the_id_of_every_mail() -> None:
    route = functions("app.py")["app.post('/')"]
    conditions = [ast.unparse(node.test) for node in ast.walk(route) if isinstance(node, ast.If)]
    calls = [ast.unparse(node) for node in ast.walk(route) if isinstance(node, ast.Call)]
    assert "sendMail.delay(submission.id)" in calls
    # There is no id where no mail was accepted; else nothing is asked.
    assert conditions == ["submission.id"]


def test_the_tasks_are_at_the_top_of_mailasync_and_a_few_lines_each() -> None:
    tasks = {
        node.name: sum(len(ast.unparse(part).splitlines()) for part in node.body[1:])
        for decorator, node in functions("mailasync.py").items()
        if decorator.startswith("celery_app.task(")
    }
    assert list(tasks)[:3] == ["sendMail", "runJob", "tellClients"]
    assert max(tasks.values()) <= 8


@pytest.mark.parametrize(("file", "most"), [("app.py", 120), ("mailasync.py", 150)])
def test_both_are_short(file: str, most: int) -> None:
    assert len((PROJECT / file).read_text().splitlines()) <= most
