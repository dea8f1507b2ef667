"""The detector against a naive loop that says the same in other words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confit_runtime.arrays import Floats
from confit_runtime.detect import Detector, Hit, Hold, NameDetector
from confit_runtime.errors import UsageError
from confit_runtime.gallery import Gallery
from confit_runtime.matcher import Levels, Matcher, l2_normalise
from confit_runtime.model import load
from confit_runtime.name_calibration import name_rows, names_contract
from tests import tiny_model


class Settings(NamedTuple):
    smoothing: int
    min_hops: int
    refractory: int
    exclusive: bool
    never: list[int]
    hold: int = 0


detection = st.builds(
    Settings,
    smoothing=st.sampled_from([1, 2, 4]),
    min_hops=st.integers(1, 4),
    refractory=st.integers(0, 6),
    exclusive=st.booleans(),
    never=st.sampled_from([[], [0], [2]]),
    hold=st.sampled_from([0, 0, 1, 2, 5]),
)
# eighths, so that sums are exact and the two ways to average them cannot differ by rounding
score_rows = st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), max_size=40)

ON, OFF = [0.5, 0.625, 0.75], [0.25, 0.5, 0.75]


def naive_smooth(rows: list[list[float]], how: Settings) -> list[list[float]]:
    smooth = []
    for at in range(len(rows)):
        recent = rows[max(0, at - how.smoothing + 1) : at + 1]
        smooth.append([sum(column) / len(recent) for column in zip(*recent, strict=True)])
    return smooth


def naive_hits(rows: list[list[float]], how: Settings) -> list[Hit]:
    smooth = naive_smooth(rows, how)
    last_fired: dict[int, int] = {}
    hits = []
    for at in range(len(rows)):
        for label in range(3):
            if label in how.never:
                continue
            long_enough = at + 1 >= how.min_hops and all(
                smooth[back][label] >= ON[label] for back in range(at - how.min_hops + 1, at + 1)
            )
            leads = not how.exclusive or smooth[at][label] == max(smooth[at])
            before = last_fired.get(label)
            rested = before is None or at >= before + how.refractory
            fell = before is None or any(
                all(low < OFF[label] for low in naive_pause(smooth, label, back, how))
                for back in range(before + 1, at - how.hold + 1)
            )
            if long_enough and leads and rested and fell:
                start = at
                while start > 0 and smooth[start - 1][label] >= OFF[label]:
                    start -= 1
                hits.append(Hit(label, smooth[at][label], start, at))
                last_fired[label] = at
    return hits


def naive_pause(smooth: list[list[float]], label: int, start: int, how: Settings) -> list[float]:
    """The scores of a class in the rows for which it must be below its low threshold."""
    return [row[label] for row in smooth[start : start + how.hold + 1]]


def naive_releases(rows: list[list[float]], how: Settings) -> list[tuple[int, int]]:
    """(row, class): of each hit, the first row after it from which on the class is below the low threshold for long enough."""
    smooth = naive_smooth(rows, how)
    found = []
    for hit in naive_hits(rows, how):
        fell = [
            at
            for at in range(hit.row + 1, len(rows) - how.hold)
            if all(low < OFF[hit.label] for low in naive_pause(smooth, hit.label, at, how))
        ]
        found += [(fell[0], hit.label)] if fell else []
    return sorted(found)


def make(how: Settings) -> Detector:
    return Detector(
        ON,
        OFF,
        smoothing_hops=how.smoothing,
        min_hops=how.min_hops,
        refractory_hops=how.refractory,
        hold_hops=how.hold,
        never=how.never,
        exclusive=how.exclusive,
    )


def as_rows(eighths: list[list[int]]) -> Floats:
    return np.array(eighths, np.float32).reshape(-1, 3) / 8


@given(score_rows, detection)
@example([[7, 8, 0]], Settings(1, 1, 0, True, []))  # only the class that leads
@example([[0, 0, 6], [0, 5, 0]], Settings(1, 1, 2, False, []))  # the rest of one class is not that of another
# two rows apart are not two in succession, though what fired before is only pausing
@example([[0, 8, 0], [0, 8, 0], [8, 0, 0], [0, 0, 0], [8, 0, 0]], Settings(1, 2, 0, False, [], 5))
def test_hits_are_the_naive_loops(eighths: list[list[int]], how: Settings) -> None:
    detector, rows = make(how), [[eighth / 8 for eighth in row] for row in eighths]
    found, wanted = detector.push(as_rows(eighths)), naive_hits(rows, how)
    assert detector.released == naive_releases(rows, how)
    assert [(hit.label, hit.start_row, hit.row) for hit in found] == [
        (hit.label, hit.start_row, hit.row) for hit in wanted
    ]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in wanted], atol=1e-6)


@given(score_rows, detection, st.lists(st.integers(0, 40), max_size=5))
def test_chunk_sizes_and_reset_change_nothing(eighths: list[list[int]], how: Settings, cuts: list[int]) -> None:
    rows = as_rows(eighths)
    at_once = make(how)
    whole = at_once.push(rows)
    detector = make(how)
    detector.push(np.ones((7, 3), np.float32))
    detector.reset()
    hits, released = [], []
    for part in np.split(rows, sorted(cuts)):
        hits += detector.push(part)
        released += detector.released
    assert (hits, released) == (whole, at_once.released)


@given(score_rows, detection, st.integers(1, 9))
def test_unscored_rows_are_a_pause(eighths: list[list[int]], how: Settings, gap: int) -> None:
    how = how._replace(smoothing=1, refractory=0)  # what is heard anew is not smoothed with what was before
    rows, silence = as_rows(eighths), np.zeros((gap, 3), np.float32)
    heard, slept = make(how), make(how)
    assert heard.push(rows) == slept.push(rows)
    heard.push(silence)
    slept.skip_to(len(rows) + gap)
    assert slept.released == heard.released
    assert slept.push(rows) == heard.push(rows)
    assert slept.released == heard.released


def test_a_pause_releases_in_the_order_of_each_class_and_its_hold() -> None:
    heard, slept = (
        Detector(ON, OFF, smoothing_hops=1, min_hops=1, refractory_hops=0, hold_hops=[1, 5, 1], exclusive=False)
        for _ in range(2)
    )
    rows, quiet = np.float32([[0.9, 0.9, 0.0], [0.0, 0.9, 0.0]]), np.zeros((8, 3), np.float32)
    assert [hit.label for hit in heard.push(rows)] == [hit.label for hit in slept.push(rows)] == [0, 1]
    assert heard.push(quiet) == []
    slept.skip_to(len(rows) + len(quiet))
    assert heard.released == slept.released == [(1, 0), (2, 1)]


def test_each_class_rests_for_its_own_refractory_time() -> None:
    detector = Detector(ON, OFF, smoothing_hops=1, min_hops=1, refractory_hops=[1, 6, 3], exclusive=False)
    fired = [(hit.row, hit.label) for hit in detector.push(np.tile(np.float32([[0.9, 0.9, 0.9], [0, 0, 0]]), (4, 1)))]
    assert fired == [(0, 0), (0, 1), (0, 2), (2, 0), (4, 0), (4, 2), (6, 0), (6, 1)]


def test_a_hold_of_each_label_is_its_own() -> None:
    contract = tiny_model.contract(refractory_s=0.0)
    second = contract.sample_rate / contract.hop
    assert Hold(1.0, {"mid": 2.0}).hops(contract, ["low", "mid"]) == [second, 2 * second]
    assert Hold(1.0, {"caf\u00e9": 2.0}).hops(contract, ["cafe\u0301"]) == [2 * second]
    assert Hold(np.float32(1.0), {"mid": np.int64(2)}).hops(contract, ["low", "mid"]) == [second, 2 * second]
    for wrong in (float("nan"), -1, "5", None, True):
        with pytest.raises(UsageError, match="mid"):
            Hold(1.0, {"mid": wrong})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="own_s"):
        Hold(1.0, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Hold\(seconds\)"):
        load("digits").stream(hold=5)  # type: ignore[arg-type]


def test_a_hold_for_an_unknown_label_is_rejected_without_a_gallery(tmp_path: Path) -> None:
    digits = load("digits")
    with pytest.raises(UsageError, match=r"'sevn': digits has no such label .*; did you mean 'seven'\?"):
        digits.stream(hold=Hold(0, {"one": 1, "sevn": 5}))
    with Gallery.open(tmp_path / "gallery.db", digits, create=True) as gallery:
        digits.stream(gallery, hold=Hold(0, {"doorbell": 5}))
    many = dataclasses.replace(
        digits.contract,
        labels=[*digits.labels, *(f"word{at}" for at in range(2000))],
        thresholds={**digits.contract.thresholds, **{f"word{at}": {"on": 0.5, "off": 0.3} for at in range(2000)}},
    )
    with pytest.raises(UsageError, match=r"\(it has word1999, .*, and \d{4} more\).*did you mean 'word1999'") as caught:
        Hold(0, {"wrd1999": 5}).check(many)
    assert len(str(caught.value)) < 500
    assert Hold(2.0, {"seven": 5, "alarm": 1}).among(digits.labels) == Hold(2.0, {"seven": 5})


def test_one_long_sound_fires_once() -> None:
    detector = make(Settings(2, 2, 0, True, []))
    assert len(detector.push(np.tile(np.float32([0.9, 0.0, 0.0]), (500, 1)))) == 1


def test_a_name_fires_after_two_matches_in_succession() -> None:
    contract = tiny_model.contract(min_hops=1, refractory_s=0.0)
    prints = np.eye(8, dtype=np.float32)[:2]
    matcher = Matcher(["ada", "bob"], [0, 1], prints, np.zeros((0, 8), np.float32), levels=Levels(0.7, 0.1))
    detector = NameDetector(contract, matcher)
    ada, bob, nobody = *prints, np.eye(8, dtype=np.float32)[5]
    assert detector.push(np.stack([ada, nobody, ada, bob, ada, nobody])) == []
    assert detector.push(np.stack([bob, bob, bob, nobody, ada, ada])) == [Hit(1, 1.0, 6, 7), Hit(0, 1.0, 10, 11)]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), min_hops=st.integers(1, 3), smoothing=st.integers(1, 3))
def test_names_are_calibrated_by_what_fires_in_a_stream(seed: int, min_hops: int, smoothing: int) -> None:
    """The rows of similarities and the rules that `calibrate` counts by give the hits of a stream."""
    rng = np.random.default_rng(seed)
    prints = l2_normalise(rng.standard_normal((4, 8)).astype(np.float32))
    nothing = np.zeros((0, 8), np.float32)
    levels = Levels(0.6, 0.05, genuine=0.7, stream_threshold=0.85)
    matcher, passing = (
        Matcher(["ada", "bob"], [0, 0, 0, 1], prints, nothing, levels=level)
        for level in (levels, dataclasses.replace(levels, threshold=-1.0, by_hand=True))
    )
    contract = tiny_model.contract(min_hops=min_hops, smoothing_hops=smoothing, refractory_s=0.1)
    rows = prints[np.repeat(rng.integers(4, size=20), rng.integers(1, 6, size=20))]
    rows = l2_normalise(rows + rng.normal(0, 0.2, rows.shape).astype(np.float32))
    rows[rng.random(len(rows)) < 0.02] = np.nan
    hits = Detector.from_contract(names_contract(contract, matcher)).push(name_rows(rows, passing))
    assert hits == NameDetector(contract, matcher).push(rows)


def test_a_name_that_any_sound_matches_needs_a_similarity_above_zero() -> None:
    """Else it would fire on the rows of other names, in which it scores 0."""
    prints = np.eye(8, dtype=np.float32)[:2]
    matcher = Matcher(["ada", "bob"], [0, 1], prints, np.zeros((0, 8), np.float32), levels=Levels(-0.5, 0.0))
    contract = names_contract(tiny_model.contract(), matcher)
    rows = name_rows(np.tile(prints[0], (10, 1)), matcher)
    assert [hit.label for hit in Detector.from_contract(contract).push(rows)] == [0]


def test_a_changed_gallery_keeps_the_detector_state() -> None:
    """To a name that is in both nothing has happened, wherever it stands in them; one that is new begins."""
    contract = tiny_model.contract(refractory_s=0.2)  # ten hops
    ada, bob, cem, nobody = np.eye(8, dtype=np.float32)[:4]

    def matcher(**prints: Floats) -> Matcher:
        nothing = np.zeros((0, 8), np.float32)
        return Matcher([*prints], range(len(prints)), np.stack([*prints.values()]), nothing, levels=Levels(0.7, 0.1))

    detector = NameDetector(contract, matcher(ada=ada, bob=bob))
    assert detector.push(np.stack([bob, bob, ada, ada])) == [Hit(1, 1.0, 0, 1), Hit(0, 1.0, 2, 3)]
    left = detector.with_matcher(contract, matcher(ada=ada))
    assert (left.push(nobody[None]), left.released) == ([], [(4, 0)])  # heard at once
    after = detector.with_matcher(contract, matcher(abe=cem, ada=ada))
    assert after.push(np.stack([ada] * 20)) == []  # rows 4 to 23, of the sound that fired
    assert after.push(np.stack([nobody, ada, ada])) == [Hit(1, 1.0, 25, 26)]
    assert (after.released, after.push(cem[None])) == ([(24, 1)], [])
    again = after.with_matcher(contract, matcher(abe=cem, ada=ada, bob=bob))
    assert again.push(np.stack([cem, bob, bob, nobody, ada, ada])) == [Hit(0, 1.0, 27, 28), Hit(2, 1.0, 29, 30)]
    assert again.released == [(29, 0), (31, 2)]  # and ada stays silent as long


def test_smoothing_does_not_span_unscored_rows() -> None:
    detector = make(Settings(4, 1, 0, False, []))
    detector.push(np.zeros((3, 3), np.float32))
    detector.skip_to(10)
    assert detector.push(np.float32([[0.75, 0.0, 0.0]])) == [Hit(0, 0.75, 10, 10)]


def test_a_refractory_time_is_whole_hops_and_no_shorter() -> None:
    contract = tiny_model.contract(refractory_s=0.21)
    assert Detector.from_contract(contract).refractory_hops.tolist() == [11] * 4
    levels = {**contract.thresholds, "mid": {"on": 0.6, "off": 0.3, "refractory_s": 1.0}}
    own = Detector.from_contract(dataclasses.replace(contract, thresholds=levels))
    assert own.refractory_hops.tolist() == [11, 50, 11, 11]


def test_an_empty_gallery_never_fires() -> None:
    nothing = np.zeros((0, 8), np.float32)
    detector = NameDetector(tiny_model.contract(), Matcher([], [], nothing, nothing, levels=Levels(0.5, 0.0)))
    assert detector.push(np.ones((10, 8), np.float32)) == []
