"""Waiting for a pipe or a socket."""

from __future__ import annotations

import select
import sys


def wait_for_data(descriptor: int, seconds: float) -> bool:
    """Whether a descriptor has data to read, or is at its end, within `seconds`.

    Windows cannot wait for a pipe: there it always returns True, and a read blocks until data comes.
    """
    if sys.platform == "win32":
        return True
    poll = select.poll()  # `select` is limited to descriptors below 1,024, and epoll does not take files
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
