"""Noise, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from confit_runtime.arrays import Floats

RATE = 16_000


def noise(samples: int = RATE, seed: int = 0, level: float = 0.1) -> Floats:
    """White noise whose root mean square is about `level`."""
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write_noise(path: Path, seed: int, seconds: float = 0.3, rate: int = RATE) -> Path:
    """Write a sound file, and the folders it is in; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * rate)), rate)
    return path
