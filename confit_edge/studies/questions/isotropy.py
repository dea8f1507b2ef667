"""Does the geometry of an embedding tell how accurate it is?"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt

from confit_edge import runs
from confit_edge.data.corpus import Corpus
from confit_edge.pairtune.config import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, train_and_probe
from confit_edge.studies.chart import colour_of, save
from confit_edge.studies.journal import HEADER, read_header, read_outcomes
from confit_edge.studies.phrases import plain, widened
from confit_edge.studies.questions.dimensions import ROTATED
from confit_edge.studies.results import DRAWS, LEVEL, Estimate, Results, Row
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Point, Subset, Trial
from confit_runtime.errors import UsageError

Doubles = npt.NDArray[np.float64]

MEASURES = ("isoscore", "effective_rank", "anisotropy", "top1", "uniformity", "silhouette")
PROBES = ("linear", "knn")
TEMPERATURES = (0.02, 0.1, 0.5)
FEWEST = 5  # encoders, for a correlation


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Encoders that differ in their geometry: PairTune at several temperatures, each objective after fewer epochs too."""
    trials = []
    for epochs in dict.fromkeys((max(1, recipe.epochs // 4), recipe.epochs)):
        part = replace(recipe, epochs=epochs)
        frozen, finetune, pairtune = rivals(Trial({"epochs": epochs}, part))
        trials += [finetune]
        for value in TEMPERATURES:
            for hardness in (0.0, recipe.hardness or 4.0):
                changed = replace(
                    pairtune.recipe, loss="supcon", mining="hardness", temperature=value, hardness=hardness
                )
                arm = {**pairtune.arm, "temperature": value, "hardness": hardness}
                trials.append(replace(pairtune, arm=arm, recipe=changed))
    return [replace(frozen, arm={"objective": "frozen"}), *trials]


def plan_from(path: Path, recipe: Recipe) -> list[Trial]:
    """A trial for a run, or for each encoder that another study measured. Raises UsageError where `path` is neither."""
    if (path / HEADER).is_file():
        return [
            Trial(
                {"objective": "?", **outcome.arm, "from": path.name},
                replace(recipe, seed=outcome.seed),
                outcome.subset,
                train=False,
                options={"study": str(path.resolve()), "key": outcome.key},
                done=True,
            )
            for outcome in read_outcomes(path)
            if outcome.points
        ]
    run = runs.read_run(path)
    return [
        Trial(
            {"objective": run.recipe.objective, "run": path.name},
            run.recipe,
            train=False,
            options={"run": str(path.resolve())},
        )
    ]


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """The usual, of an encoder that is trained now, of a run's, or as another study measured it."""
    if "study" in trial.options:
        _refuse_other_data(bench, Path(str(trial.options["study"])))
        outcomes = {outcome.key: outcome for outcome in read_outcomes(Path(str(trial.options["study"])))}
        points = outcomes[str(trial.options["key"])].points
        return [
            point
            for point in points
            if point.shares.keys() & set(PROBES)
            and point.numbers.keys() & set(MEASURES)
            and point.arm.get("basis") != ROTATED  # the same encoder, turned
        ]
    if "run" not in trial.options:
        return train_and_probe(bench, trial)
    run = runs.read_run(Path(str(trial.options["run"])))
    corpus = bench.corpus(run.encoder.sample_rate)
    if corpus.classes != run.info.classes:
        raise UsageError(f"{run.path}: its classes are not those of {bench.source.manifest}")
    if corpus.fingerprint != run.info.data["fingerprint"]:
        raise UsageError(
            f"{run.path}: was trained on other clips, or another split of them, than {bench.source.manifest} has here, so it"
            " may have learnt what it would be judged on: give the study the manifest of the run, with its splits"
        )
    return [probed(run.encoder.to(bench.device), None, corpus, run.recipe, bench.device)]


def _refuse_other_data(bench: Bench, study: Path) -> None:
    if read_header(study / HEADER).get("fingerprint") != bench.corpus().fingerprint:
        raise UsageError(
            f"{study}: was made on other clips, or another split of them, than {bench.source.manifest} has here, by which"
            " accuracies differ too: give the study the manifest of that one"
        )


@dataclass(frozen=True)
class Pairs:
    """A measure and an accuracy of each encoder `[encoders]`, as ranks among those judged on the same data.

    Ranks are less their mean and by their number, so that data on which all are better say nothing. Encoders that differ
    in their seed only have the same number in `arms`.
    """

    measure: Doubles
    accuracy: Doubles
    arms: npt.NDArray[np.int64]

    @property
    def different(self) -> int:
        """How many arms there are."""
        return len(np.unique(self.arms))

    def correlation(self, comparisons: int = 1) -> Estimate:
        """Spearman's rank correlation within data; its interval (one of so many) resamples arms. NaN of too few."""
        if self.different < 2:
            return Estimate(np.nan, np.nan, np.nan)
        outside = (1 - LEVEL) / 2 / comparisons
        even = np.full(self.different, 1 / self.different)
        drawn = np.random.default_rng(0).multinomial(self.different, even, size=DRAWS)[:, self.arms]
        value = float(self._correlate(np.ones((1, len(self.arms))))[0])
        if np.isnan(value):
            return Estimate(value, value, value)
        low, high = np.nanquantile(self._correlate(drawn), [outside, 1 - outside])
        return Estimate(value, float(low), float(high))

    def _correlate(self, weights: npt.NDArray) -> Doubles:
        """Pearson's correlation of the ranks under each row of `weights [draws, encoders]`; NaN where one is constant."""
        total = weights.sum(axis=1)
        means = [weights @ ranks / total for ranks in (self.measure, self.accuracy)]
        products = weights @ (self.measure * self.accuracy) / total - means[0] * means[1]
        variances = [
            weights @ ranks**2 / total - mean**2
            for ranks, mean in zip((self.measure, self.accuracy), means, strict=True)
        ]
        scale = np.sqrt(np.maximum(variances[0] * variances[1], 0))
        return np.divide(products, scale, out=np.full(len(weights), np.nan), where=scale > 1e-12)


def pairs(rows: list[Row], measure: str, probe: str) -> Pairs:
    """The pairs of the rows that have both."""
    from scipy.stats import rankdata

    rows = [row for row in rows if measure in row.numbers and probe in row.shares]
    arms = [tuple(row.arm.items()) for row in rows]
    data = [(row.subset, row.arm.get("from"), row.seed if row.subset != Subset() else 0) for row in rows]
    columns = []
    for values in ([row.numbers[measure] for row in rows], [share(row, probe) for row in rows]):
        ranked = np.zeros(len(rows))
        for same in set(data):
            inside = [index for index, one in enumerate(data) if one == same]
            ranks = rankdata([values[index] for index in inside])
            ranked[inside] = (ranks - ranks.mean()) / len(ranks)
        columns.append(ranked)
    order = list(dict.fromkeys(arms))
    return Pairs(columns[0], columns[1], np.array([order.index(arm) for arm in arms], np.int64))


def encoders(rows: list[Row]) -> list[Row]:
    """Each encoder once: two studies may have made the same one, whose numbers are then the same to the last digit."""
    return list(
        {json.dumps([row.seed, row.numbers, row.shares], sort_keys=True): row for row in reversed(rows)}.values()
    )[::-1]


def share(row: Row, probe: str) -> float:
    """The accuracy 0..1 of a row, all groups together."""
    right, clips = (sum(pair[index] for pair in row.shares[probe].values()) for index in (0, 1))
    return right / clips


def conclude(results: Results) -> list[str]:
    """The rank correlation of each measure with each probe, over all encoders and within each objective that has enough."""
    lines = []
    different = encoders(results.rows)
    everything = {"all encoders": different}
    for objective in results.values("objective"):
        everything[f"{objective} only"] = [row for row in different if row.arm["objective"] == objective]
    for name, rows in everything.items():
        told: list[str] = []
        untold: list[str] = []
        for measure in MEASURES:
            for probe in PROBES:
                found = pairs(rows, measure, probe)
                if found.different < FEWEST:
                    continue
                estimate = found.correlation(len(MEASURES) * len(PROBES))
                if not np.isnan(estimate.value):
                    (told if estimate.told else untold).append(f"{measure} with {probe} {plain(estimate, 2)}")
        if told:
            lines.append(f"Over {name}, accuracy goes with: {'; '.join(told)} (Spearman, within the same data).")
        if untold:
            lines.append(f"Over {name}, no correlation can be told: {'; '.join(untold)}.")
    if not lines:
        lines.append(f"Too few encoders for a correlation: {FEWEST} different ones are needed.")
    lines += widened(len(MEASURES) * len(PROBES))
    return [*lines, "A correlation over encoders is not a cause; study `dimensions` intervenes."]


def draw(results: Results, path: Path) -> None:
    """Accuracy of the linear probe against each of four measures, a dot an encoder."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 7))
    for axes, name in zip(panels.flat, MEASURES, strict=False):
        for number, objective in enumerate(results.values("objective")):
            rows = [
                row
                for row in results.select({"objective": objective})
                if name in row.numbers and "linear" in row.shares
            ]
            axes.scatter(
                [row.numbers[name] for row in rows],
                [100 * share(row, "linear") for row in rows],
                s=14,
                color=colour_of(objective, number),
                label=objective,
            )
        axes.set(xlabel=name, ylabel="linear probe on test (%)")
        axes.grid(alpha=0.25)
    panels[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    save(figure, path)


STUDY = Study(
    name="isotropy",
    question="Does the geometry of an embedding tell how accurate it is?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("isoscore"),
    draw=draw,
    plan_from=plan_from,
)
