"""Calibration: counts equal to the detector's own, and promises that hold on sound that nobody has seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confit_runtime.calibration import (
    ALLOWED_FALSE_ACCEPTS,
    HALF_INDEX,
    LEVELS,
    NEVER,
    STEP,
    FalseAcceptCounts,
    Positive,
    choose_operating_point,
    count_false_accepts,
    det_curve,
    limiting_false_accepts,
    score_positive,
    set_by_hand,
    thresholds,
)
from confit_runtime.contract import Contract
from confit_runtime.detect import Detector
from confit_runtime.intervals import clustered_rate_interval, clustered_rate_upper
from confit_runtime.model import Model
from confit_runtime.recordings import Recording, stream_rows
from tests import tiny_model
from tests.tiny_model import RATE, Floats, silence, tone

MULTI = {"multi_label": True, "unknown_label": None}
RESTS = {"thresholds": {**tiny_model.contract().thresholds, "low": {"on": 0.5, "off": 0.3, "refractory_s": 0.8}}}


def rows_of(seed: int, hops: int, classes: int = 4) -> npt.NDArray[np.float32]:
    """Scores that wander slowly between 0 and 1, and sum to one."""
    walk = np.cumsum(np.random.default_rng(seed).normal(0, 0.8, (hops, classes)), axis=0)
    walk -= walk.mean(axis=0)
    scores = np.exp(walk) / np.exp(walk).sum(axis=1, keepdims=True)
    return scores.astype(np.float32)


@settings(max_examples=3)
@given(st.integers(0, 10_000), st.sampled_from([0, 40, 100]), st.sampled_from([{}, MULTI, RESTS]))
@example(0, 0, MULTI)  # labels that do not lead
@example(0, 0, {})
@example(0, 0, RESTS)
def test_counts_are_the_detectors(seed: int, place: int, kind: dict[str, object]) -> None:
    """A lower level may fire less often, being armed again later: it counts as often as any level above it."""
    contract = tiny_model.contract(**kind)
    recording = Recording("one", np.split(rows_of(seed, 80), [50]), 1.6, [("a.wav", 0.0), ("b.wav", 0.0)])
    fired = [hits_at(contract, recording, level) for level in LEVELS[place : place + 60]]
    above = [hits_at(contract, recording, level) for level in LEVELS[place + 60 :]]
    counts = count_false_accepts(contract, [recording])
    assert counts.events[:, 0, place].tolist() == np.max([*fired, *above], axis=0).tolist()
    assert (counts.events[:, 0, -1] == 0).all()


def room(pcm: Floats) -> Floats:
    """Noise of the same length."""
    return (1e-3 * np.random.default_rng(0).standard_normal(len(pcm))).astype(np.float32)


def hits_at(contract: Contract, recording: Recording, level: float) -> list[int]:
    """How often each label fires at one level, by the detector itself."""
    at = dataclasses.replace(contract, thresholds=thresholds(contract, np.full(len(contract.labels), level)))
    detector, found = Detector.from_contract(at), [0] * len(contract.labels)
    for rows in recording.pieces:
        detector.reset()
        for hit in detector.push(rows):
            found[hit.label] += 1
    return found


def world(rng: np.random.Generator, recordings: int, rates: npt.NDArray[np.float64]) -> FalseAcceptCounts:
    """Recordings of random length in which each label fires at random times, at levels that fall off exponentially.

    `rates [labels]` are false accepts an hour at the lowest level; some recordings are full of them and some empty.
    """
    hours = rng.uniform(0.02, 0.4, recordings)
    busy = rng.gamma(0.5, 2.0, recordings)
    events = np.zeros((len(rates), recordings, len(LEVELS)), np.int64)
    for label, rate in enumerate(rates):
        for place in range(recordings):
            for peak in rng.exponential(40.0, rng.poisson(rate * hours[place] * busy[place])):
                events[label, place, : int(min(peak, len(LEVELS) - 2)) + 1] += 1
    return FalseAcceptCounts(events, hours)


def true_rate(levels: npt.NDArray[np.int64], rates: npt.NDArray[np.float64]) -> float:
    return float((rates * np.where(levels < len(LEVELS) - 1, np.exp(-levels / 40.0), 0.0)).sum())


@pytest.mark.parametrize(
    ("labels", "recordings", "target", "least"), [(1, 40, 1.0, 0.93), (10, 40, 1.0, 0.89), (1, 5, 8.0, 0.88)]
)
def test_the_promised_bound_holds(labels: int, recordings: int, target: float, least: float) -> None:
    """Worlds whose true rates are known: of 400, it held in 96, 93 and 91 %; percentiles of recordings in 95, 90 and 75 %."""
    rng = np.random.default_rng(labels)
    rates = rng.gamma(0.5, 40.0 / labels, labels)
    kept, ratios = 0, []
    for _ in range(200):
        counts = world(rng, recordings, rates)
        chosen = choose_operating_point(counts, target)
        kept += true_rate(chosen.levels, rates) <= chosen.bound
        ratios.append(chosen.bound / max(true_rate(chosen.levels, rates), 1e-9))
        assert chosen.met == (chosen.bound <= target)
        assert chosen.bound == clustered_rate_upper(chosen.held_out, counts.hours)
    assert kept >= 200 * least
    assert np.median(ratios) < 5  # and is no empty promise


def test_the_margin_stops_where_the_bound_first_fails() -> None:
    """Four events in one of two recordings promise less than four in each, but come first as the margin falls."""
    events = np.zeros((1, 2, len(LEVELS)), np.int64)
    events[0, 0, :150] = events[0, 1, :120] = 4
    hours = np.full(2, 10.0)
    assert clustered_rate_upper(np.array([4, 0]), hours) > 5.0 > clustered_rate_upper(np.array([4, 4]), hours)
    assert choose_operating_point(FalseAcceptCounts(events, hours), target=5.0).margin == 150 - HALF_INDEX


def test_too_few_hours_say_how_many_are_missing() -> None:
    counts = FalseAcceptCounts(np.zeros((2, 4, len(LEVELS)), np.int64), np.full(4, 0.5))
    chosen = choose_operating_point(counts, target=0.5)
    assert not chosen.met
    assert chosen.bound == pytest.approx(2.9957 / 2, abs=1e-3)
    assert set(chosen.thresholds) == {LEVELS[0]}  # as high as they must be for that bound, and no higher
    assert chosen.more_hours == pytest.approx(2.9957 / 0.5 - 2, abs=1e-3)
    enough = choose_operating_point(
        FalseAcceptCounts(np.zeros((2, 13, len(LEVELS)), np.int64), np.full(13, 0.5)), target=0.5
    )
    assert enough.met
    assert enough.more_hours == 0.0
    assert set(enough.thresholds) == {LEVELS[0]}  # nothing fires at any level, so nothing need be raised


def test_more_confidence_needs_more_hours_or_higher_levels() -> None:
    counts = FalseAcceptCounts(np.zeros((1, 13, len(LEVELS)), np.int64), np.full(13, 0.5))
    assert choose_operating_point(counts, 0.5).met  # 6.5 hours without an event: 3.00 / 6.5 = 0.46
    sure = choose_operating_point(counts, 0.5, confidence=0.99)  # 4.61 / 6.5
    assert (sure.met, sure.bound) == (False, pytest.approx(4.6052 / 6.5, abs=1e-3))
    assert sure.more_hours == pytest.approx(4.6052 / 0.5 - 6.5, abs=1e-3)
    counts.events[0, 2, :150] = 1
    chosen = choose_operating_point(counts, 1.0, confidence=0.99)
    assert chosen.thresholds.tolist() == [LEVELS[150]]
    for confidence, bound in ((0.95, 2.9957), (0.99, 4.6052)):
        assert set_by_hand(chosen, counts, {}, confidence).bound == pytest.approx(bound / 6.5, abs=1e-3)
    assert choose_operating_point(counts, 1.0).thresholds.tolist() == [LEVELS[0]]  # one event: 5.29 / 6.5, and 8.20


def test_a_label_that_fires_everywhere_is_raised_alone() -> None:
    """One noisy label does not raise the others, and a label that even the highest level does not hold never fires."""
    events = np.zeros((3, 30, len(LEVELS)), np.int64)
    events[0, :, :200] = 3
    events[1, :, :-1] = 3
    chosen = choose_operating_point(FalseAcceptCounts(events, np.full(30, 0.5)), target=0.5)
    assert chosen.met
    assert chosen.thresholds.tolist() == [LEVELS[200], NEVER, LEVELS[HALF_INDEX]]


def test_a_label_that_reached_a_level_as_often_as_may_be_is_not_raised_by_it() -> None:
    events = np.zeros((1, 30, len(LEVELS)), np.int64)
    events[0, :ALLOWED_FALSE_ACCEPTS, :200] = 1
    assert choose_operating_point(FalseAcceptCounts(events, np.full(30, 0.5)), target=0.5).own.tolist() == [HALF_INDEX]
    events[0, ALLOWED_FALSE_ACCEPTS, :200] = 1
    assert choose_operating_point(FalseAcceptCounts(events, np.full(30, 0.5)), target=0.5).own.tolist() == [200]


def test_one_surprise_raises_all() -> None:
    """A level that one recording alone reached is not known from the others: any label may do that."""
    events = np.zeros((3, 30, len(LEVELS)), np.int64)
    events[0, 7, :150] = 1
    chosen = choose_operating_point(FalseAcceptCounts(events, np.full(30, 0.2)), target=0.5)
    assert chosen.thresholds.tolist() == [LEVELS[150]] * 3


def test_positives_and_the_curve() -> None:
    contract = tiny_model.contract()
    rows = np.zeros((30, 4), np.float32)
    rows[10:16, 0] = 0.9
    rows[20:26, 1] = 0.7
    heard = score_positive(contract, "low", "ada", rows)
    assert heard.level == pytest.approx(0.9)
    assert heard.others == ("mid",)
    assert score_positive(contract, "low", "ada", rows, own=["low", "mid"]).others == ()
    counts = FalseAcceptCounts(np.zeros((4, 6, len(LEVELS)), np.int64), np.full(6, 1.0))
    curve = det_curve(counts, choose_operating_point(counts, 0.5), contract, [heard])
    assert [point["frr"] for point in curve] == [0.0, 1.0]
    assert 1 / (1 + np.exp(-curve[1]["margin"])) == pytest.approx(0.9, abs=0.01)


def test_a_clip_that_just_reaches_a_level_fires_at_it() -> None:
    counts = FalseAcceptCounts(np.zeros((4, 6, len(LEVELS)), np.int64), np.full(6, 1.0))
    chosen = choose_operating_point(counts, 0.5)
    at = HALF_INDEX + 10
    curve = det_curve(counts, chosen, tiny_model.contract(), [Positive("low", "ada", float(LEVELS[at]), ())])
    assert [point["frr"] for point in curve] == [0.0, 1.0]
    assert curve[1]["margin"] == pytest.approx((at + 1 - chosen.own[0]) * STEP)


def test_the_curve_leaves_thresholds_set_by_hand_where_they_are() -> None:
    counts = FalseAcceptCounts(np.zeros((4, 6, len(LEVELS)), np.int64), np.full(6, 1.0))
    counts.events[0, 1, :200] = 5
    chosen = set_by_hand(choose_operating_point(counts.without([0]), 0.5), counts, {0: 0.7})
    positives = [Positive("low", "ada", 0.8, ()), Positive("mid", "ada", 0.8, ())]
    curve = det_curve(counts, chosen, tiny_model.contract(), positives)
    assert [(point["frr"], point["fa_per_hour"]) for point in curve] == [(0.0, 5 / 6), (0.5, 5 / 6)]


def test_a_release_that_is_asked_for_is_used() -> None:
    contract, on = tiny_model.contract(), np.array([0.5, 0.6, 0.7, 0.8])
    assert [level["off"] for level in thresholds(contract, on, 1.0).values()][:2] == [0.5, 0.6]
    assert [level["off"] for level in thresholds(contract, on).values()][:2] == [0.3, 0.36]


def test_no_label_is_brought_below_its_lowest_threshold() -> None:
    counts = FalseAcceptCounts(np.zeros((2, 13, len(LEVELS)), np.int64), np.full(13, 0.5))
    chosen = dataclasses.replace(choose_operating_point(counts, target=0.5), lowest=np.array([0.7, 0.0]))
    assert chosen.thresholds.tolist() == [0.7, LEVELS[0]]
    assert LEVELS[chosen.levels[0]] <= 0.7 < LEVELS[chosen.levels[0] + 1]


def test_limiting_false_accepts_are_reported_with_their_time(model: Model, tmp_path: Path) -> None:
    sounds = {"room": silence(1.0), "bell": np.concatenate([silence(0.5), tone(500, 0.1), silence(0.4)])}
    rows = {}
    for name, pcm in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", pcm + room(pcm), RATE)
        rows[name], _ = stream_rows(model, tmp_path / f"{name}.wav")
    recordings = [
        Recording("quiet", [rows["room"]], 1.0, [("quiet.wav", 0.0)]),
        Recording("loud", [rows["room"], rows["bell"]], 2.0, [("loud.wav", 0.0), ("long.wav", 100.0)]),
    ]
    (found,) = limiting_false_accepts(count_false_accepts(model.contract, recordings), model.contract, recordings)
    assert (found.label, found.file) == ("low", "long.wav")
    assert 100.5 <= found.at_s <= 100.6


def test_the_false_accepts_that_set_the_margin_are_the_furthest_above() -> None:
    contract, heights = tiny_model.contract(), (0.7, 0.9, 0.6, 0.8)
    recordings = []
    for name, height in zip("abcd", heights, strict=True):
        rows = np.zeros((20, 4), np.float32)
        rows[8:14, 0] = height
        recordings.append(Recording(name, [rows], 0.4, [(name, 0.0)]))
    found = limiting_false_accepts(count_false_accepts(contract, recordings), contract, recordings)
    assert [one.file for one in found] == ["b", "d", "a"]


def test_a_false_accept_exactly_at_its_level_sets_the_margin() -> None:
    contract, quiet, loud = tiny_model.contract(), np.zeros((20, 4), np.float32), np.zeros((20, 4), np.float32)
    loud[8:14, 0] = LEVELS[HALF_INDEX] + 0.001
    recordings = [Recording(name, [rows], 0.4, [(name, 0.0)]) for name, rows in (("quiet", quiet), ("loud", loud))]
    (found,) = limiting_false_accepts(count_false_accepts(contract, recordings), contract, recordings)
    assert (found.label, found.file, found.score) == ("low", "loud", pytest.approx(0.501))


class Unsummed(np.ndarray):
    """Events that must not be summed as a whole: they are many, and the curve has hundreds of margins."""

    def sum(self, *args: Any, **options: Any) -> Any:
        assert self.ndim < 3
        return np.asarray(self).sum(*args, **options)


def test_the_curve_is_that_of_each_margin_alone() -> None:
    contract, counts = tiny_model.contract(), world(np.random.default_rng(3), 12, np.array([40.0, 8.0, 90.0, 0.0]))
    chosen = choose_operating_point(counts, 20.0)
    curve = det_curve(FalseAcceptCounts(counts.events.view(Unsummed), counts.hours), chosen, contract, [])
    hours, expected = float(counts.hours.sum()), []
    for margin in range(-len(LEVELS), len(LEVELS)):
        levels = np.clip(chosen.own + margin, 0, len(LEVELS) - 1)
        by_recording = sum(counts.events[label, :, level] for label, level in enumerate(levels))
        seen = int(by_recording.sum())
        point = (seen / hours, *clustered_rate_interval(by_recording, counts.hours))
        expected += [point] if not expected or point != expected[-1] else []
    assert [(point["fa_per_hour"], point["fa_low"], point["fa_high"]) for point in curve] == expected


def test_counting_reports_its_progress() -> None:
    told: list[float] = []
    recordings = [Recording(str(at), [rows_of(at, 40)], 2.0 + at, [("a.wav", 0.0)]) for at in range(3)]
    count_false_accepts(tiny_model.contract(), recordings, told.append)
    assert told == [2.0, 5.0, 9.0]
