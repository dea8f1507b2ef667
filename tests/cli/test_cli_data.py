"""`confit-edge data`, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.data.manifest import SPLITS, read_manifest

COMMAND = [sys.executable, "-c", "from confit_edge.cli import main; main()", "data"]


def run(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CONFIT_EDGE_CACHE": str(cache)}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


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


def test_split_writes_a_manifest_that_is_read_back(folder: Path) -> None:
    out = folder / "made" / "split.csv"
    done = run("split", folder / "set", "-o", out, "--seed", "3", "--fractions", "60/20/20", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: train 4, val 4, test 4\n"
    made = read_manifest(out)
    groups = [{clip.group for clip in made.select(split).clips} for split in SPLITS]
    assert sorted(map(len, groups)) == [1, 1, 1]
    assert len(set.union(*groups)) == 3

    again = run("split", out, "-o", folder / "again.csv", "--json", cache=folder / "cache")
    assert json.loads(again.stdout) == {
        "type": "split",
        "out": str(folder / "again.csv"),
        "made": False,
        "clips": {"train": 4, "val": 4, "test": 4},
        "missing": {"train": [], "val": [], "test": []},
    }
    assert read_manifest(folder / "again.csv").fingerprint() == made.fingerprint()

    anew = run("split", out, "-o", folder / "anew.csv", "--anew", "--fractions", "50/50/0", cache=folder / "cache")
    assert anew.returncode == 0, anew.stderr
    assert "test 0" in anew.stdout


def test_split_by_another_column(folder: Path) -> None:
    for person in ("ann", "bob", "cid"):
        (folder / "set" / "yes" / person).rename(folder / "set" / "yes" / f"{person}-")
    options = ("--label-column", "group", "--split-by", "label")
    done = run("split", folder / "set", "-o", folder / "voices.csv", *options, cache=folder / "cache")
    assert done.returncode == 1
    assert done.stderr.startswith("confit-edge: ")
    assert "class 'ann' has 2 clips in one group ('no')" in done.stderr
    assert not (folder / "voices.csv").exists()


def test_wrong_usage_exits_with_2(folder: Path) -> None:
    out = folder / "out.csv"
    (folder / "m.csv").write_text("path,label\na.wav,x\nb.wav,y\n")
    for arguments, says in [
        (["check", folder / "absent"], "no such manifest"),
        (["check", folder / "set", "--label-column", "word"], "no column 'word'"),
        (["split", folder / "set"], "--out"),
        (["split", folder / "set", "-o", folder / "out.parquet"], "must end in .csv"),
        (["split", folder / "m.csv", "-o", folder / "m.csv"], "name another file"),
        *[
            (["split", folder / "set", "-o", out, "--fractions", bad], "70/10/20")
            for bad in ("70/30", "1/0/1", "a/b/c")
        ],
    ]:
        done = run(*arguments, cache=folder / "cache")
        assert done.returncode == 2, arguments
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()
