"""The report: plain Python that knows nothing of Celery, beat or mail."""

import platform
import shutil
from pathlib import Path

from mailroom.jobs.registry import job

GB = 1e9


# It changes nothing, so it can simply run again if its worker is killed.
@job("report", timeout_seconds=60, max_attempts=3)
def report() -> dict[str, float | str]:
    """Measure how full the disk is."""
    disk = shutil.disk_usage(Path(__file__).anchor)
    return {
        "host": platform.node(),
        "used_percent": round(100 * disk.used / disk.total, 1),
        "free_gb": round(disk.free / GB, 1),
        "total_gb": round(disk.total / GB, 1),
    }
