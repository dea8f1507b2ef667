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

POLL_MS = 200  # interval at which the watcher checks whether listening is over


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """End silently when the reader of stdout has gone, as with `| head -1`."""
    try:
        yield
    except BrokenPipeError:
        _discard_stdout()


@contextmanager
def stop_when_reader_gone(source: Source) -> Iterator[None]:
    """For live sound, raise ConfitError soon after the reader of stdout has gone, not only at the next detection.

    That detection would be lost, and a service that seems to end well is not restarted. If stdout cannot be polled (Windows),
    the next line fails instead.
    """
    if not source.live or sys.stdout is None:
        yield
        return
    finished, reader_gone = Event(), Event()
    watcher = Thread(target=_stop_when_unread, args=(sys.stdout.fileno(), source, finished, reader_gone))
    watcher.start()
    try:
        yield
    except BrokenPipeError:
        reader_gone.set()
    except ConfitError:  # a source stopped before any sound came is reported as having none
        if not reader_gone.is_set():
            raise
    finally:
        finished.set()
        watcher.join()
    if reader_gone.is_set():
        _discard_stdout()
        raise ConfitError("the reader of stdout has gone, so detections would be lost: listening ended")


def _stop_when_unread(descriptor: int, source: Source, finished: Event, reader_gone: Event) -> None:
    """Stop the source when the descriptor no longer has a reader."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported without being asked for
    while not finished.is_set():
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(POLL_MS)):
            reader_gone.set()
            source.stop()
            return


def _discard_stdout() -> None:
    """Send further output to the null device: Python flushes stdout once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
