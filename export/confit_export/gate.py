"""The gate: how far a model may fall behind the fp32 graph it was made from, on validation, before it is no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.probes.metrics import Difference, accuracy, correct, paired_difference, ranked
from confit_runtime.arrays import Bools
from confit_runtime.model import Model
from confit_runtime.wording import bounds

ACCURACY = 0.005  # the share of validation clips that may be lost
MAP = 0.005  # of mean average precision, where clips have several labels
COSINE = 0.99  # the mean, over validation clips, between an embedding and that of fp32
STREAM = 1e-4  # the largest difference of an embedding between a stream in parts and the whole, in fp32


@dataclass(frozen=True)
class Answers:
    """What a model makes of each clip: its embedding `[clips, dim]`, and whether its best label is right.

    `right [labelled]` and their `groups` are of clips with a label: where clips may have several, one without any has no
    label that could be right. There `ranked` is of all labels on all clips (`confit_edge.probes.metrics.ranked`), for a best
    label says nothing of the rest.
    """

    right: Bools
    embeddings: npt.NDArray[np.float32]
    groups: list[str]
    ranked: dict[str, float] | None = None

    @classmethod
    def by(cls, model: Model, clips: Clips, corpus: Corpus) -> Answers:
        """Through the runtime, as a device hears them: the mean over a clip's hops."""
        places = [model.labels.index(corpus.classes[at]) for at in corpus.answers]
        heard = ([rows.mean(axis=0) for rows in model.rows(pcm, model.contract.sample_rate)] for pcm in clips.pcm)
        scores, embeddings = map(np.stack, zip(*heard, strict=True))
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        targets = clips.targets[:, corpus.answers]
        labelled = np.flatnonzero(targets.any(axis=1))
        scores = scores[:, places]
        of_all = ranked(scores, targets, clips.groups) if corpus.multi_label else None
        right = correct(scores[labelled], targets[labelled])
        return cls(right, embeddings, [clips.groups[row] for row in labelled], of_all)

    def measured(self) -> dict[str, Any]:
        """Accuracy with its interval; where clips have several labels also `map`, `map_low` and `map_high`."""
        return accuracy(self.right, self.groups).to_dict() | (self.ranked or {})


@dataclass(frozen=True)
class Verdict:
    """A model against its fp32 graph on the same validation clips.

    `lost` is the accuracy lost with its paired interval over groups, `clips_lost` the same in clips: below 200 clips a
    single one is more than the gate allows, and counts all the same, for nothing says that it was chance. `map_lost` is that
    of mean average precision, where clips have several labels.
    """

    lost: Difference
    clips_lost: int
    clips: int
    cosine: float
    map_lost: float | None = None

    @classmethod
    def of(cls, fp32: Answers, other: Answers, seed: int) -> Verdict:
        lost = paired_difference(fp32.right, other.right, fp32.groups, seed)
        net = int(fp32.right.sum()) - int(other.right.sum())
        cosine = float((fp32.embeddings * other.embeddings).sum(axis=1).mean())
        map_lost = fp32.ranked["map"] - other.ranked["map"] if fp32.ranked and other.ranked else None
        return cls(lost, net, len(fp32.right), cosine, map_lost)

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words; empty where the gate is passed."""
        found = []
        if self.lost.difference > ACCURACY + 1e-9:
            found.append(f"{self.loss} (allowed {100 * ACCURACY:g} points)")
        if self.map_lost is not None and not self.map_lost <= MAP + 1e-9:
            found.append(f"it loses {100 * self.map_lost:.2f} points of validation mAP (allowed {100 * MAP:g} points)")
        if not self.cosine >= COSINE:
            found.append(
                f"the mean cosine of its embeddings to those of fp32 is {self.cosine:.4f} (at least {COSINE:g})"
            )
        return found

    @property
    def loss(self) -> str:
        """The loss of accuracy in words, or the gain, in points and in clips; the interval is of what is told."""
        points, low, high = (100 * share for share in (self.lost.difference, self.lost.low, self.lost.high))
        verb = "loses"
        if points < 0:
            verb, points, low, high = "gains", -points, -high, -low
        interval = f" {bounds(low, high, '+.2f')}" if low < high else ""  # of a single clip there is none
        return (
            f"it {verb} {points:.2f} points of validation accuracy{interval},"
            f" {abs(self.clips_lost)} of {self.clips} clips"
        )

    @property
    def told(self) -> str:
        """All that it measured, in words."""
        of_map = "" if self.map_lost is None else f"its mAP changes by {0.0 - 100 * self.map_lost:+.2f} points; "
        return f"{of_map}{self.loss}; mean cosine {self.cosine:.4f}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "lost": self.lost.to_dict(),
            "clips_lost": self.clips_lost,
            "clips": self.clips,
            **({} if self.map_lost is None else {"map_lost": self.map_lost}),
            "cosine": self.cosine,
        }
