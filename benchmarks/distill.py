"""Does a student distilled from a PairTuned attention encoder beat a student that is PairTuned itself?

    python -m benchmarks.distill --teacher DIR/whisper-tiny.en-encoder --seeds 0 1 2

Writes benchmarks/results/distill.json after each row, with one row per task and seed. Existing rows are kept. The unlabelled
sound of a task comes from the training groups that the seed did not draw; none of these groups is in validation or test. The
teacher is PairTuned on the training clips. Every student is the speech_embedding encoder, and takes the same number of steps
with the same labelled clips, `--long` times those of the task:

- `direct` is PairTuned, at the learning rate that is best on validation;
- `distilled` has the teacher, with the unlabelled sound in addition to the clips;
- `distilled_clips` has the teacher, with the clips alone.

The epoch of each is chosen on validation.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import run_main, say
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, encoder_argument, machine, write_json
from benchmarks.row import CPU, Bools, by_group
from benchmarks.summary import differences
from benchmarks.tasks import TASKS, Task, build, unique
from confit_edge.data.clips import ClipStore
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.distill import Lesson, Teaching
from confit_edge.pairtune.lr_search import choose_lr
from confit_edge.pairtune.machine import pick_precision
from confit_edge.pairtune.trainer import fit
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import accuracy, correct
from confit_edge.recipe import Recipe
from confit_runtime.audio import Pcm

STUDENT, WINDOW, RATE = "speech-embedding", 1.28, 16_000
LRS = (2e-4, 5e-4, 1.2e-3)
LESSON = Lesson()
TEACHER_LR = 1e-4
DISTILLED_LR = 1e-3
STUDENTS = ("direct", "distilled", "distilled_clips")
PROBES = ("linear", "knn")


class Row:
    """One task with one seed, where every encoder is judged on the same test clips."""

    def __init__(self, task: Task, seed: int, args: argparse.Namespace) -> None:
        self.task, self.seed, self.args = task, seed, args
        manifest = build(task, args.cache, seed)
        self.corpus = read_corpus(manifest, rate=RATE, seed=seed)
        self.unlabelled = undrawn_sounds(task, args.cache, self.corpus)
        self.recipe = Recipe(
            seed=seed,
            epochs=args.long * task.epochs,
            lr=LRS,
            window=WINDOW,
            device="cpu",
            precision=pick_precision("auto", CPU),
        )
        self.student = pretrained(STUDENT, WINDOW)
        self.right: dict[str, Bools] = {}
        self.val: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.kept: dict[str, int] = {}

    def measure(self) -> dict[str, Any]:
        teacher = pretrained(self.args.teacher, WINDOW)
        recipe = replace(self.recipe, encoder=self.args.teacher, epochs=self.args.teacher_epochs)
        self.train("teacher", teacher, recipe, TEACHER_LR)
        lr = choose_lr(self.student, self.corpus, self.recipe)
        for name in self.args.students:
            unlabelled = self.unlabelled if name == "distilled" else []
            teaching = None if name == "direct" else Teaching(teacher, unlabelled, RATE, LESSON)
            self.train(name, copy.deepcopy(self.student), self.recipe, DISTILLED_LR if teaching else lr, teaching)
        shares = {key: accuracy(right, self.corpus.test.groups) for key, right in self.right.items()}
        return {
            "task": self.task.name,
            "seed": self.seed,
            "teacher_encoder": encoder_label(self.args.teacher),
            "classes": len(self.corpus.classes),
            "train_n": len(self.corpus.train),
            "unlabelled_n": len(self.unlabelled),
            "unlabelled_s": round(sum(map(len, self.unlabelled)) / RATE, 1),
            "val_n": len(self.corpus.val),
            "test_n": len(self.corpus.test),
            "epochs": self.recipe.epochs,
            "teacher_epochs": self.args.teacher_epochs,
            "long": self.args.long,
            "lr": {"teacher": TEACHER_LR, "direct": lr, "distilled": DISTILLED_LR},
            **{key: round(share.accuracy, 4) for key, share in shares.items()},
            "intervals": {key: [round(share.low, 4), round(share.high, 4)] for key, share in shares.items()},
            "val": self.val,
            "kept_epoch": self.kept,
            "seconds": self.seconds,
            "test_groups": by_group(self.right, self.corpus.test.groups),
        }

    def train(self, name: str, encoder: Encoder, recipe: Recipe, lr: float, teaching: Teaching | None = None) -> None:
        start = time.process_time()
        fitted = fit(encoder, self.corpus, recipe, lr=lr, epochs=recipe.epochs, teaching=teaching)
        self.seconds[name] = round(time.process_time() - start, 1)
        self.kept[name] = fitted.kept_epoch + 1
        self.judge(name, encoder)

    def judge(self, name: str, encoder: Encoder) -> None:
        views = 1 if name == "teacher" else self.recipe.probe_views  # it is slow, and serves only as the bound
        found = dual_probe(encoder, self.corpus, replace(self.recipe, probe_views=views), CPU)
        judges: tuple[LinearProbe | KnnProbe, ...] = (found.linear, found.knn)
        for probe, judge in zip(PROBES, judges, strict=True):
            key = f"{name}_{probe}"
            self.right[key] = correct(judge.scores(found.test_embeddings), self.corpus.test.targets)
            self.val[key] = round(float(correct(judge.scores(found.val_embeddings), self.corpus.val.targets).mean()), 4)
        say(f"{self.task.name} {self.seed} {name}: validation {self.val[f'{name}_linear']}, {self.val[f'{name}_knn']}")


def undrawn_sounds(task: Task, cache: Path, corpus: Corpus) -> list[Pcm]:
    """Return the training sounds that were not drawn for the corpus."""
    drawn_paths = {path.resolve() for split in (corpus.train, corpus.val, corpus.test) for path in split.paths}
    store = ClipStore(RATE)
    sounds = [
        sound
        for sound in unique(task.gather(cache))
        if sound.split == "train" and sound.path.resolve() not in drawn_paths
    ]
    return [store.get(sound.path) for sound in sorted(sounds, key=lambda sound: str(sound.path))]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare each encoder with `direct`, by probe: paired differences by task (over seeds and test groups) and over tasks."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    of_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
    return {
        f"{method}_against_direct_{probe}": differences(
            {task: (of_task[task], f"{method}_{probe}", f"direct_{probe}") for task in tasks}
        )
        for method in ("teacher", *STUDENTS[1:])
        for probe in PROBES
        if all(f"{method}_{probe}" in row for row in rows)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a transformers checkpoint: a local directory or a hub name")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS[:2]), choices=STUDENTS)
    parser.add_argument("--long", type=int, default=2, help="students train this many times the task's epochs")
    parser.add_argument("--tasks", nargs="+", default=["speakers", "noisy-words"], choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS / "distill.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run(args)


def run(args: argparse.Namespace) -> None:
    rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.is_file() else []
    done = {(row["task"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for task in args.tasks:
            if (task, seed) not in done:
                rows.append(Row(TASKS[task], seed, args).measure())
                write(args.out, rows)
    for name, claim in summarise(rows).items():
        by_task = ", ".join(
            f"{task} {100 * difference['difference']:+.1f} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
            for task, difference in claim["by_task"].items()
        )
        print(f"{name}: {by_task}")


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    rows.sort(key=lambda row: (list(TASKS).index(row["task"]), row["seed"]))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    students = [name for name in STUDENTS if all(f"{name}_linear" in row for row in rows)]
    command = (
        f"python -m benchmarks.distill --teacher {encoder_argument(rows[0]['teacher_encoder'])} --teacher-epochs"
        f" {rows[0]['teacher_epochs']} --long {rows[0]['long']} --students {' '.join(students)} --tasks {' '.join(tasks)}"
        f" --seeds {' '.join(map(str, sorted({row['seed'] for row in rows})))}"
    )
    about = {"student": STUDENT, "lesson": vars(LESSON), **machine()}
    write_json(out, {"command": command, **about, "rows": rows, "summary": summarise(rows)})


if __name__ == "__main__":
    run_main(main)
