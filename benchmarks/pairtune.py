"""Compares PairTune with its rivals on real tasks: one row per task, encoder and seed.

    python -m benchmarks.pairtune --seeds 0 1 2 --jobs 2
    python -m benchmarks.pairtune --tasks words actors --encoders DIR/whisper-tiny.en-encoder --epochs 6
    python -m benchmarks.pairtune --again

Writes benchmarks/results/pairtune.json after each row. Existing rows are kept: run it again to continue, or with more tasks,
encoders or seeds to add rows. With --again only PairTune is measured again in existing rows, for when its defaults have changed;
the results of its rivals, whose defaults have not, stay.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import run_main, say
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, encoder_argument, machine, write_json
from benchmarks.row import Plan, measure
from benchmarks.summary import markdown, summarise
from benchmarks.tasks import TASKS, build
from confit_edge.data.manifest import SPLITS
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.recipe import Recipe
from confit_edge.workers import workers
from confit_runtime.errors import UsageError

TIMED = 32  # windows to time an encoder with
JUDGED = 9  # the frozen encoder, five trained ones, and three at the encoder's own rate
JUDGED_AGAIN = 3  # with --again: the frozen encoder and PairTune's two
SHOWN = ("frozen_linear", "finetune_head", "finetune_head_converged", "lpft_head", "pairtune_linear",
         "pairtune_linear_converged")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Job:
    """A row to measure."""

    task: str
    encoder: str
    seed: int
    manifest: Path
    clips: Counter[str]  # of each split
    plan: Plan

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, encoder_label(self.encoder), self.seed

    def passes(self, again: bool) -> float:
        """Estimate the number of clips learnt from; a clip that is only embedded, for a check or a probe, counts a third.

        Where few classes fill a batch, each clip is used more often, and the estimate is too low.
        """
        train, val, test = (self.clips[split] for split in SPLITS)
        checked = (train + val) / 3 + train
        epochs = self.plan.epochs + self.plan.longest if again else self.plan.epochs_in_all()
        judged = JUDGED_AGAIN if again else JUDGED
        return epochs * checked + judged * ((1 + Recipe().probe_views) * train + val + test) / 3


def main() -> None:
    run(arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--encoders", nargs="+", default=["speech-embedding"], help="names or local directories")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="epochs for every task, instead of the task's own")
    parser.add_argument("--long", type=int, default=3, help="convergence takes this many times the epochs")
    parser.add_argument("--again", action="store_true", help="measure only PairTune again, in existing rows")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS / "pairtune.json")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    rows = read_rows(args.out)
    requested = jobs_of(args)
    missing, rows_by_key = missing_jobs(requested, rows), by_key(rows)
    jobs = [job for job in requested if job not in missing] if args.again else missing
    if jobs:
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the processes read these when they load torch
        rates = {name: seconds_per_clip(name) for name in {job.encoder for job in jobs}}
        cost = {job: job.passes(args.again) * rates[job.encoder] for job in jobs}
        processor = sum(cost.values()) / 60
        action = "again" if args.again else "to go"
        say(f"{len(jobs)} rows {action} ({len(rows)} there): about {processor:.0f} minutes of processor time,")
        say(f"{processor / args.jobs:.0f} minutes with {args.jobs} processes; written to {args.out} after each")
        started, done = time.monotonic(), 0.0
        with workers(args.jobs, threads=1, advice="try fewer --jobs") as pool:
            futures = {
                pool.submit(
                    measure, job.task, job.manifest, job.encoder, job.seed, job.plan, rows_by_key.get(job.key)
                ): job
                for job in jobs
            }
            for future in as_completed(futures):
                job, row = futures[future], future.result()
                rows_by_key[job.key] = row
                write(args.out, list(rows_by_key.values()))
                done += cost[job]
                remaining = (time.monotonic() - started) * (sum(cost.values()) / done - 1) / 60
                found = ", ".join(f"{key} {100 * row[key]:.1f}" for key in SHOWN)
                say(
                    f"{' '.join(map(str, job.key))}: {found}; {row['seconds']['row']:.0f} s, about {remaining:.0f} min left"
                )
        rows = list(rows_by_key.values())
    print(markdown(rows, summarise(rows)))


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the existing rows. Raises UsageError if they were measured with different recipe defaults from today's."""
    if not out.is_file():
        return []
    stored = json.loads(out.read_text(encoding="utf-8"))
    stored_recipe, current_recipe = stored["recipe"], shared_recipe()
    if changed := [
        key for key in {**stored_recipe, **current_recipe} if stored_recipe.get(key) != current_recipe.get(key)
    ]:
        raise UsageError(f"{out}: its rows were measured with a different {', '.join(changed)}; choose another --out")
    rows: list[dict[str, Any]] = stored["rows"]
    return rows


def shared_recipe() -> dict[str, Any]:
    """Return what the recipes of all rows share: the defaults. Each row has its own seed, epochs and rates."""
    own = ("seed", "epochs", "lr", "head_lr", "precision", "device")
    return {key: value for key, value in Recipe().to_dict().items() if key not in own}


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Return all jobs, with one seed of every task and encoder before the next seed."""
    say("building the tasks")
    for name in args.encoders:
        if not Path(name).is_dir() and "/" in name:
            raise UsageError(f"{name}: no such directory")
    jobs = []
    for seed in args.seeds:
        for task in args.tasks:
            manifest = build(TASKS[task], args.cache, seed)
            clips = Counter(line.rpartition(",")[2] for line in manifest.read_text(encoding="utf-8").splitlines())
            for encoder in args.encoders:
                plan = Plan.of(encoder, args.epochs or TASKS[task].epochs, args.long)
                jobs.append(Job(task, encoder, seed, manifest, clips, plan))
    return jobs


def by_key(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the rows, each under the key of its job."""
    return {(row["task"], row["encoder"], row["seed"]): row for row in rows}


def missing_jobs(jobs: list[Job], rows: list[dict[str, Any]]) -> list[Job]:
    """Return the jobs without a row. Raises UsageError if a job's row was measured with another number of epochs."""
    rows_by_key = by_key(rows)
    for job in jobs:
        row = rows_by_key.get(job.key)
        if row and (row["epochs"], row["epochs_converged"]) != (job.plan.epochs, job.plan.longest):
            raise UsageError(
                f"{' '.join(map(str, job.key))}: already measured with {row['epochs']} epochs; choose another --out"
            )
    return [job for job in jobs if job.key not in rows_by_key]


def seconds_per_clip(encoder_name: str) -> float:
    """Return the processor seconds to learn from a window on one thread, forward and backward, the faster of two runs."""
    import torch

    torch.set_num_threads(1)
    encoder = pretrained(encoder_name, 1.28)
    pcm, elapsed = 0.1 * torch.randn(TIMED, encoder.window), []
    for _ in range(2):
        start = time.process_time()
        encoder(pcm).sum().backward()
        elapsed.append(time.process_time() - start)
    return min(elapsed) / TIMED


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows so far, in an order that does not depend on which was done first."""
    rows.sort(key=lambda row: (row["encoder"], list(TASKS).index(row["task"]), row["seed"]))
    commands = [
        command([row for row in rows if row["encoder"] == name]) for name in {row["encoder"]: 0 for row in rows}
    ]
    result = {"command": " && ".join(commands), **machine(), "recipe": shared_recipe(), "rows": rows}
    write_json(out, {**result, "summary": summarise(rows)})


def command(rows: list[dict[str, Any]]) -> str:
    """Return the command that measures these rows, of one encoder, again."""
    seeds = " ".join(map(str, sorted({row["seed"] for row in rows})))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    epochs = {row["epochs"] for row in rows if row["epochs"] != TASKS[row["task"]].epochs}
    parts = ["python -m benchmarks.pairtune", f"--encoders {encoder_argument(rows[0]['encoder'])}", f"--seeds {seeds}"]
    parts += [f"--tasks {' '.join(tasks)}"] if set(tasks) != set(TASKS) else []
    parts += [f"--epochs {epochs.pop()}"] if epochs else []
    long = rows[0]["epochs_converged"] // rows[0]["epochs"]
    return " ".join([*parts, f"--long {long}"])


if __name__ == "__main__":
    run_main(main)
