"""How fast does each objective converge?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from confit_edge.data.corpus import Corpus
from confit_edge.geometry.plots import by_training
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, trained
from confit_edge.studies.chart import draw as draw_chart
from confit_edge.studies.phrases import against_vanilla, plain
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Point, Trial

NEAR = 0.95  # an objective has converged at this share of its own best
CHART = Chart("epoch", metrics=("val_linear", "val_head"))


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan the frozen encoder, vanilla fine-tuning, and PairTune with and without mining of hard pairs."""
    frozen, finetune, pairtune = rivals(Trial({}, recipe))
    unmined = replace(
        pairtune,
        arm={"objective": "pairtune, no mining"},
        recipe=replace(pairtune.recipe, loss="supcon", mining="none"),
    )
    return [frozen, finetune, pairtune, unmined]


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """Measure the usual at the end, the epochs until each probe was near its best, and a validation point per epoch.

    With a soup of several trainings, each figure is the mean over the trainings, epoch by epoch.
    """
    corpus = bench.data(trial)
    encoder, fitted = trained(bench, trial, corpus)
    last = probed(bench, encoder, fitted, corpus, trial.recipe)
    if fitted is None:
        return [last]
    trainings = by_training(fitted.history)
    names = [name for name in CHART.metrics if name in fitted.history[0]]
    reached = {
        name.replace("val", "epochs"): fmean(epochs_to([row[name] for row in rows]) for rows in trainings)
        for name in names
    }
    epochs = [
        Point(numbers={name: fmean(row[name] for row in rows) for name in names}, arm={"epoch": epoch})
        for epoch, rows in enumerate(zip(*trainings, strict=True), start=1)
    ]
    return [replace(last, numbers=last.numbers | reached), *epochs]


def epochs_to(curve: list[float]) -> int:
    """Return the first epoch, counted from 1, with at least `NEAR` times the best of the curve."""
    return next(epoch for epoch, value in enumerate(curve, start=1) if value >= NEAR * max(curve))


def conclude(results: Results) -> list[str]:
    """State the epochs to 95 % of each objective's best, whether PairTune takes fewer, and the final test results."""
    ends = results.where(lambda row: "epoch" not in row.arm)
    lines = []
    for arm in ends.arms():
        for number, probe in (("epochs_linear", "linear probe"), ("epochs_head", "own head")):
            taken = ends.number(number, **arm)
            if not math.isnan(taken.value):
                lines.append(
                    f"{arm['objective']}, {probe}: {plain(taken, 1)} epochs to {100 * NEAR:.0f} % of its best on validation."
                )
    for number, rival in (("epochs_linear", "vanilla's features"), ("epochs_head", "vanilla's own head")):
        gap = ends.number_difference(
            [(1.0, "epochs_linear", {"objective": "pairtune"}), (-1.0, number, {"objective": "finetune"})]
        )
        if math.isnan(gap.value):
            continue
        claim = (
            f"PairTune takes {'fewer' if gap.value < 0 else 'more'} epochs than"
            if gap.significant
            else "No significant difference in epochs between PairTune and"
        )
        lines.append(f"{claim} {rival} ({plain(gap, 1)}).")
    ours = Side("linear", {"objective": "pairtune"})
    return lines + against_vanilla(ends, "PairTune + linear probe", ours, where="At the end")


def draw(results: Results, path: Path) -> None:
    """Draw accuracy (or mAP) on validation by epoch."""
    draw_chart(results.where(lambda row: "epoch" in row.arm), CHART, STUDY.question, path, split="validation")


STUDY = Study(
    name="convergence",
    question="How fast does each objective converge?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=CHART,
    draw=draw,
)
