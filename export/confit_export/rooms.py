"""Rooms in which nothing sounds, made by rule: what a model makes of them stands in its file, beside the cohort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm
from confit_runtime.model import Model
from confit_runtime.synthetic import white

QUIET_DB = (-80.0, -65.0, -50.0, -40.0)  # RMS, of full scale
ROOMS = 2 * len(QUIET_DB)


def quiet_rooms(samples: int) -> Iterator[Pcm]:
    """Soft noise `[samples]`, white and rumbling, at several levels."""
    hiss = white(samples)
    rumble = np.cumsum(hiss - hiss.mean())
    for level in QUIET_DB:
        for noise in (hiss, rumble):
            yield (10 ** (level / 20) * noise / np.sqrt(np.square(noise).mean())).astype(np.float32)


def embed_rooms(model: Model) -> Floats:
    """Embeddings `[ROOMS, dim]` of quiet rooms, as this very file makes them."""
    contract = model.contract
    return np.stack([model.embed(room, contract.sample_rate) for room in quiet_rooms(contract.window)])
