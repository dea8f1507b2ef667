"""A model of clips with several labels, or none: what is measured of it, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score

from confit_edge import runs
from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.embedding import embed_clips
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import Run
from confit_export.enrollment import cohort_rows
from confit_export.export import Exported, export_run
from confit_export.gate import Predictions, Verdict
from confit_export.model_card import front_matter
from confit_runtime import load
from confit_runtime.data_warnings import data_warnings
from confit_runtime.describe import facts
from confit_runtime.formatting import format_percent

Floats = npt.NDArray[np.float32]

LABELS = {"yes": "yes|short", "stop": "stop|short", "happy": "happy", "marvin": "", "seven": ""}


@pytest.fixture(scope="module")
def several_run(corpus: Corpus, background: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of the five words two have two labels, and two have none."""
    folder = tmp_path_factory.mktemp("several")
    rows = ["path,labels,group,split"]
    for split in ("train", "val", "test"):
        clips = getattr(corpus, split)
        for path, label, group in zip(clips.paths, clips.labels, clips.groups, strict=True):
            rows.append(f"{path},{LABELS[corpus.classes[label]]},{group},{split}")
    (folder / "m.csv").write_text("\n".join(rows))
    recipe = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False, background=(str(background),))
    train(folder / "m.csv", folder / "run", recipe)
    return runs.read_run(folder / "run")


@pytest.fixture(scope="module")
def several_corpus(several_run: Run) -> Corpus:
    return runs.run_corpus(several_run)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """What the export of `several` said of its progress."""
    return []


@pytest.fixture(scope="module")
def several(
    several_run: Run, several_corpus: Corpus, messages: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    out = tmp_path_factory.mktemp("models") / "several.onnx"
    return export_run(several_run, several_corpus, out, quantize=False, say=messages.append)


def test_clips_without_a_label_are_no_unknown_class_to_beware_of(several: Exported, several_run: Run) -> None:
    """Of fifteen test clips six have no label; with more of them a contract that lacks `multi_label` would warn."""
    data = several.contract.data
    most_have_none = {**data, "own": {**data["own"], "test": {"clips": 3, "groups": 3}}}
    assert not any("of the unknown class" in caution for caution in data_warnings(most_have_none))
    assert data_warnings(data) == data_warnings(several_run.info.data)


def test_what_fires_is_counted_in_sounds_where_clips_have_several(several: Exported, messages: list[str]) -> None:
    """Of nine clips with a label six have two."""
    assert several.contract.metrics["fired"]["n"] == 3 * (2 + 2 + 1)
    assert any(" of 15 test sounds fire" in line for line in messages)
    (fires_at,) = (value for name, value in facts(several.contract, 1) if name.startswith("fires at"))
    assert " of 15 sounds, each played alone" in fires_at


def test_scores_of_all_labels_are_measured_not_of_the_best_alone(several: Exported, several_corpus: Corpus) -> None:
    """A model of which only the best label of each clip is left is as accurate, and not to be written."""
    model, rank = load(several.path), several_corpus.classes.index("unknown")

    def rows(pcm: Floats, rate: int) -> tuple[Floats, Floats]:
        scores, embeddings = model.rows(pcm, rate)
        best = np.delete(scores.mean(axis=0), rank).argmax()
        return np.tile(np.eye(scores.shape[1], dtype=np.float32)[best], (len(scores), 1)), embeddings

    only_best: Any = SimpleNamespace(labels=model.labels, contract=model.contract, rows=rows)
    whole, spoilt = (Predictions.of(one, several_corpus.val, several_corpus) for one in (model, only_best))
    assert several.contract.metrics["val"]["map"] == whole.ranking["map"]
    assert spoilt.correct.tolist() == whole.correct.tolist()
    (failure,) = Verdict.compare(whole, spoilt, seed=0).failures
    assert "points of validation mAP (at most 0.5 points allowed)" in failure


def test_map_is_reported_and_published(several: Exported, messages: list[str]) -> None:
    for split, name in (("val", "validation"), ("test", "test")):
        found = several.contract.metrics[split]
        expected = format_percent(found["map"], found["map_low"], found["map_high"])
        assert f"mAP on {name}: {expected}" in messages
        assert dict(facts(several.contract, 1))[f"mAP, {name}"] == expected
    parity = {"scheme": "static", "target": "portable", "kept_fp32": [], "fp32": several.contract.metrics}
    lost = {"lost": {"difference": 0.0, "low": 0.0, "high": 0.0}, "clips_lost": 0, "clips": 9, "map_lost": 0.004}
    rows = dict(facts(replace(several.contract, parity={**parity, **lost, "cosine": 1.0}), 1))
    assert "; fp32 " in rows["mAP, test"]
    assert "best label is right, test" in rows
    assert not any(name.startswith("accuracy") for name in rows)
    assert rows["lost on validation"].endswith("; mAP +0.40 points")
    many = {split: {"clips": 60, "groups": 9} for split in ("train", "val", "test")}
    head = front_matter(replace(several.contract, data={**several.contract.data, "own": many}))
    assert "name: test mAP" in head
    assert "accuracy" not in head  # of the best label alone, which says little


def test_map_has_an_interval_and_is_reported_as_in_the_export(several_run: Run, several_corpus: Corpus) -> None:
    """The export weighs by typicality; what a device hears is measured by the row, so it is a little different."""
    probes, typicality = several_run.metrics["probes"], several_run.typicality
    for split in ("val", "test"):
        found, clips = probes["linear"][split], getattr(several_corpus, split)
        assert found["map_low"] <= found["map"] <= found["map_high"]
        embeddings = embed_clips(several_run.encoder, clips.pcm, torch.device("cpu"))
        scores = several_run.linear.scores(embeddings) * typicality.factors(embeddings)
        precisions = [
            average_precision_score(clips.targets[:, label], scores[:, label]) for label in several_corpus.answers
        ]
        assert found["map_weighed"] == pytest.approx(np.mean(precisions), abs=1e-4)
        assert "map_weighed" not in probes["knn"][split]


def test_clips_without_a_label_stand_in_the_cohort(several_corpus: Corpus) -> None:
    """What is enrolled on a device is like them more than like the labels; there are twelve, and forty would be taken."""
    rows = cohort_rows(several_corpus, 0)
    targets = several_corpus.training_clips().targets
    assert len(set(rows)) == len(rows)
    assert (~targets[rows].any(axis=1)).sum() == (~targets.any(axis=1)).sum() == 12
    many = replace(several_corpus, train=_repeated(several_corpus.train, 5))
    assert (~many.training_clips().targets[cohort_rows(many, 0)].any(axis=1)).sum() == 40


def _repeated(clips: Clips, times: int) -> Clips:
    return Clips(clips.pcm * times, np.tile(clips.targets, (times, 1)), clips.groups * times, clips.paths * times)


def test_a_test_split_without_any_label_is_left_out(several_run: Run, several_corpus: Corpus, tmp_path: Path) -> None:
    """Nothing can be said of it, and it stopped the export, and `analyze`, when all else was done."""
    test = several_corpus.test
    none = np.flatnonzero(~test.targets.any(axis=1))
    pcm, groups, paths = ([part[row] for row in none] for part in (test.pcm, test.groups, test.paths))
    corpus = replace(several_corpus, test=Clips(pcm, test.targets[none], groups, paths))
    exported = export_run(several_run, corpus, tmp_path / "one.onnx", quantize=False, say=lambda line: None)
    assert "test" not in exported.contract.metrics
    assert exported.contract.metrics["val"]["map"] == exported.fp32["val"]["map"]
