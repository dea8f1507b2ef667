"""The report of `analyze`: the paper's table and every geometry measure, before and after training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from confit_edge.files import write_text
from confit_edge.geometry import measures, plots
from confit_edge.judging.compare import Probed, Split, probe_subject, shared_corpora, split_of, subjects
from confit_edge.probes.metrics import merit_name
from confit_edge.probes.tables import escaped, markdown, nan_to_none, write_csv
from confit_edge.progress import Watcher, ignore_event
from confit_edge.runs import Run
from confit_runtime.arrays import Floats
from confit_runtime.formatting import format_count

Measure = Callable[[npt.NDArray[np.int64]], dict[str, float]]  # given the rows to measure

TITLES = {
    "anisotropy": "anisotropy (mean cosine)",
    "isoscore": "IsoScore",
    "top1": "top-1 contribution",
    "top3": "top-3 contribution",
    "top5": "top-5 contribution",
    "top1_rotated": "top-1 after random rotations",
    "top1_ratio": "top-1 over anisotropy",
    "effective_rank": "effective rank",
    "uniformity": "uniformity",
    "alignment": "alignment",
    "scatter": "scatter, between / within",
    "fisher": "Fisher's criterion",
    "silhouette": "silhouette",
    "neighbours": "neighbours of the same class",
}


@dataclass(frozen=True)
class GeometryReport:
    """Subjects and the measures of their embeddings of one split; the encoders that runs started from come first."""

    probed: list[Probed]
    split: Split
    seed: int
    described: list[dict[str, float]]  # the result of measures.describe for each subject
    intervals: list[dict[str, tuple[float, float]]]
    changes: list[dict[str, Any]]

    @property
    def summary(self) -> dict[str, Any]:
        """The data behind the numbers: split, clips, groups, classes and dimensions."""
        clips, dim = split_of(self.probed[0].corpus, self.split), [one.subject.encoder.dim for one in self.probed]
        return {
            "split": self.split,
            "clips": len(clips),
            "groups": len(set(clips.groups)),
            "classes": len(np.unique(measures.label_sets(clips.targets))),
            "dim": dim[0] if len(set(dim)) == 1 else dim,
        }

    @property
    def merit(self) -> str:
        """The metric that a linear probe is judged by: `accuracy`, or `map` if clips may have several labels."""
        return "map" if self.probed[0].corpus.multi_label else "accuracy"

    def paper_rows(self) -> list[dict[str, Any]]:
        """The paper's table: a row per encoder, with the `merit` of its linear probe, top-1, 3, 5 shares and IsoScore."""
        rows = []
        for one, described in zip(self.probed, self.described, strict=True):
            found = one.probes.metrics["linear"][self.split]  # None if none of the clips has a label
            merit = found[self.merit] if found else math.nan
            shares = {f"top{top}": described[f"top{top}"] for top in measures.TOPS}
            rows.append({**_subject_columns(one), self.merit: merit, **shares, "isoscore": described["isoscore"]})
        return rows

    def measure_rows(self) -> list[dict[str, Any]]:
        """A row per encoder and measure, with its interval if groups can be left out."""
        return [
            {**_subject_columns(one), "measure": name, "value": described[name], "low": low, "high": high}
            for one, described, intervals in zip(self.probed, self.described, self.intervals, strict=True)
            for name in TITLES
            for low, high in [intervals.get(name, (float("nan"), float("nan")))]
        ]

    def change_rows(self) -> list[dict[str, Any]]:
        """A row per run and measure: how much higher it is than at the start of the run, paired by group."""
        return self.changes

    def text(self, name: Callable[[str], str] = str) -> str:
        """The tables, for a person to read; `name` formats the names of encoders for them."""
        about, names = self.summary, [name(one.subject.name) for one in self.probed]
        paper = [
            [
                name(row["encoder"]),
                *(f"{100 * row[key]:.1f}" for key in (self.merit, "top1", "top3", "top5")),
                _number(row["isoscore"]),
            ]
            for row in self.paper_rows()
        ]
        merit = merit_name(multi_label=self.probed[0].corpus.multi_label)
        every = [
            [title, *(_with_interval(described[key], intervals.get(key)) for described, intervals in self._pairs())]
            for key, title in TITLES.items()
        ]
        parts = [
            f"{format_count(about['clips'], f'{self.split} clip')} from {format_count(about['groups'], 'group')} and"
            f" {format_count(about['classes'], 'class', 'classes')};"
            f" {about['dim']} dimensions.",
            markdown(["encoder", f"{merit} %", "top-1 %", "top-3 %", "top-5 %", "IsoScore"], paper),
            markdown(["measure", *names], every),
        ]
        changes = [
            [name(row["encoder"]), TITLES[row["measure"]], _with_interval(row["change"], (row["low"], row["high"]))]
            for row in self.changes
        ]
        if changes:
            parts += ["Changes by training, on the same clips.", markdown(["encoder", "measure", "change"], changes)]
        return "\n\n".join(parts)

    def write(self, out: Path, say: Callable[[str], None]) -> str:
        """Write `geometry.md`, `geometry.json`, CSV files and then plots; return how the maps were made."""
        folder = out / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {"paper": self.paper_rows(), "measures": self.measure_rows(), "changes": self.changes}
        for name, rows in kinds.items():
            write_csv(out / f"{name}.csv", rows)
        corpus = self.probed[0].corpus
        clips = split_of(corpus, self.split)
        method = plots.describe_mapping(len(clips))
        plain = {"summary": {**self.summary, "maps": method}} | {
            key: list(map(nan_to_none, of)) for key, of in kinds.items()
        }
        write_text(out / "geometry.json", json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(out / "geometry.md", f"{self.text(escaped)}\n\nMaps made by {method}.\n")
        embeddings = {one.subject.name: one.embeddings(self.split) for one in self.probed}
        labelled = clips.targets.any(axis=1)
        labels = np.where(labelled, clips.labels, len(corpus.classes))
        names = [*corpus.classes, *([] if labelled.all() else ["no label"])]
        with plots.report_failed_plot(path := folder / "map.png", say):
            plots.embedding_maps(embeddings, labels, names, path, self.seed)
        with plots.report_failed_plot(path := folder / "spectrum.png", say):
            plots.spectra({name: measures.spectrum(of) for name, of in embeddings.items()}, path)
        with plots.report_failed_plot(path := folder / "contribution.png", say):
            plots.contributions({name: measures.contribution(of) for name, of in embeddings.items()}, path)
        return method

    def _pairs(self) -> list[tuple[dict[str, float], dict[str, tuple[float, float]]]]:
        return list(zip(self.described, self.intervals, strict=True))


def analyse(
    runs: list[Run],
    *,
    split: Split,
    device: torch.device,
    manifest: Path | None = None,
    notify: Watcher = ignore_event,
) -> GeometryReport:
    """Embed the clips of a split by the encoders that the runs started from and by the runs, and measure the embeddings.

    Probes are fitted for the accuracy column, by the recipe of the first run. `manifest` names clips to use instead of the
    runs' own. Raises UsageError if the runs' own clips or splits differ, or the split has no clips.
    """
    recipe = runs[0].recipe
    corpora = shared_corpora(runs, recipe, split, manifest)
    clips = split_of(corpora[runs[0].encoder.sample_rate], split)
    labels, seed = measures.label_sets(clips.targets), recipe.seed
    probed, described, intervals, changes = [], [], [], []
    measured: dict[str, Measure] = {}
    for subject in subjects(runs, corpora):
        one = probe_subject(subject, corpora[subject.encoder.sample_rate], recipe, device, notify)
        embeddings = one.embeddings(split)
        measure = measured[subject.name] = _measure(embeddings, labels)
        probed.append(one)
        described.append(measures.describe(embeddings, labels, seed))
        intervals.append(measures.jackknife(measure, clips.groups, seed, ranges=measures.RANGES))
        if subject.start is None:
            continue
        changes += _changes(one, measure, measured[subject.start], clips.groups, seed)
    return GeometryReport(probed, split, seed, described, intervals, changes)


def _measure(embeddings: Floats, labels: measures.Labels) -> Measure:
    """A function that measures the given rows. It caches its results, because the jackknife of a change asks again."""
    cache: dict[bytes, dict[str, float]] = {}

    def measure(rows: npt.NDArray[np.int64]) -> dict[str, float]:
        key = hashlib.sha256(rows.data).digest()
        if key not in cache:
            cache[key] = measures.pointwise(embeddings[rows], labels[rows])
        return cache[key]

    return measure


def _changes(one: Probed, after: Measure, before: Measure, groups: list[str], seed: int) -> list[dict[str, Any]]:
    def change(rows: npt.NDArray[np.int64]) -> dict[str, float]:
        was = before(rows)
        return {name: value - was[name] for name, value in after(rows).items()}

    bounds = measures.jackknife(change, groups, seed)
    values = change(np.arange(len(groups)))
    return [
        {
            **_subject_columns(one),
            "from": one.subject.start,
            "measure": name,
            "change": values[name],
            "low": low,
            "high": high,
        }
        for name, (low, high) in bounds.items()
    ]


def _subject_columns(one: Probed) -> dict[str, Any]:
    return {"encoder": one.subject.name, "objective": one.subject.objective}


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _with_interval(value: float, bounds: tuple[float, float] | None) -> str:
    if bounds is None or math.isnan(bounds[0]):
        return _number(value)
    return f"{_number(value)} [{_number(bounds[0])}, {_number(bounds[1])}]"
