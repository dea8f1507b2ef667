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
from typing import Any

import torch

from confit_edge.tolerant_stderr import make_stderr_tolerant
from confit_runtime.errors import ConfitError


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
