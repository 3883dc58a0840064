"""The work: a plain function. It knows nothing of HTTP, Celery or mail, so a test can simply call it.

Next: put your own work here. With an argument `progress: Progress` it can report its progress
(mailroom/jobs/builtin.py), and clients that start it by `POST /v1/jobs` with `notify` get a mail at the end.
"""

from mailroom.jobs.registry import job

#: F(78) is the last one below 2**53, up to which JSON readers keep integers exactly (RFC 8259, 6).
N_MAX = 78


@job("fibonacci", timeout_seconds=30)
def fibonacci(n: int) -> list[int]:
    """Return the Fibonacci numbers from number 0 to number `n`; none where `n` is negative."""
    if n > N_MAX:
        raise ValueError(f"expected n up to {N_MAX}, got {n}")
    numbers: list[int] = []
    current, next = 0, 1
    for _ in range(n + 1):
        numbers.append(current)
        current, next = next, current + next
    return numbers
