"""The job types that come with the service."""

from mailroom.jobs.registry import Progress, job

STEPS = 10


# It changes nothing, so after a crash it can simply run again. It only waits, so it needs no process.
@job("simulate", isolated=False, max_attempts=10)
def simulate(seconds: float, progress: Progress) -> None:
    """Stand in for heavy work: take `seconds`, and report progress."""
    for step in range(STEPS):
        progress(step / STEPS, f"step {step + 1} of {STEPS}")
        progress.wait(seconds / STEPS)
