"""On PYTHONPATH, shifts the host's clock for one Python process by CLOCK_SHIFT_SECONDS, as a host that is wrong about the time has it."""

import os
import time

_shift = float(os.environ.get("CLOCK_SHIFT_SECONDS", "0"))
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _shift
time.time_ns = lambda: _time_ns() + int(_shift * 1e9)
