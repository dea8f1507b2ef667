"""What may listen and what may be listened to: models, streams, sources, rates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.demo import DATA
from confit_runtime import (
    AudioError,
    Detection,
    Listener,
    Model,
    Stream,
    Tap,
    UsageError,
    listen,
    listen_async,
    load,
)
from confit_runtime.sources import Chunk
from tests import tiny_model
from tests.confit_runtime.scripted import Scripted, chunks, direct, places, scene
from tests.tiny_model import RATE, Floats, silence


def test_listen_accepts_models_streams_and_sources_in_any_form(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other"))
    soundfile.write("mic", scene(), RATE, format="FLAC", subtype="PCM_24")

    async def hear() -> list[Detection]:
        return [event async for event in listen_async((one for one in [model]), Path("mic"))]

    assert places(list(listen((one for one in [model]), Path("mic")))) == direct(model)  # not the microphone
    assert places(asyncio.run(hear())) == direct(model)
    assert len(list(listen([model, other], Path("mic")))) == 4


@pytest.mark.parametrize("models", ["digits", Path("digits"), ["digits"], None, []])
def test_listen_rejects_invalid_models(models: Any) -> None:
    source = Scripted([])
    with pytest.raises(UsageError, match=r"load\(\.\.\.\)"):
        list(listen(models, source))

    async def hear() -> None:
        async for _ in listen_async(models, source):
            pass

    with pytest.raises(UsageError, match=r"load\(\.\.\.\)"):
        asyncio.run(hear())
    assert not source.left.is_set()  # it was not even opened


@pytest.mark.parametrize("source", [5, None, [(silence(0.1), RATE)]])
def test_listen_rejects_invalid_sources(model: Model, source: Any) -> None:
    async def hear() -> None:
        async for _ in listen_async(model, source):
            pass

    with pytest.raises(UsageError, match=rf"got {type(source).__name__}, which lacks name, .*open_source\(\.\.\.\)"):
        list(listen(model, source))
    with pytest.raises(UsageError, match=r"which lacks .*stop: open_source\(\.\.\.\)"):
        asyncio.run(hear())


def test_a_source_that_cannot_be_stopped_is_listened_to_all_the_same(model: Model) -> None:
    whole = Scripted(chunks(scene()))
    kept = {part: getattr(Scripted, part) for part in ("name", "rate", "live", "__exit__", "__iter__")}
    unstoppable = type("Unstoppable", (), {**kept, "__enter__": lambda self: self})()
    vars(unstoppable).update(vars(whole))
    assert places(list(listen(model, unstoppable))) == direct(model)


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ([silence(0.1), RATE], "this one yielded list"),
        (silence(0.1), "this one yielded ndarray"),
        ((silence(0.1), RATE, 0), "this one yielded a tuple of 3"),
        ((silence(0.1), None), "sample rate must be a number in Hz, got None"),
    ],
)
def test_invalid_source_items_are_rejected(model: Model, item: Any, what: str) -> None:
    async def client() -> AsyncIterator[Any]:
        while True:
            yield item

    async def hear() -> None:
        async for _ in listen_async(model, client()):
            pass

    with pytest.raises(UsageError, match=what):
        asyncio.run(asyncio.wait_for(hear(), 30))
    with pytest.raises(UsageError, match=what):
        list(listen(model, Scripted([item])))


@pytest.mark.parametrize("rate", [None, "16000", float("nan"), float("inf"), 0])
def test_a_listener_needs_a_rate(model: Model, rate: Any) -> None:
    with pytest.raises(UsageError, match="sample rate"):
        Listener([model.stream()], "", rate, seconds=1.0)


def test_a_listener_takes_streams(model: Model) -> None:
    given: list[Any] = [model.stream(), [model], [model.stream(), None], model, None, "digits"]
    for one in given:
        with pytest.raises(UsageError, match=r"a Listener takes a list of streams, such as \[model.stream\(\)\], not "):
            Listener(one, "", RATE)


def test_one_stream_does_not_hear_a_source_twice(model: Model) -> None:
    stream, source = model.stream(), Scripted(chunks(scene()))
    with pytest.raises(UsageError, match="a stream is listed twice"):
        list(listen([stream, stream], source))
    assert source.left.is_set()


def test_one_stream_is_one_listeners_until_that_has_finished(model: Model, tmp_path: Path) -> None:
    stream, taken = (
        model.stream(),
        "a stream of tiny is still listening to first: give each listener its own stream",
    )
    first = Listener([stream], "first", RATE)
    list(first.take((scene(), RATE)))
    with pytest.raises(UsageError, match=taken):
        Listener([stream], "second", RATE)
    list(first.finish())
    second = Listener([stream], "second", RATE)
    with pytest.raises(UsageError, match="a stream of tiny is still listening to second"):
        list(first.take((scene(), RATE)))
    second.close()
    hearing = listen(stream, Scripted(chunks(scene())))
    next(hearing)
    with pytest.raises(UsageError, match="a stream of tiny is still listening to scripted"):
        list(listen(stream, Scripted([])))
    hearing.close()
    Listener([stream], "nobody keeps it", RATE)
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other")).stream()
    kept = Listener([other], "second", RATE)
    with pytest.raises(UsageError, match="is still listening to second"):
        Listener([stream, other], "both", RATE)
    kept.close()
    assert places(list(listen(stream, Scripted(chunks(scene()))))) == direct(model)


def test_two_clients_do_not_share_a_stream(model: Model) -> None:
    async def client(pcm: Floats) -> AsyncIterator[Chunk]:
        for chunk in chunks(pcm):
            yield chunk
            await asyncio.sleep(0)

    async def hear(stream: Stream, pcm: Floats) -> list[tuple[str, int, int]]:
        return places([event async for event in listen_async(stream, client(pcm))])

    async def both() -> None:
        stream = model.stream()
        heard = await asyncio.gather(*(hear(stream, scene()) for _ in range(2)), return_exceptions=True)
        assert [type(one) for one in heard] == [list, UsageError]
        assert heard[0] == direct(model)
        with pytest.raises(AudioError):
            await hear(stream, np.zeros((9, 100), np.float32))
        assert await hear(stream, scene()) == direct(model)

    asyncio.run(both())


def test_sound_of_another_rate_than_the_listeners_is_refused(model: Model) -> None:
    listener = Listener([model.stream()], "the client", 48_000)
    with pytest.raises(UsageError, match="the client: began at 48000 Hz and now comes at 16000 Hz"):
        list(listener.take((scene(), RATE)))
    assert listener.samples == 0
    (first, *_) = [event for event in listener.take((scene(48_000), 48_000)) if isinstance(event, Detection)]
    assert first.label == "low"


def test_a_model_hears_a_recording_from_its_very_beginning() -> None:
    digits, clip = load("digits"), DATA / "digits-real" / "seven.ogg"

    async def hear() -> list[str]:
        return [event.label async for event in listen_async(digits, clip)]

    assert [event.label for event in listen(digits, clip)] == ["seven"] == asyncio.run(hear())
    assert list(listen(digits.stream(), clip)) == []  # as it was made
    pcm, rate = soundfile.read(clip, dtype="float32")
    live = Scripted([(pcm, rate)])
    live.rate = rate
    assert list(listen(digits, live)) == []


def test_models_need_distinct_names(model: Model, windowed: Model) -> None:
    with pytest.raises(UsageError, match="2 of the models are named tiny: their detections could not be told apart"):
        list(listen([model, windowed], Scripted(chunks(scene()))))
    with pytest.raises(UsageError, match="2 of the models are named tiny"):
        Listener([model.stream(), model.stream()], "", RATE)


def test_a_stream_that_heard_a_file_is_live_again(model: Model) -> None:
    stream, source = model.stream(), Scripted(chunks(scene()))
    source.live = False

    class Look(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            assert not stream.live

    assert len(list(listen(stream, source, taps=[Look()]))) == 2
    assert stream.live
    source = Scripted(chunks(scene()))
    source.live = False
    hearing = listen(stream, source)
    next(hearing)
    hearing.close()  # left in the middle
    assert not stream.live
    Listener([stream], "the client", RATE)
    assert stream.live
