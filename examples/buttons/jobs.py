"""The work: it only waits, as in the tutorial.

Next: put your own work here. If it computes something, leave out `isolated=False`: it then runs in a
process of its own.
"""

import os

from mailroom.jobs.registry import Progress, job

#: How long one unit of work takes, in seconds.
UNIT_SECONDS = float(os.environ.get("UNIT_SECONDS", "10"))


@job("create_task", isolated=False)
def create_task(task_type: int, progress: Progress) -> bool:
    """Work for `task_type` units, and report progress after each."""
    for unit in range(task_type):
        progress(unit / task_type, f"unit {unit + 1} of {task_type}")
        progress.wait(UNIT_SECONDS)
    return True
