"""Which detections count as found, and which as false accepts: cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from confit_runtime.scoring import DEBOUNCE_S, EARLY_S, LATE_S, SoundEvent, score_detections

YES = SoundEvent("yes", 10.0, 10.6)


def at(end: float, label: str = "yes") -> SoundEvent:
    """A detection that ends then."""
    return SoundEvent(label, end - 0.1, end)


@pytest.mark.parametrize(
    ("end", "found"),
    [(9.74, False), (9.76, True), (10.3, True), (10.6, True), (11.59, True), (11.61, False), (5.0, False)],
)
def test_a_detection_is_true_from_shortly_before_the_sound_to_a_second_after_it(end: float, found: bool) -> None:
    score = score_detections([YES], [at(end)])
    assert score.found == [found]
    assert score.false_accepts == ([] if found else [at(end)])


def test_a_wrong_label_is_a_false_accept_and_finds_nothing() -> None:
    score = score_detections([YES], [at(10.6, "no")])
    assert score.found == [False]
    assert score.false_accepts == [at(10.6, "no")]


def test_a_second_detection_of_one_sound_is_neither_found_twice_nor_false() -> None:
    score = score_detections([YES], [at(10.5), at(11.0)])
    assert (score.found, score.false_accepts) == ([True], [])


def test_two_sounds_close_together_need_two_detections() -> None:
    truth = [YES, SoundEvent("yes", 11.0, 11.4)]
    assert score_detections(truth, [at(11.1)]).found == [True, False]
    assert score_detections(truth, [at(11.1), at(11.5)]).found == [True, True]
    assert score_detections(truth, [at(11.5), at(11.1)]).found == [True, True]  # in whatever order they come


def test_each_sound_keeps_the_place_of_the_detection_that_found_it() -> None:
    truth = [SoundEvent("go", 0.0, 1.0), SoundEvent("go", 1.2, 2.0), SoundEvent("go", 7.0, 8.0)]
    score = score_detections(truth, [at(2.2, "go"), at(5.0, "go"), at(1.1, "go")])
    assert score.found_by == [2, 0, None]
    assert score.found == [True, True, False]


def test_of_sounds_within_one_another_the_one_that_ends_first_is_found_first() -> None:
    truth = [SoundEvent("yes", 0.0, 10.0), SoundEvent("yes", 4.0, 5.0)]
    assert score_detections(truth, [at(4.5), at(9.5)]).found_by == [1, 0]


def test_false_accepts_of_one_label_within_a_second_are_one() -> None:
    detections = [at(1.0), at(1.5), at(1.99), at(2.0), at(4.0), at(1.2, "no")]
    assert score_detections([], detections).false_accepts == [at(1.0), at(1.2, "no"), at(2.0), at(4.0)]


def test_no_sounds_and_no_detections() -> None:
    assert score_detections([], []).found == []
    assert score_detections([YES], []).found == [False]
    assert score_detections([YES, SoundEvent("no", 1, 2)], iter([at(10.6)])).found == [True, False]


def reaches(detection: SoundEvent, sound: SoundEvent) -> bool:
    return sound.label == detection.label and sound.start_s - EARLY_S <= detection.end_s <= sound.end_s + LATE_S


def naive(truth: list[SoundEvent], detections: list[SoundEvent]) -> list[SoundEvent]:
    """The false accepts, by looking at each sound for each detection."""
    wrong = list[SoundEvent]()
    for detection in sorted(detections, key=lambda heard: heard.end_s):
        earlier = [accept for accept in wrong if accept.label == detection.label]
        if any(reaches(detection, sound) for sound in truth):
            continue
        if not earlier or detection.end_s - earlier[-1].end_s >= DEBOUNCE_S:
            wrong.append(detection)
    return wrong


spans = st.builds(
    lambda label, start, length: SoundEvent(label, start / 8, (start + length) / 8),
    st.sampled_from("ab"),
    st.integers(0, 80),
    st.integers(0, 40),
)


@settings(max_examples=200)
@given(truth=st.lists(spans, max_size=12), detections=st.lists(spans, max_size=12))
def test_in_one_pass_as_many_are_found_as_there_can_be(truth: list[SoundEvent], detections: list[SoundEvent]) -> None:
    score = score_detections(truth, detections)
    assert score.false_accepts == naive(truth, detections)
    pairs = [[reaches(detection, sound) for detection in detections] for sound in truth]
    finding = [place for place in score.found_by if place is not None]
    assert len(set(finding)) == len(finding)  # no detection finds two
    assert all(place is None or pairs[index][place] for index, place in enumerate(score.found_by))
    if truth and detections:
        assert len(finding) == int((maximum_bipartite_matching(csr_array(np.array(pairs, np.int8))) >= 0).sum())
