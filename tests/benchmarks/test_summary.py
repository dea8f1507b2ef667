"""The intervals and the counts that the claims of the benchmarks stand on, against naive loops."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import sem
from scipy.stats import t as student

from benchmarks.pairtune import Job, missing_jobs, write
from benchmarks.row import Plan, by_group, check_same_row, merged
from benchmarks.summary import (
    COLUMNS,
    OWN_RATE,
    OWN_RATE_CONVERGED,
    RIVALS,
    differences,
    group_interval,
    markdown,
    summarise,
    task_interval,
)
from confit_runtime.errors import ConfitError, UsageError


def row(task: str, seed: int, ours: float, rival: float, clips: int = 40) -> dict[str, Any]:
    """A row in which PairTune is right on a share `ours` of the clips and every other method on `rival`."""
    groups = [f"voice {number % 8}" for number in range(clips)]
    keys = {*COLUMNS, *RIVALS, *OWN_RATE, *OWN_RATE_CONVERGED}
    rng = np.random.default_rng([seed, len(task)])
    right = {
        key: rng.permutation(clips) < clips * (ours if key.startswith("pairtune") else rival) for key in sorted(keys)
    }
    plain = {f"{name}_{method}": 0.1 for name in ("top1", "isoscore") for method in ("finetune", "pairtune")}
    return {
        "task": task, "epochs": 4, "epochs_converged": 12, "encoder": "some-encoder", "seed": seed, "step_ratio": 1.01, **plain,
        "epochs_to_95_finetune": 8, "epochs_to_95_pairtune": 2, "epochs_to_95_head": 10,
        **{key: float(value.mean()) for key, value in right.items()},
        "val": dict.fromkeys(RIVALS, rival), "test_groups": by_group(right, groups),
    }  # fmt: skip


def test_by_group_counts_clips_and_hits() -> None:
    found = by_group({"one": np.array([True, False, True, True])}, ["b", "a", "b", "a"])
    assert found == {"names": ["a", "b"], "n": [2, 2], "right": {"one": [1, 2]}}


def test_group_interval_is_over_seeds_and_groups() -> None:
    """Seeds that disagree more than groups do make a difference uncertain, though each seed by itself is certain."""

    def interval_of(*shares: float) -> tuple[float, float]:
        rows = [row("words", seed, share, 0.6, clips=400) for seed, share in enumerate(shares)]
        return group_interval(rows, "pairtune_linear", "finetune_head")

    low, high = interval_of(0.8, 0.8, 0.8)
    assert 0.1 < low < 0.2 < high < 0.3
    low, high = interval_of(0.75, 0.95, 0.55)
    gains = np.array([0.15, 0.35, -0.05])
    wide = student.ppf(0.975, 2) * sem(gains)
    assert low < 0.15 - 0.8 * wide < 0.15 + 0.8 * wide < high
    assert interval_of(0.75)[0] > 0 > interval_of(0.55)[0]


def test_seeds_with_other_test_groups_are_refused() -> None:
    rows = [row("words", 0, 0.8, 0.6), row("words", 1, 0.8, 0.6)]
    rows[1]["test_groups"]["names"][0] = "another voice"
    with pytest.raises(ValueError, match="words"):
        group_interval(rows, "pairtune_linear", "finetune_head")


def test_task_interval_is_wide_for_few_tasks() -> None:
    gains = np.array([-0.02, 0.0, 0.02, 0.04, 0.06])
    assert task_interval(gains) == pytest.approx(student.interval(0.95, 4, gains.mean(), sem(gains)))
    assert task_interval(np.full(5, 0.03)) == pytest.approx((0.03, 0.03))
    assert task_interval(np.array([0.028, 0.034]))[0] < 0  # the two themselves are none
    assert task_interval(np.array([0.3])) == (-1.0, 1.0)


def test_a_task_that_is_worse_is_named() -> None:
    pairs = {
        "good": ([row("good", 0, 1.0, 0.2)], "pairtune_linear", "finetune_head"),
        "bad": ([row("bad", 0, 0.2, 1.0)], "pairtune_linear", "finetune_head"),
    }
    found = differences(pairs)
    assert found["significantly_worse_on"] == ["bad"]
    assert found["significantly_better_on"] == ["good"]
    assert found["mean"] == pytest.approx(0.0, abs=1e-9)


def test_the_best_rival_is_chosen_over_tasks_on_validation_and_on_test() -> None:
    rows = [row(task, seed, 0.9, 0.5) for task in ("one", "other") for seed in (0, 1)]
    for one in rows:
        one["lpft_head"] = 0.7 if one["task"] == "one" else 0.5
        one["frozen_linear"] = 0.8 if one["task"] == "other" else 0.5
        one["val"] = {**one["val"], "finetune_linear": 0.95}
    found = summarise(rows)["some-encoder"]["converged"]
    assert found["best_over_tasks"]["rival"] == "frozen_linear"
    assert found["best_by_validation"]["rivals"] == {"one": "finetune_linear", "other": "finetune_linear"}
    assert found["best_by_test"]["rivals"] == {"one": "lpft_head", "other": "frozen_linear"}
    assert found["best_by_test"]["mean"] == pytest.approx(0.9 - 0.75)
    assert "| one |" in markdown(rows, summarise(rows))


def test_a_plan_counts_every_epoch_it_may_train() -> None:
    plan = Plan(epochs=10, longest=30, lrs=(1e-4, 2e-4, 4e-4), head_lrs=(1e-2, 2e-3))
    assert plan.rates() == [(1e-4, 1e-2), (2e-4, 1e-2), (4e-4, 1e-2), (2e-4, 2e-3)]
    assert plan.epochs_in_all() == (1 + 4 + 3) * 10 + 4 * 30


def test_rows_are_written_in_one_order(tmp_path: Path) -> None:
    rows = [row("words", 1, 0.9, 0.5), row("speakers", 0, 0.9, 0.5), row("words", 0, 0.9, 0.5)]
    write(tmp_path / "one.json", rows)
    write(tmp_path / "other.json", rows[::-1])
    assert json.loads((tmp_path / "one.json").read_text())["command"] == (
        "python -m benchmarks.pairtune --encoders DIR/some-encoder --seeds 0 1 --tasks speakers words --epochs 4 --long 3"
    )
    assert (tmp_path / "one.json").read_text() == (tmp_path / "other.json").read_text()


def test_what_is_measured_again_leaves_the_rivals_as_they_were() -> None:
    before = {
        "pairtune_linear": 0.5,
        "finetune_head": 0.6,
        "test_groups": {"n": [2], "right": {"frozen": [1], "pairtune": [1]}},
    }
    found = {"pairtune_linear": 0.7, "test_groups": {"n": [2], "right": {"pairtune": [2]}}}
    assert merged(before, found) == {
        "pairtune_linear": 0.7,
        "finetune_head": 0.6,
        "test_groups": {"n": [2], "right": {"frozen": [1], "pairtune": [2]}},
    }


@pytest.mark.parametrize("key", ["train_n", "precision", "frozen_linear"])
def test_a_row_is_not_merged_with_one_of_other_data_or_arithmetic(key: str) -> None:
    both = {"task": "words", "encoder": "e", "seed": 0, "classes": 2, "train_n": 9, "val_n": 9, "test_n": 9}
    both |= {"precision": "fp32", "frozen_linear": 0.5, "frozen_knn": 0.5}
    check_same_row(both, both)
    with pytest.raises(ConfitError, match=f"words e 0: {key} was"):
        check_same_row(both, {**both, key: "other"})


def test_a_row_of_other_epochs_is_not_taken_for_the_one_asked_for() -> None:
    job = Job("words", "some-encoder", 0, Path("words-0.csv"), Counter(train=12, val=9, test=54), Plan(4, 12, (1e-4,)))
    epochs = 4 + 2 * 4 + 1 * 4 + 4 * 12  # PairTune, vanilla at two pairs of rates, LP-FT at one; three long, one again
    assert job.passes(again=False) == epochs * (7 + 12) + 9 * (9 * 12 + 9 + 54) / 3
    assert job.passes(again=True) == (4 + 12) * (7 + 12) + 3 * (9 * 12 + 9 + 54) / 3
    assert missing_jobs([job], [row("words", 0, 0.9, 0.5)]) == []
    assert missing_jobs([job], [row("words", 1, 0.9, 0.5)]) == [job]
    with pytest.raises(UsageError, match="words some-encoder 0"):
        missing_jobs([replace(job, plan=Plan(5, 15, (1e-4,)))], [row("words", 0, 0.9, 0.5)])
