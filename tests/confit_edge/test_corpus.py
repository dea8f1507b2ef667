"""A manifest decoded, and the batches drawn from it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.corpus import UNKNOWN, Clips, Corpus, balanced_batches, read_corpus
from confit_edge.data.manifest import sound_files
from confit_edge.pairtune.items import default_clips_per_class, epoch_batches
from confit_edge.pairtune.remarks import count_firing, describe_data, remarks
from confit_edge.recipe import Recipe
from confit_runtime.audio import load_clip
from confit_runtime.data_warnings import data_warnings
from confit_runtime.errors import ConfitError, UsageError
from tests.confit_edge.sounds import write_noise

RATE = 16_000


# reading


def test_a_single_label_that_all_training_clips_have_is_refused(tmp_path: Path) -> None:
    """Clips without it in val alone teach nothing; background does."""
    rows = [("x", "train"), ("x", "train"), ("x", "val"), ("", "val")]
    for number in range(len(rows)):
        write_noise(tmp_path / f"{number}.wav", seed=number)
    lines = "".join(f"{number}.wav,{labels},{split}\n" for number, (labels, split) in enumerate(rows))
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,labels,split\n{lines}")
    with pytest.raises(ConfitError, match=r"m\.csv: every training clip is 'x', the only label; .*--background"):
        read_corpus(manifest, rate=RATE, seed=0)
    background = write_noise(tmp_path / "hum.flac", seed=9, seconds=3.0)
    assert read_corpus(manifest, rate=RATE, seed=0, background=background).classes == ["x", UNKNOWN]
    manifest.write_text(f"path,labels,split\n{lines.replace('1.wav,x', '1.wav,')}")
    assert read_corpus(manifest, rate=RATE, seed=0).classes == ["x"]


def test_splits_targets_and_groups_are_the_manifests(corpus: Corpus) -> None:
    assert corpus.classes == sorted(corpus.classes)
    assert corpus.unknown is None
    for clips, voices in ((corpus.train, 6), (corpus.val, 3), (corpus.test, 3)):
        assert len(clips) == voices * len(corpus.classes)
        assert clips.targets.sum(axis=1).tolist() == [1] * len(clips)
        assert len(set(clips.groups)) == voices
        for path, label, group in zip(clips.paths, clips.labels, clips.groups, strict=True):
            assert path.stem == f"{corpus.classes[label]}-{group}"
    assert not set(corpus.train.groups) & set(corpus.val.groups)
    for path, pcm in zip(corpus.train.paths, corpus.train.pcm, strict=True):
        assert len(pcm) == soundfile.info(path).frames
    assert corpus.training_clips() is corpus.train


def test_long_clips_lose_the_silence_around_their_sound(tmp_path: Path) -> None:
    """What would be cut from it at random would be taught as their class."""
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, RATE // 2)
    for label in ("a", "b"):
        for at in range(3):
            (tmp_path / label).mkdir(exist_ok=True)
            padding = (0.1 * RATE, 5 * RATE) if label == "a" else (0.2 * RATE, 0.2 * RATE)
            padded = np.pad(sound * (1 + at) / 4, tuple(map(int, padding)))
            soundfile.write(tmp_path / label / f"{at}.wav", padded, RATE)
    corpus = read_corpus(tmp_path, rate=RATE, seed=0)
    cut = read_corpus(tmp_path, rate=RATE, **Recipe().corpus_options())
    for before, after, label in zip(corpus.train.pcm, cut.train.pcm, cut.train.labels, strict=True):
        if cut.classes[label] == "a":
            assert 0.5 <= len(after) / RATE < 1.0
            assert np.abs(after).max() == np.abs(before).max()
        else:  # it is no longer than the window: where it stands in it is kept
            assert np.array_equal(before, after)
    assert cut.train.uncut is not None
    for before, uncut in zip(corpus.train.pcm, cut.train.uncut, strict=True):
        assert np.array_equal(before, uncut)
    assert len(read_corpus(tmp_path, rate=RATE, **Recipe(trim=False).corpus_options()).train.pcm[0]) > 5 * RATE


def test_background_that_holds_labelled_clips_is_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for at in range(3):
            write_noise(tmp_path / "own" / label / f"{at}.wav", at + 10 * (label == "b"))
    write_noise(tmp_path / "bg" / "hall.wav", 99)
    options = {"rate": RATE, "seed": 0}
    assert read_corpus(tmp_path / "own", background=tmp_path / "bg", **options).unknown == UNKNOWN
    write_noise(tmp_path / "bg" / "copy.wav", 12)
    with pytest.raises(UsageError, match=r"1 of its 2 sounds are clips of your classes, such as .*copy.wav"):
        read_corpus(tmp_path / "own", background=tmp_path / "bg", **options)
    with pytest.raises(UsageError, match=r"no such file or folder \(for --background"):
        read_corpus(tmp_path / "nowhere", background=tmp_path / "nothing", **options)


def test_background_is_an_unknown_class_with_a_part_kept_for_validation(run_corpus: Corpus, background: Path) -> None:
    assert run_corpus.classes[-1] == run_corpus.unknown == UNKNOWN
    recordings = [load_clip(path, RATE) for path in sound_files(background, "--background")]
    assert len(recordings) == 3
    for recording, train, val in zip(recordings, run_corpus.background_train, run_corpus.background_val, strict=True):
        assert np.array_equal(np.concatenate([train, val]), recording)  # in time: the end was never trained on
        assert 0.2 < len(val) / len(recording) < 0.4
    clips = run_corpus.training_clips()
    assert len(clips) == len(run_corpus.train) + 3 == len(clips.targets) == len(clips.groups) == len(clips.paths)
    assert clips.targets[:, -1].tolist() == [0] * len(run_corpus.train) + [1, 1, 1]
    assert (run_corpus.val.targets[:, -1] == 0).all()


def test_many_background_recordings_are_split_by_recording(manifest: Path, tmp_path: Path) -> None:
    for seed in range(6):
        write_noise(tmp_path / f"{seed}.wav", seed, seconds=0.5 + seed / 10)
    (tmp_path / "notes.txt").write_text("not sound")
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=tmp_path)
    lengths = [len(recording) for recording in corpus.background_train + corpus.background_val]
    assert lengths == [int((0.5 + seed / 10) * RATE) for seed in range(6)]
    assert len(corpus.background_val) == 2


def test_a_recording_under_two_names_is_not_learnt_and_kept_at_once(manifest: Path, tmp_path: Path) -> None:
    for seed in range(6):
        write_noise(tmp_path / f"{seed}.wav", seed)
    for copy in ("7", "8"):  # the last by name, which thresholds would be chosen by
        shutil.copy(tmp_path / "0.wav", tmp_path / f"{copy}.wav")
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=tmp_path)
    learnt, kept = ({pcm.tobytes() for pcm in part} for part in (corpus.background_train, corpus.background_val))
    assert len(learnt) == 4
    assert len(kept) == 2
    assert not learnt & kept
    copies = f"{tmp_path / '7.wav'}, {tmp_path / '8.wav'}"
    assert f"--background {tmp_path}: left out {copies}: the same sound as another recording" in corpus.notes


def test_clips_and_background_of_hardly_anything_are_reported(tmp_path: Path) -> None:
    dither = np.random.default_rng(0).integers(-1, 2, (9, RATE), np.int16)
    for at in range(3):
        write_noise(tmp_path / "own" / "a" / f"{at}.wav", at)
        write_noise(tmp_path / "bg" / f"{at}.wav", 20 + at, 2.0)
        for label in ("b", "unknown"):
            (tmp_path / "own" / label).mkdir(exist_ok=True)
            soundfile.write(tmp_path / "own" / label / f"{at}.wav", dither[at + 3 * (label == "b")], RATE)
    notes = read_corpus(tmp_path / "own", rate=RATE, seed=0, background=tmp_path / "bg").notes
    assert len(notes) == 1
    assert "3 labelled clips are almost silent, never above -70 dBFS (b/0.wav, b/1.wav, b/2.wav)" in notes[0]
    soundfile.write(tmp_path / "bg" / "1.wav", dither[8], RATE)
    notes = read_corpus(tmp_path / "own", rate=RATE, seed=0, background=tmp_path / "bg").notes
    assert notes[1:] == [
        f"warning: --background {tmp_path / 'bg'}: almost silent, never above -70 dBFS: {tmp_path / 'bg' / '1.wav'}; was the"
        " microphone muted?"
    ]


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [
        ([1, 1, 1, 1, 50], False),  # the last, whole, would leave little to learn from
        ([50, 1, 1, 1, 1], False),  # and here little to set thresholds on
        ([1.0, 1.2, 0.8, 1.6, 1.0, 0.9, 1.1], True),
        ([2, 2, 2, 1, 4], True),  # 45 % of it
        ([1, 2, 2, 1, 5], False),  # 55 %
    ],
)
def test_recordings_of_unlike_lengths_are_each_cut(
    manifest: Path, tmp_path: Path, seconds: list[float], whole: bool
) -> None:
    for at, length in enumerate(seconds):
        write_noise(tmp_path / f"{at}.wav", at, seconds=length)
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=tmp_path)
    learnt, kept = (list(map(len, part)) for part in (corpus.background_train, corpus.background_val))
    lengths = [int(length * RATE) for length in seconds]
    if whole:
        assert learnt + kept == lengths
        assert len(kept) == round(0.3 * len(seconds))
    else:
        assert [sum(parts) for parts in zip(learnt, kept, strict=True)] == lengths
        assert 0.29 < sum(kept) / sum(lengths) < 0.31


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ((("music-{}", 8), ("talk-{}", 4)), "music-6 music-7 talk-3"),
        ((("music/{}", 8), ("Speech/anna/{}", 4), ("Speech/ben/{}", 2)), "Speech/ben/0 Speech/ben/1 music/6 music/7"),
        ((("anna{}", 3), ("ben{}", 3), ("carl{}", 3), ("dora{}", 3), ("eve{}", 3)), "dora2 eve0 eve1 eve2"),  # voices
        ((("all/music/{}", 4), ("all/talk/{}", 3)), "all/music/3 all/talk/2"),  # a folder in a folder
        ((("music-{}", 4), ("talk-{}", 2)), "music-3 talk-1"),  # too few to be a kind: not all of them are kept
        ((("2024-{}", 7),), "2024-5 2024-6"),
        ((("music-{}", 5), ("talk-{}", 4), ("dog{}", 1), ("rain{}", 1), ("tram{}", 1)), "music-3 music-4 talk-3 tram0"),
    ],
)
def test_each_kind_of_background_is_learnt_and_kept(
    manifest: Path, tmp_path: Path, names: tuple[tuple[str, int], ...], kept: str
) -> None:
    """Were all speech kept for thresholds it would be learnt as nothing, and words be held to be speech."""
    for at, name in enumerate(form.format(number) for form, count in names for number in range(count)):
        (tmp_path / "bg" / name).parent.mkdir(parents=True, exist_ok=True)
        write_noise(tmp_path / "bg" / f"{name}.wav", at, seconds=1 + at / 100)
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=tmp_path / "bg")
    found = [path.removesuffix(".wav") for path in corpus.background_kept]
    assert sorted(found) == kept.split()
    assert any("nothing of 'eve' is learnt" in note for note in corpus.notes) == ("eve0" in found)
    ends = {round((len(pcm) / RATE - 1) * 100) for pcm in corpus.background_val}
    every = [form.format(number) for form, count in names for number in range(count)]
    assert ends == {every.index(name) for name in found}
    assert len(corpus.background_train) + len(corpus.background_val) == len(every)


def test_background_of_several_places_is_all_learnt_and_each_place_divided_by_itself(
    manifest: Path, tmp_path: Path
) -> None:
    """A user's few recordings of a room are cut, although next to them are enough files to keep whole ones."""
    for at in range(10):
        write_noise(tmp_path / "noise" / f"radio-{at}.wav", at, seconds=2)
    for at in range(2):
        write_noise(tmp_path / "rooms" / f"kitchen-{at}.wav", 20 + at, seconds=10)
    shutil.copy(tmp_path / "noise" / "radio-0.wav", tmp_path / "rooms" / "copy.wav")
    places = [tmp_path / "noise", tmp_path / "rooms"]
    alone = [read_corpus(manifest, rate=RATE, seed=0, background=place) for place in places]
    both = read_corpus(manifest, rate=RATE, seed=0, background=places)
    lengths = [[len(pcm) // RATE for pcm in part] for part in (both.background_train, both.background_val)]
    assert lengths == [[2] * 7 + [7] * 2, [2] * 3 + [3] * 2]
    assert both.background_kept == (
        *(str(places[0] / name) for name in alone[0].background_kept), f"the end of each recording of {places[1]}"
    )  # fmt: skip
    assert (
        f"--background {places[1]}: left out {places[1] / 'copy.wav'}: the same sound as another recording"
        in both.notes
    )
    again = read_corpus(manifest, rate=RATE, seed=0, background=[places[0], places[0]])
    assert again.fingerprint == alone[0].fingerprint


def test_the_same_sound_under_two_labels_is_found(tmp_path: Path) -> None:
    rows = ["path,label,group"]
    for number, label in enumerate("xyxyxyx"):
        write_noise(tmp_path / f"{number}.wav", seed=0 if number in (1, 6) else number + 1)  # 1 is y, 6 is x
        rows.append(f"{number}.wav,{label},{number}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = list(read_corpus(tmp_path / "m.csv", rate=RATE, seed=0).contradictions())
    assert [{path.name for path in pair} for pair in found] == [{"1.wav", "6.wav"}]


def test_clips_that_are_judged_and_trained_on_are_counted(tmp_path: Path) -> None:
    rows = ["path,label,group,split"]
    for number, (label, split) in enumerate(zip("xyxyxyxy", ["train"] * 4 + ["val"] * 2 + ["test"] * 2, strict=True)):
        same = {6: 0, 7: 3}  # both test clips are training clips
        write_noise(tmp_path / f"{number}.wav", seed=same.get(number, number))
        rows.append(f"{number}.wav,{label},{number},{split}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    corpus = read_corpus(tmp_path / "m.csv", rate=RATE, seed=0)
    assert corpus.repeated() == {"val": 0, "test": 2}
    data = describe_data(tmp_path / "m.csv", corpus, RATE)
    assert sum("2 of 2 test clips have the same audio as a training clip" in one for one in data_warnings(data)) == 1
    assert not any("same audio" in one for one in data_warnings({**data, "repeated": {"val": 0, "test": 0}}))


def test_a_background_without_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not sound")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="--background"):
            sound_files(path, "--background")
    assert sound_files(write_noise(tmp_path / "one.wav", 0), "--background") == [tmp_path / "one.wav"]


@pytest.mark.parametrize("kind", ["unreadable", "empty", "short", "silent", "not-finite"])
def test_a_background_recording_that_cannot_be_used_is_named_and_left_out(
    manifest: Path, tmp_path: Path, kind: str
) -> None:
    """One sample of an aborted recording ended a training; what a muted microphone gave was learnt without a word."""
    samples = {
        "empty": np.zeros(0),
        "short": np.full(1, 0.1),
        "silent": np.zeros(RATE),
        "not-finite": np.full(RATE, np.nan),
    }
    folder, path = tmp_path / "hum", tmp_path / "hum" / "1.wav"
    folder.mkdir()
    if kind == "unreadable":
        path.write_text("not sound")
    else:
        soundfile.write(path, samples[kind], RATE, subtype="FLOAT")
    with pytest.raises(
        UsageError, match=r"--background .*hum: no recording can be used; the first problem is .*1\.wav"
    ):
        read_corpus(manifest, rate=RATE, seed=0, background=folder)
    for seed in (2, 3):
        write_noise(folder / f"{seed}.wav", seed, seconds=2.0)
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=folder)
    assert [(problem.path, problem.kind) for problem in corpus.problems] == [(path, kind)]
    assert [len(part) for part in corpus.background_train] == [int(1.4 * RATE)] * 2
    with pytest.raises(ConfitError, match=r"1 of 3 recordings cannot be used; the first problem is .*1\.wav"):
        read_corpus(manifest, rate=RATE, seed=0, background=folder, strict=True)


def test_silent_stretches_of_background_stay_and_a_silent_part_goes(manifest: Path, tmp_path: Path) -> None:
    """A microphone with a noise gate gives nothing but zeros between two sounds; one that was muted, none after them."""
    sound, pause = np.random.default_rng(0).uniform(-0.3, 0.3, RATE), np.zeros(2 * RATE)
    soundfile.write(tmp_path / "gated.wav", np.concatenate([sound, pause, sound]), RATE)
    soundfile.write(tmp_path / "muted.wav", np.concatenate([sound, sound, pause]), RATE)
    corpus = read_corpus(manifest, rate=RATE, seed=0, background=tmp_path)
    assert corpus.problems == []
    assert [len(part) for part in corpus.background_train] == [int(2.8 * RATE)] * 2
    assert [len(part) for part in corpus.background_val] == [4 * RATE - int(2.8 * RATE)]
    (tmp_path / "gated.wav").unlink()
    with pytest.raises(
        UsageError, match="the last three tenths of each recording, which are kept for thresholds, are silent"
    ):
        read_corpus(manifest, rate=RATE, seed=0, background=tmp_path)


def test_a_clip_that_cannot_be_used_is_reported_and_left_out(cut: Callable[..., Path]) -> None:
    path = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    broken = sorted(path.parent.glob("yes-*.ogg"))[0]
    broken.write_text("not sound")
    corpus = read_corpus(path, rate=RATE, seed=0)
    assert [(problem.path, problem.kind) for problem in corpus.problems] == [(broken, "unreadable")]
    assert len(corpus.train) + len(corpus.val) == 5
    with pytest.raises(ConfitError, match=broken.name):
        read_corpus(path, rate=RATE, seed=0, strict=True)


def test_several_labels_and_none_are_rows_of_targets(tmp_path: Path) -> None:
    rows = ["path,labels,group,split"]
    for seed, (labels, split) in enumerate(
        [("kick|hat", "train"), ("hat", "train"), ("", "train"), ("kick", "val"), ("hat|kick", "val")]
    ):
        write_noise(tmp_path / f"{seed}.wav", seed)
        rows.append(f"{seed}.wav,{labels},{seed},{split}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    corpus = read_corpus(tmp_path / "m.csv", rate=RATE, seed=0)
    assert corpus.multi_label
    assert corpus.classes == ["hat", "kick"]
    assert corpus.train.targets.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert corpus.val.targets.tolist() == [[0, 1], [1, 1]]
    assert len(corpus.test) == 0


def test_clips_are_decoded_at_the_rate_that_is_asked(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for seed in range(2):
            write_noise(tmp_path / label / f"{seed}.wav", seed, seconds=0.5, rate=44_100)
    corpus = read_corpus(tmp_path, rate=8_000, seed=0)
    assert {len(pcm) for pcm in corpus.train.pcm + corpus.val.pcm} == {4_000}


# batches


def one_hot(sizes: list[int]) -> np.ndarray:
    return np.eye(len(sizes), dtype=np.int8)[np.repeat(np.arange(len(sizes)), sizes)]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(0, 12), min_size=2, max_size=8).filter(lambda sizes: sum(map(bool, sizes)) > 1),
    per_batch=st.integers(2, 9),
    per_class=st.integers(1, 5),
)
def test_an_epoch_is_batches_of_p_classes_by_k_clips(
    seed: int, sizes: list[int], per_batch: int, per_class: int
) -> None:
    targets = one_hot(sizes)
    batches = list(balanced_batches(targets, per_batch, per_class, np.random.default_rng(seed)))
    assert batches == list(balanced_batches(targets, per_batch, per_class, np.random.default_rng(seed)))
    labels = targets.argmax(axis=1)
    expected = min(per_batch, sum(map(bool, sizes)))
    for batch in batches:
        drawn = Counter(int(labels[row]) for row in batch)
        assert sorted(drawn.values()) == [per_class] * expected
        for label in drawn:
            if sizes[label] >= per_class and len(batches) == 1:
                assert len({row for row in batch if labels[row] == label}) == per_class  # no clip twice
    assert len(batches) == max(1, round(sum(sizes) / (expected * per_class)))
    # over the epoch, clips of a class come equally often
    draws = Counter(row for batch in batches for row in batch)
    for label in range(len(sizes)):
        counts = [draws[int(row)] for row in np.flatnonzero(labels == label)]
        assert not counts or max(counts) - min(counts) <= 1


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=3, max_size=6).filter(lambda sizes: sum(map(bool, sizes)) > 1),
    empty=st.integers(0, 5),
    per_batch=st.integers(2, 7),
    per_class=st.integers(1, 4),
)
def test_classes_and_clips_come_round_equally_over_epochs(
    sizes: list[int], empty: int, per_batch: int, per_class: int
) -> None:
    targets = np.concatenate([one_hot(sizes), np.zeros((empty, len(sizes)), np.int8)])
    negatives = np.flatnonzero(~targets.any(axis=1))
    labels = np.where(targets.any(axis=1), targets.argmax(axis=1), len(sizes))
    draws: Counter[int] = Counter()
    rounds: Counter[int] = Counter()
    for epoch in range(5):
        generator = np.random.default_rng(1)
        for batch in balanced_batches(targets, per_batch, per_class, generator, epoch=epoch, negatives=negatives):
            draws.update(batch)
            drawn = Counter(int(labels[row]) for row in batch)
            assert set(drawn.values()) == {per_class}
            rounds.update(drawn.keys())
    present = sorted({int(label) for label in labels})
    assert max(rounds[label] for label in present) - min(rounds[label] for label in present) <= 1
    for label in present:
        counts = [draws[int(row)] for row in np.flatnonzero(labels == label)]
        assert max(counts) - min(counts) <= 1


def test_epochs_follow_one_another_without_restarting() -> None:
    targets = one_hot([5, 7, 6])

    def epoch(number: int) -> list[list[int]]:
        return list(balanced_batches(targets, 2, 3, np.random.default_rng(0), epoch=number))

    assert epoch(0) + epoch(1) != epoch(0) * 2
    assert len(epoch(0)) == len(epoch(1)) == 3


def test_clips_without_a_label_are_drawn_where_they_are_named() -> None:
    targets = np.concatenate([one_hot([4, 4]), np.zeros((4, 2), np.int8)])
    plain = list(balanced_batches(targets, 3, 2, np.random.default_rng(0)))
    assert all(row < 8 for batch in plain for row in batch)
    named = list(balanced_batches(targets, 3, 2, np.random.default_rng(0), negatives=np.arange(8, 12)))
    assert {row for batch in named for row in batch} == set(range(12))


def test_an_epoch_hears_clips_without_a_label(run_corpus: Corpus) -> None:
    targets = run_corpus.train.targets.copy()
    targets[::4] = 0
    clips, corpus = replace(run_corpus.train, targets=targets), replace(run_corpus, unknown=None, multi_label=True)
    batches = epoch_batches(clips, corpus, Recipe(classes_per_batch=100, clips_per_class=2), 0)
    assert all(sum(not targets[row].any() for row in batch) == 2 for batch in batches)


def test_batches_hold_the_unknown_next_to_the_classes(run_corpus: Corpus) -> None:
    clips = run_corpus.training_clips()
    unknown = run_corpus.classes.index(UNKNOWN)
    recipe = Recipe(classes_per_batch=3, clips_per_class=2)
    batches = list(epoch_batches(clips, run_corpus, recipe, 0))
    assert batches == list(epoch_batches(clips, run_corpus, recipe, 0))
    assert batches != list(epoch_batches(clips, run_corpus, recipe, 1))
    for batch in batches:
        drawn = Counter(int(clips.labels[row]) for row in batch)
        assert drawn.pop(unknown) == 4
        assert list(drawn.values()) == [2, 2, 2]
    strange = [
        [
            row
            for batch in epoch_batches(clips, run_corpus, recipe, epoch)
            for row in batch
            if clips.labels[row] == unknown
        ]
        for epoch in (0, 1)
    ]
    assert strange[0] != strange[1]


@pytest.mark.parametrize(
    ("own", "others", "per_class", "steps"), [(25, 510, None, 11), (40, 40, None, 10), (8, 8, 2, 4)]
)
def test_with_a_single_class_an_epoch_goes_through_the_labelled_clips(
    run_corpus: Corpus, own: int, others: int, per_class: int | None, steps: int
) -> None:
    """However much background and however many fragments there are."""
    pcm = [np.zeros(10, np.float32)] * (own + others)
    targets = np.zeros((own + others, 2), np.int8)
    targets[:own, 0] = targets[own:, 1] = 1
    train = Clips(pcm, targets, [str(row) for row in range(own + others)], [Path("clip.wav")] * (own + others))
    wake = replace(run_corpus, classes=["hey", UNKNOWN], train=train)
    clips = wake.with_unknown(wake.train, [np.zeros(10, np.float32)] * 1000)
    batches = list(epoch_batches(clips, wake, Recipe(clips_per_class=per_class), 0))
    assert len(batches) == steps
    size = per_class or min(own, others, 32)
    assert all(Counter(row < own for row in batch) == {True: size, False: size} for batch in batches)
    assert {row for batch in batches for row in batch if row < own} == set(range(own))


@given(sizes=st.lists(st.integers(0, 100), max_size=40), per_batch=st.integers(2, 40))
def test_few_classes_fill_a_batch_with_what_they_have(sizes: list[int], per_batch: int) -> None:
    targets = np.zeros((sum(sizes), len(sizes)), np.int8)
    targets[np.arange(sum(sizes)), np.repeat(np.arange(len(sizes)), sizes)] = 1
    per_class = default_clips_per_class(targets, per_batch)
    assert per_class >= 4
    assert per_class == default_clips_per_class(targets[:, np.array(sizes, int) > 0], per_batch)
    if per_class > 4:
        present = [size for size in sizes if size]
        assert per_class * min(per_batch, len(present)) <= 64
        assert 2 * sum(size >= per_class for size in present) >= len(present)


def test_an_open_number_of_clips_depends_on_the_classes_there_are(run_corpus: Corpus) -> None:
    clips, classes = run_corpus.training_clips(), len(run_corpus.classes) - 1
    sizes = sorted(np.delete(clips.targets, run_corpus.classes.index(UNKNOWN), axis=1).sum(axis=0).tolist())
    expected = max(4, min(64 // classes, sizes[(classes - 1) // 2]))
    assert expected > 4
    steps = {}
    for recipe in (Recipe(), Recipe(clips_per_class=expected), Recipe(clips_per_class=4)):
        batches = list(epoch_batches(clips, run_corpus, recipe, 0))
        assert {len(batch) for batch in batches} == {(classes + 2) * (recipe.clips_per_class or expected)}
        steps[recipe.clips_per_class] = len(batches)
    assert steps[None] == steps[4] > steps[expected]  # a fuller batch is no reason for fewer steps
    assert len(next(epoch_batches(clips, run_corpus, Recipe(clips_per_class=2), 0))) == (classes + 2) * 2


def test_an_epoch_of_clips_with_several_labels_is_as_long_as_one_of_as_many_clips() -> None:
    targets = np.ones((16, 2), np.int8)
    assert len(list(balanced_batches(targets, 2, 4, np.random.default_rng(0)))) == 2


def test_one_class_cannot_be_batched() -> None:
    with pytest.raises(ConfitError, match="two classes"):
        list(balanced_batches(one_hot([4, 0]), 2, 2, np.random.default_rng(0)))


def test_another_generator_draws_other_batches() -> None:
    one, other = (list(balanced_batches(one_hot([9, 9]), 2, 3, np.random.default_rng(seed))) for seed in (0, 1))
    assert one != other


def test_other_background_is_other_data(tmp_path: Path) -> None:
    for label in ("one", "two"):
        for number in range(4):
            write_noise(tmp_path / "clips" / label / f"{number}.wav", seed=number + (label == "two") * 10)
    background = write_noise(tmp_path / "hum.wav", seed=99, seconds=3.0)

    def fingerprint() -> str:
        return read_corpus(tmp_path / "clips", rate=RATE, seed=0, background=background).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    write_noise(background, seed=100, seconds=3.0)
    assert fingerprint() != before


def test_clips_of_the_unknown_class_are_not_counted_as_own_and_notes_are_told(corpus: Corpus, manifest: Path) -> None:
    told = replace(corpus, unknown="yes", notes=["warning: something to know"])
    of_others = int(corpus.train.targets[:, corpus.classes.index("yes")].sum())
    assert count_firing(corpus.train, corpus) == {"clips": len(corpus.train), "groups": 6}
    assert count_firing(told.train, told) == {"clips": len(corpus.train) - of_others, "groups": 6}
    said = list(remarks(told, describe_data(manifest, told, 16_000)))
    assert "warning: something to know" in said
    assert f"({len(corpus.train) - of_others} of classes that fire)" in said[0]
