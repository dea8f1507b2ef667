"""The memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int | None:
    """This process's largest resident set so far, or None if the system does not report it.

    On Linux `getrusage` reports it too, but there a child starts with its parent's peak.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return _peak_by_rusage()
    match = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(match[0]) if match else None


def _peak_by_rusage() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
