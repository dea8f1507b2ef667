"""Every event of listening, with and without asyncio: order, ends, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from confit_runtime import (
    Detection,
    Ended,
    Listener,
    Model,
    UsageError,
    asynchronous,
    load,
)
from confit_runtime.errors import DeviceError
from confit_runtime.sources import Chunk, Gap, Item, Notice, Pause
from tests import tiny_model
from tests.confit_runtime.scripted import Scripted, chunks, scene
from tests.tiny_model import RATE, tone

# asyncio, every event

Told = Detection | Ended | Gap | Notice
GIVEN: list[Chunk | Gap | Notice | Pause] = [
    *chunks(scene()),
    Notice("away", "gone"),
    Gap(900, "gone"),
    Notice("back", "here"),
    *chunks(np.concatenate([scene(), tone(500, 0.3)])),
]


def sent(as_a_client: bool, source: Scripted) -> Scripted | AsyncIterator[Item]:
    """What a source gives, as a client sends it or by itself."""

    async def client() -> AsyncIterator[Item]:
        with source:
            for item in source:
                await asyncio.sleep(0)
                yield item
            while source.endless and not source.stopped.is_set():
                await asyncio.sleep(0.01)

    return client() if as_a_client else source


async def every_event(
    listener: Listener, source: Scripted | AsyncIterator[Item], *, pause_s: float | None = None
) -> list[Told]:
    """All that is told, to who takes so long over each event."""
    told: list[Told] = []
    async with aclosing(listener.follow_async(source)) as events:
        async for event in events:
            told.append(event)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
    return told


def listening() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "confit-listen"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """It hears the same, half as often, and by the name of other."""
    path = tiny_model.build(tmp_path_factory.mktemp("other") / "other.onnx", name="other", smoothing_hops=9)
    return load(path)


def listener_of(*models: Model, rate: int = RATE) -> Listener:
    return Listener([model.stream(ends=True) for model in models], "scripted", rate)


@pytest.mark.parametrize("as_a_client", [False, True])
def test_follow_async_yields_what_follow_yields(model: Model, other: Model, as_a_client: bool) -> None:
    wanted = list(listener_of(model, other).follow(Scripted([Pause(), *GIVEN])))
    assert {(type(event), getattr(event, "model", "")) for event in wanted} == {
        *((kind, name) for kind in (Detection, Ended) for name in ("tiny", "other")),
        (Gap, ""),
        (Notice, ""),
    }
    listener = listener_of(model, other)
    assert asyncio.run(every_event(listener, sent(as_a_client, Scripted(GIVEN)))) == wanted
    assert (listener.samples, listener.dropped_samples) == (2 * len(scene()) + len(tone(500, 0.3)) + 900, 900)
    assert not any(stream.listener for stream in listener.streams)


@pytest.mark.parametrize("as_a_client", [False, True])
def test_slow_readers_get_all_events_in_order(
    model: Model, other: Model, monkeypatch: pytest.MonkeyPatch, as_a_client: bool
) -> None:
    monkeypatch.setattr(asynchronous, "_MAX_PENDING_EVENTS", 2)  # then the source waits
    wanted = list(listener_of(model, other).follow(Scripted([Pause(), *GIVEN])))

    async def main() -> list[list[Told]]:
        sources = [sent(as_a_client, Scripted(GIVEN)) for _ in range(20)]
        slow = [None, 0.0, 0.01, 0.03] * 5
        async with asyncio.timeout(60):
            return await asyncio.gather(
                *(
                    every_event(listener_of(model, other), source, pause_s=pause_s)
                    for source, pause_s in zip(sources, slow, strict=True)
                )
            )

    assert asyncio.run(main()) == [wanted] * 20
    assert listening() == []


@pytest.mark.parametrize("as_a_client", [False, True])
def test_stopping_the_source_completes_pending_detections(model: Model, as_a_client: bool) -> None:
    source = Scripted(chunks(np.concatenate([scene(), tone(500, 2.0)])), endless=True)

    async def hear() -> list[str]:
        told: list[str] = []
        async with asyncio.timeout(30):
            async for event in listener_of(model).follow_async(sent(as_a_client, source)):
                assert isinstance(event, Detection | Ended)
                told.append(f"{type(event).__name__} {event.label}")
                if told[-1:] == ["Detection low"] and len(told) > 1:
                    await asyncio.sleep(0.2)  # the rest has come, and sounds still
                    source.stop()
        return told

    told = asyncio.run(hear())
    assert told == ["Detection low", "Ended low", "Detection mid", "Ended mid", "Detection low", "Ended low"]
    assert source.left.is_set()


@pytest.mark.parametrize("as_a_client", [False, True])
@pytest.mark.parametrize("how", ["aclose", "cancelled", "cancelled while it waits"])
def test_leaving_every_event_leaves_no_thread_and_the_stream_free(model: Model, as_a_client: bool, how: str) -> None:
    stream = model.stream(ends=True)
    wanted = list(Listener([stream], "", RATE).follow(Scripted([Pause(), *GIVEN])))
    many = np.tile(scene(), 1 if how.endswith("waits") else 100)

    async def hear(source: Scripted, leaves_after: int, told: list[Told]) -> None:
        listener = Listener([stream], "", RATE)
        async with aclosing(listener.follow_async(sent(as_a_client, source))) as events:
            async for event in events:
                told.append(event)
                if len(told) == leaves_after:
                    return

    async def leave(after: int) -> None:
        source, told = Scripted(chunks(many), endless=True), list[Told]()
        task = asyncio.create_task(hear(source, after if how == "aclose" else -1, told))
        while how != "aclose" and len(told) < after:
            await asyncio.sleep(0.001)
        if how != "aclose":
            task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        assert [type(one) for one in done] == [type(None) if how == "aclose" else asyncio.CancelledError]
        assert source.left.is_set()
        assert not listening()
        # at once, and nothing of before is told
        assert await every_event(Listener([stream], "", RATE), sent(as_a_client, Scripted(GIVEN))) == wanted

    async def main() -> None:
        async with asyncio.timeout(60):
            for after in (1, 2, 4):
                await leave(after)

    asyncio.run(main())


def test_a_source_that_does_not_open_leaves_the_stream_free(model: Model) -> None:
    class Busy(Scripted):
        def __enter__(self) -> Scripted:
            raise DeviceError("scripted: is in use")

    stream = model.stream(ends=True)
    with pytest.raises(DeviceError, match="is in use"):
        asyncio.run(every_event(kept := Listener([stream], "first", RATE), Busy([])))
    Listener([stream], "second", RATE).close()
    assert kept.samples == 0
    any_source: Any = "mic"
    with pytest.raises(UsageError, match=r"expected a source, got str, which lacks name, .* open_source\("):
        asyncio.run(every_event(kept, any_source))


@pytest.mark.parametrize("as_a_client", [False, True])
def test_ends_precede_source_errors(model: Model, as_a_client: bool) -> None:
    class Breaks(Scripted):
        def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
            yield from super().__iter__()
            raise OSError("the connection is lost")

    told: list[str] = []

    async def hear() -> None:
        source = Breaks(chunks(scene()[: round(0.6 * RATE)]))  # low sounds still
        async for event in listener_of(model).follow_async(sent(as_a_client, source)):
            told.append(type(event).__name__)

    with pytest.raises(OSError, match="the connection is lost"):
        asyncio.run(hear())
    assert told == ["Detection", "Ended"]
