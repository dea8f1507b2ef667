"""The clock that live sources measure absences by."""

from __future__ import annotations

import sys
import time


def boottime() -> float:
    """Seconds that pass while the machine is suspended, too, where its monotonic clock can tell (Linux)."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
