"""How few clips per class are enough, and what if the classes have unequal numbers of them?"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, trained
from confit_edge.studies.phrases import VANILLA_PROBES, against_vanilla, versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.subset import can_draw, clips_per_class, tail_sizes
from confit_edge.studies.trial import Arm, Point, Subset, Trial
from confit_runtime.errors import UsageError

SHOTS = (1, 2, 5, 10, 20)
TAIL = 10.0  # how many times more clips the largest class has than the smallest
LONGEST = 8  # few clips are seen in more epochs, up to this multiple of the recipe's
JUDGED = {"linear": "all classes", "linear_rare": "the rarer classes"}
EVEN, UNEVEN, SPREAD = "even", "long tail", "as the tail, spread evenly"


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan each number of clips per class that every class has, and a long tail next to as many clips spread evenly.

    Fewer clips get more epochs, so that a trial is not simply a shorter training. The epochs are the same for every seed,
    although one seed may draw groups with fewer clips than another. Where clips have several labels, draws that cannot be
    made are left out. Raises UsageError if none can be made.
    """
    there = min(clips_per_class(corpus).values())
    shots = [count for count in SHOTS if count <= there and can_draw(corpus, Subset(shots=count), recipe.seed)]
    if not shots:
        raise UsageError(
            f"{corpus.manifest.source}: study shots needs equally many clips of every label, and too few clips have only one"
            " label; add such clips, or remove a label that most clips have"
        )
    trials = []
    for count in shots:
        longer = replace(recipe, epochs=math.ceil(recipe.epochs * min(LONGEST, SHOTS[-1] / count)))
        trials += rivals(Trial({"clips": EVEN, "shots": count}, longer, Subset(shots=count)))
    most, tail = shots[-1], min(TAIL, float(shots[-1]))
    sizes = tail_sizes(corpus, most, tail, recipe.seed)
    mean = sum(sizes.values()) / len(sizes)
    spread = round(mean)
    uneven, even = Subset(shots=most, tail=tail), Subset(shots=spread)
    # one clip per class leaves no tail
    if spread < most and all(can_draw(corpus, subset, recipe.seed) for subset in (uneven, even)):
        rare = json.dumps(sorted(name for name, size in sizes.items() if size < mean))
        for clips, count, subset in ((UNEVEN, most, uneven), (SPREAD, spread, even)):
            trials += rivals(Trial({"clips": clips, "shots": count}, recipe, subset, options={"rare": rare}))
    return trials


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """Measure the usual and, for the tail, the classes with fewer clips than the mean (`linear_rare`)."""
    corpus = bench.data(trial)
    encoder, fitted = trained(bench, trial, corpus)
    parts = {"rare": json.loads(str(trial.options["rare"]))} if "rare" in trial.options else None
    return [probed(bench, encoder, fitted, corpus, trial.recipe, parts)]


def conclude(results: Results) -> list[str]:
    """State from how many clips PairTune is ahead of its rivals, and what a tail costs each of them."""
    counts = results.values("shots", clips=EVEN)
    rivals_each = 1 + len(VANILLA_PROBES)
    comparisons = len(counts) * rivals_each
    lines = []
    for count in counts:
        lines += _compare_with_rivals(results, f"With {count} per class", {"clips": EVEN, "shots": count}, comparisons)
    lines += widened(comparisons)
    if UNEVEN in results.values("clips"):
        costs = list(itertools.product(JUDGED, ("finetune", "pairtune")))
        comparisons = len(costs) + rivals_each
        for metric, objective in costs:
            tail, even = (Side(metric, {"objective": objective, "clips": clips}) for clips in (UNEVEN, SPREAD))
            gap = results.difference(tail, even, comparisons)
            where = f"On {JUDGED[metric]}"
            lines.append(versus(f"{objective} on a long tail", f"{objective} on even classes", gap, where))
        lines += _compare_with_rivals(results, "On a long tail", {"clips": UNEVEN}, comparisons)
        lines += widened(comparisons)
    return lines


def _compare_with_rivals(results: Results, where: str, arm: Arm, comparisons: int) -> list[str]:
    ours = Side("linear", {"objective": "pairtune", **arm})
    gap = results.difference(ours, Side("linear", {"objective": "frozen", **arm}), comparisons)
    name = "PairTune + linear probe"
    return [
        versus(name, "the frozen encoder", gap, where),
        *against_vanilla(results, name, ours, arm, comparisons, where),
    ]


STUDY = Study(
    name="shots",
    question="How few clips per class are enough, and what does it cost when classes have unequal numbers of them?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("shots", by=("objective", "clips"), metrics=("linear", "head"), log=True),
)
