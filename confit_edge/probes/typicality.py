"""How near an embedding lies to a class: what a probability cannot tell of sound that is like no class at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats

RANK = 32  # directions in which clips of one class are known to differ; on held-out voices 16 did less, 64 no more
ROWS_A_DIRECTION = 10  # of training clips, lest a direction be chance
NEAREST = 1e-3  # of 2D': clips that are all but one sound say nothing of how others differ
ROUNDING = 1e-5  # keeps a factor from passing 1
UNKNOWN = 0.5  # of the unknown class, which is everywhere: as of an embedding twice as far from its class as usual


@dataclass(frozen=True)
class Typicality:
    """What a probability is multiplied by: 2^(-D / 2D'), 1 at the mean of the class, 0.71 at D', a half at 2D'.

    D is the squared Mahalanobis distance of an embedding from the mean of a class, with one covariance for all classes (Lee
    et al. 2018, arXiv 1807.03888), that of probabilistic principal components: one variance in all but its leading
    directions (Tipping and Bishop 1999). D' is the median of validation clips from their own class.

    All of it is folded into what is kept, for an embedding e of length 1: the factor is exp(-x) with
    x = offset + slope e - |axes e|^2, where `slope [classes, dim]`, `offset [classes]`, `axes [rank, dim]`. That of the class
    `unknown`, a column, is constant.
    """

    slope: Floats
    offset: Floats
    axes: Floats
    unknown: int | None = None

    @property
    def quadratic(self) -> Floats:
        """`[classes]`: 1 for each that is at a distance, 0 for the unknown class, which is everywhere."""
        taking = np.ones(len(self.offset), np.float32)
        if self.unknown is not None:
            taking[self.unknown] = 0
        return taking

    @classmethod
    def fit(
        cls,
        embeddings: Floats,
        targets: npt.NDArray[np.int8],
        val_embeddings: Floats,
        val_targets: npt.NDArray[np.int8],
        *,
        unknown: int | None = None,
    ) -> Typicality:
        """On embeddings `[clips, dim]` of length 1 with their classes (0/1 `[clips, classes]`).

        A clip of several classes counts in each; what else is heard in it is then among the ways in which clips of one class
        differ. Each class but `unknown` needs a training clip. The fewer clips there are beyond one a class, the fewer
        directions are told apart: with next to none, D is the plain distance.
        """
        known = [column for column in range(targets.shape[1]) if column != unknown]
        means = np.zeros((targets.shape[1], embeddings.shape[1]))
        for column in known:
            means[column] = embeddings[targets[:, column] > 0].astype(np.float64).mean(axis=0)
        within = _from_their_means(embeddings, targets, means, unknown)
        axes = _axes(within, len(known))
        apart = _from_their_means(val_embeddings, val_targets, means, unknown)
        apart = apart if len(apart) else within
        distance = (apart**2).sum(axis=1) - ((apart @ axes.T) ** 2).sum(axis=1)
        scale = math.log(2) / max(2 * float(np.median(distance)), NEAREST)
        axes = axes * scale**0.5
        # with both lengths known, a distance is linear but for the square along the axes
        slope = -2 * (scale * means - (means @ axes.T) @ axes)
        offset = scale * (1 + (means**2).sum(axis=1)) - ((means @ axes.T) ** 2).sum(axis=1) + ROUNDING
        if unknown is not None:
            slope[unknown], offset[unknown] = 0, -math.log(UNKNOWN)
        return cls(slope.astype(np.float32), offset.astype(np.float32), axes.astype(np.float32), unknown)

    def factors(self, embeddings: Floats) -> Floats:
        """What the probabilities of embeddings `[..., dim]` are multiplied by, 0..1, `[..., classes]`."""
        along = ((embeddings @ self.axes.T) ** 2).sum(axis=-1, keepdims=True)
        found: Floats = np.exp(along * self.quadratic - embeddings @ self.slope.T - self.offset)
        return found


def _from_their_means(
    embeddings: Floats, targets: npt.NDArray[np.int8], means: npt.NDArray[np.float64], unknown: int | None
) -> npt.NDArray[np.float64]:
    """`[n, dim]`: each embedding less the mean of each of its classes but `unknown`."""
    clips, classes = np.nonzero(targets)
    kept = classes != (-1 if unknown is None else unknown)
    apart: npt.NDArray[np.float64] = embeddings[clips[kept]] - means[classes[kept]]
    return apart


def _axes(within: npt.NDArray[np.float64], classes: int) -> npt.NDArray[np.float64]:
    """`axes [rank, dim]`: |x|^2 - |axes x|^2 is the squared Mahalanobis distance of x, in units of the least variance."""
    dim = within.shape[1]
    free = len(within) - classes
    rank = min(RANK, dim // 3, free // ROWS_A_DIRECTION)
    values, directions = np.linalg.eigh(within.T @ within)
    values, directions = values[::-1], directions[:, ::-1]
    rest = values[rank:].sum() / max(1, dim - 1 - rank)  # embeddings are centred: one direction is nothing
    if rank < 1 or rest <= 0:
        return np.zeros((0, dim))
    shares: npt.NDArray[np.float64] = np.sqrt(1 - np.minimum(1, rest / values[:rank]))
    return shares[:, None] * directions[:, :rank].T
