"""The engine on a real (tiny) model: loading, streaming equal to offline, exact whatever the chopping, honest times."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import operator
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.demo import DATA
from confit_runtime import (
    AudioError,
    Detection,
    Ended,
    EnergyGate,
    GalleryError,
    Model,
    ModelError,
    Stream,
    UsageError,
    load,
)
from confit_runtime.audio import load_clip
from confit_runtime.batch import Batch
from confit_runtime.chunk_scorer import HOPS_PER_CALL
from confit_runtime.contract import seal
from confit_runtime.detect import Detector, Hold
from confit_runtime.gallery import Gallery
from confit_runtime.listener import Listener
from confit_runtime.matcher import Match
from confit_runtime.model import State
from confit_runtime.session import open_session
from confit_runtime.speaker import SaveTap
from tests import tiny_model
from tests.confit_runtime.scripted import heard
from tests.tiny_model import HOP, LABELS, POOL, RATE, WINDOW, Floats, chord, silence, tone

RATES = [8_000, 16_000, 22_050, 44_100, 48_000]
BELL = (300.0, 2600.0)
RNG = np.random.default_rng(1)


def scene(rate: int) -> Floats:
    """Two seconds and a half: low at 0.3 s, a bell at 0.9 s, mid at 1.6 s, low again as it ends."""
    parts = [
        silence(0.3, rate),
        tone(500, 0.3, rate),
        silence(0.3, rate),
        chord(BELL, 0.4, rate),
        silence(0.3, rate),
        tone(1200, 0.35, rate),
        silence(0.3, rate),
        tone(500, 0.25, rate),
    ]
    sound = np.concatenate(parts)
    return sound + np.float32(1e-4) * RNG.standard_normal(len(sound)).astype(np.float32)


SCENES = {rate: scene(rate) for rate in RATES}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Gallery]:
    path = tmp_path_factory.mktemp("gallery") / "gallery.db"
    with Gallery.open(path, model, create=True) as opened:
        bells = np.stack([model.embed(chord(BELL, seconds), RATE) for seconds in (0.3, 0.5)])
        opened.enroll("bell", bells, sources=["a", "b"], voiced_s=0.8)
        opened.enroll("buzz", model.embed(chord((800, 5000), 0.4), RATE)[None], sources=["c"], voiced_s=0.4)
        yield opened


def with_ends(stream: Stream, parts: list[Floats], rate: int) -> list[Detection | Ended]:
    events = []
    for part in parts:
        stream.accept(part, rate)
        events += stream.take_events()
    stream.finish()
    return events + stream.take_events()


# loading


def test_a_model_file_may_have_a_name_of_any_bytes(tmp_path: Path) -> None:
    path = tiny_model.build(tmp_path / os.fsdecode(b"caf\xe9.onnx"))
    assert load(path).classify(DATA / "digits-real" / "one.ogg").label in LABELS


def test_a_missing_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.onnx: no such model file"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(UsageError, match="no shipped model has that name"):
        load("a-model-that-never-shipped")


def test_a_sound_file_in_place_of_a_model_is_named_as_such() -> None:
    clip = DATA / "digits-real" / "one.ogg"
    with pytest.raises(UsageError, match=r"one\.ogg: is a sound file, not a model file; .* --source "):
        load(clip)


@pytest.mark.parametrize("count", [0, -5, 1.5, float("nan"), float("inf"), "2", None])
def test_invalid_counts_are_usage_errors(tiny: Path, model: Model, tmp_path: Path, count: Any) -> None:
    """A stream that had skipped 1.5 samples told of half ones from then on."""
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("number of threads", lambda: load(tiny, threads=count)),
        ("number of streams in a batch", lambda: model.batch(count)),
        ("number of triggers to keep", lambda: SaveTap(tmp_path, [model], max_files=count)),
    ]
    if count != 0:
        attempts.append(("number of samples to skip", lambda: model.stream().skip(count)))
    for what, attempt in attempts:
        with pytest.raises(UsageError, match=re.escape(f"{what}: must be a whole number, ") + f".*it is {count!r}$"):
            attempt()


def test_a_number_too_large_for_a_float_is_a_usage_error(model: Model) -> None:
    most = r"must be at most 9,007,199,254,740,992$"
    with pytest.raises(UsageError, match=f"^the number of samples to skip: {most}"):
        model.stream().skip(10**400)
    for seconds in (10**400, 1e308):  # which times the rate is infinite
        with pytest.raises(UsageError, match=f"^the seconds to listen: {most}"):
            Listener([model.stream()], "", RATE, seconds=seconds)


def test_a_whole_number_may_be_of_any_type(model: Model) -> None:
    stream = model.stream()
    for skipped in (np.int64(RATE), float(RATE), np.float32(RATE)):
        stream.skip(skipped)
    (event,) = stream.accept(tone(500, 1.0), RATE)
    assert isinstance(event.start_sample, int)
    assert event.start_sample >= 3 * RATE
    assert len(model.batch(np.int64(2)).push(np.zeros((2, HOP)))[0]) == 2


def test_runs_and_missing_suffixes_have_their_own_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"my runs/a: is a folder, not a model file$"):
        load("my runs/a")
    (tmp_path / "my runs" / "a" / "run.json").touch()
    with pytest.raises(UsageError, match=r"my runs/a: is a training run.* confit-edge export 'my runs/a' -o a\.onnx$"):
        load("my runs/a")
    for name in ("a.onnx", "my runs/b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"^a: no such file, and .*; did you mean a\.onnx\?$"):
        load("a")
    with pytest.raises(UsageError, match=r"^my runs/b: no such model file; did you mean my runs/b\.onnx\?$"):
        load("my runs/b")


def test_a_text_file_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not a model\n" * 20)
    with pytest.raises(ModelError, match=r"text\.onnx"):
        load(path)


def test_truncated_anywhere_is_a_model_error(tmp_path: Path, tiny: Path) -> None:
    data, path = tiny.read_bytes(), tmp_path / "cut.onnx"
    for length in [*range(0, len(data), 211), *range(len(data) - 100, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load(path)


def test_a_file_that_is_replaced_while_it_is_read_is_a_model_error(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    path.write_bytes(tiny.read_bytes())
    tiny_model.build(other, refractory_s=9.0)

    def replace_and_open(model: Path, threads: int) -> Any:
        other.replace(path)
        return open_session(model, threads)

    monkeypatch.setattr("confit_runtime.model.open_session", replace_and_open)
    with pytest.raises(ModelError, match=r"model\.onnx: changed while it was being read"):
        load(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_leaves_cores_to_others_between_two_hops(tiny: Path, threads: int) -> None:
    options = load(tiny, threads=threads)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_graph_that_onnxruntime_refuses_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(seal(tiny_model.graph().replace(b"Softmax", b"Hardmux"), tiny_model.contract()))
    with pytest.raises(ModelError, match=r"odd\.onnx: onnxruntime .* cannot run this model") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"labels": LABELS[:3], "unknown_label": None}, "scores"),
        ({"embedding_dim": 9}, "embedding"),
        ({"state": {"state_pcm": [HOP]}}, "state_ring"),
        ({"state": {"state_pcm": [HOP], "state_ring": [8, 5]}}, "state_ring"),
        ({"state": {}, "warmup_hops": 0}, "state_pcm"),
    ],
)
def test_a_contract_its_graph_does_not_keep_is_a_model_error(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(seal(tiny_model.graph(), dataclasses.replace(tiny_model.contract(), **changes)))
    with pytest.raises(ModelError, match=fault):
        load(path)


# streaming


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_streaming_equals_one_call_over_the_whole_signal(kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    sound = SCENES[RATE][: len(SCENES[RATE]) // HOP * HOP]
    scores, embedding = model.rows(sound, RATE)
    assert len(scores) == (len(sound) - WINDOW) // HOP + 1
    batch = model.batch(1)
    pushed = [batch.push(chunk[None]) for chunk in sound.reshape(-1, HOP)]
    assert [len(rows[0]) for rows, _ in pushed] == [0] * POOL + [1] * len(scores)
    np.testing.assert_allclose(np.concatenate([rows[0] for rows, _ in pushed]), scores, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([rows[0] for _, rows in pushed]), embedding, atol=1e-4)


def test_a_long_clip_is_scored_in_parts(windowed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long recording must not need memory for all of its windows."""
    whole = windowed.rows(SCENES[RATE], RATE)
    monkeypatch.setattr("confit_runtime.chunk_scorer.WINDOWS_PER_CALL", 5)
    calls: list[int] = []
    run = Model.run

    def counted(model: Model, pcm: Floats, state: State) -> tuple[Floats, Floats, State]:
        calls.append(len(pcm))
        return run(model, pcm, state)

    monkeypatch.setattr(Model, "run", counted)
    for part, one in zip(windowed.rows(SCENES[RATE], RATE), whole, strict=True):
        np.testing.assert_allclose(part, one, atol=1e-5)
    assert sum(calls) == len(whole[0])
    assert max(calls) == 5


def test_a_windowed_and_a_streaming_model_agree(model: Model, windowed: Model) -> None:
    for one, other in zip(model.rows(SCENES[RATE], RATE), windowed.rows(SCENES[RATE], RATE), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=6)
@given(cuts=st.lists(st.floats(0, 1), max_size=30))
def test_events_do_not_depend_on_chunk_sizes(model: Model, gallery: Gallery, rate: int, cuts: list[float]) -> None:
    sound = SCENES[rate]
    wanted = heard(model.stream(gallery), [sound], rate)
    assert [event.label for event in wanted] == ["low", "bell", "mid", "low"]
    parts = np.split(sound, sorted(int(cut * len(sound)) for cut in cuts))
    assert heard(model.stream(gallery), parts, rate) == wanted
    whole = with_ends(model.stream(gallery, ends=True), [sound], rate)
    assert with_ends(model.stream(gallery, ends=True), parts, rate) == whole
    assert [event for event in whole if isinstance(event, Detection)] == wanted
    assert [(type(event), event.label) for event in whole] == [
        (kind, label) for label in ("low", "bell", "mid", "low") for kind in (Detection, Ended)
    ]


@pytest.mark.parametrize("rate", RATES)
def test_a_sound_has_ended_where_its_score_fell_below_the_low_threshold(model: Model, rate: int) -> None:
    events = with_ends(model.stream(ends=True), [SCENES[rate]], rate)
    detections, ends = events[::2], events[1::2]
    assert [(one.label, one.start_s, one.start_sample) for one in ends] == [
        (one.label, one.start_s, one.start_sample) for one in detections
    ]
    for detection, one, end in zip(detections, ends, (0.6, 1.95, 2.5), strict=True):
        assert detection.end_sample <= one.end_sample
        assert one.end_s == one.end_sample / rate
        assert end - 0.05 < one.end_s <= end + 0.1
    assert ends[-1].end_sample == len(SCENES[rate])  # it was sounding when the source ended
    if rate == RATE:  # to the sample: half a hop before the middle of the first row below the low threshold
        contract = model.contract
        detector = Detector.from_contract(contract)
        detector.push(model.rows(SCENES[RATE], RATE)[0])
        fell = contract.warmup_hops + 1 + detector.released[0][0]
        assert ends[0].end_sample == fell * HOP - contract.latency_samples - HOP // 2


def test_a_sounding_name_survives_enrollments_and_ends_on_removal(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as changed:
        changed.enroll("bell", model.embed(chord(BELL, 0.5), RATE)[None], sources=["a"], voiced_s=0.5)
        stream, sound = model.stream(changed, ends=True), np.split(chord(BELL, 6.0), 3)
        stream.accept(sound[0], RATE)
        changed.enroll("buzz", model.embed(chord((800, 5000), 0.4), RATE)[None], sources=["b"], voiced_s=0.4)
        stream.accept(sound[1], RATE)
        changed.remove("bell")
        stream.accept(sound[2], RATE)
        stream.finish()
        events = stream.take_events()
    assert [(type(event), event.label) for event in events] == [(Detection, "bell"), (Ended, "bell")]
    assert 4.0 <= events[1].end_s <= 5.1  # a look later


@pytest.mark.parametrize("how", ["skip", "mute", "finish", "removed"])
@pytest.mark.parametrize("gate", [False, True])
def test_a_pausing_sound_ends_where_its_pause_began(tmp_path: Path, model: Model, how: str, gate: bool) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("bell", model.embed(chord(BELL, 0.5), RATE)[None], sources=["a"], voiced_s=0.5)
        hold = Hold(60.0, {"low": 0.0})
        stream = model.stream(gallery, ends=True, hold=hold, gate=EnergyGate(RATE, -50) if gate else None)
        stream.live = False
        stream.accept(chord(BELL, 2.0), RATE)
        stream.accept(silence(3.0), RATE)
        if how == "skip":
            stream.skip(2 * RATE)
        elif how == "mute":
            with stream.muted():
                stream.accept(silence(0.1), RATE)
        elif how == "removed":
            gallery.remove("bell")
            stream.accept(tone(500, 1.5), RATE)
        else:
            stream.finish()
        ended = [event for event in stream.take_events() if isinstance(event, Ended) and event.label == "bell"]
    assert [1.9 <= one.end_s <= 2.2 for one in ended] == [True]


def test_an_enrolled_name_that_pauses_is_held_while_others_are_enrolled(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("bell", model.embed(chord(BELL, 0.5), RATE)[None], sources=["a"], voiced_s=0.5)
        stream = model.stream(gallery, ends=True, hold=Hold(2.5))
        stream.accept(chord(BELL, 2.0), RATE)
        gallery.enroll("buzz", model.embed(chord((800, 5000), 0.4), RATE)[None], sources=["b"], voiced_s=0.4)
        stream.accept(silence(2.0), RATE)  # a look, in a pause
        stream.accept(chord(BELL, 1.0), RATE)
        gallery.remove("buzz")
        stream.accept(silence(2.0), RATE)
        assert [type(event) for event in stream.take_events()] == [Detection]
        stream.accept(silence(1.0), RATE)
        (ended,) = stream.take_events()
    assert (type(ended), ended.label) == (Ended, "bell")
    assert 4.9 <= ended.end_s <= 5.2


def test_a_reset_discards_untaken_events(model: Model) -> None:
    stream = model.stream(ends=True)
    stream.accept(scene(RATE), RATE)
    stream.reset()
    stream.accept(silence(0.5), RATE)
    assert stream.take_events() == []
    stream.accept(scene(RATE), RATE)
    stream.finish()
    stream.accept(silence(0.5), RATE)
    assert {type(event) for event in stream.take_events()} == {Detection, Ended}


@pytest.mark.parametrize("how", ["skip", "mute", "reset", "gate"])
def test_a_sound_ends_where_listening_stopped(tmp_path: Path, how: str) -> None:
    """A sensor that is on must not stay so: of a model whose low threshold silence does not reach, too."""
    levels = {label: {"on": 0.6, "off": 1e-9} for label in LABELS}
    model = load(tiny_model.build(tmp_path / "tiny.onnx", thresholds=levels))
    gate = EnergyGate(RATE, -50) if how == "gate" else None
    stream = model.stream(ends=True, gate=gate)
    stream.accept(tone(500, 1.0), RATE)
    (began,) = stream.take_events()
    assert isinstance(began, Detection)
    if how == "skip":
        stream.skip(RATE)
        assert stream.take_events() == []  # lost for so short a time, it may still be on
        stream.skip(1)
    elif how == "mute":
        stream.live = False
        with stream.muted():
            stream.accept(tone(500, 0.1), RATE)
    elif how == "gate":
        stream.accept(silence(1.0), RATE)
    else:
        stream.reset()
        stream.accept(silence(0.1), RATE)
        stream.finish()
        assert stream.take_events() == []
    if how != "reset":
        (ended,) = stream.take_events()
        assert isinstance(ended, Ended)
        assert (ended.label, ended.start_sample) == ("low", began.start_sample)
        assert RATE <= ended.end_sample <= (1.2 * RATE if how == "gate" else RATE)
    stream.accept(tone(500, 1.0), RATE)
    assert [type(event) for event in stream.take_events()] == [Detection]  # once more, and once only


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [1_000, 37])
@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_events_do_not_depend_on_the_chunk_length(
    kind: str, request: pytest.FixtureRequest, rate: int, size: int
) -> None:
    model: Model = request.getfixturevalue(kind)
    sound = SCENES[rate]
    parts = np.split(sound, range(size, len(sound), size))
    assert heard(model.stream(), parts, rate) == heard(model.stream(), [sound], rate)


def test_events_do_not_depend_on_chunk_sizes_without_latency(tmp_path: Path) -> None:
    """An end that lies ahead of the newest row must not depend on how much the source has delivered already."""
    model = load(tiny_model.build(tmp_path / "tiny.onnx", latency_samples=0))
    sound = SCENES[RATE]
    parts = np.split(sound, range(HOP, len(sound), HOP))
    assert heard(model.stream(), parts, RATE) == heard(model.stream(), [sound], RATE)


@pytest.mark.parametrize("rate", RATES)
def test_times_say_when_the_sound_was(model: Model, rate: int) -> None:
    events = heard(model.stream(), [SCENES[rate]], rate)
    assert [event.label for event in events] == ["low", "mid", "low"]
    if rate == RATE:  # to the sample: half a hop before the middle of the first row above the low threshold
        contract = model.contract
        hit = Detector.from_contract(contract).push(model.rows(SCENES[RATE], RATE)[0])[0]
        begun = contract.warmup_hops + 1 + hit.start_row
        assert events[0].start_sample == begun * HOP - contract.latency_samples - HOP // 2
    for event, (start, end) in zip(events, [(0.3, 0.6), (1.6, 1.95), (2.25, 2.5)], strict=True):
        assert start - 0.1 < event.start_s < event.end_s < end
        assert event.start_s == event.start_sample / rate
        assert event.end_s == event.end_sample / rate


def test_where_one_row_fires_its_event_is_where_the_sound_was(tmp_path: Path) -> None:
    """Rows a whole window apart, and a refractory time that is shorter."""
    detection = {"smoothing_hops": 1, "min_hops": 1, "refractory_s": 0.05}
    model = load(tiny_model.build(tmp_path / "tiny.onnx", windowed=True, hop=WINDOW, **detection))
    events = heard(model.stream(lead_in=True), [SCENES[RATE]], RATE)
    assert [event.label for event in events] == ["low", "mid", "low"]
    for event, (start, end) in zip(events, [(0.3, 0.6), (1.6, 1.95), (2.25, 2.5)], strict=True):
        assert start - WINDOW / RATE < event.start_s < event.end_s < end
        assert event.end_sample - event.start_sample == WINDOW


def test_nothing_is_heard_before_the_window_is_full(model: Model) -> None:
    stream = model.stream()
    assert stream.accept(tone(500, (WINDOW + HOP) / RATE - 0.001), RATE) == []
    assert [event.label for event in stream.accept(tone(500, 0.05), RATE)] == ["low"]


def test_stereo_and_integers_are_taken(model: Model) -> None:
    sound = SCENES[RATE]
    wanted = heard(model.stream(), [sound], RATE)
    integers = np.round(np.stack([sound, sound], axis=1) * 32767).astype(np.int16)
    found = model.stream().accept(integers, RATE)
    assert [(event.label, event.start_sample) for event in found] == [
        (event.label, event.start_sample) for event in wanted[: len(found)]
    ]


def test_reset_and_finish_leave_nothing_behind(model: Model, gallery: Gallery) -> None:
    wanted = heard(model.stream(gallery), [SCENES[RATE]], RATE)
    stream = model.stream(gallery)
    stream.accept(RNG.uniform(-1, 1, 12_345).astype(np.float32), 44_100)
    stream.reset()
    assert heard(stream, [SCENES[RATE]], RATE) == wanted
    assert heard(stream, [SCENES[RATE]], RATE) == wanted  # after finish()
    assert stream.finish() == []


def test_a_fresh_stream_in_silence_hears_nothing(model: Model, windowed: Model) -> None:
    for one in (model, windowed):
        stream = one.stream()
        assert heard(stream, [silence(1.0)], RATE) == []


def lost(sound: Floats, start: int, end: int) -> Floats:
    """The sound with zeros where it was lost."""
    return np.concatenate([sound[:start], np.zeros(end - start, np.float32), sound[end:]])


def cut(sound: Floats, cuts: list[float]) -> list[Floats]:
    return np.split(sound, sorted(int(cut * len(sound)) for cut in cuts))


@pytest.mark.parametrize("kind", ["model", "windowed"])
@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=8)
@given(
    gaps=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.0, 0.2)), min_size=1, max_size=4),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    hold=st.sampled_from([0.0, 0.15]),
)
def test_a_short_gap_is_heard_as_silence(
    kind: str,
    rate: int,
    gaps: list[tuple[float, float]],
    cuts: list[float],
    hold: float,
    request: pytest.FixtureRequest,
    gallery: Gallery,
) -> None:
    """To the sample: detections of labels and names, and their ends."""
    model: Model = request.getfixturevalue(kind)
    stream, sound, at, events = model.stream(gallery, ends=True, hold=Hold(hold)), SCENES[rate], 0, []
    zeroed = sound
    for begin, seconds in sorted(gaps):
        start = max(at + 1, round(begin * len(sound)))
        end = min(len(sound) - 1, start + round(seconds * rate))
        if start > end:
            break
        zeroed = lost(zeroed, start, end)
        for part in cut(sound[at:start], cuts):
            stream.accept(part, rate)
        for part in cut(sound[start:end], cuts):  # one gap, told in pieces
            stream.skip(len(part))
            stream.accept(sound[:0], rate)
        events += stream.take_events()
        at = end
    assert events + with_ends(stream, cut(sound[at:], cuts), rate) == with_ends(
        model.stream(gallery, ends=True, hold=Hold(hold)), [zeroed], rate
    )


def test_the_last_milliseconds_of_a_recording_of_another_rate_are_heard(model: Model) -> None:
    rate, counts = 8_000, set()
    for samples in (4, 8, 16, 24, 40, 80):
        sound = np.append(silence(0.3, rate), tone(500, samples / rate, rate))
        found = [event.label for event in heard(model.stream(), [sound], rate)]
        assert found == [event.label for event in heard(model.stream(), [np.append(sound, silence(1.0, rate))], rate)]
        counts.add(len(found))
    assert counts == {0, 1}


def test_a_recording_is_preceded_by_silence_and_live_sound_is_not_unless_told(model: Model) -> None:
    """What live sound begins with was cut off by whoever switched the microphone on."""
    sound = np.concatenate([tone(500, 0.02), silence(0.4)])
    found = {}
    for live in (True, False):
        for lead_in in (None, False, True):
            stream = model.stream(lead_in=lead_in)
            stream.live = live
            found[live, lead_in] = [event.label for event in heard(stream, [sound], RATE)]
    assert found == {
        (True, None): [], (True, False): [], (True, True): ["low"],
        (False, None): ["low"], (False, False): [], (False, True): ["low"],
    }  # fmt: skip


def test_a_skip_gives_the_detections_that_its_silence_completes(model: Model) -> None:
    sound = np.concatenate([silence(0.3), tone(500, 0.05)])
    stream = model.stream()
    found = stream.accept(sound, RATE)
    late = stream.skip(RATE // 4)
    assert [event.label for event in late] == ["low"]
    assert found + late == model.stream().accept(np.append(sound, silence(0.25)), RATE)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pieces", [1, 7])
def test_after_a_long_gap_a_stream_restarts_on_its_clock(
    model: Model, gallery: Gallery, rate: int, pieces: int
) -> None:
    """A second of it is heard as silence; the rest moves the clock, and silence precedes what follows."""
    sound, gap = SCENES[rate], 5 * rate + 7 * (rate % 7)
    before = np.append(silence(0.2, rate), tone(500, 0.15, rate))
    wanted = heard(model.stream(gallery, lead_in=True), [sound], rate)
    stream = model.stream(gallery)
    found = stream.accept(before, rate)
    for piece in np.array_split(np.zeros(gap), pieces):  # one gap, though it is told in pieces
        found += stream.skip(len(piece))
        found += stream.accept(sound[:0], rate)
    assert [event.label for event in found] == ["low"]
    assert found == model.stream(gallery).accept(np.append(before, silence(1.0, rate)), rate)
    moved = len(before) + gap
    assert heard(stream, [sound], rate) == [
        dataclasses.replace(
            event,
            start_sample=event.start_sample + moved,
            end_sample=event.end_sample + moved,
            start_s=(event.start_sample + moved) / rate,
            end_s=(event.end_sample + moved) / rate,
        )
        for event in wanted
    ]
    assert heard(stream, [sound], rate) == heard(model.stream(gallery), [sound], rate)  # the clock begins anew


def test_before_anything_was_heard_a_gap_moves_the_clock_alone(model: Model) -> None:
    wanted = heard(model.stream(), [SCENES[RATE]], RATE)
    stream = model.stream()
    assert stream.skip(RATE // 10) == []
    found = heard(stream, [SCENES[RATE]], RATE)
    assert [event.start_sample - RATE // 10 for event in found] == [event.start_sample for event in wanted]


@pytest.mark.parametrize("gaps", [[RATE // 10], [RATE // 2, RATE // 2], [3 * RATE, RATE]])
@pytest.mark.parametrize("begun", [False, True])
def test_a_chunk_without_samples_is_no_sound(model: Model, gaps: list[int], begun: bool) -> None:
    """It neither begins a stream nor ends a gap."""
    found = []
    for chunk in ([], [silence(0.0)]):
        stream = model.stream(gate=EnergyGate(RATE))
        events = stream.accept(np.append(tone(500, 0.3), silence(0.2)), RATE) if begun else []
        for samples in gaps:
            for nothing in chunk:
                events += stream.accept(nothing, RATE)
            events += stream.skip(samples)
        found.append((events + heard(stream, [tone(1200, 0.08)], RATE), stream.scores is None))
    assert found[0] == found[1]


def test_a_stream_that_waits_for_sound_keeps_nothing_of_gaps_without_length(model: Model) -> None:
    stream = model.stream(gate=EnergyGate(RATE))
    stream.accept(tone(500, 0.3), RATE)
    for _ in range(100):
        stream.skip(0)
    assert not stream._lost_spans


def test_a_label_that_fires_on_a_gap_does_not_end_before_it_begins(model: Model) -> None:
    told = dataclasses.replace(model.contract, unknown_label=None)
    stream = Model(model.path, told, model._session, model.digest).stream(ends=True)
    stream.accept(tone(500, 0.5), RATE)
    stream.skip(3 * RATE)
    events = stream.take_events()
    assert [(type(event), event.label) for event in events[-2:]] == [(Detection, "other"), (Ended, "other")]
    assert events[-1].end_sample >= events[-1].start_sample


def test_sounds_continue_across_short_gaps_and_end_at_long_ones(model: Model) -> None:
    stream, alarm = model.stream(ends=True), tone(500, 2.0)
    for _ in range(3):
        stream.accept(alarm, RATE)
        stream.skip(RATE // 200)
    stream.accept(alarm, RATE)
    assert [type(event) for event in stream.take_events()] == [Detection]
    stream.skip(3 * RATE)
    (ended,) = stream.take_events()
    assert isinstance(ended, Ended)
    assert ended.end_s == pytest.approx(8.015, abs=0.1)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_word_of_which_a_few_milliseconds_are_lost_is_heard(rate: int) -> None:
    """It was lost for as long as a window takes to fill again: 1.28 s of `digits`."""
    digits = load("digits")
    seven = load_clip(DATA / "digits-real" / "seven.ogg", rate)
    sound = np.concatenate([silence(1.5, rate), seven, silence(1.0, rate)])
    for share in (0.1, 0.4, 0.7):
        stream, start, length = digits.stream(), round(1.5 * rate + share * len(seven)), rate // 200
        found = [
            *stream.accept(sound[:start], rate),
            *stream.skip(length),
            *stream.accept(sound[start + length :], rate),
        ]
        assert [event.label for event in [*found, *stream.finish()]] == ["seven"]


def test_a_lead_in_lengthens_no_refractory_time_across_a_gap(model: Model) -> None:
    slow = Model(model.path, dataclasses.replace(model.contract, refractory_s=1.9), model._session, model.digest)
    sound, counts = np.concatenate([silence(0.3), tone(500, 0.3), silence(0.3)]), set()
    for hops in range(30, 70, 4):  # a second is 50
        found = []
        for lead_in in (False, True):
            stream = slow.stream(lead_in=lead_in)
            events = stream.accept(sound, RATE)
            stream.skip(hops * HOP)
            found.append([event.label for event in events + stream.accept(sound, RATE)])
        assert found[0] == found[1], hops
        counts.add(len(found[0]))
    assert counts == {1, 2}


def test_neither_a_sound_nor_a_name_is_pieced_together_across_a_long_gap(model: Model, gallery: Gallery) -> None:
    for half in (tone(500, 0.02), chord(BELL, 0.02)):
        assert heard(model.stream(gallery), [half, half, silence(0.2)], RATE)
        stream = model.stream(gallery)
        found = [*stream.accept(half, RATE), *stream.skip(2 * RATE), *stream.accept(half, RATE)]
        assert found == []


def test_the_end_of_a_recording_is_followed_by_as_much_silence_as_an_event_may_need(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, step = [], Batch.step

    def counted(self: Batch, hop: Floats) -> tuple[Floats, Floats]:
        calls.append(hop)
        return step(self, hop)

    monkeypatch.setattr(Batch, "step", counted)
    stream = model.stream()
    stream.accept(silence(1)[: 10 * HOP + 100], RATE)
    calls.clear()
    stream.finish()
    contract = model.contract
    needed = 100 + contract.latency_samples + contract.smoothing_hops * HOP
    assert len(calls) == -(-needed // HOP)


@pytest.mark.parametrize("hops_per_chunk", [1, 7])
def test_each_row_is_told_as_the_thresholds_and_the_gallery_see_it(
    model: Model, gallery: Gallery, hops_per_chunk: int
) -> None:
    sound = scene(RATE)[: 42 * HOP]
    scores, embeddings = model.rows(sound, RATE)
    told: list[tuple[Floats, Match | None]] = []
    stream = model.stream(gallery)
    stream.on_row = lambda row, match: told.append((row, match))
    for at in range(0, len(sound), hops_per_chunk * HOP):
        stream.accept(sound[at : at + hops_per_chunk * HOP], RATE)
    assert len(told) == len(scores)
    for row, (smoothed, match) in enumerate(told):
        expected = scores[max(0, row + 1 - model.contract.smoothing_hops) : row + 1].mean(axis=0)
        np.testing.assert_allclose(smoothed, expected, atol=1e-5)
        needed = gallery.matcher.match(embeddings[row], in_stream=True)
        assert match is not None
        assert (match.name, match.nearest, match.reason) == (needed.name, needed.nearest, needed.reason)
        assert match.score == pytest.approx(needed.score, abs=1e-5)


def test_listening_starts_with_a_window_of_silence(model: Model) -> None:
    stream = model.stream(lead_in=True)
    stream.accept(np.zeros(1, np.float32), RATE)
    assert stream.scores is not None
    for rate in RATES[RATES.index(RATE) + 1 :]:  # what a resampler holds back is less than two hops
        stream.reset()
        stream.accept(np.zeros(2 * HOP * rate // RATE, np.float32), rate)
        assert stream.scores is not None


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_the_embedding_of_a_clip_is_the_mean_over_its_hops_at_length_1(
    kind: str, request: pytest.FixtureRequest
) -> None:
    one: Model = request.getfixturevalue(kind)
    sound = np.concatenate([tone(500, 0.4), tone(3600, 0.4)])  # hops that differ, so that their mean is shorter
    mean = one.rows(sound, RATE)[1].mean(axis=0)
    assert np.linalg.norm(mean) < 0.99
    np.testing.assert_allclose(one.embed(sound, RATE), mean / np.linalg.norm(mean), atol=1e-6)


def test_no_event_ends_after_the_recording(tmp_path: Path) -> None:
    model = load(tiny_model.build(tmp_path / "tiny.onnx", latency_samples=0))
    (event,) = heard(model.stream(), [tone(500, 0.125)], RATE)
    assert event.end_sample == 2000


def test_channels_do_not_come_first_and_a_rate_is_needed(model: Model) -> None:
    stream = model.stream()
    with pytest.raises(AudioError, match="has 16000 channels; at most 64 are supported: samples come first"):
        stream.accept(np.zeros((2, 16_000)), 16_000)
    for rate in (None, "16000"):
        with pytest.raises(UsageError, match="sample rate must be a number in Hz, got"):
            stream.accept(np.zeros(100), rate)


def test_the_rate_may_not_change_without_reset(model: Model) -> None:
    stream = model.stream()
    stream.accept(silence(0.1), RATE)
    with pytest.raises(UsageError, match="reset"):
        stream.accept(silence(0.1), 8_000)
    stream.skip(10)
    with pytest.raises(UsageError, match="reset"):
        stream.accept(silence(0.1), 8_000)
    stream.reset()
    stream.accept(silence(0.1), 8_000)


@pytest.mark.parametrize("gate", [None, EnergyGate(RATE, -50)])
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_a_stream_does_not_keep_whole_chunks_in_memory(model: Model, rate: int, gate: EnergyGate | None) -> None:
    stream = model.stream(gate=gate)
    tracemalloc.start()
    try:
        stream.accept(silence(0.1, rate), rate)
        before = tracemalloc.get_traced_memory()[0]
        stream.accept(silence(60.01, rate), rate)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 200_000  # bytes, of 3.8 million or more


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (3e38, "samples up to 3e"),
        (-12_345, "samples up to 12345, .* by their full scale"),  # int16.astype(float32)
    ],
)
def test_samples_that_are_no_sound_are_refused_and_leave_no_trace(model: Model, bad: float, said: str) -> None:
    stream = model.stream()
    with pytest.raises(AudioError, match=said):
        stream.accept(np.float32([0.0, bad]), RATE)
    assert heard(stream, [SCENES[RATE]], RATE) == heard(model.stream(), [SCENES[RATE]], RATE)


def test_a_batch_is_its_streams_side_by_side(model: Model) -> None:
    sounds = np.stack([SCENES[RATE][: 60 * HOP], SCENES[RATE][20 * HOP : 80 * HOP], silence(60 * HOP / RATE)])
    together = model.batch(3)
    alone = [model.batch(1) for _ in range(3)]
    for hop in range(60):
        chunk = sounds[:, hop * HOP : (hop + 1) * HOP]
        scores, embedding = together.push(chunk)
        for at, one in enumerate(alone):
            own_scores, own_embedding = one.push(chunk[at : at + 1])
            np.testing.assert_allclose(scores[at], own_scores[0], atol=1e-5)
            np.testing.assert_allclose(embedding[at], own_embedding[0], atol=1e-5)
    with pytest.raises(UsageError, match="batch of 3"):
        together.push(sounds[:, : HOP - 1])


def test_a_model_is_passed_to_another_process_as_it_is_set(model: Model) -> None:
    never = model.with_thresholds({"low": 1.0})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        scores = pool.submit(model.classify, tone(500, 0.5), RATE)
        levels = pool.submit(never.with_thresholds, {"mid": 0.9})
        assert scores.result() == model.classify(tone(500, 0.5), RATE)
        again = levels.result()
    assert again.contract == never.with_thresholds({"mid": 0.9}).contract
    assert again.with_thresholds({"low": 0.6}).contract.thresholds["low"] == model.contract.thresholds["low"]
    assert pickle.dumps(load(model.path, threads=2)) != pickle.dumps(model)


def test_a_model_whose_file_was_replaced_is_not_passed_on(tmp_path: Path) -> None:
    path = tiny_model.build(tmp_path / "tiny.onnx")
    passed = pickle.dumps(load(path))
    tiny_model.build(path, windowed=True)
    with pytest.raises(ModelError, match="is no longer the model that was passed to this process"):
        pickle.loads(passed)  # noqa: S301 - made here


def test_streams_and_batches_cannot_be_pickled(model: Model, gallery: Gallery) -> None:
    for what, instead in (
        (model.stream(), "pass its model and make a stream there"),
        (model.batch(2), "pass its model and make a batch there"),
        (gallery, "pass its path and the model, and open it there"),
    ):
        with pytest.raises(TypeError, match=instead):
            pickle.dumps(what)


def test_a_model_is_shared_between_threads(model: Model) -> None:
    wanted = heard(model.stream(), [SCENES[RATE]], RATE)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: heard(model.stream(), np.split(SCENES[RATE], 50), RATE), range(8))
    assert all(result == wanted for result in results)


# clips


@pytest.mark.parametrize("kind", ["model", "windowed"])
@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.119, 0.12, 0.3, 1.0001])
def test_clips_of_any_length(kind: str, request: pytest.FixtureRequest, seconds: float) -> None:
    model: Model = request.getfixturevalue(kind)
    clip = tone(1200, seconds)
    scores, embedding = model.rows(clip, RATE)
    assert scores.shape == (1 + max(0, -(-(len(clip) - WINDOW) // HOP)), len(LABELS))
    assert np.linalg.norm(model.embed(clip, RATE)) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, atol=1e-5)
    if seconds > 0.05:
        answer = model.classify(clip, RATE)
        assert answer.label == "mid"
        assert answer.score == answer.scores["mid"] == max(answer.scores.values())
        assert list(answer.scores) == LABELS


def test_silence_around_a_clip_does_not_affect_its_class(model: Model) -> None:
    tight = model.classify(tone(1200, 0.5), RATE)
    among = model.classify(np.concatenate([silence(2), tone(1200, 0.5), silence(8)]), RATE)
    assert among.label == tight.label == "mid"
    assert among.score > 0.6 * tight.score  # of 10 s the sound is a twentieth


def test_a_short_clip_is_centred(model: Model) -> None:
    clip = tone(500, 0.06)
    left = (WINDOW - len(clip)) // 2
    centred = np.pad(clip, (left, WINDOW - len(clip) - left))
    np.testing.assert_array_equal(model.rows(clip, RATE)[0], model.rows(centred, RATE)[0])


def test_clips_that_cannot_be_judged(model: Model, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no samples"):
        model.embed(silence(0), RATE)
    with pytest.raises(AudioError, match="NaN"):
        model.classify(np.float32([np.nan] * 100), RATE)
    with pytest.raises(AudioError, match=r"samples up to 3e\+38"):
        model.classify(np.repeat(np.float32([0.0, 3e38]), RATE), RATE)
    with pytest.raises(UsageError, match="sample_rate"):
        model.classify(silence(1))
    with pytest.raises(UsageError, match="no such file"):
        model.embed(tmp_path / "clip.wav")


def test_of_several_labels_those_are_heard_that_reach_their_thresholds(tmp_path: Path, model: Model) -> None:
    """A label that never fires is heard from the middle on, and what is unknown is no answer."""
    clip = tone(500, 0.5) + tone(1200, 0.5)
    scores, nothing = model.classify(clip, RATE).scores, model.classify(silence(0.5), RATE)
    assert nothing.label == "other"
    assert max(scores["low"], scores["mid"]) > 0.1

    def heard(clip: Floats, **on: float) -> tuple[str, tuple[str, ...]]:
        levels = {label: {"on": level, "off": 0.05} for label, level in on.items()}
        contract = tiny_model.contract(multi_label=True, thresholds=levels)
        (tmp_path / "several.onnx").write_bytes(seal(tiny_model.graph(), contract))
        found = load(tmp_path / "several.onnx").classify(clip, RATE)
        return found.label, found.labels

    low, mid = scores["low"], scores["mid"]
    best = "low" if low > mid else "mid"
    assert heard(clip, low=low - 0.01, mid=mid + 0.01, high=2.0, other=0.06) == (best, ("low",))
    assert heard(clip, low=low + 0.01, mid=mid - 0.01, high=2.0, other=0.06) == (best, ("mid",))
    assert heard(tone(3600, 0.5), low=0.9, mid=0.9, high=2.0, other=0.06) == ("high", ("high",))
    label, labels = heard(silence(0.5), low=0.9, mid=0.9, high=0.9, other=0.06)
    assert label != "other"
    assert labels == ()


def test_a_model_whose_scores_are_no_numbers_has_no_best_label(tmp_path: Path, model: Model) -> None:
    graph = onnx.load_from_string(tiny_model.graph())
    (bias,) = (entry for entry in graph.graph.initializer if entry.name == "bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, np.float32), "bias"))
    (tmp_path / "broken.onnx").write_bytes(seal(graph.SerializeToString(), model.contract))
    with pytest.raises(ModelError, match=r"broken\.onnx: scores this clip as NaN"):
        load(tmp_path / "broken.onnx").classify(SCENES[RATE], RATE)


def test_a_model_for_voices_has_no_label_to_tell_a_clip_by() -> None:
    """Its one class is that of all voices, whose score is always 1."""
    with pytest.raises(
        UsageError, match="speakers: has no label that can fire, and thus nothing to classify: use it with `enroll`"
    ):
        load("speakers").classify(silence(1), RATE)


def test_shared_data_is_read_only(model: Model) -> None:
    contract = dataclasses.replace(model.contract, labels=list(LABELS), thresholds=dict(model.contract.thresholds))
    assert (contract.labels, contract) == (tuple(LABELS), model.contract)
    for change in (
        lambda: model.labels.sort(),  # type: ignore[attr-defined]
        lambda: model.contract.thresholds.clear(),
        lambda: model.contract.thresholds["low"].update(on=0.1),
        lambda: operator.setitem(model.contract.thresholds["low"], "on", 0.1),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    for embeddings in (model.cohort, model.quiet, model.plain):
        with pytest.raises(ValueError, match="read-only"):
            embeddings -= 1
    again = pickle.loads(pickle.dumps(contract))  # noqa: S301 - made here
    assert again == copy.deepcopy(contract) == contract


def test_thresholds_can_be_set(model: Model) -> None:
    strict = model.with_thresholds({"low": 1.0})
    assert [event.label for event in heard(strict.stream(), [SCENES[RATE]], RATE)] == ["mid"]
    assert model.with_thresholds({"low": 0.1}).contract.thresholds["low"] == {"on": 0.1, "off": 0.1}
    assert model.contract.thresholds["low"]["on"] == 0.6
    with pytest.raises(UsageError, match="low, mid, high, other"):
        model.with_thresholds({"yes": 0.5})
    for level in (-0.1, 0.0, 1.1, float("nan"), "0.5", True):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            model.with_thresholds({"low": level})  # type: ignore[dict-item]
    assert model.with_thresholds({"low": np.float64(0.1)}).contract.thresholds["low"] == {"on": 0.1, "off": 0.1}
    for wrong in (None, [("low", 0.5)], 0.5):
        with pytest.raises(UsageError, match="a mapping of labels to levels"):
            model.with_thresholds(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 5, b"digits"])
def test_invalid_model_names_are_rejected(wrong: Any) -> None:
    with pytest.raises(UsageError, match="load takes a model file or the name of a shipped model, not"):
        load(wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"gallery.db"])
def test_invalid_gallery_paths_are_rejected(wrong: Any) -> None:
    with pytest.raises(UsageError, match="path must be the path of a gallery file, got"):
        Gallery.open(wrong)


def test_tensors_that_are_no_arrays_are_refused_as_other_sound_is(model: Model) -> None:
    torch = pytest.importorskip("torch")
    for options, why in (({"requires_grad": True}, r"Use tensor\.detach"), ({"dtype": torch.bfloat16}, "BFloat16")):
        with pytest.raises(AudioError, match=rf"audio must be \[samples\] or \[samples, channels\] \(.*{why}"):
            model.stream().accept(torch.zeros(320, **options), RATE)
        with pytest.raises(AudioError, match=why):
            model.batch(1).push(torch.zeros(1, HOP, **options))


def test_a_path_is_no_gallery(model: Model) -> None:
    with pytest.raises(UsageError, match=r"as Gallery\.open\(path, model\) returns it, got 'gallery\.db'"):
        model.stream("gallery.db")  # type: ignore[arg-type]


def test_thresholds_do_not_depend_on_those_that_were_set_before(model: Model) -> None:
    lowered = model.with_thresholds({"low": 0.05, "mid": 0.1}).with_thresholds({"mid": 0.2})
    again = lowered.with_thresholds({"low": 0.9, "mid": 0.7})
    assert again.contract.thresholds == model.with_thresholds({"low": 0.9, "mid": 0.7}).contract.thresholds
    assert again.contract.thresholds["low"]["off"] == model.contract.thresholds["low"]["off"]
    assert lowered.contract.thresholds["low"] == {"on": 0.05, "off": 0.05}  # which was not named again


def test_a_stream_refuses_another_models_gallery(gallery: Gallery, tmp_path: Path) -> None:
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another"))
    with pytest.raises(GalleryError, match="another model"):
        other.stream(gallery)


def test_cohort_and_quiet_rooms_are_read_from_the_file(model: Model, tmp_path: Path) -> None:
    assert model.cohort.shape == model.quiet.shape == (0, 8)
    cohort, quiet = (RNG.standard_normal((rows, 8)).astype(np.float32) for rows in (5, 3))
    for windowed in (False, True):
        made = load(tiny_model.build(tmp_path / "made.onnx", windowed=windowed, cohort=cohort, quiet=quiet))
        np.testing.assert_array_equal(made.cohort, cohort)
        np.testing.assert_array_equal(made.quiet, quiet)


def test_lead_in_hears_a_sound_at_the_very_beginning_and_leaves_times_alone() -> None:
    model = load("digits")
    clip, rate = soundfile.read(DATA / "digits-real" / "seven.ogg", dtype="float32")
    quiet = np.zeros(2 * rate, np.float32)

    def heard(pcm: np.ndarray, *, lead_in: bool, step: int) -> list[Detection]:
        stream = model.stream(lead_in=lead_in)
        found = [event for at in range(0, len(pcm), step) for event in stream.accept(pcm[at : at + step], rate)]
        return found + stream.finish()

    assert heard(clip, lead_in=False, step=1000) == []
    (event,) = heard(clip, lead_in=True, step=1000)
    assert event.label == "seven"
    assert [event] == heard(clip, lead_in=True, step=len(clip))
    assert 0 <= event.start_sample < event.end_sample <= len(clip)
    (later,) = heard(np.concatenate([quiet, clip]), lead_in=True, step=777)
    assert abs(later.start_sample - len(quiet) - event.start_sample) <= model.contract.hop


def test_a_long_clip_is_one_sound_though_it_is_run_in_parts(model: Model) -> None:
    parts = [tone((500.0, 1200.0, 3600.0)[at % 3], 0.31) for at in range(40)]
    clip = np.concatenate(parts)[: (2 * HOPS_PER_CALL + 9) * HOP]
    scores, embedding, _ = model.run(clip[None], model.initial_state(1))
    skip = model.contract.warmup_hops
    for rows, whole in zip(model.rows(clip, RATE), (scores, embedding), strict=True):
        np.testing.assert_allclose(rows, whole[0, skip:], atol=1e-5)
