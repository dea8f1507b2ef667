"""Sound levels, frame by frame, and runs of frames or samples with a common property."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confit_runtime.audio import Pcm

FRAME_S = 0.02
FLOOR_DB = -120.0  # how digital silence is reported
_FRAMES_PER_BLOCK = 4096  # so that hours of sound are not copied at once


def frame_levels(pcm: Pcm, rate: int) -> npt.NDArray[np.float64]:
    """The level of each 20 ms frame, `[frames]` in dB of full scale; an incomplete last frame is ignored."""
    size = max(1, round(rate * FRAME_S))
    frames = pcm[: max(1, len(pcm) // size) * size].astype(np.float64).reshape(-1, max(1, min(size, len(pcm))))
    return np.maximum(10 * np.log10(np.square(frames).mean(axis=1) + 1e-30), FLOOR_DB)


def loudest_db(pcm: Pcm, rate: int) -> float:
    """The level of the loudest 20 ms frame of a clip or a recording `[samples]`, in dB of full scale, without its DC offset."""
    part = max(1, round(rate * FRAME_S)) * _FRAMES_PER_BLOCK
    offset = np.float32(pcm.mean(dtype=np.float64)) if pcm.size else np.float32(0)
    parts = (frame_levels(pcm[at : at + part] - offset, rate) for at in range(0, len(pcm), part))
    return float(max((levels.max() for levels in parts), default=FLOOR_DB))


def to_db(level: float, floor: float = FLOOR_DB) -> float:
    """An amplitude 0..1 in dB of full scale, no lower than `floor`."""
    return max(floor, float(20 * np.log10(level + 1e-30)))


def runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The start and the end (exclusive) of each run of True, `[runs, 2]`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)
