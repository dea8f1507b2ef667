"""The clock by which live sources measure absences."""

from __future__ import annotations

import sys
import time


def boottime() -> float:
    """Seconds that also pass while the machine is suspended, if the system provides such a clock (Linux)."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
