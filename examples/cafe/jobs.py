"""The drinks that the café serves. Each has a queue of its own, so the one never waits behind the other."""

from mailroom.jobs.registry import Progress, job

POURING = ("rinse the glass", "pour", "let it settle", "top it up", "serve")


# Both only wait, so a thread is enough; for work that computes leave `isolated=False` away, and it gets a process of its own.
@job("beer", queue="beer", isolated=False)
def beer(progress: Progress, seconds: float = 5.0) -> str:
    """Pour a beer, slowly."""
    for number, step in enumerate(POURING):
        progress(number / len(POURING), step)
        progress.wait(seconds / len(POURING))
    return "a beer"


@job("coffee", queue="coffee", isolated=False)
def coffee(progress: Progress, cups: int = 1, seconds: float = 0.2) -> str:
    """Brew some cups, quickly."""
    progress(0, "brew")
    progress.wait(seconds)
    return f"{cups} cup{'s' * (cups != 1)} of coffee"
