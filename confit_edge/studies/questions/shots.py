"""How few clips a class are enough, and what if the classes have unequal numbers of them?"""

from __future__ import annotations

import json
import math
from dataclasses import replace

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, trained
from confit_edge.studies.phrases import against_vanilla, versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.subset import clips_per_class, reached, tail_sizes
from confit_edge.studies.trial import Arm, Point, Subset, Trial
from confit_runtime.errors import UsageError

SHOTS = (1, 2, 5, 10, 20)
TAIL = 10.0  # the class with most clips has so many times those of the class with fewest
LONGEST = 8  # few clips are seen more often, but no more than so many times the recipe's epochs
EVEN, UNEVEN, SPREAD = "even", "long tail", "as the tail, spread evenly"


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Each number of clips that every class has; and a long tail, beside about as many clips in all spread evenly.

    The epochs grow as the clips become fewer, so that a trial is not simply a shorter training; by the same for every
    seed, though one may draw groups with fewer clips than another. Where clips have several labels, what cannot be drawn
    so is left out. Raises UsageError where that is all.
    """
    there = min(clips_per_class(corpus).values())
    shots = [count for count in SHOTS if count <= there and reached(corpus, Subset(shots=count), recipe.seed)]
    if not shots:
        raise UsageError(
            f"{corpus.manifest.source}: study shots needs as many clips of each label, and too few hold one alone: add such"
            " clips, or take out a label that stands on most"
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
    # of one clip a class there is no tail
    if spread < most and all(reached(corpus, subset, recipe.seed) for subset in (uneven, even)):
        rare = json.dumps(sorted(name for name, size in sizes.items() if size < mean))
        for clips, count, subset in ((UNEVEN, most, uneven), (SPREAD, spread, even)):
            trials += rivals(Trial({"clips": clips, "shots": count}, recipe, subset, options={"rare": rare}))
    return trials


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """The usual; and beside the tail, of the classes with fewer clips than the mean (`linear_rare`)."""
    corpus = bench.data(trial)
    encoder, fitted = trained(bench, trial, corpus)
    parts = {"rare": json.loads(str(trial.options["rare"]))} if "rare" in trial.options else None
    return [probed(encoder, fitted, corpus, trial.recipe, bench.device, parts)]


def conclude(results: Results) -> list[str]:
    """From how many clips PairTune is ahead of its rivals, and what a tail costs each of them."""
    counts = results.values("shots", clips=EVEN)
    lines = []
    for count in counts:
        lines += _ahead(results, f"At {count} a class", {"clips": EVEN, "shots": count}, len(counts))
    lines += widened(len(counts))
    if UNEVEN in results.values("clips"):
        for metric, which in (("linear", "all classes"), ("linear_rare", "the rarer classes")):
            for objective in ("finetune", "pairtune"):
                tail, even = (Side(metric, {"objective": objective, "clips": clips}) for clips in (UNEVEN, SPREAD))
                gap = results.difference(tail, even)
                lines.append(versus(f"{objective} from a long tail", "the same from even classes", gap, f"On {which}"))
        lines += _ahead(results, "On a long tail", {"clips": UNEVEN})
    return lines


def _ahead(results: Results, where: str, arm: Arm, comparisons: int = 1) -> list[str]:
    ours = Side("linear", {"objective": "pairtune", **arm})
    gap = results.difference(ours, Side("linear", {"objective": "frozen", **arm}), comparisons)
    name = "PairTune + linear probe"
    return [
        versus(name, "the frozen encoder", gap, where),
        *against_vanilla(results, name, ours, arm, comparisons, where),
    ]


STUDY = Study(
    name="shots",
    question="How few clips a class are enough, and what does it cost when classes have unequal numbers of them?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("shots", by=("objective", "clips"), metrics=("linear", "head"), log=True),
)
