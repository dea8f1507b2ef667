"""Work in several processes at once: small encoders train faster in parallel than one by one on all cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from confit_edge.progress import Watcher
from confit_edge.tolerant_stderr import make_stderr_tolerant
from confit_runtime.errors import ConfitError

Events = SimpleQueue[dict[str, Any]]


class _TrackedSpawnContext(SpawnContext):
    """Starts fresh processes, and remembers them to tell them apart from other child processes of this program."""

    def __init__(self) -> None:
        super().__init__()
        self.started: set[multiprocessing.process.BaseProcess] = set()

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self.started.add(process)
        return process


@contextlib.contextmanager
def workers(
    count: int, *, threads: int, initializer: Callable[..., None] | None = None, args: tuple[Any, ...] = (), advice: str
) -> Generator[ProcessPoolExecutor]:
    """A pool of `count` processes with `threads` threads each; each first calls `initializer(*args)` if it is given.

    Leaving the context, also after an error or Ctrl-C, ends the processes without waiting for their work. They also end
    when this process dies, however that happens. Raises ConfitError with the `advice` where one of them died.
    """
    context = _TrackedSpawnContext()
    pool = ProcessPoolExecutor(
        count,
        mp_context=context,
        initializer=_initialise_worker,
        initargs=(threads, initializer, args),
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ConfitError(f"a worker process died (out of memory?); {advice}") from error
    finally:
        for worker in context.started.intersection(multiprocessing.active_children()):
            worker.terminate()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def forwarded(watch: Watcher) -> Iterator[Events]:
    """A queue for the events of several processes; a thread of this process passes them on to `watch`, in order.

    All that were put by the end of the context are passed on, unless a process was ended while it was putting one.
    """
    events: Events = multiprocessing.get_context("spawn").SimpleQueue()
    over = threading.Event()

    def forward() -> None:
        while not (over.wait(0.1) and events.empty()):
            while not events.empty():
                watch(events.get())

    forwarder = threading.Thread(target=forward, daemon=True)
    forwarder.start()
    try:
        yield events
    finally:
        over.set()
        forwarder.join(5)  # no longer: it would wait forever for the rest of a broken event


@contextlib.contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Compute in this many threads. With one thread, work gives the same numbers alone and alongside other work."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _initialise_worker(threads: int, initializer: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process, which then ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None
    make_stderr_tolerant()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    if initializer:
        initializer(*args)


def _exit_with_parent(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
