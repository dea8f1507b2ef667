"""Sets of the `datasets` library, made by that library: folders, saved sets, bytes and files, with labels of every kind."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before `datasets` is imported: nothing here asks the hub

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, Value

from confit_edge.data.hub import fetch_hub
from confit_edge.data.manifest import Manifest, read_manifest, write_manifest
from confit_runtime.audio import read_audio
from confit_runtime.errors import ConfitError, UsageError

RATE = 16_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def tone(hertz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(1600) / RATE)).astype(np.float32)


def coded(hertz: float, container: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(hertz), RATE, format=container)
    return file.getvalue()


def hub_dataset(data: dict[str, list], features: Features) -> Dataset:
    """A set as it comes from the hub, with sound as bytes; `from_dict` with features would code sound anew."""
    plain = Features({name: {"bytes": Value("binary"), "path": Value("string")} for name in ("audio", "sound")})
    held = {
        name: plain.get(name, feature) if isinstance(feature, Audio) else feature for name, feature in features.items()
    }
    return Dataset.from_dict(data, features=Features(held)).cast(features)


def part(count: int, first: int = 0, container: str = "FLAC", **columns: Any) -> Dataset:
    """`count` clips held as bytes, with labels `no` and `yes` in turn, of two speakers."""
    numbers = range(first, first + count)
    data = {
        "audio": [{"bytes": coded(200 + 10 * number, container), "path": None} for number in numbers],
        "label": [number % 2 for number in numbers],
        "speaker": [f"s{number // 2}" for number in numbers],
    } | columns
    features = Features(
        {"audio": Audio(decode=False), "label": ClassLabel(names=["no", "yes"]), "speaker": Value("string")}
    )
    return hub_dataset(data, features)


def sizes(manifest: Manifest) -> tuple[int, ...]:
    return tuple(len(manifest.select(split)) for split in ("train", "val", "test"))


def test_a_saved_set_becomes_clips_and_a_manifest(tmp_path: Path) -> None:
    saved = DatasetDict(train=part(8), validation=part(4, 8), test=part(4, 12), unlabelled=part(2, 16))
    saved.save_to_disk(tmp_path / "set")
    out = tmp_path / "out" / "words.csv"
    fetched = fetch_hub(str(tmp_path / "set"), out, group_column="speaker")
    assert fetched.warnings == ["split 'unlabelled' is left out: it is not train, validation or test"]
    write_manifest(fetched.manifest, out)
    manifest = read_manifest(out)
    assert sizes(manifest) == (8, 4, 4)
    assert manifest.classes == ["no", "yes"]
    assert {clip.path.parent.parent for clip in manifest.clips} == {tmp_path / "out" / "words"}
    assert {clip.path.suffix for clip in manifest.clips} == {".flac"}
    for number, clip in enumerate(manifest.clips):
        pcm, rate = read_audio(clip.path)
        np.testing.assert_allclose(pcm, tone(200 + 10 * number), atol=1e-4)
        assert (rate, clip.label, clip.group) == (RATE, ["no", "yes"][number % 2], f"s{number // 2}")


def test_clips_are_written_over_nothing_and_through_no_link(tmp_path: Path) -> None:
    DatasetDict(train=part(4), test=part(4, 4)).save_to_disk(tmp_path / "set")
    own_clip, folder = tmp_path / "mine.flac", tmp_path / "words" / "train"
    own_clip.write_text("mine")
    folder.mkdir(parents=True)
    (folder / "000000.flac").symlink_to(own_clip)
    for source in (str(tmp_path / "set"), "of-the-hub/and-not-asked-for"):
        with pytest.raises(UsageError, match=r"words: is not empty, .*; remove it if .* earlier fetch, or .* with -o$"):
            fetch_hub(source, tmp_path / "words.csv")
    assert own_clip.read_text() == "mine"
    assert list((tmp_path / "words").rglob("*.flac")) == [folder / "000000.flac"]


def test_of_a_set_that_cannot_be_read_to_its_end_nothing_is_left(tmp_path: Path) -> None:
    sound = [{"bytes": coded(200), "path": None}] * 3 + [{"bytes": b"not sound", "path": None}]
    part(4, audio=sound).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfitError, match="cannot be read as sound"):
        fetch_hub(str(tmp_path / "set"), tmp_path / "out" / "words.csv")
    assert not list((tmp_path / "out").iterdir())


def test_a_group_in_two_splits_is_repaired_and_reported(tmp_path: Path) -> None:
    DatasetDict(train=part(8), validation=part(4, 6), test=part(4, 2)).save_to_disk(tmp_path / "set")
    fetched = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", group_column="speaker")
    assert sizes(fetched.manifest) == (6, 2, 4)
    assert fetched.warnings == [
        "4 clips are left out of train and val, because test has clips of the same group",
        "2 clips were moved from val to train, because train has clips of the same group",
    ]


def test_a_set_without_validation_is_given_one(tmp_path: Path) -> None:
    DatasetDict(train=part(16), test=part(4, 16)).save_to_disk(tmp_path / "set")
    fetched = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", group_column="speaker")
    train, val, test = sizes(fetched.manifest)
    assert (train + val, test) == (16, 4)
    assert val > 0
    assert any("were made again" in warning for warning in fetched.warnings)


def test_one_part_alone_is_not_split(tmp_path: Path) -> None:
    part(6, container="OGG").save_to_disk(tmp_path / "set")
    fetched = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv")
    assert {clip.split for clip in fetched.manifest.clips} == {None}
    assert {clip.path.suffix for clip in fetched.manifest.clips} == {".ogg"}
    assert len({clip.group for clip in fetched.manifest.clips}) == 6
    assert any("--group-column" in warning for warning in fetched.warnings)


def test_of_two_columns_of_sound_the_first_is_taken_and_the_other_is_not_decoded(tmp_path: Path) -> None:
    features = Features({"audio": Audio(), "sound": Audio(), "label": ClassLabel(names=["no", "yes"])})
    held = {
        column: [{"bytes": coded(first + 10 * number), "path": None} for number in range(4)]
        for column, first in (("audio", 200), ("sound", 900))
    }
    hub_dataset({**held, "label": [0, 1, 0, 1]}, features).save_to_disk(tmp_path / "set")
    clips = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", group_column="label").manifest.clips
    assert [clip.group for clip in clips] == ["0", "1", "0", "1"]
    for number, clip in enumerate(clips):
        np.testing.assert_allclose(read_audio(clip.path)[0], tone(200 + 10 * number), atol=1e-4)


def audio_folder(root: Path) -> list[list[str]]:
    rows = []
    for number in range(8):
        name = f"{'train' if number < 4 else 'test'}/{number}.wav"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(300 + number), RATE)
        rows.append([name, ["yes", "no"][number % 2], f"g{number // 2}"])
    return rows


@pytest.mark.parametrize("kind", ["one csv", "a csv each", "one jsonl"])
def test_a_folder_with_metadata_stays_where_it_is(tmp_path: Path, kind: str) -> None:
    rows = audio_folder(tmp_path / "set")
    header = ["file_name", "word", "group"]
    tables = {"": rows} if kind != "a csv each" else {"train": rows[:4], "test": rows[4:]}
    for folder, part_of in tables.items():
        named = [[row[0].removeprefix(f"{folder}/"), *row[1:]] for row in part_of]
        with (tmp_path / "set" / folder / ("metadata.jsonl" if "jsonl" in kind else "metadata.csv")).open("w") as file:
            if "jsonl" in kind:
                file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in named)
            else:
                csv.writer(file).writerows([header, *named])
    manifest = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", label_column="word").manifest
    assert {
        (clip.path.relative_to(tmp_path / "set").as_posix(), clip.label, clip.group) for clip in manifest.clips
    } == {tuple(row) for row in rows}
    assert {clip.path.parent.name for clip in manifest.select("test").clips} == {"test"}
    assert len(manifest.select("test")) == 4
    assert len(manifest.select("val")) > 0
    assert not (tmp_path / "m").exists()
    with pytest.raises(UsageError, match=r"--label-column \(columns: file_name, word, group\)"):
        fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv")
    with pytest.raises(UsageError, match="there is no column 'who'"):
        fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", label_column="word", group_column="who")


def test_listed_files_that_do_not_exist_are_reported(tmp_path: Path) -> None:
    rows = audio_folder(tmp_path / "set")
    missing = [[f"train/gone{number}.wav", "yes", f"gone{number}"] for number in range(3)]
    with (tmp_path / "set" / "metadata.csv").open("w") as file:
        csv.writer(file).writerows([["file_name", "label", "group"], *rows, *missing])
    fetched = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv")
    assert len(fetched.manifest) == 8
    first = tmp_path / "set" / "train" / "gone0.wav"
    assert f"3 listed clips are missing and left out, such as {first}" in fetched.warnings
    for path in tmp_path.rglob("*.wav"):
        path.unlink()
    with pytest.raises(ConfitError, match=r"none of the listed clips exists, such as .*/train/0\.wav"):
        fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv")


def test_folders_may_say_split_and_class(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        for label in ("no", "yes"):
            path = tmp_path / "set" / split / label / "1.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, tone(300), RATE)
    manifest = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv").manifest
    assert sizes(manifest) == (2, 2, 2)
    assert manifest.classes == ["no", "yes"]
    soundfile.write(tmp_path / "set" / "train" / "stray.wav", tone(300), RATE)
    with pytest.raises(UsageError, match=r"stray\.wav: has no split"):
        fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv")


def test_lists_of_labels_make_a_multi_label_manifest(tmp_path: Path) -> None:
    labels = [[0, 1], [1], [], [0]]
    features = Features({"sound": Audio(decode=False), "labels": List(ClassLabel(names=["hat", "kick"]))})
    data = {"sound": [{"bytes": coded(300 + n, "WAV"), "path": f"{n}.wav"} for n in range(4)], "labels": labels}
    hub_dataset(data, features).save_to_disk(tmp_path / "set")
    manifest = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv").manifest
    assert manifest.multi_label
    assert [clip.labels for clip in manifest.clips] == [("hat", "kick"), ("kick",), (), ("hat",)]
    write_manifest(manifest, tmp_path / "m.csv")
    assert [clip.labels for clip in read_manifest(tmp_path / "m.csv").clips] == [clip.labels for clip in manifest.clips]


def test_what_cannot_be_meant_is_one_line(tmp_path: Path) -> None:
    part(4).save_to_disk(tmp_path / "set")
    part(4).remove_columns("audio").save_to_disk(tmp_path / "mute")
    part(4).rename_column("label", "word").cast_column("word", Value("int64")).save_to_disk(tmp_path / "two")
    DatasetDict(fold1=part(4)).save_to_disk(tmp_path / "folds")
    noise = {"audio": [{"bytes": b"not sound", "path": None}] * 4}
    part(4, **noise).save_to_disk(tmp_path / "noise")
    (tmp_path / "empty").mkdir()
    for name, options, says in [
        ("set", {"label_column": "word"}, r"no column 'word' \(columns: audio, label, speaker\)"),
        ("set", {"group_column": "who"}, "no column 'who'"),
        ("mute", {}, "has no audio column"),
        ("two", {}, "--label-column"),
        ("folds", {}, r"none of its splits \(fold1\) is train, validation or test"),
        ("noise", {}, "cannot be read as sound"),
        ("empty", {}, "no sound files"),
    ]:
        with pytest.raises(ConfitError, match=says) as error:
            fetch_hub(str(tmp_path / name), tmp_path / "m.csv", **options)
        assert "\n" not in str(error.value)


def test_a_missing_data_set_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfitError, match="hf:nobody/nothing: cannot be loaded"):
        fetch_hub("nobody/nothing", tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "/nothing/here", "~/nothing"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"hf:{name}: no such folder"):
        fetch_hub(name, tmp_path / "m.csv")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'confit-edge\[hub\]'"):
        fetch_hub("x", tmp_path / "m.csv")


def test_a_folder_that_is_no_split_is_left_out_of_an_audio_folder_too(tmp_path: Path) -> None:
    rows = ["file_name,label,group"]
    for split, count in (("train", 8), ("validation", 4), ("test", 4), ("other", 6)):
        (tmp_path / split).mkdir()
        for number in range(count):
            name = f"{split}/{number}.flac"
            (tmp_path / name).write_bytes(coded(200 + 10 * number))
            rows.append(f"{name},{['no', 'yes'][number % 2]},{split}{number // 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    fetched = fetch_hub(str(tmp_path), tmp_path / "m.csv")
    assert sizes(fetched.manifest) == (8, 4, 4)
    assert "6 clips are left out: not in a folder train, validation or test" in fetched.warnings


def test_clips_without_a_label_are_left_out_and_reported(tmp_path: Path) -> None:
    """A class label of -1 is how a test split is published whose answers are kept back: it is not the last class."""
    sets = DatasetDict(train=part(8), validation=part(4, 8, label=[0, -1, 1, 1]), test=part(4, 12, label=[-1] * 4))
    sets.save_to_disk(tmp_path / "set")
    fetched = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", group_column="speaker")
    assert len(fetched.manifest.clips) == 11
    assert {"split 'validation': 1 of 4 clips left out, because they have no label"} < set(fetched.warnings)
    assert "split 'test': 4 of 4 clips left out, because they have no label" in fetched.warnings
    nothing = DatasetDict(train=part(4, label=[-1] * 4))
    nothing.save_to_disk(tmp_path / "nothing")
    with pytest.raises(ConfitError, match="no clip has a label in the column 'label'"):
        fetch_hub(str(tmp_path / "nothing"), tmp_path / "m.csv")


def test_a_clip_without_a_group_is_one_of_its_own(tmp_path: Path) -> None:
    sets = DatasetDict(
        train=part(6, speaker=["ann", None, "ben", None, "", "cid"]), test=part(3, 6, speaker=[None] * 3)
    )
    sets.save_to_disk(tmp_path / "set")
    manifest = fetch_hub(str(tmp_path / "set"), tmp_path / "m.csv", group_column="speaker").manifest
    assert len(manifest.clips) == 9
    assert len({clip.group for clip in manifest.clips}) == 9
