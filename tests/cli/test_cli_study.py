"""`confit-edge study` as a user runs it: killed and gone on with, its cost before it starts, and wrong usage."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from confit_edge.files import lock_folder
from confit_edge.studies import names
from tests.cli.command import Confit
from tests.cli.forked import TRAINING


@pytest.fixture(scope="module")
def recipe(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(
        f"encoder: {checkpoints['wav2vec2']}\nwindow: 0.3\nshift: 0.02\nepochs: 1\nprobe_views: 1\n"
        "classes_per_batch: 4\nclips_per_class: 2\n"
    )
    return path


def children(process: int) -> list[int]:
    """The processes that `process` started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[1]) == process:
            found.append(int(entry.parent.name))
    return found


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_and_gone_on_with_it_is_the_study_that_was_not_disturbed(
    tones: Path, recipe: Path, tmp_path: Path, confit: Confit
) -> None:
    arguments = ["study", "classes", "--data", tones, "--recipe", recipe, "--seeds", "1", "--json"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = TRAINING.start(*arguments, "-o", killed, "--jobs", "2")
    trials = killed / "trials.jsonl"
    wait_until(lambda: trials.is_file() and trials.read_bytes().count(b"\n") >= 2)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    kept = trials.read_bytes().count(b"\n")
    assert kept < 6, "it was over too soon"
    assert not (killed / "results.json").exists()
    wait_until(lambda: all(has_ended(worker) for worker in workers), 20)
    with trials.open("ab") as file:
        file.write(b'{"key": "half a li')

    code, out, err = confit(*arguments, "-o", killed, "--jobs", "1")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["cost", *["trial"] * (6 - kept), "summary"]
    assert (lines[0]["trials"], lines[0]["done"]) == (6, kept)
    code, _, err = confit(*arguments, "-o", undisturbed, "--jobs", "1")
    assert code == 0, err
    for name in ("table.csv", "table.md", "conclusions.md"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in undisturbed.iterdir())


def test_the_cost_is_printed_and_a_dry_run_does_no_more(
    tones: Path, recipe: Path, tmp_path: Path, confit: Confit
) -> None:
    arguments = ["study", "unseen", "--data", tones, "--recipe", recipe, "-o", tmp_path / "out", "--seeds", "2"]
    code, out, err = confit(*arguments, "--dry-run")
    assert code == 0, err
    assert out == ""
    assert re.search(r"6 trials: about \d+ s of CPU time, \d+ s with --jobs 1", err)
    assert not (tmp_path / "out").exists()
    code, out, _ = confit(*arguments, "--dry-run", "--json", "--jobs", "2")
    cost = json.loads(out)
    assert (cost["type"], cost["trials"], cost["done"]) == ("cost", 6, 0)
    assert 0 < cost["wall_seconds"] < cost["cpu_seconds"]


@pytest.mark.skipif(os.name == "nt", reason="Windows locks no folder")
def test_a_study_is_done_by_one_process(tones: Path, recipe: Path, tmp_path: Path, confit: Confit) -> None:
    arguments = ["study", "unseen", "--data", tones, "--recipe", recipe, "-o", tmp_path / "out", "--seeds", "1"]
    with lock_folder(tmp_path / "out", "study"):
        code, out, err = confit(*arguments)
        assert (code, out) == (2, "")
        assert f"{tmp_path / 'out'}: another process is writing this study; wait for it" in err
        code, _, err = confit(*arguments, "--dry-run")
        assert code == 0, err
    assert not (tmp_path / "out").exists()


def test_it_prints_the_table_and_the_conclusions(tones: Path, recipe: Path, tmp_path: Path, confit: Confit) -> None:
    code, out, err = confit(
        "study", "unseen", "--data", tones, "--recipe", recipe, "-o", tmp_path, "--seeds", "1", "--train-groups", "2"
    )
    assert code == 0, err
    assert (tmp_path / "table.md").read_text() in out
    assert (tmp_path / "conclusions.md").read_text().strip() in out
    assert json.loads((tmp_path / "results.json").read_text())["train_groups"] == 2
    assert "How well does a trained embedding work on unseen classes" in err
    for objective in ("frozen", "finetune", "pairtune"):
        assert f"{objective}, seed 0: probing the encoder\n" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["luck"], r"study 'luck': there is no such study; choose one of batch, classes"),
        (["shots", "--train-groups", "9"], r"--train-groups 9: there are only 4 groups to train on"),
        (["shots", "--from", "x"], r"--from: study shots trains its own encoders"),
        (["isotropy", "--from", "nowhere"], r"nowhere: not a run"),
        (["isotropy", "--from", "a/run", "--from", "b/run"], r"--from: 2 folders are named run"),
        (["isotropy", "--from", "x", "--seeds", "2"], r"--seeds is for new trainings"),
        (["isotropy", "--from", "x", "--train-groups", "2"], r"--train-groups is for new trainings"),
        (
            ["isotropy", "--background", "x"],
            r"--background is only for runs in --from; .* key 'background' in --recipe",
        ),
        (["shots", "-o", __file__], r"is a file; give a folder for the study with -o"),
        (
            ["shots", "-o", f"{__file__}/x/y", "--dry-run"],
            r"y: cannot create this folder, because .*test_cli_study.py is a file",
        ),
    ],
)
def test_wrong_usage_is_named_in_one_line(
    arguments: list[str], message: str, tones: Path, recipe: Path, tmp_path: Path, confit: Confit
) -> None:
    out = [] if "-o" in arguments else ["-o", tmp_path / "out"]
    code, _, err = confit("study", *arguments, "--data", tones, "--recipe", recipe, *out)
    assert code == 2
    assert re.search(message, err.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_test_clips_is_refused(tones: Path, recipe: Path, tmp_path: Path, confit: Confit) -> None:
    with tones.open(newline="") as file, (tmp_path / "m.csv").open("w", newline="") as target:
        rows = [row for row in csv.reader(file) if row[3] != "test"]
        csv.writer(target).writerows([rows[0], *([str(tones.parent / path), *rest] for path, *rest in rows[1:])])
    code, _, err = confit("study", "shots", "--data", tmp_path / "m.csv", "-o", tmp_path / "out", "--recipe", recipe)
    assert code == 2
    assert "m.csv: no clip is in test, and a study reports on test clips" in err


def test_a_test_split_without_a_label_is_refused(tones: Path, recipe: Path, tmp_path: Path, confit: Confit) -> None:
    with tones.open(newline="") as file, (tmp_path / "m.csv").open("w", newline="") as target:
        rows = list(csv.reader(file))[1:]
        bare = [
            [tones.parent / path, "" if split == "test" else label, group, split] for path, label, group, split in rows
        ]
        csv.writer(target).writerows([["path", "labels", "group", "split"], *bare])
    code, _, err = confit("study", "shots", "--data", tmp_path / "m.csv", "-o", tmp_path / "out", "--recipe", recipe)
    assert code == 2
    assert "m.csv: no clip in test has a label, so a study has nothing to report" in err


def test_the_help_lists_every_study(confit: Confit) -> None:
    code, out, _ = confit("study", "--help")
    assert code == 0
    assert all(re.search(rf"\b{name}\b", out) for name in names())
