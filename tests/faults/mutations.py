"""Removes one protection at a time from a copy of the tree, and expects a scenario to turn red: `python -m tests.faults.mutations`."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import scenarios
from tests.faults.rig import Rig, end_on_sigterm, private_servers, running
from tests.services.processes import PROJECT

COPIED = ("app.py", "mailasync.py", "default_settings.py", "mailroom", "migrations")
SETTLE_SECONDS = 25.0


@dataclass(frozen=True)
class Mutation:
    """`edits` are (file, text, text instead); the text has to be there exactly once. `by` says what has to turn red."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    #: returns how many nudges the broker lost, where it is judged by that
    scenario: Callable[[Rig], object]
    database: str
    by: str = "mails"  #: mails, that are lost or doubled; nudges, that the sweeper had to recover; or what the scenario returns


class Moved(Exception):
    """The text to be replaced is not in the code any more, or more than once: the mutation has to follow it."""


LOOP, RECORDER = "mailroom/delivery/loop.py", "mailroom/delivery/recorder.py"
CLAIMS = "mailroom/store/messages/claims.py"
OUTCOMES = "mailroom/store/messages/outcomes.py"
MUTATIONS = (
    Mutation(
        "no fence",
        (
            (
                RECORDER,
                "return not self.stopping.is_set() and self.claims.fence(claim)",
                "return True",
            ),
            (LOOP, "partial(dialogue.send, may_send())", "partial(dialogue.send, True)"),
        ),
        scenarios.worker_frozen_past_its_lease,
        "sqlite",
    ),
    Mutation(
        "no owner check",
        (
            (
                CLAIMS,
                'messages.c.attempt == row["attempt"],\n            func.coalesce(messages.c.owner, "") == _WORKER,\n',
                "\n",
            ),
            (
                OUTCOMES,
                'messages.c.attempt == row["attempt"],\n            messages.c.settled < row["attempt"],\n',
                "\n",
            ),
        ),
        scenarios.worker_frozen_while_another_has_its_mail,
        "postgresql",
    ),
    Mutation(
        "number used again",
        (
            (
                CLAIMS,
                "settled=messages.c.attempt,",
                "attempt=messages.c.attempt - 1,",
            ),
        ),
        scenarios.release_done_again,
        "postgresql",
    ),
    Mutation(
        "no sweeper",
        (("mailroom/worker/sweeper.py", "                step()\n", "                pass\n"),),
        scenarios.worker_killed_after_rcpt,
        "sqlite",
    ),
    Mutation(
        "no heartbeat check",
        (
            (
                CLAIMS,
                "            exists().where(workers.c.id == _WORKER, is_seen_within(_LEASE_MS)),\n",
                "",
            ),
        ),
        scenarios.heartbeat_lost,
        "postgresql",
    ),
    Mutation(
        "no finish retry",
        (
            (
                RECORDER,
                "                if not needed and self.stopping.is_set():\n                    return False\n",
                "                return False\n",
            ),
        ),
        scenarios.database_away_after_the_dot,
        "sqlite",
    ),
    Mutation(
        "no confirm",
        (
            (
                "mailroom/worker/celery_config.py",
                '"confirm_publish": True,',
                '"confirm_publish": False,',
            ),
        ),
        scenarios.broker_killed_with_nudges_in_it,
        "postgresql",
        by="nudges",
    ),
    Mutation(
        "no mandatory",
        (("mailroom/broker/nudge_task.py", '"mandatory": True,', '"mandatory": False,'),),
        scenarios.queue_gone,
        "sqlite",
        by="nudges",
    ),
    Mutation(
        "no acks_late",
        (
            (
                "mailroom/worker/celery_config.py",
                '"task_acks_late": True,',
                '"task_acks_late": False,',
            ),
        ),
        scenarios.nudges_met_by_a_locked_database,
        "sqlite",
        by="scenario",
    ),
)


def mutate(project: Path, mutation: Mutation) -> None:
    for file, text, instead in mutation.edits:
        code = (project / file).read_text()
        if code.count(text) != 1:
            raise Moved(
                f"{mutation.name}: expected this once in {file}, found it {code.count(text)} times:\n{text}"
            )
        (project / file).write_text(code.replace(text, instead))


def copy_tree(directory: Path) -> Path:
    project = directory / "tree"
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            project.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, project / name)
    return project


def reds(project: Path, directory: Path, mutation: Mutation) -> str:
    """Run the scenario on this code; return what is wrong in words, "" if nothing is."""
    with (
        private_servers(directory / "servers", database=mutation.database) as servers,
        running(Rig(**servers, project=project)) as rig,
    ):
        returned, stuck = None, ""
        try:
            returned = mutation.scenario(rig)
        except AssertionError as e:
            stuck = " ".join(str(e).split())[-200:]
        verdict = rig.verdict(SETTLE_SECONDS)
        lost_nudges = {"nudges": rig.nudges_recovered.get("lost", 0), "scenario": returned}.get(
            mutation.by, 0
        )
    told = {
        "lost": verdict.lost,
        "never final": verdict.unfinished,
        "doubled and not recorded": verdict.unexplained,
        "doubled where nothing left it open": verdict.duplicated,
        "not asked for": verdict.unexpected,
        "nudges lost after a confirm": lost_nudges,
    }
    found = ", ".join(f"{count} {what}" for what, count in told.items() if count)
    return found or (f"not judged: {stuck}" if stuck else "")


def attempt(mutation: Mutation) -> tuple[str, str]:
    """What is wrong without the mutation, and with it."""
    with tempfile.TemporaryDirectory(
        prefix="mailasync-mutation-", ignore_cleanup_errors=True
    ) as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL, which refuses to run as root, has to reach its own.
        project = copy_tree(directory)
        before = reds(project, directory / "without", mutation)
        mutate(project, mutation)
        return before, reds(project, directory / "with", mutation)


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutations", description=__doc__)
    parser.add_argument("--only", default="", help="only mutations with this in their name")
    only = parser.parse_args().only
    chosen = [mutation for mutation in MUTATIONS if only in mutation.name]
    with tempfile.TemporaryDirectory() as name:
        for mutation in chosen:  # All that moved are told before the first minute is spent.
            mutate(copy_tree(Path(name) / mutation.name), mutation)
    print(f"{'mutation':<20} {'run':<44} {'seconds':>7}  {'':<5} what turned red", flush=True)
    bad = 0
    for mutation in chosen:
        started = time.monotonic()
        before, after = attempt(mutation)
        verdict = (
            "RED"
            if after and not after.startswith("not judged") and not before
            else "GREEN"
            if not before
            else "?"
        )
        bad += verdict != "RED"
        run = f"{mutation.scenario.__name__} ({mutation.database})"
        print(
            f"{mutation.name:<20} {run:<44} {time.monotonic() - started:>7.0f}  {verdict:<5} {after}"
            + (f"; already without the mutation: {before}" if before else ""),
            flush=True,
        )
    print(f"{len(chosen) - bad} of {len(chosen)} are red")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Moved as e:
        sys.exit(f"mutations: {e}")
