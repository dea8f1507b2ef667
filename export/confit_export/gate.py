"""The gate: how much worse than its fp32 graph a model may be on validation before the export refuses to write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.probes.metrics import Difference, accuracy, correct, paired_difference, ranked
from confit_runtime.arrays import Bools
from confit_runtime.formatting import format_interval
from confit_runtime.model import Model

ACCURACY = 0.005  # the share of validation clips that may be lost
MAP = 0.005  # of mean average precision, where clips have several labels
COSINE = 0.99  # the mean, over validation clips, between an embedding and that of fp32
STREAM = 1e-4  # the largest difference in an embedding between sound streamed in parts and the whole at once, in fp32


@dataclass(frozen=True)
class Predictions:
    """A model's answer to each clip: its embedding `[clips, dim]`, and whether its best label is right.

    `correct [labelled]` and `groups` cover only the clips that have a label; in data with several labels a clip may have
    none, and then no answer could be right. For such data `ranking` scores all labels on all clips
    (`confit_edge.probes.metrics.ranked`), because the best label says nothing about the others.
    """

    correct: Bools
    embeddings: npt.NDArray[np.float32]
    groups: list[str]
    ranking: dict[str, float] | None = None

    @classmethod
    def of(cls, model: Model, clips: Clips, corpus: Corpus) -> Predictions:
        """Run `clips` through the runtime as a device would, and average each clip over its hops."""
        columns = [model.labels.index(corpus.classes[column]) for column in corpus.answers]
        outputs = ([rows.mean(axis=0) for rows in model.rows(pcm, model.contract.sample_rate)] for pcm in clips.pcm)
        scores, embeddings = map(np.stack, zip(*outputs, strict=True))
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        targets = clips.targets[:, corpus.answers]
        labelled = np.flatnonzero(targets.any(axis=1))
        scores = scores[:, columns]
        ranking = ranked(scores, targets, clips.groups) if corpus.multi_label else None
        right = correct(scores[labelled], targets[labelled])
        return cls(right, embeddings, [clips.groups[row] for row in labelled], ranking)

    def metrics(self) -> dict[str, Any]:
        """Accuracy with its interval; where clips have several labels also `map`, `map_low` and `map_high`."""
        return accuracy(self.correct, self.groups).to_dict() | (self.ranking or {})


@dataclass(frozen=True)
class Verdict:
    """A model against its fp32 graph on the same validation clips.

    `lost` is the loss of accuracy with its paired interval over groups, and `clips_lost` the same loss in clips. With fewer
    than 200 clips, losing a single one is already more than the gate allows; it counts all the same, because nothing
    shows that it was chance. `map_lost` is the loss of mean average precision, where clips have several labels.
    """

    lost: Difference
    clips_lost: int
    clips: int
    cosine: float
    map_lost: float | None = None

    @classmethod
    def compare(cls, fp32: Predictions, other: Predictions, seed: int) -> Verdict:
        lost = paired_difference(fp32.correct, other.correct, fp32.groups, seed)
        clips_lost = int(fp32.correct.sum()) - int(other.correct.sum())
        cosine = float((fp32.embeddings * other.embeddings).sum(axis=1).mean())
        map_lost = fp32.ranking["map"] - other.ranking["map"] if fp32.ranking and other.ranking else None
        return cls(lost, clips_lost, len(fp32.correct), cosine, map_lost)

    @property
    def loses_too_much(self) -> bool:
        """Whether it loses more accuracy than the gate allows."""
        return self.lost.difference > ACCURACY + 1e-9

    @property
    def failures(self) -> list[str]:
        """The conditions that do not hold, in words; empty if the model passes the gate."""
        failed = []
        if self.loses_too_much:
            failed.append(f"{self.accuracy_change} (at most {100 * ACCURACY:g} points allowed)")
        if self.map_lost is not None and not self.map_lost <= MAP + 1e-9:
            failed.append(
                f"it loses {100 * self.map_lost:.2f} points of validation mAP (at most {100 * MAP:g} points allowed)"
            )
        if not self.cosine >= COSINE:
            failed.append(
                f"the mean cosine between its embeddings and those of fp32 is {self.cosine:.4f} (at least {COSINE:g} required)"
            )
        return failed

    @property
    def accuracy_change(self) -> str:
        """The loss or gain of accuracy in words, in points and in clips, with its interval."""
        points, low, high = (100 * share for share in (self.lost.difference, self.lost.low, self.lost.high))
        verb = "loses"
        if points < 0:
            verb, points, low, high = "gains", -points, -high, -low
        interval = f" {format_interval(low, high, '+.2f')}" if low < high else ""  # a single clip has no interval
        return (
            f"it {verb} {points:.2f} points of validation accuracy{interval},"
            f" {abs(self.clips_lost)} of {self.clips} clips"
        )

    @property
    def summary(self) -> str:
        """Everything the verdict measured, in words."""
        map_change = "" if self.map_lost is None else f"its mAP changes by {0.0 - 100 * self.map_lost:+.2f} points; "
        return f"{map_change}{self.accuracy_change}; mean cosine {self.cosine:.4f}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "lost": self.lost.to_dict(),
            "clips_lost": self.clips_lost,
            "clips": self.clips,
            **({} if self.map_lost is None else {"map_lost": self.map_lost}),
            "cosine": self.cosine,
        }
