"""Typicality: how near an embedding is to a class. A probability does not show that a sound resembles no class at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats

RANK = 32  # directions in which clips of one class may differ; on held-out voices 16 did less, 64 no more
ROWS_A_DIRECTION = 10  # training clips needed per direction, so that a direction is not chance
NEAREST = 1e-3  # lower limit of 2D': clips that are almost identical do not show how others differ
ROUNDING = 1e-5  # keeps a factor from exceeding 1
UNKNOWN = 0.5  # factor of the unknown class, which is everywhere: that of an embedding at twice the usual distance D'


@dataclass(frozen=True)
class Typicality:
    """The factor by which a probability is multiplied: 2^(-D / 2D'), 1 at the mean of the class, 0.71 at D', 0.5 at 2D'.

    D is the squared Mahalanobis distance of an embedding from the mean of a class, with one covariance for all classes (Lee
    et al. 2018, arXiv 1807.03888). The covariance is that of probabilistic principal components: one variance in all but its
    leading directions (Tipping and Bishop 1999). D' is the median D of validation clips to their own class.

    For an embedding e of length 1 all this folds into the stored arrays: the factor is exp(-x) with
    x = offset + slope e - |axes e|^2, where `slope [classes, dim]`, `offset [classes]`, `axes [rank, dim]`. The factor of the
    column `unknown` is constant.
    """

    slope: Floats
    offset: Floats
    axes: Floats
    unknown: int | None = None

    @property
    def quadratic(self) -> Floats:
        """`[classes]`: 1 for each class with a distance, 0 for the unknown class, which has none."""
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
        """Fit to embeddings `[clips, dim]` of length 1 and their 0/1 classes `[clips, classes]`.

        A clip with several classes counts in each of them, so its other sounds count as variation within a class. Every
        class except `unknown` needs a training clip. The fewer clips there are beyond one per class, the fewer directions
        are distinguished; with almost none, D is the plain distance.
        """
        known = [column for column in range(targets.shape[1]) if column != unknown]
        means = np.zeros((targets.shape[1], embeddings.shape[1]))
        for column in known:
            means[column] = embeddings[targets[:, column] > 0].astype(np.float64).mean(axis=0)
        within = _minus_class_means(embeddings, targets, means, unknown)
        axes = _axes(within, len(known))
        apart = _minus_class_means(val_embeddings, val_targets, means, unknown)
        apart = apart if len(apart) else within
        distance = (apart**2).sum(axis=1) - ((apart @ axes.T) ** 2).sum(axis=1)
        scale = math.log(2) / max(2 * float(np.median(distance)), NEAREST)
        axes = axes * scale**0.5
        # for vectors of known length, a distance is linear except for the square along the axes
        slope = -2 * (scale * means - (means @ axes.T) @ axes)
        offset = scale * (1 + (means**2).sum(axis=1)) - ((means @ axes.T) ** 2).sum(axis=1) + ROUNDING
        if unknown is not None:
            slope[unknown], offset[unknown] = 0, -math.log(UNKNOWN)
        return cls(slope.astype(np.float32), offset.astype(np.float32), axes.astype(np.float32), unknown)

    def factors(self, embeddings: Floats) -> Floats:
        """The factors 0..1, `[..., classes]`, for the probabilities of embeddings `[..., dim]`."""
        along = ((embeddings @ self.axes.T) ** 2).sum(axis=-1, keepdims=True)
        found: Floats = np.exp(along * self.quadratic - embeddings @ self.slope.T - self.offset)
        return found


def _minus_class_means(
    embeddings: Floats, targets: npt.NDArray[np.int8], means: npt.NDArray[np.float64], unknown: int | None
) -> npt.NDArray[np.float64]:
    """`[n, dim]`: each embedding minus the mean of each of its classes, without `unknown`."""
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
    rest = values[rank:].sum() / max(1, dim - 1 - rank)  # embeddings are centred, so one direction has no variance
    if rank < 1 or rest <= 0:
        return np.zeros((0, dim))
    shares: npt.NDArray[np.float64] = np.sqrt(1 - np.minimum(1, rest / values[:rank]))
    return shares[:, None] * directions[:, :rank].T
