"""The terms of an evaluation: signal-to-noise around a label, what was there when something fired, latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_runtime import AudioError, ConfitError, Model, load
from confit_runtime.audio import Pcm
from confit_runtime.evaluation import (
    NEARBY_S,
    EvaluatedRecording,
    LocalPower,
    evaluate_recording,
    label_during,
    snr_band,
)
from confit_runtime.evaluation_report import summarise
from confit_runtime.gallery import Gallery
from confit_runtime.intervals import clustered_rate_interval, grouped_share_interval, poisson_interval
from confit_runtime.labels import LabelledRecording, read_labelled
from confit_runtime.scoring import Score, SoundEvent
from tests import tiny_model
from tests.tiny_model import RATE, silence, tone


def snr_db(pcm: Pcm, sounds: list[SoundEvent], cuts: Sequence[int] = (), rate: int = RATE) -> list[float]:
    """The ratios of sounds in a recording that is heard in parts."""
    power = LocalPower(rate, sounds)
    for part in np.split(pcm, sorted(cuts)):
        power.hear(part)
    return power.snr_db()


@pytest.mark.parametrize("ratio", [0.0, 7.0, 25.0])
def test_the_snr_compares_a_sound_with_its_surroundings(ratio: float) -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) * 0.01
    signal = np.sin(np.arange(RATE) * 0.3).astype(np.float32) * np.float32(0.01 * math.sqrt(2) * 10 ** (ratio / 20))
    noise[int(1.5 * RATE) : int(2.5 * RATE)] += signal
    other = SoundEvent("other", 2.5, 2.9)
    noise[int(2.5 * RATE) : int(2.9 * RATE)] += tone(700, 0.4)  # another sound is not noise
    found = snr_db(noise, [SoundEvent("low", 1.5, 2.5), other])
    assert found[0] == pytest.approx(ratio, abs=0.5)


def by_samples(pcm: Pcm, sounds: list[SoundEvent], rate: int) -> list[float]:
    """The ratios from the whole recording, sample by sample."""
    place, found = np.arange(len(pcm)), []

    def within(start_s: float, end_s: float) -> npt.NDArray[np.bool_]:
        return (place >= round(start_s * rate)) & (place < round(end_s * rate))

    labelled = np.any([within(one.start_s, one.end_s) for one in sounds], axis=0)
    for one in sounds:
        around = within(max(0.0, one.start_s - NEARBY_S), one.end_s + NEARBY_S) & ~labelled
        signal, noise = (
            float(np.mean(np.square(part, dtype=np.float64))) if len(part) else 0.0
            for part in (pcm[within(one.start_s, one.end_s)], pcm[around])
        )
        if not within(one.start_s, one.end_s).any() or np.count_nonzero(around) < 0.1 * rate:
            found.append(math.nan)
        elif signal <= noise:
            found.append(-math.inf)
        else:
            found.append(math.inf if noise == 0 else 10 * math.log10((signal - noise) / noise))
    return found


@settings(max_examples=100)
@given(
    spans=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 200)), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 600), max_size=6),
    seed=st.integers(0, 9),
)
def test_heard_in_parts_the_ratios_are_those_of_the_whole(
    spans: list[tuple[int, int]], cuts: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pcm = (rng.standard_normal(600) * rng.choice([0.01, 1.0], 600)).astype(np.float32)
    sounds = [SoundEvent("a", start / 100, (start + length) / 100) for start, length in spans]
    np.testing.assert_allclose(snr_db(pcm, sounds, cuts, 100), by_samples(pcm, sounds, 100), rtol=1e-6, atol=1e-6)


def test_a_recording_without_a_sample_is_refused(model: Model, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(AudioError, match=r"empty\.wav: holds no samples"):
        evaluate_recording(model, LabelledRecording(tmp_path / "empty.wav", 0.0, []))


def test_ratios_that_have_no_number() -> None:
    pcm = np.concatenate([silence(1), tone(500, 0.5), silence(1)])
    assert snr_db(pcm, [SoundEvent("low", 1.0, 1.5)]) == [math.inf]
    assert snr_db(pcm, [SoundEvent("low", 0.0, 0.5)]) == [-math.inf]
    assert snr_db(np.full(3 * RATE, 0.5, np.float32), [SoundEvent("low", 1.0, 2.0)]) == [-math.inf]  # as loud all along
    assert math.isnan(snr_db(pcm, [SoundEvent("low", 0.0, 2.5)])[0])
    assert math.isnan(snr_db(pcm, [SoundEvent("low", 1.2, 1.2)])[0])  # a point
    bands = [snr_band(snr) for snr in (math.nan, -math.inf, -1.0, 0.0, 9.9, 19.0, 20.0, math.inf)]
    assert bands == [
        "no estimate", "below 0 dB", "below 0 dB", "0 to 5 dB", "5 to 10 dB", "10 to 20 dB", "20 dB and more", "20 dB and more",
    ]  # fmt: skip


def test_a_recording_is_judged(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, np.concatenate([tone(500, 0.3), silence(1), tone(3600, 0.3), silence(2)]), RATE)
    sounds = [SoundEvent("low", 0.0, 0.3), SoundEvent("parrot", 1.3, 1.6), SoundEvent("mid", 2.8, 3.1)]
    judged = evaluate_recording(model, LabelledRecording(path, 3.6, sounds))
    assert judged.seconds == 3.6
    assert judged.score.found == [True, False]
    assert [one.label for one in judged.others] == ["parrot"]
    (accept,) = judged.score.false_accepts
    assert (accept.label, label_during(accept, judged)) == ("high", "parrot")
    assert label_during(SoundEvent("high", 9.0, 9.1), judged) == "nothing"
    latency, missed = judged.latency_s
    assert latency is not None
    assert -0.3 < latency < 0.3
    assert missed is None


def test_negative_prints_of_a_label_drop_its_false_accepts_as_in_listen(model: Model, tmp_path: Path) -> None:
    path, alarm = tmp_path / "one.wav", tone(1200, 0.3)
    soundfile.write(path, np.concatenate([silence(1), alarm, silence(2), tone(500, 0.3), silence(1)]), RATE)
    recording = LabelledRecording(path, 4.6, [SoundEvent("low", 3.3, 3.6)])
    with Gallery.open(tmp_path / "negatives.db", model, create=True) as gallery:
        before = evaluate_recording(model, recording, gallery=gallery)
        assert [accept.label for accept in before.score.false_accepts] == ["mid"]
        gallery.enroll("mid", model.embed(alarm, RATE)[None], sources=["tv"], voiced_s=0.3, negative=True)
        after = evaluate_recording(model, recording, gallery=gallery)
    assert (after.score.false_accepts, after.score.found) == ([], [True])


class Compared(SoundEvent):
    """A sound that counts how often any is held against another one."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = SoundEvent.__hash__


def test_each_sound_has_its_own_ratio_without_being_looked_for(model: Model, tmp_path: Path) -> None:
    path, noise = tmp_path / "dense.wav", np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32)
    soundfile.write(path, 0.01 * noise, RATE)
    sounds = [Compared(("low", "parrot", "mid")[at % 3], 0.05 * at, 0.05 * at + 0.02) for at in range(399)]
    judged = evaluate_recording(model, LabelledRecording(path, 20.0, sounds))
    assert Compared.times <= len(sounds)
    ratios = snr_db(soundfile.read(path, dtype="float32")[0], sounds)
    expected = [ratio for one, ratio in zip(sounds, ratios, strict=True) if one.label != "parrot"]
    np.testing.assert_allclose(judged.snr_db, expected, rtol=1e-6)
    assert len(set(judged.snr_db)) > 50


def test_silenced_labels_are_not_misses(tmp_path: Path) -> None:
    levels = {label: {"on": 1.01 if label == "low" else 0.6, "off": 0.3} for label in tiny_model.LABELS}
    mute = load(tiny_model.build(tmp_path / "tiny.onnx", thresholds=levels))
    path = tmp_path / "one.wav"
    soundfile.write(path, np.concatenate([silence(0.5), tone(500, 0.3), silence(1), tone(1200, 0.3), silence(1)]), RATE)
    judged = evaluate_recording(
        mute, LabelledRecording(path, 3.1, [SoundEvent("low", 0.5, 0.8), SoundEvent("mid", 1.8, 2.1)])
    )
    assert judged.score.found == [True]
    assert [(one.label, one.start_s) for one in (*judged.sounds, *judged.others)] == [("mid", 1.8), ("low", 0.5)]
    assert label_during(SoundEvent("mid", 0.7, 0.8), judged) == "low"


def test_latency_is_that_of_the_label_of_the_sound(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    pcm = np.concatenate([silence(0.5), tone(500, 0.3), silence(0.7), tone(3600, 0.2), silence(1.0)])
    soundfile.write(path, pcm, RATE)
    judged = evaluate_recording(
        model, LabelledRecording(path, 2.7, [SoundEvent("high", 0.5, 1.7)])
    )  # low was heard in it, long before
    assert [accept.label for accept in judged.score.false_accepts] == ["low"]
    assert judged.latency_s == [pytest.approx(0.0, abs=0.2)]


def test_latency_is_that_of_the_detection_that_found_the_sound(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    pcm = [silence(0.9), tone(500, 0.3), silence(0.6), tone(500, 0.3), silence(1.5)]
    soundfile.write(path, np.concatenate(pcm), RATE)
    sounds = [
        SoundEvent("low", 0.9, 1.2),
        SoundEvent("low", 1.1, 2.1),
    ]  # the first is told once the second may have begun
    judged = evaluate_recording(model, LabelledRecording(path, 3.6, sounds))
    assert judged.score.found_by == [0, 1]
    assert judged.latency_s == [pytest.approx(-0.2, abs=0.1), pytest.approx(-0.2, abs=0.1)]


def test_detections_at_the_end_of_a_recording_are_reported(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, np.concatenate([silence(0.5), tone(3600, 0.04)]), RATE)
    judged = evaluate_recording(model, LabelledRecording(path, 0.54, [SoundEvent("high", 0.5, 0.54)]))
    assert judged.latency_s == [pytest.approx(0.0, abs=1e-3)]


def test_a_sound_that_a_recording_begins_with_is_found(model: Model, tmp_path: Path) -> None:
    """As `listen` finds it: silence stands before a recording, which the window of its first samples reaches into."""
    path = tmp_path / "one.wav"
    soundfile.write(path, np.concatenate([tone(3600, 0.02), silence(1.0)]), RATE)
    judged = evaluate_recording(model, LabelledRecording(path, 1.02, [SoundEvent("high", 0.0, 0.02)]))
    assert judged.score.found == [True]


def test_a_false_accept_is_put_down_to_the_sound_that_ends_nearest() -> None:
    sounds, others = [SoundEvent("low", 0.0, 2.1)], [SoundEvent("parrot", 1.9, 2.6)]
    judged = EvaluatedRecording("x", "x", 9.0, sounds, others, Score([None], []), [0.0], [None])
    assert label_during(SoundEvent("high", 2.0, 2.2), judged) == "low"
    assert label_during(SoundEvent("high", 2.3, 2.5), judged) == "parrot"


@settings(max_examples=80)
@given(cells=st.lists(st.text(alphabet="0123456789.,-einf\t\n \"'xé\\", max_size=60), max_size=4), table=st.booleans())
def test_labels_are_read_or_refused(cells: list[str], table: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("labels")
    soundfile.write(folder / "x.wav", silence(10, 1000), 1000)
    text = "\n".join(cells)
    if table:
        (folder / "labels.csv").write_text(f"path,start_s,end_s,label\n{text}", encoding="utf-8")
    else:
        (folder / "x.txt").write_text(text, encoding="utf-8")
    try:
        found = read_labelled(folder / "labels.csv" if table else folder)
    except ConfitError:
        return
    for recording in found:
        for heard in recording.sounds:
            assert 0 <= heard.start_s <= heard.end_s < math.inf
            assert heard.label


def test_recordings_are_summed_up_by_the_hour_and_the_intervals_are_of_recordings() -> None:
    """Two hours: all that fires falsely is in the first recording, all that is missed in the second."""

    def judged(
        name: str, hours: float, found: list[bool], accepts: int, long_s: float, latency: float
    ) -> EvaluatedRecording:
        sounds = [SoundEvent("low", 10.0 * at, 10.0 * at + long_s) for at in range(len(found))]
        falsely = [SoundEvent("mid", 10.0 * at + 5, 10.0 * at + 5.1) for at in range(accepts)]
        score = Score([at if one else None for at, one in enumerate(found)], falsely)
        told = [latency if one else None for one in found]
        return EvaluatedRecording(name, name, 3600 * hours, sounds, [], score, [20.0] * len(found), told)

    contract = tiny_model.contract()
    window_s = contract.window / contract.sample_rate
    recordings = [
        judged("a", 1.0, [True] * 8, 9, window_s / 2, 0.1),
        judged("b", 0.5, [False] * 4, 0, window_s / 2, 0.1),
        judged("c", 0.5, [True] * 4, 0, 0.5, -0.2),  # longer than a window: heard before it ends
    ]
    report = summarise(recordings, contract, 0.95)
    assert (report["recordings"], report["hours"], report["false_accepts"], report["fa_per_hour"]) == (3, 2.0, 9, 4.5)
    clustered = clustered_rate_interval(np.array([9, 0, 0]), np.array([1.0, 0.5, 0.5]))
    spread = poisson_interval(9, 2.0)
    assert clustered[0] < spread[0] < spread[1] < clustered[1]
    assert report["fa_per_hour_interval"] == pytest.approx(clustered)
    rejects, missed = report["false_rejects"], [False] * 8 + [True] * 4 + [False] * 4
    assert (rejects["sounds"], rejects["missed"], rejects["frr"]) == (16, 4, 0.25)
    assert rejects["frr_interval"] == pytest.approx(grouped_share_interval(missed, list("a" * 8 + "b" * 4 + "c" * 4)))
    assert rejects["frr_interval"][1] > grouped_share_interval(missed, list(map(str, range(16))))[1] + 0.1
    assert report["by_label"] == {"low": rejects}
    assert (report["latency_s"]["median"], report["latency_s"]["most"]) == pytest.approx((0.1, 0.1))
    assert report["latency_from_start_s"]["median"] == pytest.approx(0.3)
    assert {one["file"] for one in report["not_heard"]} == {"b"}
    assert {one["file"] for one in report["heard_falsely"]} == {"a"}


def test_false_accepts_of_a_group_are_taken_together() -> None:
    def recording(group: str, accepts: int) -> EvaluatedRecording:
        falsely = [SoundEvent("mid", 9.0 * at, 9.0 * at + 0.1) for at in range(accepts)]
        return EvaluatedRecording(f"{group}.wav", group, 3600.0, [], [], Score([], falsely), [], [])

    judged = [recording("a", 3), recording("b", 1), recording("a", 2), recording("c", 0)]
    found = summarise(judged, tiny_model.contract(), 0.95)["fa_per_hour_interval"]
    assert found == pytest.approx(clustered_rate_interval(np.array([5, 1, 0]), np.array([2.0, 1.0, 1.0])))
    assert summarise([], tiny_model.contract(), 0.95)["fa_per_hour_interval"] is None


def test_the_half_hours_of_a_single_recording_show_how_false_accepts_cluster() -> None:
    contract = tiny_model.contract()

    def interval(hours: float, span_s: tuple[float, float]) -> list[float]:
        accepts = [SoundEvent("mid", end_s - 0.1, end_s) for end_s in np.linspace(*span_s, 13)[1:]]
        found: list[float] = summarise(
            [EvaluatedRecording("a", "a", 3600 * hours, [], [], Score([], accepts), [], [])], contract, 0.95
        )["fa_per_hour_interval"]
        return found

    clustered, spread = interval(4.0, (0.0, 1799.0)), interval(4.0, (0.0, 4 * 3600.0))
    assert clustered == pytest.approx(clustered_rate_interval(np.array([12] + [0] * 7), np.full(8, 0.5)))
    assert clustered[0] < spread[0] < 3.0 < spread[1] < clustered[1] / 1.5
    assert interval(0.6, (0.0, 1799.0)) == pytest.approx(poisson_interval(12, 0.6))  # too short for two half hours
