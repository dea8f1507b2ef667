"""What every task of the benchmarks must hold: splits that share nothing, and a test that no seed changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sources import Sound, _by_hash, words
from benchmarks.tasks import TASKS, build, check, draw, unique
from confit_runtime.errors import ConfitError, UsageError


@pytest.fixture
def sounds(tmp_path: Path) -> list[Sound]:
    """Two classes, twelve groups, each group in one split and with two files of each class."""
    found = []
    for label in ("a", "b"):
        for number in range(12):
            for take in range(2):
                path = tmp_path / f"{label}-{number}-{take}"
                path.write_bytes(f"{label} {number} {take}".encode())
                found.append(Sound(path, label, f"group {number}", ("train", "train", "val", "test")[number % 4]))
    return found


def test_a_seed_draws_other_training_clips_of_the_same_test(sounds: list[Sound]) -> None:
    task = replace(TASKS["words"], clips=(3, 2, 4), groups=None)
    one, other = draw(sounds, task, 0), draw(sounds, task, 1)
    assert [sound for sound in one if sound.split != "train"] == [sound for sound in other if sound.split != "train"]
    assert {sound for sound in one if sound.split == "train"} != {sound for sound in other if sound.split == "train"}
    counts = [sum(sound.split == split and sound.label == "a" for sound in one) for split in ("train", "val", "test")]
    assert counts == [3, 2, 4]


def test_training_groups_are_drawn_whole(sounds: list[Sound]) -> None:
    drawn = draw(sounds, replace(TASKS["words"], clips=(99, 2, 2), groups=2), 0)
    train = [sound for sound in drawn if sound.split == "train"]
    assert len({sound.group for sound in train}) == 2
    assert len(train) == 2 * 2 * 2


def test_a_class_that_a_split_lacks_is_left_out(sounds: list[Sound]) -> None:
    lacking = [sound for sound in sounds if (sound.label, sound.split) != ("b", "val")]
    assert {sound.label for sound in draw(lacking, TASKS["words"], 0)} == {"a"}


def test_the_same_bytes_stay_once_where_they_agree_and_go_where_they_do_not(sounds: list[Sound]) -> None:
    agreeing = replace(sounds[0], path=sounds[0].path.with_name("copy"))
    agreeing.path.write_bytes(sounds[0].path.read_bytes())
    stray = replace(sounds[1], path=sounds[1].path.with_name("stray"), group="another group")
    stray.path.write_bytes(sounds[1].path.read_bytes())
    kept = unique([*sounds, agreeing, stray])
    assert sounds[0] in kept
    assert not {agreeing, stray, sounds[1]} & set(kept)


def test_a_group_or_bytes_in_two_splits_are_refused(sounds: list[Sound]) -> None:
    check(sounds)
    with pytest.raises(ConfitError, match="group 0"):
        check([*sounds, replace(sounds[0], split="test")])
    twin = replace(sounds[0], path=sounds[0].path.with_name("twin"), group="another group", split="test")
    twin.path.write_bytes(sounds[0].path.read_bytes())
    with pytest.raises(ConfitError, match="share"):
        check([*sounds, twin])


def test_the_words_are_a_task_of_four_voices() -> None:
    drawn = draw(unique(words(Path("unused"))), TASKS["words"], 3)
    check(drawn)
    assert len({sound.label for sound in drawn}) == 30
    assert [len({one.group for one in drawn if one.split == split}) for split in ("train", "val", "test")] == [4, 6, 18]


def test_without_a_cache_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"benchmarks\.fetch"):
        build(TASKS["drums"], tmp_path, 0)


def test_shares_of_groups_are_as_requested() -> None:
    splits = [_by_hash(f"phrase {number}", val=0.2, test=0.3) for number in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
