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

from confit_runtime.audio import to_mono
from confit_runtime.given import check_source, chunk_of, source_of, streams_of
from confit_runtime.listener import Listener, Tap, listened, logged
from confit_runtime.sources import Gap, Given, GivenSource, Item, Notice, Pause
from confit_runtime.sources.base import PAUSE_S, Lasting

if TYPE_CHECKING:
    from confit_runtime.events import Detection, Ended
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

Event = TypeVar("Event")

_AHEAD = 64  # events that may wait for a slow reader; then the source waits too, and says what that made it lose
_FREED_S = 1.0  # for which a stream is waited for, whose loop was left
_POLL_S = 0.1  # how often a source that waits asks whether anybody still listens

log = logging.getLogger(__name__)


async def listen_async(
    models: Model | Stream | Iterable[Model | Stream],
    source: str | Path | GivenSource | AsyncIterable[Item] = "mic",
    *,
    taps: Sequence[Tap] = (),
    seconds: float | None = None,
) -> AsyncGenerator[Detection, None]:
    """Detections as they complete, without holding up the event loop: the models run in a worker thread.

    `models` and `source` are what they are for `listen`; or the source is an asynchronous iterable of `(pcm, rate)` chunks,
    such as what a network client sends: all of one rate, and PCM as `Stream.accept` takes it, with a `Pause` where the client
    stops for a while (where it sends nothing for 2 s there is one, anyway); a generator is closed at the end, as a source is.

    It ends when the source ends or after `seconds`. Leaving `async with aclosing(listen_async(...)) as events`, also because
    the task is cancelled, stops the source and closes it before anything else happens (a second cancellation does not wait for
    that); one that is left without `aclosing` is stopped when Python collects it. Who waits for an event for so long only
    keeps `task = asyncio.ensure_future(anext(events))` and asks `asyncio.wait({task}, timeout=...)` until it is done:
    `asyncio.wait_for(anext(events), ...)` cancels it when time is up, which in Python ends a generator.

    Raises what `listen` does; what the source raises when it is left already is logged. Gaps and notices are logged, too: who
    wants them, or when sounds are over, iterates over `Listener.follow_async`.
    """
    streams = streams_of(models)
    if isinstance(source, AsyncIterable):
        heard = _of_client(streams, source, taps, seconds)
    else:
        opened = await asyncio.to_thread(source_of, source, stopped=True)
        heard = _from_thread(opened, lambda: _listened(streams, opened, taps, seconds))
    async with aclosing(heard):
        async for detection in heard:
            yield detection


async def followed(
    listener: Listener, source: GivenSource | AsyncIterable[Item]
) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
    """What `Listener.follow_async` gives. Raises UsageError on what is no source."""
    async with AsyncExitStack() as left:
        if isinstance(source, AsyncIterable):
            items = await left.enter_async_context(aclosing(_with_pauses(source)))
            events = await left.enter_async_context(aclosing(_from_items(listener, items, Pause())))
        else:
            check_source(source, stopped=True)
            events = await left.enter_async_context(aclosing(_from_thread(source, lambda: _opened(listener, source))))
        async for event in events:
            yield event


async def _of_client(
    streams: list[Stream], source: AsyncIterable[Item], taps: Sequence[Tap], seconds: float | None
) -> AsyncGenerator[Detection, None]:
    async with aclosing(_with_pauses(source)) as items:
        if (first := await _first_chunk(items)) is None:
            return
        listener = Listener(streams, "the client", chunk_of(first)[1], taps=taps, seconds=seconds)
        async with aclosing(_from_items(listener, items, Pause(), first)) as events:
            async for event in events:
                if (detection := logged(event, listener)) is not None:
                    yield detection


async def _first_chunk(items: AsyncGenerator[Item, None]) -> Given | None:
    """The first chunk, if there is one. Nothing was heard before it, so nothing was lost."""
    async for item in items:
        if not isinstance(item, Gap | Notice | Pause):
            return item
    return None


async def _from_items(
    listener: Listener, items: AsyncGenerator[Item, None], *first: Item
) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
    """What a listener hears of `first`, a pause, for who sends only while somebody speaks begins with a word; and of `items`."""
    given, failed = deque(first), None
    with closing(listener):
        while not (failed or listener.full):
            try:
                item = given.popleft() if given else await anext(items)
            except StopAsyncIteration:
                break
            except Exception as error:  # noqa: BLE001 - of the client, and raised when what was on its way is told
                failed = error
            else:
                for event in await _whole(listener.take(item)):
                    yield event
        for event in await _whole(listener.finish()):
            yield event
    if failed is not None:
        raise failed


async def _with_pauses(source: AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    """What a client sends, each item when asked for; where it has sounded and nothing more comes for `PAUSE_S`, a `Pause`."""
    asked, sent = asyncio.Semaphore(0), asyncio.Queue[tuple[Item, ...]]()  # of one each; of none: the end

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

    # a task of its own for all that the client does: what it does within a time limit must not move to another
    reader, lasting, clock = asyncio.create_task(read()), Lasting(), asyncio.get_running_loop().time
    reader.add_done_callback(lambda _: sent.put_nowait(()))
    try:
        while True:
            asked.release()
            late = max(PAUSE_S, lasting.paused(PAUSE_S) - clock())  # who was not asked is not late
            try:
                # not by `wait_for`, which of Python 3.11 goes on when it is cancelled as an item comes
                async with asyncio.timeout(late if late < math.inf else None):
                    item = await sent.get()
            except TimeoutError:
                yield Pause()
                item = await sent.get()
            if not item:
                break
            (piece,) = item
            if not isinstance(piece, Gap | Notice | Pause):
                pcm, rate = chunk_of(piece)
                piece = to_mono(pcm), rate
                lasting.came(len(piece[0]) / rate, clock())
            yield piece
    finally:
        ended = reader.done()
        reader.cancel()
        await asyncio.wait([reader])
        if ended or not reader.cancelled():
            reader.result()  # raises what the client did


async def _whole(events: Iterator[Event]) -> list[Event]:
    """All of `events`, worked out in a thread of the loop's; who is cancelled meanwhile leaves when it has come to its end.

    Else a thread would go on with a stream that its owner takes to be free.
    """
    work = asyncio.get_running_loop().run_in_executor(None, list, events)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _wait_for(streams: list[Stream]) -> None:
    """Wait a moment for streams whose loop was left just now: its thread comes to the end of a chunk before they are free."""
    until = time.monotonic() + _FREED_S
    while any(stream.listener and stream.listener() for stream in streams) and time.monotonic() < until:
        time.sleep(0.01)


def _listened(
    streams: list[Stream], source: GivenSource, taps: Sequence[Tap], seconds: float | None
) -> Generator[Detection, None, None]:
    with source:
        _wait_for(streams)
        yield from listened(streams, source, taps, seconds)


def _opened(listener: Listener, source: GivenSource) -> Generator[Detection | Ended | Gap | Notice, None, None]:
    with closing(listener), source:
        yield from listener.follow(source)


async def _from_thread(
    source: GivenSource, hear: Callable[[], Generator[Event, None, None]]
) -> AsyncGenerator[Event, None]:
    """What `hear` gives in a thread of its own, which opens the `source` and closes it."""
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[tuple[Event] | BaseException | None] = asyncio.Queue()  # None: the end
    room, left = threading.Semaphore(_AHEAD), threading.Event()

    def tell(what: tuple[Event] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(found.put_nowait, what)

    def work() -> None:
        try:
            with closing(hear()) as events:  # here, where the source was opened
                for event in events:
                    while not room.acquire(timeout=_POLL_S):
                        if left.is_set():
                            return
                    tell((event,))
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody listens
            if left.is_set():
                log.warning("%s: failed when nobody listened any more: %s", source.name, error)
            else:
                tell(error)
        else:
            tell(None)

    # a thread of its own, for those of the loop are few and this one is busy for as long as somebody listens; and no task
    # stands for it, which a loop that ends might cancel, and wait for, before the task that would stop the source
    thread = threading.Thread(target=work, name="confit-listen", daemon=True)
    thread.start()
    try:
        while (what := await found.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            room.release()
            yield what[0]
    finally:
        left.set()
        source.stop()
        while thread.is_alive():
            await asyncio.sleep(0.02)
