"""Waiting for a pipe or a socket."""

from __future__ import annotations

import select
import sys


def wait_for_data(descriptor: int, seconds: float) -> bool:
    """Whether a descriptor has something to read, or is at its end, within so many seconds.

    Windows cannot wait for a pipe: there it is always so, and a read blocks until something comes.
    """
    if sys.platform == "win32":
        return True
    poll = select.poll()  # `select` ends at descriptor 1,024, and epoll takes no file
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
