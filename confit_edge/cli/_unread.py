"""What `listen` does when whoever read its stdout has left: a recording ends without a word, live sound with an error."""

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

LOOK_MS = 200  # between looks whether listening is over


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End without a word when whoever read our stdout has left, as `| head -1` does."""
    try:
        yield
    except BrokenPipeError:
        _write_no_more()


@contextmanager
def while_read(source: Source) -> Iterator[None]:
    """Of live sound, raise ConfitError soon after whoever read our stdout has left, rather than at the next detection.

    That one would be lost, and a service that ends as if all were well is not started again. Where stdout cannot be
    polled (Windows) it is the next line that fails.
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
    except ConfitError:  # stopped before any sound came, the source is said to have none
        if not left.is_set():
            raise
    finally:
        over.set()
        watcher.join()
    if left.is_set():
        _write_no_more()
        raise ConfitError("whoever read stdout has left, and would not hear of what is detected: listening ended")


def _watch(descriptor: int, source: Source, over: Event, left: Event) -> None:
    """Stop the source when a descriptor has no reader any more."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told unasked
    while not over.is_set():
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(LOOK_MS)):
            left.set()
            source.stop()
            return


def _write_no_more() -> None:
    """Python flushes stdout once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
