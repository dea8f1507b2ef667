"""Listening in an asyncio program: `async for event in listen_async(model)`."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from confit_runtime.listen_arguments import check_chunk, check_source, make_streams, resolve_source
from confit_runtime.listener import Listener, Tap, detection_or_log, listen_to_source
from confit_runtime.sources import Gap, InputChunk, InputSource, Item, Notice, Pause
from confit_runtime.sources.base import PAUSE_S, PlaybackClock, downmix

if TYPE_CHECKING:
    from confit_runtime.events import Detection, Ended
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

Event = TypeVar("Event")

_MAX_PENDING_EVENTS = (
    64  # events that may wait for a slow reader; then the source waits too, and reports what it lost by that
)
_RELEASE_TIMEOUT_S = 1.0  # how long to wait for a stream whose loop was just left
_POLL_S = 0.1  # how often a waiting source checks whether anybody still listens

log = logging.getLogger(__name__)


async def listen_async(
    models: Model | Stream | Iterable[Model | Stream],
    source: str | Path | InputSource | AsyncIterable[Item] = "mic",
    *,
    taps: Sequence[Tap] = (),
    seconds: float | None = None,
) -> AsyncGenerator[Detection, None]:
    """Yield detections as they complete, without blocking the event loop: the models run in a worker thread.

    `models` and `source` are as for `listen`. Alternatively, `source` is an asynchronous iterable of `(pcm, rate)`
    chunks, such as what a network client sends: all at one rate, with PCM as `Stream.accept` takes it, and a `Pause`
    where the client stops for a while (2 s without data count as one). If it is a generator, it is closed at the end,
    like a source.

    It ends when the source ends, or after `seconds`. Use `async with aclosing(listen_async(...)) as events`: leaving
    that block, also by cancellation, stops and closes the source before anything else happens (a second cancellation
    does not wait for that). Without `aclosing`, it stops only when Python collects the generator.

    To wait for an event for a limited time, keep `task = asyncio.ensure_future(anext(events))` and call
    `asyncio.wait({task}, timeout=...)` until it is done. `asyncio.wait_for(anext(events), ...)` cancels it when the
    time is up, which ends a generator.

    Raises what `listen` does; an error of a source that was already left is logged. Gaps and notices are logged too:
    use `Listener.follow_async` to receive them, or to learn when sounds are over.
    """
    streams = make_streams(models)
    if isinstance(source, AsyncIterable):
        events = _listen_to_client(streams, source, taps, seconds)
    else:
        opened = await asyncio.to_thread(resolve_source, source, stopped=True)
        events = _from_thread(opened, lambda: _listen_opened(streams, opened, taps, seconds))
    async with aclosing(events):
        async for detection in events:
            yield detection


async def follow_events(
    listener: Listener, source: InputSource | AsyncIterable[Item]
) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
    """Implements `Listener.follow_async`. Raises UsageError if `source` is not a source."""
    async with AsyncExitStack() as left:
        if isinstance(source, AsyncIterable):
            items = await left.enter_async_context(aclosing(_with_pauses(source)))
            events = await left.enter_async_context(aclosing(_from_items(listener, items, Pause())))
        else:
            check_source(source, stopped=True)
            events = await left.enter_async_context(
                aclosing(_from_thread(source, lambda: _follow_opened(listener, source)))
            )
        async for event in events:
            yield event


async def _listen_to_client(
    streams: list[Stream], source: AsyncIterable[Item], taps: Sequence[Tap], seconds: float | None
) -> AsyncGenerator[Detection, None]:
    async with aclosing(_with_pauses(source)) as items:
        if (first := await _first_chunk(items)) is None:
            return
        listener = Listener(streams, "the client", check_chunk(first)[1], taps=taps, seconds=seconds)
        async with aclosing(_from_items(listener, items, Pause(), first)) as events:
            async for event in events:
                if (detection := detection_or_log(event, listener)) is not None:
                    yield detection


async def _first_chunk(items: AsyncGenerator[Item, None]) -> InputChunk | None:
    """Return the first chunk, if any. Gaps before it are skipped: nothing was heard yet, so nothing was lost."""
    async for item in items:
        if not isinstance(item, Gap | Notice | Pause):
            return item
    return None


async def _from_items(
    listener: Listener, items: AsyncGenerator[Item, None], *first: Item
) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
    """Yield what a listener hears of `first` and then of `items`.

    `first` is a pause, since a client that sends only speech begins with a word.
    """
    given, failed = deque(first), None
    with closing(listener):
        while not (failed or listener.full):
            try:
                item = given.popleft() if given else await anext(items)
            except StopAsyncIteration:
                break
            except Exception as error:  # noqa: BLE001 - the client's error, raised after the pending events
                failed = error
            else:
                for event in await _collect_in_thread(listener.take(item)):
                    yield event
        for event in await _collect_in_thread(listener.finish()):
            yield event
    if failed is not None:
        raise failed


async def _with_pauses(source: AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    """Yield each item that a client sends, on demand; also a `Pause` if nothing follows its sound for `PAUSE_S`."""
    # each holds one item; an empty tuple is the end
    asked, sent = asyncio.Semaphore(0), asyncio.Queue[tuple[Item, ...]]()

    async def read() -> None:
        chunks = aiter(source)
        try:
            await asked.acquire()
            async for item in chunks:
                sent.put_nowait((item,))
                await asked.acquire()
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    # one task runs all the client's code: an `asyncio.timeout` in it must not move to another task
    reader, playback, clock = asyncio.create_task(read()), PlaybackClock(), asyncio.get_running_loop().time
    reader.add_done_callback(lambda _: sent.put_nowait(()))
    try:
        while True:
            asked.release()
            late = max(PAUSE_S, playback.pause_due(PAUSE_S) - clock())  # a client that was not asked is not late
            try:
                # not `wait_for`: in Python 3.11 it continues if it is cancelled just as an item arrives
                async with asyncio.timeout(late if late < math.inf else None):
                    item = await sent.get()
            except TimeoutError:
                yield Pause()
                item = await sent.get()
            if not item:
                break
            (piece,) = item
            if not isinstance(piece, Gap | Notice | Pause):
                piece = downmix(check_chunk(piece))
                playback.received(len(piece[0]) / piece[1], clock())
            yield piece
    finally:
        ended = reader.done()
        reader.cancel()
        await asyncio.wait([reader])
        if ended or not reader.cancelled():
            reader.result()  # raises the client's error


async def _collect_in_thread(events: Iterator[Event]) -> list[Event]:
    """All of `events`, computed in a thread of the loop's pool; on cancellation, waits until the thread is done.

    Otherwise the thread would keep using a stream that its owner believes to be free.
    """
    work = asyncio.get_running_loop().run_in_executor(None, list, events)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _wait_until_free(streams: list[Stream]) -> None:
    """Wait a moment for streams whose loop was just left: its thread finishes a chunk before they are free."""
    until = time.monotonic() + _RELEASE_TIMEOUT_S
    while any(stream.listener and stream.listener() for stream in streams) and time.monotonic() < until:
        time.sleep(0.01)


def _listen_opened(
    streams: list[Stream], source: InputSource, taps: Sequence[Tap], seconds: float | None
) -> Generator[Detection, None, None]:
    with source:
        _wait_until_free(streams)
        yield from listen_to_source(streams, source, taps, seconds)


def _follow_opened(listener: Listener, source: InputSource) -> Generator[Detection | Ended | Gap | Notice, None, None]:
    with closing(listener), source:
        yield from listener.follow(source)


async def _from_thread(
    source: InputSource, hear: Callable[[], Generator[Event, None, None]]
) -> AsyncGenerator[Event, None]:
    """Yield what `hear` yields in a thread of its own, which opens and closes the `source`."""
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[tuple[Event] | BaseException | None] = asyncio.Queue()  # None marks the end
    free_slots, stopped = threading.Semaphore(_MAX_PENDING_EVENTS), threading.Event()

    def tell(what: tuple[Event] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(found.put_nowait, what)

    def work() -> None:
        try:
            with closing(hear()) as events:  # closed in this thread, where the source was opened
                for event in events:
                    while not free_slots.acquire(timeout=_POLL_S):
                        if stopped.is_set():
                            return
                    tell((event,))
        except BaseException as error:  # noqa: BLE001 - raised where the events are consumed
            if stopped.is_set():
                log.warning("%s: failed after listening had stopped: %s", source.name, error)
            else:
                tell(error)
        else:
            tell(None)

    # A thread of its own: the loop's pool is small, and this one is busy for as long as somebody listens. No task
    # represents it: a loop that ends might cancel that task, and wait for it, before the task that would stop the
    # source.
    thread = threading.Thread(target=work, name="confit-listen", daemon=True)
    thread.start()
    try:
        while (what := await found.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            free_slots.release()
            yield what[0]
    finally:
        stopped.set()
        source.stop()
        while thread.is_alive():
            await asyncio.sleep(0.02)
