"""What `listen` does when the reader of its stdout has gone: a recording ends silently, live sound with an error."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from confit_runtime.errors import ConfitError

if TYPE_CHECKING:
    from confit_runtime.sources import Source

LOOK_MS = 200  # interval at which the watcher checks whether listening is over


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End silently when the reader of stdout has gone, as with `| head -1`."""
    try:
        yield
    except BrokenPipeError:
        _write_no_more()


@contextmanager
def while_read(source: Source) -> Iterator[None]:
    """For live sound, raise ConfitError soon after the reader of stdout has gone, not only at the next detection.

    That detection would be lost, and a service that seems to end well is not restarted. If stdout cannot be polled (Windows),
    the next line fails instead.
    """
    if not source.live or sys.stdout is None:
        yield
        return
    over, left = Event(), Event()
    watcher = Thread(target=_watch, args=(sys.stdout.fileno(), source, over, left))
    watcher.start()
    try:
        yield
    except BrokenPipeError:
        left.set()
    except ConfitError:  # a source stopped before any sound came is reported as having none
        if not left.is_set():
            raise
    finally:
        over.set()
        watcher.join()
    if left.is_set():
        _write_no_more()
        raise ConfitError("the reader of stdout has gone, so detections would be lost: listening ended")


def _watch(descriptor: int, source: Source, over: Event, left: Event) -> None:
    """Stop the source when the descriptor no longer has a reader."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported without being asked for
    while not over.is_set():
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(LOOK_MS)):
            left.set()
            source.stop()
            return


def _write_no_more() -> None:
    """Send further output to the null device: Python flushes stdout once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
