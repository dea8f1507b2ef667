"""Summarises the rows of the matrix: paired differences, over tasks and within each, with 95 % intervals."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from confit_edge.studies.results import Results, Side
from confit_edge.studies.trial import Outcome, Point, Subset

Doubles = npt.NDArray[np.float64]
Row = dict[str, Any]

OURS, OURS_CONVERGED, HEAD = "pairtune_linear", "pairtune_linear_converged", "finetune_head"
RIVALS = ("frozen_linear", "finetune_head_converged", "finetune_linear", "finetune_linear_converged", "lpft_head")
# the same at the encoder's own rate, as for PairTune: none of them chose a rate
OWN_RATE = ("finetune_head_own", "finetune_linear_own")
OWN_RATE_CONVERGED = ("finetune_head_own_converged", "finetune_linear_own_converged", "lpft_head_own")


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Return the claims of `summarise_encoder` for each encoder."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    return {name: summarise_encoder([row for row in rows if row["encoder"] == name]) for name in encoders}


def summarise_encoder(rows: list[Row]) -> dict[str, Any]:
    """Return the claims over tasks, where each task is the mean of its seeds.

    The best rival is found in three ways: the one best over all tasks, the one best on each task's validation, and the one
    best on each task's test. Nobody could have known the last, so it flatters the rivals.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    of_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
    means = {key: {task: mean(row[key] for row in of_task[task]) for task in tasks} for key in (*RIVALS, OURS, HEAD)}
    best = max(RIVALS, key=lambda rival: mean(means[rival].values()))
    by_val = {task: max(RIVALS, key=lambda rival: mean(row["val"][rival] for row in of_task[task])) for task in tasks}
    by_test = {task: max(RIVALS, key=lambda rival: means[rival][task]) for task in tasks}

    def compare_with(rivals: dict[str, str], ours: str) -> dict[str, Any]:
        return differences({task: (of_task[task], ours, rivals[task]) for task in tasks})

    convergence = [
        {
            "task": task,
            "finetune": mean(row["epochs_to_95_finetune"] for row in of_task[task]),
            "head": mean(row["epochs_to_95_head"] for row in of_task[task]),
            "pairtune": mean(row["epochs_to_95_pairtune"] for row in of_task[task]),
        }
        for task in tasks
    ]
    return {
        "seeds": sorted({row["seed"] for row in rows}),
        "tasks": tasks,
        "same_epochs_against_head": compare_with(dict.fromkeys(tasks, HEAD), OURS),
        "converged": {
            **{rival: compare_with(dict.fromkeys(tasks, rival), OURS_CONVERGED) for rival in RIVALS},
            "best_over_tasks": {"rival": best, **compare_with(dict.fromkeys(tasks, best), OURS_CONVERGED)},
            "best_by_validation": {"rivals": by_val, **compare_with(by_val, OURS_CONVERGED)},
            "best_by_test": {"rivals": by_test, **compare_with(by_test, OURS_CONVERGED)},
        },
        "own_rate": {
            "same_epochs": {rival: compare_with(dict.fromkeys(tasks, rival), OURS) for rival in OWN_RATE},
            "converged": {
                rival: compare_with(dict.fromkeys(tasks, rival), OURS_CONVERGED) for rival in OWN_RATE_CONVERGED
            },
        },
        "before_converged_best": {"rival": best, **compare_with(dict.fromkeys(tasks, best), OURS)},
        "epochs_to_95": {
            "tasks": convergence,
            "median_ratio_linear": round(median(entry["pairtune"] / entry["finetune"] for entry in convergence), 3),
            "median_ratio_head": round(median(entry["pairtune"] / entry["head"] for entry in convergence), 3),
        },
        "top1": {
            "tasks_where_pairtune_is_lower": sum(
                _mean_difference(of_task[task], "top1_pairtune", "top1_finetune") < 0 for task in tasks
            ),
            "mean_difference": round(
                mean(_mean_difference(of_task[task], "top1_pairtune", "top1_finetune") for task in tasks), 5
            ),
        },
        "isoscore": {
            "mean_difference": round(
                mean(_mean_difference(of_task[task], "isoscore_pairtune", "isoscore_finetune") for task in tasks), 5
            ),
        },
        "step_ratio": {
            "median": median(row["step_ratio"] for row in rows),
            "most": max(row["step_ratio"] for row in rows),
        },
    }


def _mean_difference(rows: list[Row], one: str, other: str) -> float:
    return float(mean(row[one] - row[other] for row in rows))


def differences(pairs: dict[str, tuple[list[Row], str, str]]) -> dict[str, Any]:
    """Return the paired difference and its interval for each task (its rows, our method, the rival), and over the tasks.

    The interval within a task is over its seeds and test groups (`group_interval`), that over the tasks Student's.
    """
    tasks = {}
    for task, (rows, method, rival) in pairs.items():
        gain = mean(row[method] - row[rival] for row in rows)
        low, high = group_interval(rows, method, rival)
        tasks[task] = {"difference": round(gain, 4), "low": round(low, 4), "high": round(high, 4)}
    values = np.array([task["difference"] for task in tasks.values()])
    low, high = task_interval(values)
    return {
        "mean": round(float(values.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "significantly_worse_on": [name for name, task in tasks.items() if task["high"] < 0],
        "significantly_better_on": [name for name, task in tasks.items() if task["low"] > 0],
        "by_task": tasks,
    }


def group_interval(rows: list[Row], method: str, rival: str) -> tuple[float, float]:
    """Return the interval of the difference in accuracy, over the seeds and the test groups, as a study has it."""
    names = rows[0]["test_groups"]["names"]
    if any(row["test_groups"]["names"] != names for row in rows):
        raise ValueError(f"{rows[0]['task']}: its seeds do not share the same test groups")
    outcomes = []
    for row in rows:
        groups = row["test_groups"]
        tallies = {
            key: dict(zip(names, zip(groups["right"][key], groups["n"], strict=True), strict=True))
            for key in (method, rival)
        }
        outcomes.append(Outcome(row["task"], {}, row["seed"], Subset(), [Point(tallies)], 0.0))
    gap = Results(outcomes).difference(Side(method), Side(rival))
    return gap.low, gap.high


def task_interval(values: Doubles) -> tuple[float, float]:
    """Return the interval of the mean over tasks, by Student's t, since they are few; a single task gives -1 to 1."""
    if len(values) < 2:
        return -1.0, 1.0
    half_width = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return max(-1.0, float(values.mean() - half_width)), min(1.0, float(values.mean() + half_width))


COLUMNS = (
    "frozen_linear", "frozen_knn", "finetune_head", "finetune_linear", "finetune_knn", "finetune_head_converged",
    "finetune_linear_converged", "lpft_head", "pairtune_linear", "pairtune_knn", "pairtune_linear_converged",
)  # fmt: skip


def markdown(rows: list[Row], summary: dict[str, Any]) -> str:
    """Return a table for each encoder, with accuracies in percent as means of the seeds, and the claims below it."""
    lines = []
    for encoder, result in summary.items():
        encoder_rows = [row for row in rows if row["encoder"] == encoder]
        lines += [f"## {encoder}", "", f"| task | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for task in result["tasks"]:
            cells = [mean(100 * row[key] for row in encoder_rows if row["task"] == task) for key in COLUMNS]
            lines.append(f"| {task} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
        lines += ["", "| against | points, 95 % over tasks | better on | worse on |", "|---|---|---|---|"]
        claims = {
            f"{HEAD}, same epochs": result["same_epochs_against_head"],
            "best_over_tasks, PairTune after its short training": result["before_converged_best"],
            **result["converged"],
            **{f"{rival}, same epochs": claim for rival, claim in result["own_rate"]["same_epochs"].items()},
            **result["own_rate"]["converged"],
        }
        for name, claim in claims.items():
            better, worse = (", ".join(claim[f"significantly_{word}_on"]) or "-" for word in ("better", "worse"))
            lines.append(f"| {name} | {points(claim)} | {better} | {worse} |")
        epochs, top1, step = (
            result["epochs_to_95"],
            result["top1"],
            result["step_ratio"],
        )
        lines += [
            "",
            f"Epochs to 95 %: {epochs['median_ratio_linear']} of vanilla's, {epochs['median_ratio_head']} of its head's "
            f"(medians). Top contribution lower on {top1['tasks_where_pairtune_is_lower']} of {len(result['tasks'])} tasks. "
            f"A step costs {step['median']} of vanilla's (at most {step['most']}).",
            "",
        ]
    return "\n".join(lines)


def points(claim: dict[str, Any]) -> str:
    """Format a difference and its interval, in percentage points."""
    return f"{100 * claim['mean']:+.1f} [{100 * claim['low']:+.1f}, {100 * claim['high']:+.1f}]"
