"""The drinks of the café, each on a queue of its own, so that neither waits behind the other."""

from mailroom.jobs.registry import Progress, job

POURING = ("rinse the glass", "pour", "let it settle", "top it up", "serve")


# Both only wait, so a thread is enough. For work that computes, leave out `isolated=False`: it then runs in a
# process of its own.
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
    unit = "cup" if cups == 1 else "cups"
    return f"{cups} {unit} of coffee"
