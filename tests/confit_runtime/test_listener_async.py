"""Listening in asyncio: clients, cancellation, and sources that fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import (
    AudioError,
    Detection,
    Model,
    Stream,
    Tap,
    asynchronous,
    listen_async,
)
from confit_runtime.gallery import Gallery
from confit_runtime.sources import Chunk, Gap, Notice, Pause
from confit_runtime.speaker import SpeakerTap, VetoTap
from tests.confit_runtime.scripted import Scripted, chunks, direct, places, scene
from tests.tiny_model import RATE, Floats, silence, tone

# asyncio


def test_asyncio_hears_a_source_by_name(model: Model, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "scene.flac", scene(), RATE, subtype="PCM_24")

    async def hear() -> list[Detection]:
        return [event async for event in listen_async(model, str(tmp_path / "scene.flac"))]

    assert places(asyncio.run(hear())) == direct(model)


def test_asyncio_hears_what_a_client_sends(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        yield Gap(100, "before anything")
        for chunk in chunks(scene()):
            await asyncio.sleep(0)
            yield chunk

    async def hear() -> list[Detection]:
        return [event async for event in listen_async([model], client())]

    assert places(asyncio.run(hear())) == direct(model)


def test_a_client_that_sends_nan_is_heard_on(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield np.full(700, np.nan, np.float32), RATE
        for chunk in chunks(scene()):
            yield chunk

    async def hear() -> list[Detection]:
        return [event async for event in listen_async(model, client())]

    assert [(label, start - 700) for label, start, _ in places(asyncio.run(hear()))] == [
        (label, start) for label, start, _ in direct(model)
    ]


def test_an_event_may_be_waited_for_for_a_while_only(model: Model) -> None:
    """As docs/microphone.md says."""

    async def client() -> AsyncIterator[Chunk]:
        for chunk in chunks(scene()):
            await asyncio.sleep(0.005)
            yield chunk

    async def hear() -> tuple[list[Detection], int]:
        found, timeouts = [], 0
        async with aclosing(listen_async(model, client())) as events:
            while True:
                task = asyncio.ensure_future(anext(events))
                while not (await asyncio.wait({task}, timeout=0.01))[0]:
                    timeouts += 1
                try:
                    found.append(task.result())
                except StopAsyncIteration:
                    return found, timeouts

    found, timeouts = asyncio.run(hear())
    assert places(found) == direct(model)
    assert timeouts


def test_a_pausing_client_gets_its_pending_detections(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    async def client(*, tells: bool) -> AsyncIterator[Chunk | Pause]:
        await asyncio.sleep(0.5)  # nothing had begun
        for part in (scene()[: round(0.2 * RATE)], scene()[round(0.2 * RATE) : round(0.44 * RATE)]):
            assert heard == []
            yield part, RATE
            await asyncio.sleep(0.1)
        if tells:
            yield Pause()
        else:
            await asyncio.sleep(0.2)  # the first two parts still sound
            assert heard == []
            await asyncio.sleep(0.8)
        assert heard == ["low"]

    async def main(*, tells: bool) -> None:
        heard.clear()
        async for event in listen_async(model, client(tells=tells)):
            heard.append(event.label)
        assert heard == ["low"]

    asyncio.run(main(tells=True))
    monkeypatch.setattr(asynchronous, "PAUSE_S", 0.3)
    asyncio.run(main(tells=False))


def test_a_client_that_breaks_off_is_heard_to_its_end(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield scene()[: round(0.44 * RATE)], RATE
        raise ConnectionResetError("gone")

    heard: list[str] = []

    async def main() -> None:
        async for event in listen_async(model, client()):
            heard.append(event.label)

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(main())
    assert heard == ["low"]


def test_a_listener_that_is_cancelled_as_a_chunk_comes_ends(model: Model) -> None:
    async def main(turns: int) -> None:
        sent: asyncio.Queue[Chunk] = asyncio.Queue()

        async def client() -> AsyncIterator[Chunk]:
            while True:
                yield await sent.get()

        async def hear() -> None:
            async for _ in listen_async(model, client()):
                pass

        task = asyncio.create_task(hear())
        sent.put_nowait((silence(0.1), RATE))
        await asyncio.sleep(0.1)
        sent.put_nowait((silence(0.1), RATE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        assert await asyncio.wait([task], timeout=20) == ({task}, set())

    for turns in range(8):
        asyncio.run(main(turns))


def test_a_client_whose_own_task_was_cancelled_has_not_ended(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield silence(0.1), RATE
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            async for _ in listen_async(model, client()):
                pass

    asyncio.run(main())


def test_client_errors_are_raised_and_waiting_clients_closed(model: Model) -> None:
    closed: list[str] = []

    async def client(*, fails: bool) -> AsyncIterator[Chunk]:
        try:
            async with asyncio.timeout(30):
                yield silence(0.1), RATE
                if fails:
                    raise OSError("the line is dead")
                begun.set()
                await asyncio.sleep(30)
        finally:
            closed.append("client")

    async def hear(*, fails: bool) -> None:
        async for _ in listen_async(model, client(fails=fails)):
            raise AssertionError("nothing was to be heard")

    async def leave() -> None:
        task = asyncio.create_task(hear(fails=False))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(OSError, match="the line is dead"):
        asyncio.run(hear(fails=True))
    assert closed == ["client"]
    begun = asyncio.Event()
    asyncio.run(leave())
    assert closed == ["client"] * 2


def test_a_client_that_is_heard_no_longer_is_closed(model: Model) -> None:
    closed: list[str] = []

    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        try:
            for chunk in chunks(np.tile(scene(), 20)):
                yield chunk
        finally:
            closed.append("client")

    async def hear() -> list[str]:
        heard = [event.label async for event in listen_async(model, client(), seconds=1.0)]
        return [*heard, *closed]

    assert asyncio.run(hear()) == ["low", "client"]


def test_a_cancelled_task_leaves_no_thread_at_its_stream(model: Model) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    class Slow(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            begun.set()
            go_on.wait(5)
            done.set()

    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        yield tone(500, 0.3), RATE

    async def hear() -> None:
        async for _ in listen_async(model, client(), taps=[Slow()]):
            raise AssertionError("nothing was to be heard yet")

    async def main() -> None:
        task = asyncio.create_task(hear())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()

    asyncio.run(main())


def test_errors_of_abandoned_sources_are_logged(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(Scripted):
        def __exit__(self, *details: object) -> None:
            super().__exit__(*details)
            raise OSError("the device broke")

    source = Breaking(chunks(scene()), endless=True)

    async def hear() -> None:
        async with aclosing(listen_async(model, source)) as events:
            async for _ in events:
                return

    asyncio.run(hear())
    assert source.left.is_set()
    assert "scripted: failed after listening had stopped: the device broke" in caplog.text


def test_a_loop_that_was_left_at_once_may_be_begun_again_on_its_stream(model: Model) -> None:
    async def hear(stream: Stream) -> list[str]:
        labels = []
        for _ in range(3):
            async for event in listen_async(stream, Scripted(chunks(np.tile(scene(), 200)), endless=True)):
                labels.append(event.label)
                break
        return labels

    assert asyncio.run(hear(model.stream())) == ["low"] * 3


def test_leaving_a_client_without_closing_it_says_nothing(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        for chunk in chunks(np.tile(scene(), 20)):
            yield chunk
            await asyncio.sleep(0)

    async def hear() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        async for event in listen_async(model, client()):
            return event.label
        raise AssertionError("nothing was heard")

    told: list[str] = []
    assert asyncio.run(hear()) == "low"
    assert told == []


def test_leaving_an_asyncio_loop_stops_the_source_and_closes_it(model: Model) -> None:
    source = Scripted(chunks(np.tile(scene(), 200)), endless=True)

    async def hear() -> Detection:
        async with aclosing(listen_async(model, source)) as events:
            async for event in events:
                return event
        raise AssertionError("nothing was heard")

    assert asyncio.run(hear()).label == "low"
    assert source.stopped.is_set()
    assert source.left.is_set()


def test_a_cancelled_task_stops_the_source_and_closes_it(model: Model) -> None:
    source = Scripted(chunks(scene()), endless=True)

    async def hear(found: asyncio.Queue[Detection]) -> None:
        async for event in listen_async(model, source):
            found.put_nowait(event)

    async def main() -> Detection:
        found: asyncio.Queue[Detection] = asyncio.Queue()
        task = asyncio.create_task(hear(found))
        first = await found.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return first

    assert asyncio.run(main()).label == "low"
    assert source.left.wait(5)


def test_a_loop_that_ends_ends_those_that_still_listen(model: Model) -> None:
    """Whichever of its tasks it cancels first: no thread is waited for before its source is stopped."""
    sources = [Scripted(chunks(silence(0.1)), endless=True) for _ in range(8)]

    async def hear(source: Scripted) -> None:
        async with aclosing(listen_async(model, source)) as events:
            async for _ in events:
                raise AssertionError("nothing is to be heard")

    async def main() -> None:
        listening = [asyncio.create_task(hear(source)) for source in sources]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in listening)

    program = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    program.start()
    program.join(30)
    assert not program.is_alive()
    assert all(source.left.is_set() for source in sources)


def test_asyncio_raises_what_the_source_raises(model: Model) -> None:
    async def hear() -> list[Detection]:
        torn = Scripted([*chunks(scene()), (np.full(9, np.nan, np.float32), RATE)])
        torn.live = False
        return [event async for event in listen_async(model, torn)]

    with pytest.raises(AudioError, match="NaN"):
        asyncio.run(hear())


def test_asyncio_has_taps_that_ask_a_gallery_opened_before(model: Model, tmp_path: Path) -> None:
    """The models run in another thread than the one that opened it."""
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        low = model.embed(tone(500, 0.3), RATE)[None]
        gallery.enroll("low", low, sources=["x"], voiced_s=0.3, negative=True)
        taps = [SpeakerTap(model, gallery), VetoTap(model, gallery)]

        async def hear() -> list[Detection]:
            return [event async for event in listen_async(model, Scripted(chunks(scene())), taps=taps)]

        assert [event.label for event in asyncio.run(hear())] == ["mid"]


def test_asyncio_hears_more_sources_at_once_than_the_loop_has_threads(model: Model) -> None:
    count = 40

    async def main() -> None:
        sources = [Scripted(chunks(scene()), endless=True) for _ in range(count)]
        found: asyncio.Queue[int] = asyncio.Queue()

        async def hear(number: int) -> None:
            async for _ in listen_async(model, sources[number]):
                found.put_nowait(number)

        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(hear(number)) for number in range(count)]
            silent = set(range(count))
            while silent:
                silent.discard(await found.get())
            assert await asyncio.to_thread(lambda: "free") == "free"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
