"""`confit-edge probe` and `analyze` as a user runs them, on runs of few clips, and with all that can be wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from confit_edge.data.manifest import read_manifest, write_manifest
from confit_edge.geometry.measures import RANGES
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from tests.cli.command import Confit


@pytest.fixture(scope="module")
def vanilla(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of vanilla fine-tuning on the clips of `run_path`, without its background."""
    path = tmp_path_factory.mktemp("runs") / "vanilla"
    train(manifest, path, Recipe(objective="finetune", epochs=1, soup=1, probe_views=1, frozen_baseline=False))
    return path


@pytest.fixture(scope="module")
def several(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on clips with one to three labels each; its manifest is beside it."""
    folder = tmp_path_factory.mktemp("several")
    with manifest.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    lines = ["path,labels,group,split"]
    for row in rows:
        labels = (
            [row["label"]] + ["ess"] * (row["label"] in ("yes", "stop", "seven")) + ["v"] * (row["label"] == "seven")
        )
        lines.append(f"{manifest.parent / row['path']},{'|'.join(labels)},{row['group']},{row['split']}")
    (folder / "several.csv").write_text("\n".join(lines), encoding="utf-8")
    recipe = Recipe(label_column="labels", epochs=1, soup=1, probe_views=1, frozen_baseline=False)
    train(folder / "several.csv", folder / "run", recipe)
    return folder / "run"


def test_the_sound_of_a_run_may_have_moved(run_path: Path, background: Path, confit: Confit, tmp_path: Path) -> None:
    shutil.copytree(run_path, tmp_path / "run")
    shutil.copytree(background, tmp_path / "now")
    about = json.loads((run_path / "run.json").read_text())
    about["recipe"]["background"] = [str(tmp_path / "then")]
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    model = tmp_path / "words.onnx"
    for verb in (("analyze",), ("probe",), ("export", "-o", model, "--no-quantize")):
        code, _, err = confit(*verb, tmp_path / "run")
        assert code == 2
        assert "then: the --background that" in err
        assert "give its current path (--background)" in err
        code, _, err = confit(*verb, tmp_path / "run", "--background", tmp_path / "now")
        assert code == 0, err
        code, _, err = confit(*verb, tmp_path / "run", "--background", tmp_path / "now", "--others", tmp_path)
        assert code == 2
        assert "was used to train" in err
        code, _, err = confit(*verb, tmp_path / "run", "--background", "")  # not the current folder
        assert (code, "--background: is empty" in err) == (2, True)


def test_the_encoder_that_a_run_began_with_may_have_moved(
    manifest: Path,
    vanilla: Path,
    checkpoints: dict[str, Path],
    confit: Confit,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is left out, which is told, or found again; another in its place is not taken for it."""
    first_data, now, path = tmp_path / "began", tmp_path / "now", tmp_path / "run"
    shutil.copytree(checkpoints["hubert"], first_data)
    recipe = {"window": 0.5, "freeze": "all", "epochs": 1, "soup": 1, "probe_views": 1, "frozen_baseline": False}
    train(manifest, path, Recipe.from_dict({"encoder": str(first_data), **recipe}))
    first_data.rename(now)
    for verb, kind in (("probe", "probe"), ("analyze", "paper")):
        for place, message in ((None, "began: no such folder"), (checkpoints["wavlm"], "has different weights")):
            code, out, err = confit(verb, path, "--json", *(["--encoder", place] if place else []))
            assert code == 0, err
            assert {row["encoder"] for row in of_type(out, kind)} == {"run"}
            assert f"{path}: is not compared with the encoder it was trained from: " in caplog.messages[-1]
            assert message in caplog.messages[-1]
        caplog.clear()
        code, out, err = confit(verb, path, "--json", "--encoder", now)
        assert code == 0, err
        assert {row["encoder"] for row in of_type(out, kind)} == {"frozen now", "run"}
        assert "is not compared with" not in caplog.text
        code, _, err = confit(verb, vanilla, "--encoder", now)
        assert code == 2
        assert "vanilla with speech-embedding); leave it out" in err
    code, _, err = confit("probe", path, "--encoder", tmp_path / "nowhere")
    assert (code, "nowhere: no such folder" in err) == (2, True)


def of_type(out: str, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, out.splitlines()) if row["type"] == kind]


def test_a_run_a_baseline_and_the_frozen_encoder_stand_side_by_side(
    run_path: Path, vanilla: Path, confit: Confit, tmp_path: Path
) -> None:
    code, out, err = confit("probe", run_path, "--baseline", vanilla, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    progress = [(row["of"], row["done"]) for row in of_type(out, "probing")]
    assert progress == [
        ("frozen speech-embedding", 0),
        ("vanilla", 0),
        ("words", 0),
    ]  # few sounds: no news until all are heard
    rows = of_type(out, "probe")
    assert [(row["encoder"], row["probe"]) for row in rows] == [
        ("frozen speech-embedding", "linear"), ("frozen speech-embedding", "knn"),
        ("vanilla", "head"), ("vanilla", "linear"), ("vanilla", "knn"),
        ("words", "linear"), ("words", "knn"),
    ]  # fmt: skip
    for row in rows:
        for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert 0 <= row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"] <= 1
    # the run's probes, fitted again by its own recipe on its own clips, are those that training fitted
    trained = json.loads((run_path / "metrics.json").read_text())["probes"]
    for row in rows[-2:]:
        assert row["accuracy"] == trained[row["probe"]]["test"]["accuracy"]
    assert (rows[-1]["k"], rows[-1]["metric"]) == (trained["k"], trained["metric"])
    # and the baseline's own head is the one that training judged
    head = json.loads((vanilla / "metrics.json").read_text())["head"]["test"]
    assert rows[2]["accuracy"] == head["accuracy"]

    gains = of_type(out, "difference")
    named = {(row["over"], row["over_probe"]) for row in gains}
    assert named == {
        ("frozen speech-embedding", "linear"), ("frozen speech-embedding", "knn"),
        ("vanilla", "linear"), ("vanilla", "knn"), ("vanilla", "head"),
    }  # fmt: skip
    value = {(row["encoder"], row["probe"]): row["accuracy"] for row in rows}
    for row in gains:
        if row["metric"] == "accuracy":
            expected = value[row["encoder"], row["probe"]] - value[row["over"], row["over_probe"]]
            assert row["difference"] == pytest.approx(expected)
    assert [row["encoder"] for row in of_type(out, "equal_error")] == ["frozen speech-embedding", "vanilla", "words"]
    summary = of_type(out, "summary")[0]
    assert {key: summary[key] for key in ("split", "clips", "groups", "classes", "resampled", "trials")} == {
        "split": "test", "clips": 15, "groups": 3, "classes": 5, "resampled": "groups", "trials": 105,
    }  # fmt: skip
    assert summary["trials_same"] == 5 * 3
    assert summary["trials_left_out"] == 0
    assert len([row for row in of_type(out, "class") if row["probe"] == "linear"]) == 3 * 5

    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert written["probes"] == [{key: of for key, of in row.items() if key != "type"} for row in rows]
    with (tmp_path / "out" / "probes.csv").open(newline="") as handle:
        assert [float(row["accuracy"]) for row in csv.DictReader(handle)] == [row["accuracy"] for row in rows]
    for name in ("differences.csv", "verification.csv", "classes.csv", "plots/accuracy.png", "plots/confusion.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert "| vanilla" in (tmp_path / "out" / "probe.md").read_text()


def test_a_person_gets_tables_and_validation_may_be_looked_at(run_path: Path, confit: Confit, tmp_path: Path) -> None:
    code, out, err = confit("probe", run_path, "--split", "val")
    assert code == 0, err
    assert "15 val clips from 3 groups and 5 classes; per cent, with 95 % intervals that treat groups as" in out
    assert "equal error rate" in out
    for line in ("| frozen speech-embedding |", "| words "):
        assert line in out
    assert "probing words" in err


def labelled(manifest: Path, folder: Path, stop: str, others: str) -> None:
    """Train `folder`/run on the words by several labels: what each `stop` has, and what all other clips have."""
    lines = ["path,labels,group,split"]
    with manifest.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            labels = stop if row["label"] == "stop" else others
            lines.append(f"{manifest.parent / row['path']},{labels},{row['group']},{row['split']}")
    (folder / "one.csv").write_text("\n".join(lines), encoding="utf-8")
    recipe = Recipe(label_column="labels", epochs=1, soup=1, probe_views=1, frozen_baseline=False)
    train(folder / "one.csv", folder / "run", recipe)


def test_two_clips_without_a_label_are_no_trial(manifest: Path, confit: Confit, tmp_path: Path) -> None:
    labelled(manifest, tmp_path, "stop", "")
    code, out, err = confit("probe", tmp_path / "run")
    assert code == 0, err
    assert "15 test clips from 3 groups and 1 class;" in out
    # 3 that stop and 12 without a label
    assert "39 pairs of clips, 3 of the same class, by cosine alone (66 pairs of two unlabelled clips left out)." in out


def test_a_label_on_every_clip_has_nothing_to_rank(manifest: Path, confit: Confit, tmp_path: Path) -> None:
    labelled(manifest, tmp_path, "said|stop", "said")
    code, out, err = confit("probe", tmp_path / "run")
    assert code == 0, err
    assert re.search(r"\| said .* - \|", out)
    assert "nan" not in out


def test_several_labels_are_judged_by_average_precision(several: Path, confit: Confit) -> None:
    code, out, err = confit("probe", several, "--json")
    assert code == 0, err
    for row in of_type(out, "probe"):
        assert 0 <= row["map_low"] <= row["map"] <= row["map_high"] <= 1
        assert {"accuracy", "macro_f1", "micro_f1"} < row.keys()
        assert "balanced_accuracy" not in row
    assert {row["class"] for row in of_type(out, "class")} == {"ess", "happy", "marvin", "seven", "stop", "v", "yes"}
    assert all("average_precision" in row for row in of_type(out, "class"))
    assert max(row["map"] for row in of_type(out, "probe")) > 0.8


def test_pairs_may_be_given(run_path: Path, manifest: Path, confit: Confit, tmp_path: Path) -> None:
    with manifest.open(newline="", encoding="utf-8") as handle:
        test = [row for row in csv.DictReader(handle) if row["split"] == "test"]
    pairs = [
        (int(one["group"] == two["group"]), one["path"], two["path"]) for one in test for two in test if one != two
    ]
    (tmp_path / "trials.txt").write_text("\n".join(f"{same} {one} {two}" for same, one, two in pairs))
    code, out, err = confit("probe", run_path, "--trials", tmp_path / "trials.txt", "--json")
    assert code == 0, err
    summary = of_type(out, "summary")[0]
    assert (summary["trials"], summary["trials_same"]) == (15 * 14, 3 * 5 * 4)
    # words were learnt, not voices: telling voices by the cosine is poor
    assert all(row["eer"] > 0.2 for row in of_type(out, "equal_error"))
    (tmp_path / "trials.txt").write_text("1 nowhere.wav none.wav")
    code, _, err = confit("probe", run_path, "--trials", tmp_path / "trials.txt")
    assert code == 2
    assert "nowhere.wav" in err


def test_other_clips_may_be_given(
    several: Path, vanilla: Path, manifest: Path, cut: Callable[..., Path], confit: Confit, tmp_path: Path
) -> None:
    other = cut(words=("dog", "cat", "bird"), voices={"train": 5, "val": 2, "test": 2})
    code, out, err = confit("probe", vanilla, "--manifest", other, "--json")
    assert code == 0, err
    assert [row["probe"] for row in of_type(out, "probe")] == ["linear", "knn", "linear", "knn"]  # its head knows none
    assert {row["class"] for row in of_type(out, "class")} == {"bird", "cat", "dog"}
    swapped = {"train": "test", "test": "train", "val": "val"}
    clips = tuple(replace(clip, split=swapped[clip.split]) for clip in read_manifest(manifest).clips)
    target = tmp_path / "swapped.csv"
    write_manifest(replace(read_manifest(manifest), clips=clips, source=target), target)
    for verb in (["probe", vanilla], ["analyze", vanilla]):
        code, _, err = confit(*verb, "--manifest", tmp_path / "swapped.csv")
        assert code == 2
        assert "was trained on" in err
        assert "of the" in err
    code, _, err = confit("probe", vanilla, "--baseline", several)
    assert code == 2
    assert "--manifest" in err
    assert str(several) in err


def test_what_cannot_be_judged_is_named(
    vanilla: Path, cut: Callable[..., Path], confit: Confit, tmp_path: Path
) -> None:
    untested = cut(words=("dog", "cat"), voices={"train": 2, "val": 1})
    for verb in ("probe", "analyze"):
        code, _, err = confit(verb, vanilla, "--manifest", untested)
        assert code == 2
        assert "no test clips" in err
        assert "--split val" in err
        code, _, err = confit(verb, tmp_path / "none")
        assert code == 2
        assert "not a run" in err
        code, _, err = confit(verb, vanilla, "--device", "cuda:77")
        assert code == 2
        assert "cuda:77" in err
    damaged = tmp_path / "vanilla"
    damaged.mkdir()
    for file in vanilla.iterdir():
        if file.is_file():
            (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "projection.safetensors").write_bytes(b"nonsense")
    code, _, err = confit("probe", damaged)
    assert code == 1
    assert "projection.safetensors: damaged" in err


def test_a_run_of_any_name_is_drawn_and_is_no_link_in_a_table(run_path: Path, confit: Confit, tmp_path: Path) -> None:
    name = "r$5_or_$1 ![p](http:evil) <b> a|b"
    shutil.copytree(run_path, tmp_path / name)
    for verb, table, plots in (("probe", "probe.md", 2), ("analyze", "geometry.md", 3)):
        code, out, err = confit(verb, tmp_path / name, "--split", "val", "-o", tmp_path / verb)
        assert (code, "could not be drawn" in err) == (0, False), err
        assert len(list((tmp_path / verb / "plots").glob("*.png"))) == plots
        assert f"| {name} " in out
        written = MarkdownIt("commonmark").enable("table").render((tmp_path / verb / table).read_text())
        assert escape(name) in written
        assert not re.search("<(a|img|b)[ >]", written)


def test_a_class_that_another_is_taken_for_is_no_link_in_a_table(
    vanilla: Path, manifest: Path, confit: Confit, tmp_path: Path
) -> None:
    with manifest.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    lines = ["path,label,group,split"]
    for at, row in enumerate(rows):  # labels that say nothing of the sound, so some are taken for the other
        label = "![p](http:evil)" if at % 2 else "<b>"
        lines.append(f"{manifest.parent / row['path']},{label},{row['group']},{row['split']}")
    (tmp_path / "odd.csv").write_text("\n".join(lines))
    code, _, err = confit("probe", vanilla, "--manifest", tmp_path / "odd.csv", "-o", tmp_path / "out")
    assert code == 0, err
    written = MarkdownIt("commonmark").enable("table").render((tmp_path / "out" / "probe.md").read_text())
    assert re.search(r"(&lt;b&gt;|evil\)) \(\d+\)", written)
    assert not re.search("<(a|img|b)[ >]", written)


def test_geometry_before_and_after(run_path: Path, vanilla: Path, confit: Confit, tmp_path: Path) -> None:
    code, out, err = confit("analyze", run_path, vanilla, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    paper = of_type(out, "paper")
    assert [row["encoder"] for row in paper] == ["frozen speech-embedding", "words", "vanilla"]
    for row in paper:
        assert 0 < row["top1"] < row["top3"] < row["top5"] < 1
        assert 0 <= row["isoscore"] <= 1
    trained = json.loads((run_path / "metrics.json").read_text())["probes"]["linear"]["test"]["accuracy"]
    assert paper[1]["accuracy"] == trained
    value = {(row["encoder"], row["measure"]): row["value"] for row in of_type(out, "measure")}
    for row in of_type(out, "measure"):
        least, most = RANGES.get(row["measure"], (-np.inf, np.inf))
        assert row["low"] is None or least <= row["low"] <= row["high"] <= most
    changes = of_type(out, "change")
    assert {row["encoder"] for row in changes} == {"words", "vanilla"}
    for row in changes:
        expected = value[row["encoder"], row["measure"]] - value[row["from"], row["measure"]]
        assert row["change"] == pytest.approx(expected, abs=1e-9)
        assert row["low"] <= row["change"] <= row["high"]
    assert of_type(out, "summary")[0]["dim"] == 96
    for name in ("paper.csv", "measures.csv", "changes.csv", "geometry.json", "geometry.md"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    for name in ("map", "spectrum", "contribution"):
        assert (tmp_path / "out" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "maps by" in err


def test_geometry_of_several_labels_takes_sets_as_classes(several: Path, confit: Confit) -> None:
    code, out, err = confit("analyze", several, "--split", "val")
    assert code == 0, err
    assert "15 val clips from 3 groups and 5 classes; 96 dimensions" in out
    cells = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in out.splitlines() if line.startswith("|")
    }
    assert -1 <= float(cells["silhouette"].split(" ")[0]) <= 1
    assert np.isfinite(float(cells["top-1 contribution"].split(" ")[0]))
