"""Which contrastive loss, with which mining of hard pairs?"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import replace

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Loss, Mining, Recipe
from confit_edge.studies.bench import rivals
from confit_edge.studies.phrases import against_vanilla, ranking, versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Trial
from confit_runtime.errors import UsageError


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan every loss with every mining it can use, plus the frozen encoder and vanilla fine-tuning."""
    frozen, finetune, pairtune = rivals(Trial({}, recipe))
    return [
        frozen,
        finetune,
        *(
            replace(pairtune, arm={**pairtune.arm, "loss": tuned.loss, "mining": tuned.mining}, recipe=tuned)
            for tuned in combinations(pairtune.recipe, corpus.multi_label)
        ),
    ]


def combinations(recipe: Recipe, multi_label: bool) -> Iterator[Recipe]:
    """Yield the recipe with each valid pair of loss and mining; only supcon can learn from clips with several labels."""
    for loss in typing.get_args(Loss) if not multi_label else ("supcon",):
        for mining in typing.get_args(Mining):
            try:
                yield replace(recipe, loss=loss, mining=mining)
            except UsageError:  # the recipe refuses pairs that do not go together
                continue


def conclude(results: Results) -> list[str]:
    """State the best combination and those no worse, what mining adds to each loss, and whether the best beats vanilla."""
    arms = [arm for arm in results.arms(objective="pairtune") if "loss" in arm]
    if not arms:
        return ["No loss was measured."]
    lines = ranking(results, arms, "loss mining")
    plain = {arm["loss"]: arm for arm in arms if arm["mining"] == "none"}
    mined = [arm for arm in arms if arm["mining"] != "none" and arm["loss"] in plain]
    gaps = {
        f"{arm['loss']} with {arm['mining']}": results.difference(
            Side("linear", arm), Side("linear", plain[arm["loss"]]), comparisons=len(mined)
        )
        for arm in mined
    }
    lines += [versus(name, "the same loss without mining", gap) for name, gap in gaps.items() if gap.significant]
    if not_significant := [name for name, gap in gaps.items() if not gap.significant]:
        lines.append(f"No significant difference between mining and none: {', '.join(not_significant)}.")
    lines += widened(len(mined))
    best = results.best(arms)
    return lines + against_vanilla(results, f"{best['loss']} with {best['mining']}", Side("linear", best))


STUDY = Study(
    name="mining",
    question="Which contrastive loss, with which mining of hard pairs?",
    plan=plan,
    conclude=conclude,
    chart=Chart("mining", by=("objective", "loss"), metrics=("linear",)),
)
