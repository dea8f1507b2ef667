"""Synthetic quiet rooms: a model file stores the embeddings of such rooms next to its cohort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm
from confit_runtime.model import Model
from confit_runtime.synthetic import white_noise

QUIET_DB = (-80.0, -65.0, -50.0, -40.0)  # RMS, of full scale
ROOMS = 2 * len(QUIET_DB)


def quiet_rooms(samples: int) -> Iterator[Pcm]:
    """Yield soft noise `[samples]`, white and rumbling, at several levels."""
    hiss = white_noise(samples)
    rumble = np.cumsum(hiss - hiss.mean())
    for level in QUIET_DB:
        for noise in (hiss, rumble):
            yield (10 ** (level / 20) * noise / np.sqrt(np.square(noise).mean())).astype(np.float32)


def embed_rooms(model: Model) -> Floats:
    """Return the embeddings `[ROOMS, dim]` of quiet rooms, computed by this very model."""
    contract = model.contract
    return np.stack([model.embed(room, contract.sample_rate) for room in quiet_rooms(contract.window)])
