"""The report of a manifest: what it counts, which leaks it finds, and what it advises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data import names
from confit_edge.data.check import ClassStats, Report, check, class_stats
from confit_edge.data.clips import ClipStore
from confit_edge.data.manifest import Clip, Manifest, read_manifest, write_manifest
from confit_edge.data.names import joined_labels_warning, misspelt_warnings
from confit_edge.data.splits import with_splits

RATE = 16_000


def sound(
    path: Path, number: int, seconds: float = 0.5, rate: int = RATE, channels: int = 1, gain: float = 0.3
) -> None:
    """Noise that differs by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).uniform(-gain, gain, (round(seconds * rate), channels))
    soundfile.write(path, noise.astype(np.float32), rate, subtype="FLOAT")


def report_of(folder: Path, table: str) -> Report:
    (folder / "m.csv").write_text(table)
    return check(read_manifest(folder / "m.csv"), ClipStore(RATE, folder / "cache"))


def warns(report: Report, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in report.warnings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sounds 0.wav .. 21.wav, each different, of 0.5 s."""
    for number in range(22):
        sound(tmp_path / f"{number}.wav", number)
    return tmp_path


CLEAN = "path,label,group,split\n" + "".join(
    f"{number}.wav,{'xy'[number % 2]},g{number // 2},{('train', 'train', 'train', 'val', 'test')[number // 2]}\n"
    for number in range(10)
)


ENOUGH = "path,label,group,split\n" + "".join(
    f"{number}.wav,{'xy'[number % 2]},g{number // 2},{'train' if number < 10 else 'val' if number < 20 else 'test'}\n"
    for number in range(22)
)


def test_of_several_labels_clips_without_one_are_counted(folder: Path) -> None:
    """They are what a single label is told from; `unknown` says the same."""
    table = ENOUGH.replace("label", "labels").replace(",y,g1,", ",unknown,g1,").replace(",y,", ",,")
    report = report_of(folder, table)
    assert list(report.classes) == ["x"]
    assert (report.without_label, report.to_dict()["without_label"]) == (11, 11)
    assert "no label    11 clips" in report.text()
    assert report.trainable
    assert report.warnings == []
    assert "no label" not in report_of(folder, ENOUGH).text()


def test_a_label_that_all_training_clips_have_is_reported(folder: Path) -> None:
    table = ENOUGH.replace("label", "labels").replace(",y,", ",x|y,")
    report = report_of(folder, table)
    assert len(report.warnings) == 1
    assert warns(report, "every training clip is 'x': the model learns nothing to distinguish it from", "--background")
    assert report_of(folder, table.replace(",x,g1,", ",,g1,")).warnings == []  # but for one, in which nothing is heard
    assert report_of(folder, table.replace(",x,g1,", ",y,g1,")).warnings == []


def test_so_is_a_single_label_where_all_clips_without_it_are_elsewhere(folder: Path) -> None:
    rows = [line.replace(",y,", ",," if ",train" not in line else ",x,") for line in ENOUGH.splitlines(keepends=True)]
    report = report_of(folder, "".join(rows).replace("label", "labels"))
    assert len(report.warnings) == 1
    assert warns(report, "every training clip is 'x': the model learns nothing to distinguish it from", "--background")


def test_a_clean_manifest_has_nothing_to_warn_of(folder: Path) -> None:
    assert report_of(folder, ENOUGH).warnings == []
    assert report_of(folder, ENOUGH).text().splitlines()[-1] == "no warnings"
    report = report_of(folder, CLEAN)
    assert warns(report, "classes 'x', 'y' have fewer than 5 clips to learn from (train)")
    assert warns(report, "classes 'x', 'y' have fewer than 5 clips to choose epochs and thresholds by (val)")
    assert len(report.warnings) == 2
    assert not report.leaks
    assert (report.clips, report.groups, report.imbalance) == (10, 5, 1.0)
    assert report.durations == {"min": 0.5, "median": 0.5, "max": 0.5, "total": 5.0}
    assert (report.sample_rates, report.channels) == ({16_000: 10}, {1: 10})
    x = report.classes["x"]
    assert (x.clips, x.seconds, x.groups, x.splits) == (5, 2.5, 5, {"train": 3, "val": 1, "test": 1})
    assert report.missing == {"train": [], "val": [], "test": []}
    lines = report.text().splitlines()
    assert lines[1] == "10 usable clips, 2 classes, 5 groups, 0.1 min"
    assert lines[3:6] == [
        "class  clips  seconds  groups  train  val  test",
        "x          5      2.5       5      3    1     1",
        "y          5      2.5       5      3    1     1",
    ]


@pytest.mark.parametrize("label", ["background", "_background_noise_", "Silence", "noise"])
def test_a_class_that_is_to_stay_silent_is_reported(folder: Path, label: str) -> None:
    report = report_of(folder, CLEAN.replace(",x,", f",{label},"))
    assert warns(report, repr(label), "will fire", "'unknown'", "--background")
    assert report_of(folder, ENOUGH.replace(",x,", ",unknown,")).warnings == []


@pytest.mark.parametrize(
    ("clips", "suspected"),
    [
        ({"marvin": 8, "marvn": 2, "stop": 8}, ["'marvn' (2 clips): is it 'marvin' (8)?"]),
        (
            {"Stop It": 6, "stop it": 8, "stop_it": 8},
            ["'Stop It' (6 clips): is it 'stop it' (8)?", "'Stop It'", "'stop it'"],
        ),
        ({"no": 8, "no\u200b": 9}, ["'no\\u200b' (9 clips): is it 'no' (8)?"]),
        ({"no": 8, "no\u200d": 9}, ["'no\\u200d' (9 clips): is it 'no' (8)?"]),
        ({"stop it": 8, "stop\u00a0it": 9}, ["'stop\\xa0it' (9 clips): is it 'stop it' (8)?"]),
        ({"no\ufeff": 8, "no\u200b": 9}, ["'no\\ufeff' (8 clips): is it 'no\\u200b' (9)?"]),
        ({"نمیدانم": 8, "نمی\u200cدانم": 9}, ["'نمیدانم' (8 clips): is it 'نمی\\u200cدانم' (9)?"]),  # rightly joined
        ({"happyy": 1, "happy": 3}, ["'happyy' (1 clip): is it 'happy' (3)?"]),
        ({"marvin": 8, "marvn": 3}, []),  # both are there in numbers
        ({"on": 9, "off": 1, "bed": 9, "bird": 1, "three": 9, "tree": 1, "up": 9, "cup": 1}, []),
        ({"three": 9, "there": 1, "house": 9, "horse": 1}, []),
        ({"speaker1": 9, "speaker11": 1, "speaker12": 1}, []),
    ],
)
def test_a_class_that_may_be_another_misspelt_is_suspected(clips: dict[str, int], suspected: list[str]) -> None:
    warnings = misspelt_warnings(clips)
    assert len(warnings) == len(suspected)
    assert all(one.startswith(beginning) for one, beginning in zip(warnings, suspected, strict=True))


@settings(max_examples=50)
@given(
    rows=st.lists(
        st.tuples(
            st.sets(st.sampled_from("abcd")), st.sampled_from("ghi"), st.sampled_from([None, "train", "val", "test"])
        ),
        max_size=30,
    )
)
def test_each_class_has_the_clips_that_bear_its_label(rows: list[tuple[set[str], str, str | None]]) -> None:
    clips = tuple(Clip(Path(f"{at}.wav"), tuple(sorted(labels)), *of) for at, (labels, *of) in enumerate(rows))
    seconds = {clip.path: 0.1 * at for at, clip in enumerate(clips)}
    found = class_stats([*"abcd"], Manifest(clips, Path("m.csv"), True), seconds)
    for label in "abcd":
        own = [clip for clip in clips if label in clip.labels]
        assert found[label] == ClassStats(
            len(own),
            round(sum(seconds[clip.path] for clip in own), 3),
            len({clip.group for clip in own}),
            {split: sum(clip.split == split for clip in own) for split in ("train", "val", "test")},
        )


class Compared(str):
    """A label that counts how often any is held against another one."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_labels_of_clips_are_not_held_against_all_classes() -> None:
    clips = tuple(Clip(Path(f"{at}.wav"), (Compared(f"c{at % 300}"),), f"g{at}", None) for at in range(900))
    found = class_stats(
        [Compared(f"c{at}") for at in range(300)], Manifest(clips, Path("m.csv"), False), {c.path: 1.0 for c in clips}
    )
    assert {stats.clips for stats in found.values()} == {3}
    assert Compared.times <= 3 * 900  # of 270,000


def pair_by_pair(clips: dict[str, int]) -> list[str]:
    """What `misspelt` suspects, by holding each two names against each other."""
    found = []
    for pair in combinations(sorted(clips), 2):
        rare, common = sorted(pair, key=lambda label: clips[label])
        one, other = (re.sub(r"[\s_-]+", "", label.casefold()) for label in (rare, common))
        shorter, longer = sorted((one, other), key=len)
        cut = [longer[:at] + longer[at + 1 :] for at in range(len(longer)) if longer[at].isalpha()]
        if one == other or (3 * clips[rare] <= clips[common] and len(shorter) >= 5 and shorter in cut):
            found.append(
                f"{rare!r} ({clips[rare]} clip{'s' * (clips[rare] != 1)}): is it {common!r} ({clips[common]})?"
            )
    return found


@settings(max_examples=200)
@given(clips=st.dictionaries(st.text("abA1_", min_size=4, max_size=8), st.integers(0, 12), max_size=40))
def test_misspelt_classes_are_those_found_pair_by_pair(clips: dict[str, int]) -> None:
    assert [warning.removesuffix(" If so, rename it") for warning in misspelt_warnings(clips)] == pair_by_pair(clips)


def test_names_of_classes_are_not_held_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    count, plain = 0, names._plain

    def counted(label: str) -> str:
        nonlocal count
        count += 1
        return plain(label)

    monkeypatch.setattr(names, "_plain", counted)
    assert not misspelt_warnings({f"class{number:05d}": 1 + number % 40 for number in range(2000)})
    assert 2000 <= count <= 3 * 2000  # of 1,999,000 pairs


@pytest.mark.parametrize(
    ("labels", "suspected"),
    [
        (["dog,cat", "cat,bird", "dog,bird"], ["dog,cat", "cat,bird", "dog,bird"]),
        (["dog", "cat", "dog, cat, bird"], ["dog, cat, bird"]),
        (["Dog", "CAT", "dog;cat"], ["dog;cat"]),
        (["dog", "dog,cat"], ["dog,cat"]),
        (["dog", "cow; Dog", "cat"], ["cow; Dog"]),
        (["dog,cat", "dog,cow"], []),
        (["Speech", "Speech, male", "Speech, female"], []),
        (["x,x", "x,", "y"], []),
    ],
)
def test_classes_that_may_be_several_joined_are_suspected(labels: list[str], suspected: list[str]) -> None:
    warning = joined_labels_warning(labels)
    assert (warning is not None) == bool(suspected)
    assert [label for label in labels if repr(label) in (warning or "")] == suspected


def test_joined_labels_are_warned_of_in_either_column(folder: Path) -> None:
    """Under `labels` where a bar says how labels are joined, too."""
    joined_rows = ENOUGH.replace("2.wav,x,", '2.wav,"x,y",')
    for table in (joined_rows, joined_rows.replace("label", "labels").replace("4.wav,x", "4.wav,x|y")):
        assert warns(report_of(folder, table), "class 'x,y' is learnt separately", "vertical bar")
    assert not warns(report_of(folder, ENOUGH), "vertical bar")


def test_a_misspelt_class_is_warned_of(folder: Path) -> None:
    assert warns(
        report_of(folder, ENOUGH.replace(",x,", ",Stop It,").replace(",y,", ",stop it,")), "is it 'stop it' (11)?"
    )


def test_a_torn_group_is_a_leak(folder: Path) -> None:
    report = report_of(folder, CLEAN.replace("g4", "g0"))
    assert report.torn_groups == {"g0": ["train", "test"]}
    assert report.leaks
    (folder / "8.wav").unlink()
    (folder / "9.wav").unlink()
    assert report_of(folder, CLEAN.replace("g4", "g0")).leaks  # also of clips that cannot be used yet
    assert len(report.warnings) == 1
    assert warns(report, "leak: group 'g0' is in several splits", "--anew")


def test_one_sound_in_two_places(folder: Path) -> None:
    def copies(source: int, *targets: int) -> None:
        for target in targets:
            (folder / f"{target}.wav").write_bytes((folder / f"{source}.wav").read_bytes())

    copies(0, 2)  # the same label and split
    report = report_of(folder, CLEAN)
    assert [(copy.paths, copy.across_splits, copy.across_labels) for copy in report.duplicates] == [
        (["0.wav", "2.wav"], False, False)
    ]
    assert not report.leaks
    assert warns(report, "1 sound is listed more than once", "'0.wav', '2.wav'")

    copies(1, 9)  # train and test
    report = report_of(folder, CLEAN)
    assert report.leaks
    assert warns(report, "leak: the same sound is in several splits", "'1.wav', '9.wav'")

    copies(4, 5)  # x and y
    report = report_of(folder, CLEAN)
    assert warns(report, "leak: the same sound has different labels", "'4.wav', '5.wav'")
    assert "  1.wav = 9.wav" in report.text().splitlines()


def test_one_sound_of_two_labels_is_a_leak_within_a_split_too(folder: Path) -> None:
    (folder / "5.wav").write_bytes((folder / "4.wav").read_bytes())
    assert report_of(folder, CLEAN).leaks
    several = CLEAN.replace("label", "labels").replace("4.wav,x", "4.wav,x|y")
    assert report_of(folder, several.replace("5.wav,y", "5.wav,x")).leaks
    assert not report_of(folder, several.replace("5.wav,y", "5.wav,y|x")).leaks  # in whatever order


def test_one_sound_in_two_of_the_splits_that_train_makes(folder: Path) -> None:
    """Groups are dealt out, and two that hold the same sound may part."""
    rows = [f"{number}.wav,{'xy'[number % 2]},g{number // 2}\n" for number in range(22)]
    (folder / "0-copy.wav").write_bytes((folder / "0.wav").read_bytes())
    leaks = set()
    for group in range(11):
        text = f"path,label,group\n{''.join(rows)}0-copy.wav,x,g{group}\n"
        report = report_of(folder, text)
        split_manifest = with_splits(read_manifest(folder / "m.csv"), seed=0)
        splits = {clip.split for clip in split_manifest.clips if clip.path.name.startswith("0")}
        assert report.leaks == (len(splits) > 1)
        assert report.leaks == warns(report, "leak: the same sound ends up in several splits", "`group`")
        leaks.add(report.leaks)
    assert leaks == {True, False}


def test_of_many_leaks_the_first_are_reported_and_all_are_listed(folder: Path) -> None:
    rows = []
    for number in range(20, 34):
        sound(folder / f"{number}.wav", number)
        (folder / f"{number}-copy.wav").write_bytes((folder / f"{number}.wav").read_bytes())
        rows += [f"{number}.wav,x,g0,train\n", f"{number}-copy.wav,x,g4,test\n"]
    report = report_of(folder, CLEAN + "".join(rows))
    leaks = [warning for warning in report.warnings if warning.startswith("leak")]
    assert len(leaks) == 11
    assert leaks[-1].startswith("leak: the same sound is in several splits: 4 more sounds")
    assert len(report.to_dict()["duplicates"]) == 14


def test_equal_sounds_are_found_across_formats(folder: Path) -> None:
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, 8_000, dtype=np.int16)
    soundfile.write(folder / "0.wav", pcm, RATE, subtype="PCM_16")
    soundfile.write(folder / "1.flac", pcm, RATE)
    report = report_of(folder, CLEAN.replace("1.wav", "1.flac"))
    assert [copy.paths for copy in report.duplicates] == [["0.wav", "1.flac"]]


def test_unusable_clips_are_counted_by_kind_and_stop_nothing(folder: Path) -> None:
    (folder / "0.wav").unlink()
    for number in (1, 3, 5, 7, 9):
        sound(folder / f"{number}.wav", number, gain=0)
    report = report_of(folder, CLEAN)
    assert [(problem.path.name, problem.kind) for problem in report.problems][:2] == [
        ("0.wav", "missing"),
        ("1.wav", "silent"),
    ]
    assert report.classes["y"].clips == 0
    assert report.missing["train"] == []  # of the classes that are left
    assert warns(report, "6 clips cannot be used (5 silent, 1 missing)")
    assert warns(report, "class 'y' has no usable clip")
    assert not report.trainable  # `train` refuses it, too
    assert "  0.wav: no such file" in report.text()

    for number in range(10):
        (folder / f"{number}.wav").write_text("text")
    nothing = report_of(folder, CLEAN)
    assert nothing.durations == {}
    assert "0 usable clips" in nothing.text()
    assert json.dumps(nothing.to_dict(), allow_nan=False)


def test_rates_channels_levels_and_imbalance(folder: Path) -> None:
    sound(folder / "0.wav", 0, rate=8_000, channels=2)
    sound(folder / "1.wav", 1, gain=30)
    for number in range(10, 60):
        sound(folder / f"{number}.wav", number, seconds=0.1)
    report = report_of(folder, CLEAN + "".join(f"{number}.wav,y,h{number},train\n" for number in range(10, 60)))
    assert (report.sample_rates, report.channels) == ({8_000: 1, 16_000: 59}, {1: 59, 2: 1})
    assert report.imbalance == 11
    assert warns(report, "several sample rates")
    assert warns(report, "1 clip goes far beyond full scale ('1.wav')")
    pcm, rate = soundfile.read(folder / "1.wav", dtype="float32")
    soundfile.write(folder / "1.wav", -np.abs(pcm), rate, subtype="FLOAT")
    assert warns(report_of(folder, CLEAN), "1 clip goes far beyond full scale ('1.wav')")
    assert warns(report, "11 times as many clips as 'x'")


def test_clips_of_hardly_anything_are_reported_unless_they_are_of_no_class(folder: Path) -> None:
    """What `enroll` calls silent; a quiet room may well be `unknown`."""
    dither = np.random.default_rng(0).integers(-1, 2, RATE // 2, np.int16)
    for number in (0, 4):
        soundfile.write(folder / f"{number}.wav", np.roll(dither, number), RATE)
    report = report_of(folder, CLEAN.replace("4.wav,x", "4.wav,unknown"))
    assert warns(report, "1 labelled clip is almost silent, never above -70 dBFS (0.wav)")
    assert report.levels_db["min"] < -80 < -20 < report.levels_db["median"] <= report.levels_db["max"] < 0
    assert "level       -9" in report.text()
    assert report.to_dict()["levels_db"] == report.levels_db


def test_advice_on_splits_and_groups(folder: Path) -> None:
    own = report_of(folder, "path,label\n" + "".join(f"{n}.wav,{'xy'[n % 2]}\n" for n in range(10)))
    assert warns(own, "every clip is its own group", "`group` column")
    assert warns(own, "they end up in both train and test, and results are too good")
    stems = report_of(folder, "path,label,group\n" + "".join(f"{n}.wav,{'xy'[n % 2]},{n}\n" for n in range(10)))
    assert not warns(stems, "add a `group` column")  # there is one
    assert warns(stems, "every clip is its own group", "a group named after its only file says nothing")
    published = report_of(folder, "\n".join(",".join(row.split(",")[i] for i in (0, 1, 3)) for row in ENOUGH.split()))
    assert warns(published, "every clip is its own group", "A published split may keep them apart")
    assert not warns(published, "end up in both train and test")
    assert own.trainable
    assert own.missing == {}
    assert "train" not in own.text().splitlines()[3]
    few = report_of(folder, "path,label,group\n0.wav,x,a\n1.wav,x,b\n2.wav,y,a\n3.wav,y,a\n")
    assert warns(few, "cannot be used for training: class 'y' has 2 clips in one group ('a')")
    assert (few.trainable, few.to_dict()["trainable"]) == (False, False)
    no_test = report_of(folder, "path,label,group\n0.wav,x,a\n1.wav,x,b\n2.wav,y,a\n3.wav,y,b\n")
    assert warns(no_test, "classes 'x', 'y' have no clip in test")
    half = report_of(folder, CLEAN.replace("train", ""))
    assert warns(half, "cannot be used for training: only 4 of 10 clips have a split")


def test_groups_of_one_clip_each_are_groups_where_somebody_named_them(tmp_path: Path) -> None:
    """Twelve voices say a word once each, in CLASS/GROUP/ as the README has it."""
    for number in range(24):
        sound(tmp_path / "mine" / "xy"[number % 2] / f"voice {number}" / "1.wav", number)
        sound(tmp_path / "nobody's" / "xy"[number % 2] / f"{number}.wav", number)
    (tmp_path / "written").mkdir()
    for folder, lacking in (("mine", False), ("nobody's", True)):
        manifest = read_manifest(tmp_path / folder)
        write_manifest(with_splits(manifest, seed=0), tmp_path / "written" / "m.csv")  # as `data split` does
        for read in (manifest, read_manifest(tmp_path / "written" / "m.csv")):
            report = check(read, ClipStore(RATE, tmp_path / ".cache"))
            assert report.groups == 24
            assert warns(report, "every clip is its own group") == lacking


@pytest.mark.parametrize(
    ("groups", "warning"),
    [
        (lambda n: f"{n}" if n < 20 else "", "every clip is its"),  # the names of the files, without their endings
        (lambda n: "one" if n == 0 else "", "every clip is its"),
        (lambda n: f"g{n // 4}" if n % 2 else "", "most clips of class 'x' are each their"),
        (lambda n: f"g{n // 4}" if n % 3 else "", None),
        (lambda n: f"voice {n}", None),
        (lambda n: f"{n // 2 * 2}", None),  # a voice that gives its name to a clip of one word says another, too
    ],
)
def test_groups_are_those_of_most_clips_of_each_class(
    folder: Path, groups: Callable[[int], str], warning: str | None
) -> None:
    rows = "".join(f"{n}.wav,{'xy'[n % 2]},{groups(n)}\n" for n in range(22))
    manifest = "path,label,group\n" + rows
    report = report_of(folder, manifest)
    assert warns(report, f"{warning} own group") == (warning is not None)
    assert warns(report, "own group") == (warning is not None)
    (folder / "m.csv").write_text(manifest)
    assert read_manifest(folder / "m.csv").grouped == (warning is None)


def test_a_folder_with_a_manifest_in_it_is_pointed_out(tmp_path: Path) -> None:
    for number in range(6):
        sound(tmp_path / "xy"[number % 2] / f"{number}.wav", number)
    (tmp_path / "manifest.csv").write_text("path,label,group\n")
    report = check(read_manifest(tmp_path), ClipStore(RATE, tmp_path / ".cache"))
    assert warns(report, "every clip is its own group", "use manifest.csv in that folder")


def test_the_report_as_plain_data(folder: Path) -> None:
    (folder / "0.wav").unlink()
    data = json.loads(json.dumps(report_of(folder, CLEAN).to_dict(), allow_nan=False))
    assert data["problems"] == [
        {"path": "0.wav", "kind": "missing", "detail": "no such file (No such file or directory)"}
    ]
    assert data["by_label"]["x"] == {
        "clips": 4,
        "seconds": 2.0,
        "groups": 4,
        "splits": {"train": 2, "val": 1, "test": 1},
    }
    assert data["leaks"] is False
    assert data["source"] == str(folder / "m.csv")
