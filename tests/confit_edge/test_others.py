"""What a model is to be told from: never in two splits, neither by group nor, where there are many, by label."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.corpus import read_corpus
from confit_edge.data.manifest import SPLITS, Clip, Manifest
from confit_edge.data.others import MANY_LABELS, SHIPPED, read_others, with_others
from confit_edge.data.tables import ManifestError
from confit_runtime.errors import UsageError
from tests.confit_edge.sounds import write_noise

RATE = 16_000


def manifest_of(*clips: tuple[str, str, str], multi_label: bool = False) -> Manifest:
    """Of labels, groups and splits."""
    listed = (Clip(Path(f"/own/{at}.wav"), (label,), group, split) for at, (label, group, split) in enumerate(clips))
    return Manifest(tuple(listed), Path("/own/m.csv"), multi_label=multi_label)


def others_of(*clips: tuple[str, str, str | None]) -> list[Clip]:
    return [Clip(Path(f"/others/{at}.wav"), (label,), group, split) for at, (label, group, split) in enumerate(clips)]


OWN = manifest_of(("marvin", "ann", "train"), ("marvin", "bob", "val"), ("marvin", "cid", "test"))


def test_the_words_that_ship_serve_but_for_ones_own() -> None:
    others, notes = read_others(["words"], OWN)
    assert notes == ["--others words: left out marvin, which your classes include"]
    assert len(others) == 29 * 54
    assert "marvin" not in {clip.label for clip in others}
    result = with_others(OWN, others, places=["words"], seed=0)
    assert result.clips[:3] == OWN.clips
    word_of = {clip.path: clip.label for clip in others}
    splits: dict[str, set[str | None]] = defaultdict(set)
    for clip in result.clips[3:]:
        assert clip.labels == ("unknown",)
        splits[f"word {word_of[clip.path]}"].add(clip.split)
        splits[f"voice {clip.group}"].add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    split_by_voice = {clip.group: clip.split for clip in others}
    assert all(
        clip.split == split_by_voice[clip.group] for clip in result.clips[3:]
    )  # the voices' own, as they are committed
    sizes = Counter(clip.split for clip in result.clips[3:])
    assert sizes["train"] > 400
    assert min(sizes.values()) >= 30
    assert with_others(OWN, others, places=["words"], seed=1) != result


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("12345678"), st.none()), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_no_group_and_of_many_labels_none_is_in_two_splits(clips: list[tuple[str, str, None]], seed: int) -> None:
    own = manifest_of(("x", "1", "train"), ("x", "2", "val"), ("y", "1", "train"), ("y", "2", "val"))
    others = others_of(*clips)
    try:
        result = with_others(own, others, places=["there"], seed=seed)
    except UsageError:  # too few are told of below
        return
    label_of = {clip.path: clip.label for clip in others}
    many = len({label for label, _, _ in clips}) >= MANY_LABELS
    groups: dict[str, set[str | None]] = defaultdict(set)
    labels: dict[str, set[str | None]] = defaultdict(set)
    for clip in result.clips:
        groups[clip.group].add(clip.split)
        if clip.path in label_of:
            labels[label_of[clip.path]].add(clip.split)
    assert all(len(found) == 1 for found in groups.values())
    assert groups["1"] == {"train"}
    assert groups["2"] == {"val"}
    assert not many or all(len(found) == 1 for found in labels.values())
    assert many or len(result) == len(own) + len(others)  # only for labels is anything left out


def test_clips_of_many_labels_that_are_groups_of_their_own_are_all_used() -> None:
    others = others_of(*((f"word {at % 10}", f"own {at}", None) for at in range(100)))
    result = with_others(OWN, others, places=["there"], seed=0)
    assert len(result) == 103
    sizes = Counter(clip.split for clip in result.clips[3:])
    assert [sizes[split] for split in SPLITS] == [60, 20, 20]


def test_of_clips_with_several_labels_the_others_have_none() -> None:
    own = manifest_of(("a", "1", "train"), ("b", "2", "val"), multi_label=True)
    result = with_others(own, others_of(("c", "3", None), ("c", "4", None)), places=["there"], seed=0)
    assert [clip.labels for clip in result.clips[2:]] == [(), ()]


def test_too_few_others_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--others there: leaves no clip for val \(2 clips in 1 group\)"):
        with_others(OWN, others_of(("c", "3", None), ("c", "3", None)), places=["there"], seed=0)
    with pytest.raises(UsageError, match=r"no such file or folder \(for --others"):
        read_others([str(tmp_path / "nowhere")], OWN)
    with pytest.raises(UsageError, match=r"^word: no such file or folder \(for --others\); did you mean words\?$"):
        read_others(["word"], OWN)
    (tmp_path / "noises").mkdir()
    with pytest.raises(UsageError, match=rf"; did you mean {re.escape(str(tmp_path / 'noises'))}\?$"):
        read_others([str(tmp_path / "noise")], OWN)
    write_noise(tmp_path / "Marvin" / "a.wav", 0)
    with pytest.raises(UsageError, match="all its clips are of your own classes"):
        read_others([str(tmp_path)], OWN)


@pytest.mark.parametrize(
    ("name", "suspect"),
    [("hapy", "happy"), ("Hey_happy_1", "happy"), ("stopp", "stop"), ("elephant", ""), ("evelyn", ""), ("of", "")],
)
def test_a_class_that_may_be_one_of_the_others_by_another_name_is_reported(name: str, suspect: str) -> None:
    """It would be learnt as its class and as unknown."""
    _, notes = read_others(["words"], manifest_of((name, "ann", "train"), (name, "bob", "val")))
    assert [note.split(" are learnt")[0].split(" of ")[-1] for note in notes] == [suspect] * bool(suspect)


def test_a_recording_of_minutes_is_no_clip_of_others(tmp_path: Path) -> None:
    for at in range(6):
        write_noise(tmp_path / "own" / "marvin" / f"{at}.wav", at)
        write_noise(tmp_path / "others" / f"{at}.wav", 10 + at)
    soundfile.write(tmp_path / "others" / "radio.wav", np.random.default_rng(3).uniform(-0.3, 0.3, 61 * RATE), RATE)
    with pytest.raises(UsageError, match=r"radio.wav lasts 1.0 min.* give long recordings as --background"):
        read_corpus(tmp_path / "own", others=str(tmp_path / "others"), rate=RATE, seed=0)


def test_folders_are_labels_and_groups_and_loose_files_neither(tmp_path: Path) -> None:
    for at, name in enumerate(("loose.wav", "talk/a.wav", "talk/ann/b.wav", "talk/ann/c.wav")):
        write_noise(tmp_path / name, at)
    found = {clip.path.name: (clip.label, clip.group) for clip in read_others([str(tmp_path)], OWN)[0]}
    assert found == {
        "loose.wav": ("loose.wav", "loose.wav"),
        "a.wav": ("talk", "talk/a.wav"),
        "b.wav": ("talk", "ann"),
        "c.wav": ("talk", "ann"),
    }


def test_others_of_several_places_are_each_used_once(tmp_path: Path) -> None:
    for at in range(12):
        write_noise(tmp_path / "own" / "marvin" / f"{at}.wav", at)
        write_noise(tmp_path / "mine" / "talk" / f"{at}.wav", 100 + at)
    alone = read_corpus(tmp_path / "own", others="words", rate=RATE, seed=0)
    both = read_corpus(
        tmp_path / "own", others=["words", str(tmp_path / "mine"), tmp_path / "mine" / "talk"], rate=RATE, seed=0
    )
    mine = [clip.path for clip in both.manifest.clips if clip.path.parent == tmp_path / "mine" / "talk"]
    assert len(mine) == len(set(mine)) == 12
    assert len(both.manifest) > len(alone.manifest)
    assert "--others words: left out marvin, which your classes include" in both.notes
    exchanged = read_corpus(tmp_path / "own", others=[tmp_path / "mine", "words"], rate=RATE, seed=0)
    assert exchanged.fingerprint == both.fingerprint
    assert exchanged.order != both.order  # a training may not resume with it


def test_a_word_alone_is_a_corpus_with_others(tmp_path: Path, cut: Callable[..., Path]) -> None:
    for at in range(6):
        write_noise(tmp_path / "own" / "marvin" / f"{at}.wav", at)
        write_noise(tmp_path / "others" / f"{at}.wav", 10 + at)
    options = {"rate": RATE, "seed": 0}
    with pytest.raises(ManifestError, match=r"only one class \(marvin\).* --others words"):
        read_corpus(tmp_path / "own", **options)
    corpus = read_corpus(tmp_path / "own", others=str(tmp_path / "others"), **options)
    assert (corpus.classes, corpus.unknown) == (["marvin", "unknown"], "unknown")
    assert not corpus.manifest.grouped
    assert not read_corpus(tmp_path / "own", others="words", **options).manifest.grouped  # whose voices are told
    assert sum(len(part) for part in (corpus.train, corpus.val, corpus.test)) == 12
    for part in (corpus.train, corpus.val):
        assert (part.targets.sum(axis=0) > 0).all()
    shutil.copy(tmp_path / "own" / "marvin" / "0.wav", tmp_path / "others" / "copy.wav")
    with pytest.raises(UsageError, match=r"--others: 1 of its 7 sounds are clips of your classes, such as .*copy.wav"):
        read_corpus(tmp_path / "own", others=str(tmp_path / "others"), **options)
    (tmp_path / "others" / "copy.wav").unlink()
    (tmp_path / "others" / "7.wav").write_bytes(b"no sound")
    again = read_corpus(tmp_path / "own", others=str(tmp_path / "others"), **options)
    assert [problem.path.name for problem in again.problems] == ["7.wav"]
    assert len(read_corpus(SHIPPED, others=str(tmp_path / "others"), **options).classes) == 31


def test_of_several_labels_unknown_clips_and_others_are_alike(tmp_path: Path) -> None:
    """Both are clips of nothing: taught as a class, the ones would be what the others are taught not to be."""
    rows = ["path,labels,group,split"]
    for at in range(12):
        write_noise(tmp_path / "own" / f"{at}.wav", at)
        write_noise(tmp_path / "others" / f"{at}.wav", 100 + at)
        rows.append(f"own/{at}.wav,{('hum', 'unknown')[at % 2]},{at},{SPLITS[at // 2 % 3]}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    corpus = read_corpus(tmp_path / "m.csv", rate=RATE, seed=0, others=str(tmp_path / "others"))
    assert (corpus.classes, corpus.unknown) == (["hum"], None)
    assert sum(len(part) for part in (corpus.train, corpus.val, corpus.test)) == 24
    assert sum(int(part.targets.sum()) for part in (corpus.train, corpus.val, corpus.test)) == 6
    assert read_corpus(tmp_path / "m.csv", rate=RATE, seed=0).classes == ["hum"]  # told from its own clips of nothing
