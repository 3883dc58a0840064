"""The work: a plain function. It knows nothing of HTTP, Celery or mail, so a test may just call it.

Next: put your own work here. A `progress: Progress` argument tells how far it is (mailroom/jobs/builtin.py), and a client that
wants a mail at the end starts it by `POST /v1/jobs` with `notify`.
"""

from mailroom.jobs.registry import job

#: The last one that every reader of JSON keeps exactly: they are only sure of integers up to 2**53 (RFC 8259, 6).
N_MAX = 78


@job("fibonacci", timeout_seconds=30)
def fibonacci(n: int) -> list[int]:
    """Return the Fibonacci numbers from number 0 to number `n`; none where `n` is negative."""
    if n > N_MAX:
        raise ValueError(f"expected n up to {N_MAX}, got {n}")
    numbers: list[int] = []
    this, following = 0, 1
    for _ in range(n + 1):
        numbers.append(this)
        this, following = following, this + following
    return numbers
