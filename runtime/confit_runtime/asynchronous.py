"""Listening in an asyncio program: `async for event in listen_async(model)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING

from confit_runtime.listener import Listener, Tap, logged, streams_of
from confit_runtime.sources import Chunk, Gap, Notice, Source, open_source

if TYPE_CHECKING:
    from confit_runtime.model import Model
    from confit_runtime.stream import Detection, Stream

_AHEAD = 64  # detections that may wait for a slow reader; then the source waits too, and says what that made it lose


async def listen_async(
    models: Model | Stream | Sequence[Model | Stream],
    source: str | Source | AsyncIterable[Chunk | Gap | Notice] = "mic",
    *,
    taps: Sequence[Tap] = (),
    seconds: float | None = None,
) -> AsyncGenerator[Detection, None]:
    """Detections as they complete, without holding up the event loop: the models run in a worker thread.

    `source` is a source, or its name, as for `listen`; or an asynchronous iterable of `(pcm, rate)` chunks, such as what
    a network client sends: all of one rate, mono in -1..1. It ends when the source ends or after `seconds`. Cancelling
    the task that iterates, or leaving `async with aclosing(listen_async(...)) as events`, stops the source and closes it
    before anything else happens. Raises what the source raises.
    """
    streams = streams_of(models)
    if isinstance(source, AsyncIterable):
        heard = _from_chunks(streams, source, taps, seconds)
    else:
        opened = await asyncio.to_thread(open_source, source) if isinstance(source, str) else source
        heard = _from_thread(streams, opened, taps, seconds)
    async with aclosing(heard):
        async for detection in heard:
            yield detection


async def _from_chunks(
    streams: list[Stream], source: AsyncIterable[Chunk | Gap | Notice], taps: Sequence[Tap], seconds: float | None
) -> AsyncGenerator[Detection, None]:
    listener: Listener | None = None
    async for item in source:
        if listener is None:
            if not isinstance(item, tuple):
                continue  # nothing was heard yet, so nothing was lost
            listener = Listener(streams, "the client", item[1], taps=taps, seconds=seconds)
        for event in await asyncio.to_thread(list, listener.take(item)):
            if (detection := logged(event, listener)) is not None:
                yield detection
        if listener.full:
            break
    if listener is not None:
        for event in await asyncio.to_thread(list, listener.finish()):
            if (detection := logged(event, listener)) is not None:
                yield detection


async def _from_thread(
    streams: list[Stream], source: Source, taps: Sequence[Tap], seconds: float | None
) -> AsyncGenerator[Detection, None]:
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[Detection | None] = asyncio.Queue(maxsize=_AHEAD)  # None: the end

    def work() -> None:
        with source:
            listener = Listener(streams, source.name, source.rate, taps=taps, seconds=seconds)
            for event in listener.follow(source):
                if (detection := logged(event, listener)) is not None:
                    asyncio.run_coroutine_threadsafe(found.put(detection), loop).result()

    async def worker() -> None:
        # a thread of its own: those of the loop are few, and this one is busy for as long as somebody listens
        with ThreadPoolExecutor(1, thread_name_prefix="confit-listen") as alone:
            try:
                await loop.run_in_executor(alone, work)
            finally:
                await found.put(None)

    task = asyncio.create_task(worker())
    try:
        while (detection := await found.get()) is not None:
            yield detection
        await task
    finally:
        source.stop()
        while not task.done():
            while not found.empty():  # the thread may be waiting for room
                found.get_nowait()
            await asyncio.wait([task], timeout=0.02)
