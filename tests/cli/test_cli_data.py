"""`confit-edge data`, run as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.cli.data import parse_fractions
from confit_edge.data.manifest import SPLITS, read_manifest
from tests.cli.command import COMMAND
from tests.cli.forked import DEVICE
from tests.full_disk import limited_file_size


def run(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return DEVICE.run("data", *arguments, environment={**os.environ, "CONFIT_EDGE_CACHE": str(cache)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six sounds, said by three people each, twice."""
    rng = np.random.default_rng(0)
    for label in ("yes", "no"):
        for person in ("ann", "bob", "cid"):
            for take in (1, 2):
                path = tmp_path / "set" / label / person / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, rng.uniform(-0.3, 0.3, 4000).astype(np.float32), 16_000)
    return tmp_path


def test_check_reports_on_stdout_and_succeeds(folder: Path) -> None:
    done = run("check", folder / "set", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert "12 usable clips, 2 classes, 3 groups" in done.stdout
    assert done.stderr == ""


def test_check_fails_on_leaks_and_with_strict_on_damage(folder: Path) -> None:
    (folder / "set" / "yes" / "ann" / "1.wav").write_text("text")
    lenient = run("check", folder / "set", "--json", cache=folder / "cache")
    assert lenient.returncode == 0
    (line,) = lenient.stdout.splitlines()
    report = json.loads(line)
    assert report["type"] == "check"
    assert [problem["path"] for problem in report["problems"]] == ["yes/ann/1.wav"]
    strict = run("check", folder / "set", "--strict", cache=folder / "cache")
    assert strict.returncode == 1
    assert "1 unreadable" in strict.stdout

    clips = [
        f"set/{label}/ann/2.wav,{label},ann,train\nset/{label}/bob/2.wav,{label},ann,val" for label in ("yes", "no")
    ]
    (folder / "torn.csv").write_text("\n".join(["path,label,group,split", *clips]))
    torn = run("check", folder / "torn.csv", cache=folder / "cache")
    assert torn.returncode == 1
    assert "leak: group 'ann'" in torn.stdout


def test_check_takes_a_folder_of_any_name(folder: Path) -> None:
    (folder / "set").rename(folder / os.fsdecode(b"caf\xe9"))
    done = run("check", folder / os.fsdecode(b"caf\xe9"), cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert "12 usable clips" in done.stdout


def test_split_writes_a_manifest_that_is_read_back(folder: Path) -> None:
    out = folder / "made" / "split.csv"
    done = run("split", folder / "set", "-o", out, "--seed", "3", "--fractions", "60/20/20", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: train 4, val 4, test 4\n"
    manifest = read_manifest(out)
    groups = [{clip.group for clip in manifest.select(split).clips} for split in SPLITS]
    assert sorted(map(len, groups)) == [1, 1, 1]
    assert len(set.union(*groups)) == 3

    again = run("split", out, "-o", folder / "again.csv", "--json", cache=folder / "cache")
    assert json.loads(again.stdout) == {
        "type": "split",
        "out": str(folder / "again.csv"),
        "made": False,
        "sizes": {"train": 4, "val": 4, "test": 4},
        "missing": {"train": [], "val": [], "test": []},
        "unusable": {},
    }
    assert read_manifest(folder / "again.csv").fingerprint() == manifest.fingerprint()

    (folder / "notes.csv").write_text("precious,column\n1,2\n")
    refused = run("split", out, "-o", folder / "notes.csv", cache=folder / "cache")
    assert refused.returncode == 2
    assert refused.stderr.endswith("notes.csv: already exists, with other contents; choose another -o, or remove it\n")
    assert (folder / "notes.csv").read_text() == "precious,column\n1,2\n"
    over = run("split", out, "-o", folder / "again.csv", cache=folder / "cache")
    assert over.returncode == 0, over.stderr  # the same split
    other = run("split", folder / "set", "-o", out, "--seed", "4", "--fractions", "60/20/20", cache=folder / "cache")
    assert (other.returncode, read_manifest(out).fingerprint()) == (2, manifest.fingerprint())
    assert "already exists, with other contents" in other.stderr

    replaced = run("split", out, "-o", folder / "anew.csv", "--anew", "--fractions", "50/50/0", cache=folder / "cache")
    assert replaced.returncode == 0, replaced.stderr
    assert "test 0" in replaced.stdout
    assert "to split them 50/50/0: the shares are 67/33/0" in replaced.stderr


def shown_at_a_terminal(*arguments: str | Path, cache: Path) -> str:
    """What a terminal on stderr is sent."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "CONFIT_EDGE_CACHE": str(cache), "TERM": "xterm", "COLUMNS": "80"}
    command, shown = [*COMMAND, "data", *map(str, arguments)], b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=environment) as process:
        os.close(terminal)
        with suppress(OSError):  # once nobody can write any more
            while part := os.read(controller, 4096):
                shown += part
    os.close(controller)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_bar_is_for_a_person_at_a_terminal_and_not_with_json(folder: Path) -> None:
    for verb in (["check"], ["split", "-o", folder / "m.csv"]):
        assert "12 of 12" in shown_at_a_terminal(*verb, folder / "set", cache=folder / "cache")
        assert shown_at_a_terminal(*verb, folder / "set", "--json", cache=folder / "cache") == ""


def test_one_class_alone_is_looked_at_and_split(folder: Path) -> None:
    clips = [f"{path.relative_to(folder)},x,{at}" for at, path in enumerate(sorted((folder / "set").rglob("*.wav")))]
    (folder / "one.csv").write_text("\n".join(["path,label,group", *clips]))
    done = run("check", folder / "one.csv", cache=folder / "cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert "there is only one class, 'x': to train, give clips of other sounds with --others" in done.stdout
    done = run("split", folder / "one.csv", "-o", folder / "split.csv", cache=folder / "cache")
    assert done.returncode == 0, done.stderr


def test_split_leaves_out_what_cannot_be_used(folder: Path) -> None:
    (folder / "set" / "yes" / "ann" / "1.wav").write_text("text")
    done = run("split", folder / "set", "-o", folder / "m.csv", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert "left out clips that cannot be used: 1 unreadable (`confit-edge data check" in done.stderr
    manifest = read_manifest(folder / "m.csv")
    assert len(manifest) == 11
    assert "1.wav" not in {clip.path.name for clip in manifest.clips if clip.path.parts[-3:-1] == ("yes", "ann")}
    for clip in (folder / "set" / "yes").rglob("*.wav"):
        clip.write_text("text")
    lost = run("split", folder / "set", "-o", folder / "lost.csv", cache=folder / "cache")
    assert lost.returncode == 1
    assert "no clip of class 'yes' can be used (6 unreadable)" in lost.stderr
    assert not (folder / "lost.csv").exists()


def test_split_by_another_column(folder: Path) -> None:
    for person in ("ann", "bob", "cid"):
        (folder / "set" / "yes" / person).rename(folder / "set" / "yes" / f"{person}-")
    options = ("--label-column", "group", "--split-by", "label")
    done = run("split", folder / "set", "-o", folder / "voices.csv", *options, cache=folder / "cache")
    assert done.returncode == 1
    assert done.stderr.startswith("confit-edge: ")
    assert "class 'ann' has 2 clips in one group ('no')" in done.stderr
    assert not (folder / "voices.csv").exists()


def test_what_cannot_be_trained_on_fails_the_check(folder: Path) -> None:
    (folder / "gone.csv").write_text("path,label\na.wav,x\nb.wav,y\nc.wav,x\nd.wav,y\n")
    done = run("check", folder / "gone.csv", cache=folder / "cache")
    assert done.returncode == 1
    assert "cannot be used for training" in done.stdout


@pytest.mark.parametrize(
    ("header", "cure"),
    [("path,word", "name it with --label-column"), ("path;label", "separate the cells of a CSV by commas")],
)
def test_a_missing_column_says_what_to_do(folder: Path, header: str, cure: str) -> None:
    (folder / "other.csv").write_text(header + "\n")
    done = run("check", folder / "other.csv", cache=folder / "cache")
    assert done.returncode == 2
    assert cure in done.stderr


def test_wrong_usage_exits_with_2(folder: Path) -> None:
    out = folder / "out.csv"
    (folder / "m.csv").write_text("path,label\na.wav,x\nb.wav,y\n")
    for arguments, says in [
        (["check", folder / "absent"], "no such manifest"),
        (["check", folder / "set", "--label-column", "word"], "no column 'word'"),
        (["split", folder / "set"], "--out"),
        (["split", folder / "set", "-o", folder / "out.parquet"], "so its name must end with .csv"),
        (["split", folder / "m.csv", "-o", folder / "m.csv"], "name another file"),
        *[
            (["split", folder / "set", "-o", out, "--fractions", bad], "70/10/20")
            for bad in ("70/30", "1/0/1", "a/b/c")
        ],
        (["split", folder / "set", "-o", out, "--fractions", "80/20/10"], "sums to 110; the shares"),
    ]:
        done = run(*arguments, cache=folder / "cache")
        assert done.returncode == 2, arguments
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "train", "taken_as"),
    [
        ("7/1/2", 0.7, ""),
        ("0.7/0.1/0.2", 0.7, ""),
        ("80/20/0", 0.8, ""),
        ("33/33/33", 1 / 3, "sums to 99, so it is scaled to 33.3/33.3/33.3"),
        ("70/15/16", 70 / 101, "sums to 101, so it is scaled to 69.3/14.9/15.8"),
    ],
)
def test_shares_sum_to_one_and_the_use_of_rounded_ones_is_reported(
    text: str, train: float, taken_as: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = parse_fractions(text)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == pytest.approx(train)
    assert capsys.readouterr().err == (f"--fractions {text}: {taken_as}\n" if taken_as else "")


@pytest.fixture
def emotions(tmp_path: Path) -> Path:
    """A small tree of the shape of EmoDB, two folders down."""
    rng = np.random.default_rng(0)
    for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"):
        for emotion in "WLN":
            path = tmp_path / "corpora" / "download" / "wav" / f"{speaker}a01{emotion}a.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.uniform(-0.3, 0.3, 1600).astype(np.float32), 16_000)
    return tmp_path / "corpora"


def test_fetch_writes_the_manifest_of_a_corpus_on_disk(emotions: Path, tmp_path: Path) -> None:
    out = tmp_path / "emodb.csv"
    refused = run("fetch", "emodb", "--root", emotions, "-o", out, cache=tmp_path)
    assert refused.returncode == 1
    assert "30 clips, fewer than the 535 published" in refused.stderr
    assert not out.exists()
    done = run("fetch", "emodb", "--root", emotions, "-o", out, "--partial", "--fold", "2", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 3 classes, 30 clips (train 18, val 6, test 6)\n"
    assert "warning: 30 clips, fewer" in done.stderr
    assert {clip.group for clip in read_manifest(out).select("test").clips} == {"09", "10"}
    top = ("fetch", "emodb", "--root", emotions, "--partial", "--json", "--top", "2", "-o")
    assert "already exists, with other contents" in run(*top, out, cache=tmp_path).stderr
    plain = run(*top, tmp_path / "top.csv", cache=tmp_path)
    (line,) = plain.stdout.splitlines()
    assert json.loads(line)["sizes"] == {"train": 12, "val": 4, "test": 4}
    assert json.loads(line)["tree"] == str(emotions / "download")


def test_fetch_takes_an_audio_folder(folder: Path) -> None:
    done = run("fetch", f"hf:{folder / 'set'}", "-o", folder / "m.csv", cache=folder / "cache")
    assert done.returncode == 2
    assert "give it in place of a manifest" in done.stderr
    for split in ("train", "validation", "test"):
        for label in ("yes", "no"):
            person = {"train": "ann", "validation": "bob", "test": "cid"}[split]
            (folder / "hf" / split).mkdir(parents=True, exist_ok=True)
            (folder / "set" / label / person).rename(folder / "hf" / split / label)
    (folder / "hf" / "train" / "yes" / "dan").mkdir()
    (folder / "hf" / "train" / "yes" / "1.wav").rename(folder / "hf" / "train" / "yes" / "dan" / "1.wav")
    done = run("fetch", f"hf:{folder / 'hf'}", "-o", folder / "m.csv", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'm.csv'}: 2 classes, 12 clips (train 4, val 4, test 4)\n"
    assert "dan" in {clip.group for clip in read_manifest(folder / "m.csv").clips}


def test_fetch_lists_the_corpora_and_warns_that_they_are_untested(tmp_path: Path) -> None:
    shown = run("fetch", "--list", cache=tmp_path)
    assert shown.returncode == 0
    assert "not on the real corpora" in shown.stderr
    *lines, summary = map(json.loads, run("fetch", "--list", "--json", cache=tmp_path).stdout.splitlines())
    assert summary == {"type": "summary", "corpora": len(lines)}
    assert {"timit", "gtzan", "esc50", "mswc", "emodb"} <= {line["name"] for line in lines}
    assert all(line["home"] in shown.stdout for line in lines)


def test_fetch_in_a_wrong_way_exits_with_2(emotions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for arguments, says in [
        ([], "name a corpus"),
        (["emodb"], "data fetch emodb: name the manifest to write, with -o OUT.csv"),
        (["emodb", "-o", out], "--root DIR"),
        (["emodb", "-o", tmp_path / "out.txt", "--root", emotions], "so its name must end with .csv"),
        (["imagenet", "-o", out, "--root", emotions], "not a known corpus; name one of timit,"),
        (["esc50", "-o", out, "--root", emotions], "esc50 is neither there nor"),
        (["emodb", "-o", out, "--root", emotions, "--fold", "6"], "has folds 1 to 5"),
        (["emodb", "-o", out, "--root", emotions, "--label-column", "word"], "--label-column does not apply to it"),
        ([f"hf:{emotions}", "-o", out, "--fold", "1"], "--fold does not apply to it"),
    ]:
        done = run("fetch", *arguments, cache=tmp_path)
        assert done.returncode == 2, arguments
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Two stereo recordings of 12 s with labels in a table, another with Audacity's, and one without any."""
    rng = np.random.default_rng(0)
    for name in ("a/night.flac", "b/night.flac", "dusk.wav", "empty.wav"):
        path = tmp_path / "field" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.3, 0.3, (12 * 8_000, 2)), 8_000)
    (tmp_path / "field" / "dusk.txt").write_text("1.0\t2.0\towl|crow\n4.0\t4.02\towl\n", encoding="utf-8")
    (tmp_path / "field" / "calls.csv").write_text(
        "path,start_s,end_s,label\na/night.flac,1,2,owl\na/night.flac,5,5.5,crow\nb/night.flac,2,6.5,owl\nb/night.flac,8,8.5,Unknown\n"
        "empty.wav\n",
        encoding="utf-8",
    )
    return tmp_path


def test_cut_makes_clips_of_a_table_of_times(field: Path) -> None:
    out, table = field / "clips", field / "field" / "calls.csv"
    done = run("cut", table, "-o", out, "--rest", field / "rest", cache=field / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{out}/manifest.csv: 4 clips, 6.5 s, from 3 recordings (2 groups)",
        "  crow        1",
        "  owl         2",
        "  unknown     1",
        f"{field / 'rest'}: 5 stretches between the sounds, 24.5 s",
    ]
    assert "sounds in it that nobody labelled are learnt as background" in done.stderr
    assert "1 clip longer than 3 s (the longest 4.5 s)" in done.stderr
    assert (out / "manifest.csv").read_text().splitlines() == [
        "path,label,group",
        "owl/a_night/night 00001.000.flac,owl,a/night",
        "crow/a_night/night 00005.000.flac,crow,a/night",
        "owl/b_night/night 00002.000.flac,owl,b/night",
        "unknown/b_night/night 00008.000.flac,unknown,b/night",
    ]
    night, rate = soundfile.read(field / "field" / "a" / "night.flac", dtype="int16")
    clip, _ = soundfile.read(out / "owl" / "a_night" / "night 00001.000.flac", dtype="int16")
    assert np.array_equal(clip, night[rate : 2 * rate])
    assert len(list((field / "rest").rglob("*.flac"))) == 5
    assert len(read_manifest(out)) == len(read_manifest(out / "manifest.csv")) == 4  # as a folder of classes, too
    assert run("check", out / "manifest.csv", cache=field / "cache").returncode == 1  # of two groups
    again = run("cut", table, "-o", out, cache=field / "cache")
    assert (again.returncode, again.stderr) == (2, f"confit-edge: -o {out}: is not empty; name a new folder\n")


@pytest.mark.parametrize("places", ["-o clips", "-o clips --rest rest"])
def test_where_the_disk_is_full_cut_names_the_folder_that_was_asked_for(
    field: Path, monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    monkeypatch.chdir(field)
    with limited_file_size(100_000):  # which a process begun here has, too
        command = [*COMMAND, "data", "cut", "field/calls.csv", *places.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    expected_error = f"confit-edge: {places.split()[-1]}: cannot be written (System error.): is the disk full?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected_error)
    assert [path.name for path in field.iterdir()] == ["field"]


def test_cut_joins_the_labels_of_what_overlaps(field: Path) -> None:
    out, table = field / "clips", field / "field" / "dusk.wav"
    done = run("cut", table, "-o", out, "--json", cache=field / "cache")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["type"], report["column"], report["joined"], report["short"]) == ("cut", "labels", 1, 1)
    assert report["by_label"] == {"crow": 1, "owl": 2}
    manifest = read_manifest(out / "manifest.csv")
    assert [(clip.labels, clip.group) for clip in manifest.clips] == [(("crow", "owl"), "dusk"), (("owl",), "dusk")]
    as_folder = run("check", out, cache=field / "cache")  # the names of folders would be no labels
    assert as_folder.returncode == 1
    assert as_folder.stderr.endswith(f"; to use its manifest, give {out / 'manifest.csv'}\n")
    alone = run("cut", table, "-o", field / "alone", "--alone", "--margin", "0.4", cache=field / "cache")
    assert "left out because of --alone: 1 overlapping sound" in alone.stderr
    assert "warning" not in alone.stderr  # the margin gives what is short a length
    (clip,) = read_manifest(field / "alone" / "manifest.csv", min_classes=1).clips
    assert soundfile.info(clip.path).duration == pytest.approx(0.82)


def test_cut_groups_as_the_table_says(field: Path) -> None:
    table = field / "field" / "days.csv"
    rows = [
        "path,start_s,end_s,label,group",
        "a/night.flac,1,2,owl,may",
        "b/night.flac,1,2,owl,",
        "dusk.wav,1,2,crow,may",
    ]
    table.write_text("\n".join(rows), encoding="utf-8")
    done = run("cut", table, "-o", field / "clips", cache=field / "cache")
    assert done.returncode == 0, done.stderr
    assert [clip.group for clip in read_manifest(field / "clips" / "manifest.csv").clips] == [
        "may",
        "b/night",
        "may",
    ]
    table.write_text("\n".join([*rows, "dusk.wav,3,4,crow,june"]), encoding="utf-8")
    torn = run("cut", table, "-o", field / "torn", cache=field / "cache")
    assert torn.returncode == 2
    assert "dusk.wav has several groups (june, may), but a recording must stay in one split" in torn.stderr


def test_cut_groups_recordings_by_their_names_of_whatever_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe8", b"caf\xe9"):
        path = tmp_path / "bar" / os.fsdecode(name + b".wav")
        path.parent.mkdir(exist_ok=True)
        sound = np.random.default_rng(name[-1]).uniform(-0.3, 0.3, 8_000)
        soundfile.write(os.fsencode(path), sound, 8_000, format="WAV")
        path.with_suffix(".txt").write_text("0.1\t0.8\tcup\n")
    done = run("cut", tmp_path / "bar", "-o", tmp_path / "clips", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    groups = [clip.group for clip in read_manifest(tmp_path / "clips" / "manifest.csv", min_classes=1).clips]
    assert groups == ["caf\\udce8", "caf\\udce9"]


def test_cut_leaves_out_a_damaged_recording_and_reports_it(field: Path) -> None:
    broken = field / "field" / "b" / "night.flac"
    broken.write_bytes(broken.read_bytes()[:40_000])
    done = run("cut", field / "field" / "calls.csv", "-o", field / "clips", cache=field / "cache")
    assert done.returncode == 1
    assert f"left out: {broken}: cannot be read as sound" in done.stderr
    manifest = read_manifest(field / "clips" / "manifest.csv")
    assert {clip.group for clip in manifest.clips} == {"a/night"}
    assert len(list((field / "clips").rglob("*.flac"))) == len(manifest) == 2
    done = run("cut", field / "field" / "calls.csv", "-o", field / "again", "--json", cache=field / "cache")
    failed, report = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, failed["type"], failed["clip"]) == (1, "failed", str(broken))
    assert failed["error"].startswith(f"{broken}: cannot be read as sound")
    assert (report["type"], report["clips"], report["failed"]) == ("cut", 2, 1)
    broken.write_text("no sound")
    done = run("cut", field / "field" / "calls.csv", "-o", field / "none", "--json", cache=field / "cache")
    (failed,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, failed["type"], failed["clip"]) == (1, "failed", str(broken))
    assert done.stderr == f"confit-edge: {failed['error']}\n"


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ("dusk.wav,3,3,owl", [], "owl at 3 s of"),
        ("dusk.wav", [], "it labels no sound, so there is no clip to cut"),
        (
            "dusk.wav,1,2,owl|crow",
            ["--alone"],
            "every sound in it (1) overlaps another, and --alone leaves such sounds out",
        ),
        ("dusk.wav,1,2,owl", ["--rest", "clips/rest"], "so it would be read as a class"),
        ("dusk.wav,1,2,owl\nempty.wav\ncopy.wav", [], "are the same"),
    ],
)
def test_cut_in_a_wrong_way_exits_with_2_and_writes_nothing(
    field: Path, monkeypatch: pytest.MonkeyPatch, rows: str, options: list[str], says: str
) -> None:
    monkeypatch.chdir(field)
    (field / "field" / "copy.wav").write_bytes((field / "field" / "empty.wav").read_bytes())
    (field / "field" / "calls.csv").write_text(f"path,start_s,end_s,label\n{rows}\n", encoding="utf-8")
    done = run("cut", "field/calls.csv", "-o", "clips", *options, cache=field / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert sorted(path.name for path in field.iterdir()) == ["field"]


def test_cut_shows_a_bar(field: Path) -> None:
    table = field / "field" / "calls.csv"
    assert "night.flac" in shown_at_a_terminal("cut", table, "-o", field / "clips", cache=field / "cache")
    assert shown_at_a_terminal("cut", table, "-o", field / "more", "--json", cache=field / "cache") == ""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_cut_that_is_stopped_leaves_nothing(tmp_path: Path, signal_: signal.Signals) -> None:
    soundfile.write(tmp_path / "night.wav", np.zeros(300 * 8000, np.float32), 8000)
    rows = [f"night.wav,{at / 10},{at / 10 + 0.08},owl\n" for at in range(3000)]  # seconds of work, were it not stopped
    (tmp_path / "calls.csv").write_text("path,start_s,end_s,label\n" + "".join(rows))
    before = sorted(tmp_path.iterdir())
    with subprocess.Popen(
        [*COMMAND, "data", "cut", "calls.csv", "-o", "clips", "--rest", "rest"], cwd=tmp_path,
        preexec_fn=partial(signal.signal, signal_, signal.SIG_DFL),  # nohup ignores SIGHUP, a script's background SIGINT
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        while not list(tmp_path.glob(".clips.*.partial/owl/*/*")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal_)
        assert child.wait(timeout=30) == 130
        assert child.stderr is not None
        assert child.stderr.read() == "confit-edge: stopped\n"
    assert sorted(tmp_path.iterdir()) == before
