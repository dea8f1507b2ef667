"""Does the geometry of an embedding tell how accurate it is?"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from confit_edge import runs
from confit_edge.data.corpus import Corpus
from confit_edge.geometry.plots import any_script
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, train_and_probe
from confit_edge.studies.chart import colour_of, save
from confit_edge.studies.journal import HEADER, read_header, read_outcomes
from confit_edge.studies.phrases import plain, widened
from confit_edge.studies.questions.dimensions import ROTATED
from confit_edge.studies.results import DRAWS, LEVEL, Estimate, Results, Row
from confit_edge.studies.study import Chart, Places, Study
from confit_edge.studies.trial import Point, Subset, Trial
from confit_runtime.arrays import Doubles
from confit_runtime.errors import UsageError

Ints = npt.NDArray[np.int64]

MEASURES = ("isoscore", "effective_rank", "anisotropy", "top1", "uniformity", "silhouette")
PROBES = ("linear", "knn")
TEMPERATURES = (0.02, 0.1, 0.5)
FEWEST = 5  # arms beside others on the same data, for a correlation


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


def plan_from(earlier: list[Path], corpus: Corpus, recipe: Recipe, places: Places) -> list[Trial]:
    """A trial for each run, and for each encoder that another study measured.

    Raises UsageError where a folder is neither, and where it was made on other clips, or another split of them, than `corpus`.
    """
    read = {path: runs.read_run(path) for path in earlier if not (path / HEADER).is_file()}
    if not read and (given := [key for key, place in places.items() if place is not None]):
        raise UsageError(f"--{given[0]} is of a run, and --from names studies alone: leave it out")
    found = dict(zip(read, runs.moved(list(read.values()), **places), strict=True))
    trials: list[Trial] = []
    for path in earlier:
        if path not in read:
            trials += _of_study(path, corpus, recipe)
            continue
        _refuse_learnt(found[path], corpus)
        arm = {"objective": read[path].recipe.objective, "run": path.name}
        trials.append(Trial(arm, read[path].recipe, train=False, options={"run": str(path.resolve())}))
    return trials


def _of_study(path: Path, corpus: Corpus, recipe: Recipe) -> list[Trial]:
    header = read_header(path / HEADER)
    if header.get("fingerprint") != corpus.fingerprint:
        raise UsageError(
            f"{path}: was made on other clips, or another split of them, than {corpus.manifest.source} has here, by which"
            " accuracies differ too: give the study the manifest of that one"
        )
    figure = merit_name(multi_label=corpus.multi_label)
    if header.get("figure", "accuracy") != figure:
        raise UsageError(f"{path}: was judged otherwise than by {figure}, by an earlier version: do that study anew")
    outcomes = [outcome for outcome in read_outcomes(path) if usable(outcome.points)]
    if not outcomes:
        raise UsageError(
            f"{path}: no trial of it tells both the geometry and {figure} of an encoder; give studies (any but unseen) that"
            " have trials done, or runs"
        )
    return [
        Trial(
            {"objective": "?", **outcome.arm, "from": path.name},
            replace(recipe, seed=outcome.seed),
            outcome.subset,
            train=False,
            options={"study": str(path.resolve()), "key": outcome.key},
            done=True,
        )
        for outcome in outcomes
    ]


def _refuse_learnt(run: runs.Run, corpus: Corpus) -> None:
    """Raise UsageError where a run was trained on another split of the clips.

    Its background adds a class and says nothing of what it would be judged on: the labelled clips are compared.
    """
    own = runs.run_corpus(run, corpus.manifest.source)
    if own.manifest.fingerprint() != corpus.manifest.fingerprint():
        raise UsageError(
            f"{run.path}: was trained on another split of the clips than {corpus.manifest.source} has here, or with others among"
            " them, so it may have learnt what it would be judged on: give the study the run's manifest, with its splits, and a"
            f" --recipe with its seed ({run.recipe.seed}) and others ({run.recipe.others or 'none'})"
        )


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """The usual, of an encoder that is trained now, of a run's, or as another study measured it."""
    if "study" in trial.options:
        outcomes = {outcome.key: outcome for outcome in read_outcomes(Path(str(trial.options["study"])))}
        return usable(outcomes[str(trial.options["key"])].points)
    if "run" not in trial.options:
        return train_and_probe(bench, trial)
    run = runs.read_run(Path(str(trial.options["run"])))
    corpus = bench.corpus(run.encoder.sample_rate)
    return [probed(run.encoder.to(bench.device), None, corpus, run.recipe, bench.device)]


def usable(points: list[Point]) -> list[Point]:
    """Those that tell the geometry of an encoder, and how accurate it is."""
    return [
        point
        for point in points
        if any(point.shares.get(probe) for probe in PROBES)
        and point.numbers.keys() & set(MEASURES)
        and point.arm.get("basis") != ROTATED  # the same encoder, turned
    ]


@dataclass(frozen=True)
class Pairs:
    """A measure and an accuracy of each encoder `[encoders]`, as ranks among those judged on the same data.

    Ranks are less their mean and by their number, so that data on which all are better say nothing. Encoders that differ
    in their seed only have the same number in `arms`, those judged on the same data in `data`.
    """

    measure: Doubles
    accuracy: Doubles
    arms: Ints
    data: Ints

    @property
    def different(self) -> int:
        """How many arms there are."""
        return len(np.unique(self.arms))

    def correlation(self, comparisons: int = 1) -> Estimate:
        """Spearman's rank correlation within data, with its interval (one of so many). NaN of no pairs.

        The interval leaves out zero where a permutation test of the arms does, and is as long in Fisher's z elsewhere. As
        the test of so few has steps, the correlation counts as known to half of one: an exchange of two neighbours.
        """
        if not self.different:
            return Estimate(np.nan, np.nan, np.nan)
        scale = np.sqrt(np.square(self.measure).sum() * np.square(self.accuracy).sum())
        value = float(self.measure @ self.accuracy / scale)
        by_chance = np.abs(np.append(self._exchanged() / scale, value))
        reach = _fisher(np.quantile(by_chance, 1 - (1 - LEVEL) / comparisons, method="higher"))
        step = 6 / (self.different**3 - self.different)
        low, high = np.tanh([_fisher(value - step) - reach, _fisher(value + step) + reach])
        return Estimate(value, float(low), float(high))

    def _exchanged(self) -> Doubles:
        """The sum of products in each of `DRAWS` draws, in which arms of the same data exchange the accuracies of all seeds."""
        alike: dict[tuple[int, ...], list[Ints]] = {}
        for arm in np.unique(self.arms):
            own = np.flatnonzero(self.arms == arm)
            own = own[np.argsort(self.data[own], kind="stable")]
            alike.setdefault(tuple(self.data[own]), []).append(own)
        rng, sums = np.random.default_rng(0), np.zeros(DRAWS)
        for rows in alike.values():
            products = self.measure[np.array(rows)] @ self.accuracy[np.array(rows)].T
            order = np.arange(len(rows))
            sums += products[order, rng.permuted(np.tile(order, (DRAWS, 1)), axis=1)].sum(axis=1)
        return sums


def _fisher(correlation: float) -> float:
    """Fisher's z of a correlation; finite of a perfect one."""
    return float(np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)))


def pairs(rows: list[Row], measure: str, probe: str) -> Pairs:
    """The pairs of the rows that have both, of the data that tell arms apart: an arm alone, or as good as all, says nothing."""
    from scipy.stats import rankdata

    rows = [row for row in rows if measure in row.numbers and row.shares.get(probe)]
    arms = _numbered([tuple(row.arm.items()) for row in rows])
    data = _numbered([(row.subset, row.arm.get("from"), row.seed if row.subset != Subset() else 0) for row in rows])
    values = np.array([[row.numbers[measure] for row in rows], [share(row, probe) for row in rows]])
    ranked, kept = np.zeros_like(values), np.zeros(len(rows), bool)
    for same in np.unique(data):
        inside = data == same
        ranks = rankdata(values[:, inside], axis=1)
        ranked[:, inside] = (ranks - ranks.mean(axis=1, keepdims=True)) / inside.sum()
        kept |= inside & (len(np.unique(arms[inside])) > 1 and bool(np.ptp(ranks, axis=1).all()))
    return Pairs(ranked[0, kept], ranked[1, kept], arms[kept], data[kept])


def _numbered(things: list[Any]) -> Ints:
    """The number of each thing, the same for equal ones."""
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    return np.array([numbers[thing] for thing in things], np.int64)


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
            lines.append(
                f"Over {name}, {results.figure} goes with: {'; '.join(told)} (Spearman, within the same data)."
            )
        if untold:
            lines.append(f"Over {name}, no correlation can be told: {'; '.join(untold)}.")
    if not lines:
        return [
            f"Too few encoders for a correlation: {FEWEST} different ones, with others on the same data, are needed."
        ]
    lines += widened(len(MEASURES) * len(PROBES))
    return [*lines, "A correlation over encoders is not a cause; study `dimensions` intervenes."]


@any_script()
def draw(results: Results, path: Path) -> None:
    """Accuracy of the linear probe against each of four measures, a dot an encoder."""
    figure = Figure(figsize=(9, 7))
    panels = figure.subplots(2, 2)
    for axes, name in zip(panels.flat, MEASURES, strict=False):
        for number, objective in enumerate(results.values("objective")):
            rows = [
                row
                for row in results.select({"objective": objective})
                if name in row.numbers and row.shares.get("linear")
            ]
            axes.scatter(
                [row.numbers[name] for row in rows],
                [100 * share(row, "linear") for row in rows],
                s=14,
                color=colour_of(objective, number),
                label=objective,
            )
        axes.set(xlabel=name, ylabel=f"linear probe, {results.figure} on test (%)")
        axes.grid(alpha=0.25)
    if results.rows:
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
