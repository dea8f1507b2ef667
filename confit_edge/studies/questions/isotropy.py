"""Does the geometry of an embedding predict how accurate it is?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from confit_edge import runs
from confit_edge.data.corpus import Corpus
from confit_edge.geometry.plots import drawing_settings
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, probed, rivals, train_and_probe
from confit_edge.studies.chart import colour_of, save
from confit_edge.studies.journal import HEADER, read_header, read_outcomes
from confit_edge.studies.phrases import plain, widened
from confit_edge.studies.questions.dimensions import ROTATED
from confit_edge.studies.results import DRAWS, LEVEL, Estimate, Results, Row
from confit_edge.studies.study import Chart, Places, Study
from confit_edge.studies.trial import Point, Scalar, Subset, Trial
from confit_runtime.arrays import Doubles, Indices
from confit_runtime.errors import UsageError

MEASURES = ("isoscore", "effective_rank", "anisotropy", "top1", "uniformity", "silhouette")
PROBES = ("linear", "knn")
TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
FAMILY = ("objective", "loss", "temperature", "encoder")
FEWEST = 5  # families, each with others on the same data, that a correlation needs


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan encoders with different geometry: PairTune at several temperatures, and each objective after fewer epochs too."""
    trials = []
    for epochs in dict.fromkeys((max(1, recipe.epochs // 4), recipe.epochs)):
        part = replace(recipe, epochs=epochs)
        frozen, finetune, pairtune = rivals(Trial({"epochs": epochs}, part))
        trials += [finetune]
        for value in TEMPERATURES:
            changed = replace(pairtune.recipe, loss="supcon", temperature=value)
            trials.append(replace(pairtune, arm={**pairtune.arm, "temperature": value}, recipe=changed))
    return [replace(frozen, arm={"objective": "frozen"}), *trials]


def plan_from(earlier: list[Path], corpus: Corpus, recipe: Recipe, places: Places) -> list[Trial]:
    """Plan a trial for each run, and for each encoder that another study measured.

    Raises UsageError if a folder is neither, or if its clips or splits differ from those of `corpus`.
    """
    read = {path: runs.read_run(path) for path in earlier if not (path / HEADER).is_file()}
    if not read and (given := [key for key, given in places.items() if given]):
        raise UsageError(f"--{given[0]} applies to runs, and --from names only studies; leave it out")
    moved = runs.with_current_paths(
        list(read.values()), background=places.get("background", []), others=places.get("others", [])
    )
    found = dict(zip(read, moved, strict=True))
    trials: list[Trial] = []
    for path in earlier:
        if path not in read:
            trials += _trials_of_study(path, corpus, recipe)
            continue
        _check_not_learnt(found[path], corpus)
        own = read[path].recipe
        arm: dict[str, Scalar] = {"objective": own.objective, "run": path.name, "encoder": own.encoder}
        if own.objective == "pairtune":
            arm |= {"loss": own.loss, "temperature": own.temperature}
        trials.append(Trial(arm, own, train=False, options={"run": str(path.resolve())}))
    return trials


def _trials_of_study(path: Path, corpus: Corpus, recipe: Recipe) -> list[Trial]:
    header = read_header(path / HEADER)
    if header.get("fingerprint") != corpus.fingerprint:
        raise UsageError(
            f"{path}: its clips or their splits differ from those of {corpus.manifest.source}, so accuracies cannot be compared;"
            " give --data the manifest of that study"
        )
    figure = merit_name(multi_label=corpus.multi_label)
    outcomes = [outcome for outcome in read_outcomes(path) if usable(outcome.points)]
    if not outcomes:
        raise UsageError(
            f"{path}: no finished trial has both the geometry and the {figure} of an encoder; give runs, or studies (any but"
            " unseen) with finished trials"
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


def _check_not_learnt(run: runs.Run, corpus: Corpus) -> None:
    """Raise UsageError if a run was trained on another split of the clips.

    Only the labelled clips are compared: a background adds a class, but none of the clips the run would be judged on.
    """
    own = runs.run_corpus(run, corpus.manifest.source)
    if own.manifest.fingerprint() != corpus.manifest.fingerprint():
        raise UsageError(
            f"{run.path}: was trained on another split of the clips of {corpus.manifest.source}, or with other clips among them,"
            " so it may have trained on test clips; give --data the run's manifest with its splits, and a --recipe with its seed"
            f" ({run.recipe.seed}) and others ({', '.join(run.recipe.others) or 'none'})"
        )


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """Measure the usual: of an encoder trained now, of a run's encoder, or as another study measured it."""
    if "study" in trial.options:
        outcomes = {outcome.key: outcome for outcome in read_outcomes(Path(str(trial.options["study"])))}
        return usable(outcomes[str(trial.options["key"])].points)
    if "run" not in trial.options:
        return train_and_probe(bench, trial)
    run = runs.read_run(Path(str(trial.options["run"])))
    corpus = bench.corpus(run.encoder.sample_rate)
    return [probed(bench, run.encoder.to(bench.device), None, corpus, run.recipe)]


def usable(points: list[Point]) -> list[Point]:
    """Return the points that have both the geometry of an encoder and its accuracy."""
    return [
        point
        for point in points
        if any(point.shares.get(probe) for probe in PROBES)
        and point.numbers.keys() & set(MEASURES)
        and point.arm.get("basis") != ROTATED  # the same encoder, rotated
    ]


@dataclass(frozen=True)
class Pairs:
    """A measure and an accuracy of each family of encoders on each data set `[pairs]`, as ranks among the families there.

    The ranks are centred and divided by their number, so that differences between data sets have no effect. Pairs of the
    same family have the same number in `families`; those on the same data have the same number in `data`.
    """

    measure: Doubles
    accuracy: Doubles
    families: Indices
    data: Indices

    @property
    def different(self) -> int:
        """The number of families."""
        return len(np.unique(self.families))

    def correlation(self, comparisons: int = 1) -> Estimate:
        """Return Spearman's rank correlation within data, with an interval widened for `comparisons`. NaN if there are no pairs.

        The interval leaves out zero where a permutation test of the families is significant; elsewhere it has the same length
        in Fisher's z. With so few of them the test has coarse steps, so the correlation counts as known to half a step, the
        exchange of two neighbours.
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
        """Return the sum of products in `DRAWS` draws, in which families on the same data exchange all their accuracies."""
        alike: dict[tuple[int, ...], list[Indices]] = {}
        for one in np.unique(self.families):
            own = np.flatnonzero(self.families == one)
            own = own[np.argsort(self.data[own], kind="stable")]
            alike.setdefault(tuple(self.data[own]), []).append(own)
        rng, sums = np.random.default_rng(0), np.zeros(DRAWS)
        for rows in alike.values():
            products = self.measure[np.array(rows)] @ self.accuracy[np.array(rows)].T
            order = np.arange(len(rows))
            sums += products[order, rng.permuted(np.tile(order, (DRAWS, 1)), axis=1)].sum(axis=1)
        return sums


def _fisher(correlation: float) -> float:
    """Return Fisher's z of a correlation; it stays finite for a perfect one."""
    return float(np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)))


def pairs(rows: list[Row], measure: str, probe: str) -> Pairs:
    """Return the pairs of families that have both, on data where they differ; a family alone, or equal to all others, is dropped.

    The values of a family are the means of its encoders on the same data.
    """
    from scipy.stats import rankdata

    of_family: dict[tuple[Any, Any], list[tuple[float, float]]] = {}
    for row in rows:
        if measure in row.numbers and row.shares.get(probe):
            same_data = (row.subset, row.arm.get("from"), row.seed if row.subset != Subset() else 0)
            found = of_family.setdefault((family(row), same_data), [])
            found.append((row.numbers[measure], share(row, probe)))
    families, data = (_numbered([key[part] for key in of_family]) for part in (0, 1))
    values = np.array([np.mean(found, axis=0) for found in of_family.values()]).reshape(-1, 2).T
    ranked, kept = np.zeros_like(values), np.zeros(len(data), bool)
    for same in np.unique(data):
        inside = data == same
        ranks = rankdata(values[:, inside], axis=1)
        ranked[:, inside] = (ranks - ranks.mean(axis=1, keepdims=True)) / inside.sum()
        kept |= inside & bool(np.ptp(ranks, axis=1).all())
    return Pairs(ranked[0, kept], ranked[1, kept], families[kept], data[kept])


def family(row: Row) -> tuple[Scalar | None, ...]:
    """Return what makes an encoder different from others: two that are alike in it count as one, with their mean.

    Variants of one training, such as a little more hardness or half of the epochs, are near-copies, and to count them one
    by one would multiply one observation.
    """
    return tuple(row.arm.get(key) for key in FAMILY)


def _numbered(things: list[Any]) -> Indices:
    """Number the things; equal ones get the same number."""
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    return np.array([numbers[thing] for thing in things], np.int64)


def encoders(rows: list[Row]) -> list[Row]:
    """Return each encoder once: two studies may have trained the same one, with a geometry equal to the last digit.

    Their accuracies may differ, because one study may fit its probes in another way.
    """
    geometry = [(row.seed, row.subset, *(row.numbers.get(measure) for measure in MEASURES)) for row in rows]
    return list(dict(zip(geometry[::-1], rows[::-1], strict=True)).values())[::-1]


def share(row: Row, probe: str) -> float:
    """Return the accuracy 0..1 of a row, over all groups."""
    right, clips = (sum(pair[index] for pair in row.shares[probe].values()) for index in (0, 1))
    return right / clips


def conclude(results: Results) -> list[str]:
    """State the rank correlation of each measure with each probe, over all encoders and within each large enough objective."""
    different = encoders(results.rows)
    everything = {"all encoders": different}
    for objective in results.values("objective"):
        everything[f"{objective} only"] = [row for row in different if row.arm["objective"] == objective]
    measured = {
        (name, measure, probe): found
        for name, rows in everything.items()
        for measure in MEASURES
        for probe in PROBES
        if (found := pairs(rows, measure, probe)).different >= FEWEST
    }
    if not measured:
        return [
            f"Too few encoders for a correlation: {FEWEST} that differ in objective, loss or temperature, each with others on"
            " the same data, are needed."
        ]
    lines = []
    estimates = {key: found.correlation(len(measured)) for key, found in measured.items()}
    for name in everything:
        told: dict[bool, list[str]] = {True: [], False: []}
        for (whose, measure, probe), estimate in estimates.items():
            if whose == name:
                told[estimate.significant].append(f"{measure} with {probe} {plain(estimate, 2)}")
        if told[True]:
            lines.append(
                f"Over {name}, significant correlation with {results.figure}: {'; '.join(told[True])}"
                " (Spearman, within the same data)."
            )
        if told[False]:
            lines.append(f"Over {name}, no significant correlation with {results.figure}: {'; '.join(told[False])}.")
    lines += widened(len(measured))
    return [*lines, "A correlation over encoders is not a cause; the study `dimensions` intervenes on balance."]


@drawing_settings()
def draw(results: Results, path: Path) -> None:
    """Draw the accuracy of the linear probe against each of four measures, one dot per encoder."""
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
    question="Does the geometry of an embedding predict how accurate it is?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("isoscore"),
    draw=draw,
    plan_from=plan_from,
)
