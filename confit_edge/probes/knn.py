"""The kNN probe: whether neighbours in a frozen embedding share their class (local structure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_edge.probes.metrics import correct

Floats = npt.NDArray[np.float32]

NEIGHBOURS = (1, 3, 5, 10, 20)  # tried on validation


@dataclass(frozen=True)
class KnnProbe:
    """Prints `[n, dim]` of unit length with 0/1 `targets [n, classes]`; the `k` nearest vote by cosine similarity."""

    prints: Floats
    targets: npt.NDArray[np.int8]
    k: int

    def scores(self, embeddings: Floats) -> Floats:
        """The share of the similarity-weighted votes for each class, `[clips, classes]`, of embeddings `[clips, dim]`."""
        cosine = embeddings @ self.prints.T
        k = min(self.k, len(self.prints))
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(cosine, nearest, axis=1) / 0.1)
        votes = np.einsum("nk,nkc->nc", weights, self.targets[nearest].astype(np.float32))
        return (votes / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    @classmethod
    def fit(
        cls,
        embeddings: Floats,
        targets: npt.NDArray[np.int8],
        val_embeddings: Floats,
        val_targets: npt.NDArray[np.int8],
    ) -> KnnProbe:
        """Keep the training embeddings; choose k by validation accuracy (the smallest of equals)."""
        probes = [cls(embeddings, targets, k) for k in NEIGHBOURS]
        right = [float(correct(probe.scores(val_embeddings), val_targets).mean()) for probe in probes]
        return probes[int(np.argmax(right))]
