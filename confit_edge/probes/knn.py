"""The kNN probe: whether neighbours in a frozen embedding share their class (local structure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from confit_edge.probes.metrics import merit
from confit_runtime.arrays import Floats, Targets

Metric = Literal["cosine", "standardised"]

NEIGHBOURS = (1, 3, 5, 10, 20)  # tried on validation
METRICS: tuple[Metric, ...] = ("cosine", "standardised")  # tried on validation
_BLOCK = 1024  # clips whose similarities are held at once
_VOTES = 1 << 21  # votes (clips x neighbours x classes) held at once for multi-label clips


@dataclass(frozen=True)
class KnnProbe:
    """Training embeddings (`prints`) of unit length, `[n, dim]`, with 0/1 `targets [n, classes]`; the `k` nearest ones vote.

    Votes are weighted by similarity. `metric` defines it: the `cosine`, or the Euclidean distance between embeddings that
    are `standardised` by the prints, so that every dimension has the same variance. (The plain Euclidean distance of unit
    vectors ranks like the cosine.)
    """

    prints: Floats
    targets: Targets
    k: int
    metric: Metric = "cosine"

    def scores(self, embeddings: Floats) -> Floats:
        """The share of the similarity-weighted votes for each class, `[clips, classes]`, for embeddings `[clips, dim]`."""
        return self._votes(*self._nearest(embeddings, self.k), self.k)

    @classmethod
    def fit(
        cls,
        embeddings: Floats,
        targets: Targets,
        val_embeddings: Floats,
        val_targets: Targets,
        *,
        multi_label: bool = False,
    ) -> KnnProbe:
        """Keep the training embeddings; choose the metric and k by validation accuracy, or by mAP if `multi_label`.

        In a tie, the cosine wins, and then the smallest k.
        """
        best: tuple[float, KnnProbe] | None = None
        for metric in METRICS:
            found = cls(embeddings, targets, 1, metric)._nearest(val_embeddings, max(NEIGHBOURS))
            for k in NEIGHBOURS:
                probe = cls(embeddings, targets, k, metric)
                reached = merit(probe._votes(*found, k), val_targets, multi_label=multi_label)
                if best is None or reached > best[0]:
                    best = (reached, probe)
        assert best is not None
        return best[1]

    def _nearest(self, embeddings: Floats, k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """The rows of the `k` most similar prints, most similar first, and their similarities, `[clips, k]` each."""
        prints, k = self._placed(self.prints), min(k, len(self.prints))
        rows, similarities = [np.zeros((0, k), np.int64)], [np.zeros((0, k), np.float32)]
        for start in range(0, len(embeddings), _BLOCK):
            similarity = self._similarity(self._placed(embeddings[start : start + _BLOCK]), prints)
            near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(similarity, near, axis=1), axis=1, kind="stable")
            rows.append(np.take_along_axis(near, order, axis=1))
            similarities.append(np.take_along_axis(similarity, rows[-1], axis=1))
        return np.concatenate(rows), np.concatenate(similarities)

    def _placed(self, embeddings: Floats) -> Floats:
        """The embeddings in the space of the metric, where the mean squared distance of two prints is about 2."""
        if self.metric == "cosine":
            return embeddings
        scale = np.maximum(self.prints.std(axis=0), 1e-6) * np.float32(self.prints.shape[1] ** 0.5)
        return (embeddings - self.prints.mean(axis=0)) / scale

    def _similarity(self, embeddings: Floats, prints: Floats) -> Floats:
        """The cosine, or 1 - d^2 / 2, which is the cosine for vectors of unit length, `[clips, prints]`."""
        products = embeddings @ prints.T
        if self.metric == "cosine":
            return products
        lengths = np.square(embeddings).sum(axis=1)[:, None] + np.square(prints).sum(axis=1)
        return 1 - (lengths - 2 * products) / 2

    def _votes(self, rows: npt.NDArray[np.int64], similarity: Floats, k: int) -> Floats:
        """The votes of the first `k`: summed by label if every print has exactly one, else computed for a part at a time."""
        rows, similarity = rows[:, :k], similarity[:, :k]
        weights = np.exp((similarity - similarity[:, :1]) / 0.1)
        votes = np.zeros((len(rows), self.targets.shape[1]), np.float32)
        if (self.targets.sum(axis=1) == 1).all():
            np.add.at(votes, (np.arange(len(rows))[:, None], self.targets.argmax(axis=1)[rows]), weights)
        else:
            step = max(1, _VOTES // max(1, rows.shape[1] * votes.shape[1]))
            for part in (slice(start, start + step) for start in range(0, len(rows), step)):
                cast = self.targets[rows[part]].astype(np.float32)
                np.einsum("nk,nkc->nc", weights[part], cast, out=votes[part])
        votes /= weights.sum(axis=1, keepdims=True)
        return votes
