"""Compares minings and other settings of PairTune, to choose the defaults of a recipe.

    python -m benchmarks.defaults --seeds 0 1 2 --jobs 2

Writes benchmarks/results/defaults.json: one row per setting, task and seed. A setting differs from its rival in one thing; both
start from the same encoder, with the same clips, epochs and seed. Defaults are chosen by accuracy on validation, and test
shows whether the choice holds. Existing rows are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import typing
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.command import run_main, say
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.row import CPU, by_group
from benchmarks.summary import Row, differences, points, task_interval
from benchmarks.tasks import TASKS, build
from confit_edge.data.corpus import read_corpus
from confit_edge.encoders import pretrained
from confit_edge.pairtune.machine import pick_precision
from confit_edge.pairtune.trainer import fit
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.metrics import accuracy, correct
from confit_edge.recipe import Mining, Recipe
from confit_edge.workers import workers

WINDOW = 1.28
# Each setting is complete, so today's recipe defaults do not change it. Only the minings start there, with their old rate.
FORMER: dict[str, Any] = {"lr": (1e-3,), "projection_layers": 2, "clips_per_class": 4, "probe_views": 3}
LINEAR = {**FORMER, "projection_layers": 1}
FILLED = {**LINEAR, "clips_per_class": None}
SETTINGS: dict[str, dict[str, Any]] = {
    **{mining: {"mining": mining, "lr": (5e-4,)} for mining in typing.get_args(Mining)},
    "former": FORMER,
    "former-averaging": {**FORMER, "averaging": 0.5},
    "linear": LINEAR,
    "linear-averaging": {**LINEAR, "averaging": 0.5},
    "filled": FILLED,
    "wide": {**LINEAR, "classes_per_batch": 32},
    "views-8": {**FILLED, "probe_views": 8},
}
# The settings that each one differs from in one thing, and is compared with on the same tasks and seeds.
RIVALS: dict[str, tuple[str, ...]] = {
    **{mining: ("none",) for mining in typing.get_args(Mining) if mining != "none"},
    "former-averaging": ("former",),
    "linear": ("former",),
    "linear-averaging": ("linear",),
    "filled": ("linear",),
    "wide": ("linear",),
    "views-8": ("filled", "hardness"),  # hardness is the same at half the rate
}
LEFT_OUT = ("words",)  # nearly every clip is right with any setting; noisy-words has the same words


def measure(task: str, manifest: Path, setting: str, seed: int) -> Row:
    start = time.process_time()
    encoder = pretrained("speech-embedding", WINDOW)
    corpus = read_corpus(manifest, rate=encoder.sample_rate, seed=seed)
    base_recipe = Recipe(
        seed=seed, epochs=TASKS[task].epochs, window=WINDOW, device="cpu", precision=pick_precision("auto", CPU)
    )
    recipe = replace(base_recipe, **SETTINGS[setting])
    fitted = fit(encoder, corpus, recipe, lr=recipe.lr[0], epochs=recipe.epochs)
    probes = dual_probe(encoder, corpus, recipe, CPU)
    right, val = {}, {}
    for probe, judge in (("linear", probes.linear), ("knn", probes.knn)):
        right[probe] = correct(judge.scores(probes.test_embeddings), corpus.test.targets)
        val[probe] = round(float(correct(judge.scores(probes.val_embeddings), corpus.val.targets).mean()), 4)
    return {
        "task": task,
        "setting": setting,
        "seed": seed,
        "epochs": recipe.epochs,
        "kept_epoch": fitted.kept_epoch + 1,
        **{f"val_{probe}": share for probe, share in val.items()},
        **{
            probe: round(accuracy(probe_correct, corpus.test.groups).accuracy, 4)
            for probe, probe_correct in right.items()
        },
        "cpu_s": round(time.process_time() - start, 1),
        "test_groups": by_group(right, corpus.test.groups),
    }


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Return each setting's accuracies, and its paired differences from its rivals where both were measured."""
    rows_by_key = {(row["setting"], row["task"], row["seed"]): row for row in rows}
    result: dict[str, Any] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        setting_rows = [row for row in rows if row["setting"] == setting]
        result[setting] = {
            key: round(
                mean(mean(row[key] for row in setting_rows if row["task"] == task) for task in _tasks(setting_rows)), 4
            )
            for key in ("val_linear", "val_knn", "linear", "knn")
        }
        for rival in RIVALS.get(setting, ()):
            shared_rows = [row for row in setting_rows if (rival, row["task"], row["seed"]) in rows_by_key]
            if shared_rows:
                pairs = [(row, rows_by_key[rival, row["task"], row["seed"]]) for row in shared_rows]
                result[setting].setdefault("against", {})[rival] = {
                    "tasks": _tasks(shared_rows),
                    "seeds": sorted({row["seed"] for row in shared_rows}),
                    **{f"val_{probe}": on_validation(pairs, f"val_{probe}") for probe in ("linear", "knn")},
                    **{probe: on_test(pairs, probe) for probe in ("linear", "knn")},
                }
    return result


def on_validation(pairs: list[tuple[Row, Row]], key: str) -> dict[str, float]:
    """Return the mean difference, and its 95 % interval over tasks."""
    tasks = _tasks([row for row, _ in pairs])
    gains = [mean(row[key] - other[key] for row, other in pairs if row["task"] == task) for task in tasks]
    low, high = task_interval(np.array(gains))
    return {"mean": round(mean(gains), 4), "low": round(low, 4), "high": round(high, 4)}


def on_test(pairs: list[tuple[Row, Row]], probe: str) -> dict[str, Any]:
    """Return the mean difference, with 95 % intervals over the seeds and groups of each task, and over tasks."""
    merged: dict[str, list[Row]] = {}
    for row, other in pairs:
        groups = row["test_groups"]
        right = {"ours": groups["right"][probe], "rival": other["test_groups"]["right"][probe]}
        differences_row = {"task": row["task"], "seed": row["seed"], "ours": row[probe], "rival": other[probe]}
        merged.setdefault(row["task"], []).append({**differences_row, "test_groups": {**groups, "right": right}})
    return differences({task: (rows, "ours", "rival") for task, rows in merged.items()})


def _tasks(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def markdown(summary: dict[str, Any]) -> str:
    """Return a table: each setting's accuracy over all its tasks and seeds, and its points from rivals on shared ones."""
    lines = ["| setting | val | test | kNN | rival | val | val, kNN | test | test, kNN |", "|---" * 9 + "|"]
    for setting, entry in summary.items():
        cells = [setting, *(f"{100 * entry[key]:.1f}" for key in ("val_linear", "linear", "knn"))]
        for rival, gaps in entry.get("against", {"": {}}).items():
            cells_of_rival = [points(gaps[key]) if gaps else "" for key in ("val_linear", "val_knn", "linear", "knn")]
            lines.append(f"| {' | '.join([*cells, rival, *cells_of_rival])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = [name for name in TASKS if name not in LEFT_OUT]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=TASKS, metavar="TASK")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS / "defaults.json")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.is_file() else []
    finished = {(row["task"], row["setting"], row["seed"]) for row in rows}
    jobs = [
        (task, build(TASKS[task], args.cache, seed), setting, seed)
        for seed in args.seeds
        for task in args.tasks
        for setting in args.settings
        if (task, setting, seed) not in finished
    ]
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the processes read these when they load torch
    with workers(args.jobs, threads=1, advice="try fewer --jobs") as pool:
        for done, future in enumerate(as_completed([pool.submit(measure, *job) for job in jobs]), start=1):
            row = future.result()
            rows.append(row)
            write(args.out, rows)
            shown = " ".join(
                str(row[key]) for key in ("task", "setting", "seed", "val_linear", "linear", "knn", "cpu_s")
            )
            say(f"{done}/{len(jobs)} {shown}")
    print(markdown(summarise(rows)))


def write(out: Path, rows: list[Row]) -> None:
    """Write all rows so far, in an order that does not depend on which was done first."""
    rows.sort(key=lambda row: (list(SETTINGS).index(row["setting"]), list(TASKS).index(row["task"]), row["seed"]))
    names = {key: list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("seed", "task", "setting")}
    command = (
        f"python -m benchmarks.defaults --seeds {' '.join(sorted(names['seed']))} --tasks {' '.join(names['task'])}"
        f" --settings {' '.join(names['setting'])}"
    )
    about = {"encoder": "speech-embedding", "settings": SETTINGS, **machine()}
    write_json(out, {"command": command, **about, "rows": rows, "summary": summarise(rows)})


if __name__ == "__main__":
    run_main(main)
