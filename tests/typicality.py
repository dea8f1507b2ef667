"""The factors of a typicality, from the formula that it is kept for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confit_edge.probes.typicality import Typicality

Floats = npt.NDArray[np.float32]


def factors(typicality: Typicality, embeddings: Floats) -> Floats:
    """0..1, `[..., classes]`, of embeddings `[..., dim]` of length 1."""
    along = ((embeddings @ typicality.axes.T) ** 2).sum(axis=-1, keepdims=True)
    found: Floats = np.exp(along * typicality.quadratic - embeddings @ typicality.slope.T - typicality.offset)
    return found
