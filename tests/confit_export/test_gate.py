"""The gate's arithmetic, against sums made by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from confit_edge.data.corpus import Corpus
from confit_edge.probes.metrics import Difference
from confit_export.export import Exported
from confit_export.gate import Predictions, Verdict
from confit_runtime import load

Floats = npt.NDArray[np.float32]


def predictions(right: list[int], turned: float = 0.0) -> Predictions:
    """Clips of two groups in turn, with embeddings turned by an angle."""
    embeddings = np.tile(np.array([[np.cos(turned), np.sin(turned)]], np.float32), (len(right), 1))
    return Predictions(np.array(right, bool), embeddings, ["ab"[index % 2] for index in range(len(right))])


def test_the_loss_is_in_points_and_clips_and_paired() -> None:
    verdict = Verdict.compare(predictions([1, 1, 1, 0] * 100), predictions([1, 1, 0, 1] * 99 + [1, 1, 0, 0]), seed=0)
    assert verdict.clips_lost == 1
    assert verdict.clips == 400
    assert verdict.lost.difference == pytest.approx(1 / 400)
    assert verdict.lost.low <= 1 / 400 <= verdict.lost.high
    assert verdict.failures == []
    assert "0.25 points" in verdict.accuracy_change
    assert "1 of 400 clips" in verdict.accuracy_change


def test_half_a_point_passes_and_more_does_not() -> None:
    fp32 = predictions([1] * 400)
    assert Verdict.compare(fp32, predictions([1] * 398 + [0] * 2), seed=0).failures == []
    (failure,) = Verdict.compare(fp32, predictions([1] * 397 + [0] * 3), seed=0).failures
    assert "0.75 points" in failure
    assert "at most 0.5" in failure


def test_one_clip_of_few_is_a_failure_and_is_reported_in_clips() -> None:
    (failure,) = Verdict.compare(predictions([1] * 20), predictions([1] * 19 + [0]), seed=0).failures
    assert "5.00 points" in failure
    assert "1 of 20 clips" in failure


def test_a_gain_is_no_failure_and_is_called_a_gain() -> None:
    verdict = Verdict.compare(predictions([0] * 20), predictions([1] * 20), seed=0)
    assert verdict.failures == []
    assert "gains 100.00 points" in verdict.accuracy_change


def test_the_interval_of_a_gain_is_of_the_gain() -> None:
    lost = Difference(difference=-0.02, low=-0.05, high=0.01)
    assert (
        "it gains 2.00 points of validation accuracy [-1.00, +5.00], 2 of 100 clips"
        in Verdict(lost, -2, 100, 1.0).accuracy_change
    )
    lost = Difference(difference=0.02, low=-0.01, high=0.05)
    assert (
        "it loses 2.00 points of validation accuracy [-1.00, +5.00], 2 of 100 clips"
        in Verdict(lost, 2, 100, 1.0).accuracy_change
    )


@pytest.mark.parametrize(("angle", "passes"), [(0.0, True), (np.arccos(0.991), True), (np.arccos(0.989), False)])
def test_embeddings_may_turn_by_a_cosine_of_099(angle: float, passes: bool) -> None:
    verdict = Verdict.compare(predictions([1] * 20), predictions([1] * 20, angle), seed=0)
    assert verdict.cosine == pytest.approx(np.cos(angle), abs=1e-6)
    assert (verdict.failures == []) == passes


def test_embeddings_that_are_not_numbers_fail() -> None:
    broken = Predictions(np.ones(2, bool), np.full((2, 2), np.nan, np.float32), ["a", "b"])
    assert Verdict.compare(predictions([1, 1]), broken, seed=0).failures


def test_a_clip_without_a_label_is_neither_right_nor_wrong(exports: dict[str, Exported], run_corpus: Corpus) -> None:
    """Where clips may have several labels, some have none: they would dilute what is lost of the others."""
    model, val = load(exports["int8"].path), run_corpus.val
    whole = Predictions.of(model, val, run_corpus)
    targets = val.targets.copy()
    targets[::3] = 0
    predictions = Predictions.of(model, replace(val, targets=targets), run_corpus)
    kept = np.flatnonzero(targets.any(axis=1))
    assert predictions.correct.tolist() == whole.correct[kept].tolist()
    assert predictions.groups == [val.groups[at] for at in kept]
    assert len(predictions.embeddings) == len(val)
    ranking = Predictions.of(model, replace(val, targets=targets), replace(run_corpus, multi_label=True)).ranking
    assert ranking is not None
    assert ranking["clips"] == len(val)


def test_clips_are_heard_with_embeddings_of_length_1_and_labels_by_name(
    exports: dict[str, Exported], run_corpus: Corpus
) -> None:
    model, val = load(exports["fp32"].path), run_corpus.val
    twice = replace(val, pcm=[np.concatenate([pcm, val.pcm[0]]) for pcm in val.pcm])  # of several rows, which differ
    assert np.linalg.norm(model.rows(twice.pcm[1], 16_000)[1].mean(axis=0)) < 0.99
    predictions = Predictions.of(model, twice, run_corpus)
    heard = np.stack([model.rows(pcm, 16_000)[1].mean(axis=0) for pcm in twice.pcm])
    heard /= np.linalg.norm(heard, axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.embeddings, heard, atol=1e-5)
    backwards = replace(run_corpus, classes=run_corpus.classes[::-1])
    again = Predictions.of(model, replace(twice, targets=val.targets[:, ::-1]), backwards)
    assert predictions.correct.any()
    assert again.correct.tolist() == predictions.correct.tolist()


def test_of_several_labels_more_than_half_a_point_of_map_lost_is_a_failure() -> None:
    """Best labels all right, and nothing told of the others."""
    fp32 = replace(predictions([1] * 20), ranking={"map": 0.8})
    assert Verdict.compare(fp32, replace(fp32, ranking={"map": 0.7951}), seed=0).failures == []
    verdict = Verdict.compare(fp32, replace(fp32, ranking={"map": 0.79}), seed=0)
    assert verdict.failures == ["it loses 1.00 points of validation mAP (at most 0.5 points allowed)"]
    assert verdict.to_dict()["map_lost"] == pytest.approx(0.01)
    assert "its mAP changes by -1.00 points" in verdict.summary
    assert Verdict.compare(fp32, replace(fp32, ranking={"map": float("nan")}), seed=0).failures
    assert "map_lost" not in Verdict.compare(predictions([1]), predictions([1]), seed=0).to_dict()


def test_the_unknown_class_is_no_answer_where_clips_have_several_labels(run_corpus: Corpus) -> None:
    several, loudest = replace(run_corpus, multi_label=True), np.float32(2)
    labels = several.classes[::-1]  # a model's order is its own
    sound: Any = SimpleNamespace(labels=labels, contract=SimpleNamespace(sample_rate=16_000))
    truth = {pcm.tobytes(): target[::-1] for pcm, target in zip(several.val.pcm, several.val.targets, strict=True)}

    def rows(pcm: Floats, rate: int) -> tuple[Floats, Floats]:
        scores = truth[pcm.tobytes()].astype(np.float32)
        scores[labels.index("unknown")] = loudest
        return scores[None], np.ones((1, 2), np.float32)

    sound.rows = rows
    assert Predictions.of(sound, several.val, several).correct.all()
    assert not Predictions.of(sound, several.val, run_corpus).correct.any()
