"""The report of `probe`: rows for programs, tables for people, and a folder of both with plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from confit_edge.files import write_text
from confit_edge.judging.compare import (
    JudgedSubject,
    Split,
    differences,
    judge_subject,
    probe_subject,
    shared_corpora,
    split_of,
    subjects,
)
from confit_edge.probes.tables import escaped, markdown, nan_to_none, write_csv
from confit_edge.probes.verification import Trials, all_pairs, read_trials
from confit_edge.progress import Watcher, ignore_event
from confit_edge.runs import Run
from confit_runtime.formatting import format_count, format_percent

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "map": "mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
}
WEAKEST = 10  # classes shown in the text; classes.csv has all of them


@dataclass(frozen=True)
class ProbeReport:
    """Subjects judged on one split; the last is the run that the others are compared with."""

    judged: list[JudgedSubject]
    split: Split
    trials: Trials

    @property
    def run(self) -> JudgedSubject:
        return self.judged[-1]

    @property
    def summary(self) -> dict[str, Any]:
        """The data behind the numbers: split, clips, groups, classes, and verification trials."""
        clips = split_of(self.run.probed.corpus, self.split)
        return {
            "split": self.split,
            "clips": len(clips),
            "groups": len(set(clips.groups)),
            "classes": int(clips.targets.any(axis=0).sum()),
            "resampled": self.run.probes["linear"].resampled,
            "trials": len(self.trials),
            "trials_same": int(self.trials.same.sum()),
            "trials_left_out": self.trials.left_out,
        }

    def probe_rows(self) -> list[dict[str, Any]]:
        """A row per encoder and probe: each metric, and the bounds of its interval as `_low` and `_high`."""
        return [
            {
                "encoder": one.probed.subject.name,
                "objective": one.probed.subject.objective,
                "probe": name,
                **({"k": one.probed.probes.knn.k, "metric": one.probed.probes.knn.metric} if name == "knn" else {}),
                **{
                    f"{metric}{end}": value
                    for metric, estimate in judgement.metrics.items()
                    for end, value in zip(("", "_low", "_high"), _bounds(estimate), strict=True)
                },
            }
            for one in self.judged
            for name, judgement in one.probes.items()
        ]

    def verification_rows(self) -> list[dict[str, Any]]:
        """A row per encoder: the equal error rate of its pairs of clips."""
        return [
            {
                "encoder": one.probed.subject.name,
                "objective": one.probed.subject.objective,
                **dict(zip(("eer", "eer_low", "eer_high"), _bounds(one.verification), strict=True)),
            }
            for one in self.judged
            if one.verification
        ]

    def difference_rows(self) -> list[dict[str, Any]]:
        """How far the run is above each other subject, and its linear probe above its own head."""
        return [row for other in self.judged for row in differences(self.run, other)]

    def class_rows(self) -> list[dict[str, Any]]:
        """A row per encoder, probe and class."""
        return [
            {"encoder": one.probed.subject.name, "probe": name, **row}
            for one in self.judged
            for name, judgement in one.probes.items()
            for row in judgement.per_class
        ]

    def _title(self, metric: str) -> str:
        """The title of a metric; if clips may have several labels, accuracy judges only the best one."""
        of_best = metric == "accuracy" and "map" in self.run.probes["linear"].metrics
        return "best label right" if of_best else TITLES[metric]

    def text(self, name: Callable[[str], str] = str) -> str:
        """The tables, for a person to read; `name` formats the names of encoders and classes for them."""
        names = sorted(self.run.probes["linear"].metrics, key=lambda key: key != "map")  # mAP, if present, comes first
        probes = [
            [name(row["encoder"]), _probe_title(row)]
            + [format_percent(row[key], row[f"{key}_low"], row[f"{key}_high"], unit="") for key in names]
            for row in self.probe_rows()
        ]
        about = self.summary
        parts = [
            f"{format_count(about['clips'], f'{self.split} clip')} from {format_count(about['groups'], 'group')} and"
            f" {format_count(about['classes'], 'class', 'classes')}; per cent, with 95 % intervals that treat"
            f" {about['resampled']} as independent.",
            markdown(["encoder", "probe", *map(self._title, names)], probes),
        ]
        if pairs := self.verification_rows():
            rows = [
                [name(row["encoder"]), format_percent(row["eer"], row["eer_low"], row["eer_high"], unit="")]
                for row in pairs
            ]
            left_out = f" ({format_count(about['trials_left_out'], 'pair')} of two unlabelled clips left out)"
            parts += [
                f"Verification: {format_count(about['trials'], 'pair')} of clips, {about['trials_same']} of the same class, by"
                f" cosine alone{left_out if about['trials_left_out'] else ''}.",
                markdown(["encoder", "equal error rate"], rows),
            ]
        gains = [
            [
                f"{name(row['encoder'])}, {row['probe']}",
                f"{name(row['over'])}, {row['over_probe']}",
                self._title(row["metric"]),
                format_percent(row["difference"], row["low"], row["high"], unit=""),
            ]
            for row in self.difference_rows()
        ]
        if gains:
            parts += ["Differences on the same clips, in points.", markdown(["of", "over", "metric", "by"], gains)]
        weakest = sorted(self.run.probes["linear"].per_class, key=lambda row: (row["f1"], row["class"]))[:WEAKEST]
        columns = [key for key in weakest[0] if not key.startswith("recall_")]
        parts += [
            f"Weakest classes of the linear probe of {name(self.run.probed.subject.name)}.",
            markdown(
                [key.replace("_", " ") for key in columns],
                [
                    [name(value) if isinstance(value := row[key], str) else _cell(value) for key in columns]
                    for row in weakest
                ],
            ),
        ]
        return "\n\n".join(parts)

    def write(self, out: Path, say: Callable[[str], None]) -> None:
        """Write `probe.md`, `probe.json`, a CSV file for each kind of row, and then plots."""
        from confit_edge.geometry import plots

        folder = out / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {
            "probes": self.probe_rows(),
            "verification": self.verification_rows(),
            "differences": self.difference_rows(),
            "classes": self.class_rows(),
        }
        for name, rows in kinds.items():
            write_csv(out / f"{name}.csv", rows)
        plain = {"summary": self.summary, **{name: list(map(nan_to_none, rows)) for name, rows in kinds.items()}}
        write_text(out / "probe.json", json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(out / "probe.md", self.text(escaped) + "\n")
        with plots.report_failed_plot(path := folder / "accuracy.png", say):
            plots.accuracy_bars(kinds["probes"], self.split, path)
        run, corpus = self.run.probed, self.run.probed.corpus
        if not corpus.multi_label:
            predicted = run.probes.linear.scores(run.embeddings(self.split)).argmax(axis=1)
            truth = split_of(corpus, self.split).labels
            with plots.report_failed_plot(path := folder / "confusion.png", say):
                plots.confusion_matrix(truth, predicted, corpus.classes, path)


def side_by_side(
    runs: list[Run],
    *,
    split: Split,
    device: torch.device,
    manifest: Path | None = None,
    trials: Path | None = None,
    notify: Watcher = ignore_event,
) -> ProbeReport:
    """Probe the runs and the encoders they started from, by the recipe of the last run, on the same clips.

    `manifest` names clips to use instead of the runs' own; `trials` is a file with pairs for verification, instead of all
    pairs. Raises UsageError if the runs' own clips or splits differ, or the split has no clips.
    """
    recipe, rate = runs[-1].recipe, runs[-1].encoder.sample_rate
    corpora = shared_corpora(runs, recipe, split, manifest)
    clips = split_of(corpora[rate], split)
    pairs = read_trials(trials, clips, corpora[rate].manifest.folder) if trials else all_pairs(clips, recipe.seed)
    judged = []
    for subject in subjects(runs, corpora):
        probed = probe_subject(subject, corpora[subject.encoder.sample_rate], recipe, device, notify)
        judged.append(judge_subject(probed, split, pairs, recipe.seed))
    return ProbeReport(judged, split, pairs)


def _bounds(estimate: Any) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _probe_title(row: dict[str, Any]) -> str:
    if row["probe"] == "knn":
        return f"kNN (k {row['k']}, {row['metric']})"
    return {"head": "own head", "linear": "linear"}[row["probe"]]


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{100 * value:.1f}"  # a label on every clip leaves nothing to rank
