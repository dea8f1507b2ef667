"""What few clips do not prove."""

from __future__ import annotations

from typing import Any

import pytest

from confit_runtime.data_warnings import data_warnings, has_enough_clips
from confit_runtime.describe import facts
from tests import tiny_model


def data(clips: int, groups: int) -> dict[str, Any]:
    """Of a model that was chosen by so many clips, all of labels that fire."""
    parts = ("train", "val", "test")
    return {
        "clips": dict.fromkeys(parts, clips),
        "groups": dict.fromkeys(parts, groups),
        "own": {key: {"clips": clips, "groups": groups} for key in parts},
        "grouped": clips > groups,
    }


def test_many_clips_of_many_groups_need_no_caution() -> None:
    assert data_warnings(data(60, 6)) == []
    assert data_warnings({}) == []


@pytest.mark.parametrize(
    ("clips", "groups", "named"), [(60, 4, "60 validation clips from 4 groups"), (29, 9, "from 9 groups")]
)
def test_few_clips_or_groups_give_a_warning(clips: int, groups: int, named: str) -> None:
    (caution,) = data_warnings(data(clips, groups))
    assert named in caution
    # a binomial of that share shows no error in `groups` trials one time in twenty
    share = float(caution.split("up to ")[1].split(" %")[0]) / 100
    assert (1 - share) ** groups == pytest.approx(0.05, abs=0.01)
    assert "calibrate" in caution


@pytest.mark.parametrize("clips", [29, 30])
@pytest.mark.parametrize("groups", [4, 5])
def test_an_accuracy_is_published_where_nothing_is_said_against_it(clips: int, groups: int) -> None:
    assert has_enough_clips(data(clips, groups), "val") == (data_warnings(data(clips, groups)) == [])


def test_only_clips_of_labels_that_can_fire_count() -> None:
    """Ten clips of a wake word among hundreds of what it is told from prove little, whatever the accuracy."""
    few = {"train": {"clips": 7, "groups": 7}, "val": {"clips": 2, "groups": 2}, "test": {"clips": 1, "groups": 1}}
    unknown, alone, chosen = data_warnings({**data(115, 40), "own": few, "grouped": False})
    assert (
        "114 of 115 test clips are of the unknown class, so a model that always gave that answer would be right 99.1 %"
        in unknown
    )
    assert "every clip is a group of its own" in alone
    assert "2 validation clips from 2 groups" in chosen
    assert not any("unknown" in one for one in data_warnings({**data(115, 40), "own": few, "multi_label": True}))
    many = {split: {"clips": 60, "groups": 6} for split in few}
    assert data_warnings({**data(100, 40), "own": many}) == []


def test_clips_without_groups_give_a_warning() -> None:
    (caution,) = data_warnings(data(80, 80))
    assert "every clip is a group of its own" in caution
    said = {**data(80, 80), "grouped": False}
    assert data_warnings(said) == [caution]
    (caution,) = data_warnings({**data(80, 60), "grouped": False})
    assert "in at least one class most clips are each a group of their own" in caution
    assert data_warnings({**said, "grouped": True}) == []  # a speaker for each clip
    rows = facts(tiny_model.contract(data={"fingerprint": "", **data(3, 3)}), 1000)
    assert len([text for name, text in rows if name == "warning"]) == 2


def test_an_accuracy_of_a_few_clips_is_not_to_be_published() -> None:
    assert has_enough_clips(data(30, 5), "test")
    assert not has_enough_clips(data(29, 10), "test")
    assert not has_enough_clips(data(100, 4), "test")
    own = {"test": {"clips": 9, "groups": 9}}  # among hundreds of the unknown class
    assert not has_enough_clips({**data(300, 20), "own": own}, "test")
