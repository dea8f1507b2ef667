"""Work in several processes at once: small encoders train far better side by side than each on all cores in turn."""

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

from confit_edge.heedless import speak_heedlessly
from confit_runtime.errors import ConfitError


class _Spawning(SpawnContext):
    """Begins processes anew, and knows those that it began from others of this program."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: set[multiprocessing.process.BaseProcess] = set()

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self.begun.add(process)
        return process


@contextlib.contextmanager
def workers(
    count: int, *, threads: int, begin: Callable[..., None] | None = None, args: tuple[Any, ...] = (), advice: str
) -> Generator[ProcessPoolExecutor]:
    """A pool of `count` processes that compute in so many `threads` each, and call `begin(*args)` first where it is given.

    Leaving it does not wait for what is being worked on: after an error, or Ctrl-C, its processes are ended. They end with
    this one, too, however it dies. Raises ConfitError with the `advice` where one of them died.
    """
    context = _Spawning()
    pool = ProcessPoolExecutor(
        count,
        mp_context=context,
        initializer=_begin,
        initargs=(threads, begin, args),
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ConfitError(f"a worker process died (out of memory?); {advice}") from error
    finally:
        for worker in context.begun.intersection(multiprocessing.active_children()):
            worker.terminate()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Compute in so many threads: in one, the same work gives the same numbers alone as beside others."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _begin(threads: int, begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one, which ends it
    parent = multiprocessing.parent_process()
    assert parent is not None
    speak_heedlessly()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    if begin:
        begin(*args)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
