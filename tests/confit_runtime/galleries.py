"""Random prints, a program that writes a gallery, and a copy restored in place."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from confit_runtime.arrays import Floats
from tests import tiny_model


def unit_prints(rng: np.random.Generator, count: int) -> Floats:
    """Random prints `[count, dim]` for the tiny model, of unit length."""
    rows = rng.standard_normal((count, len(tiny_model.BANDS))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


WRITER = """
import sys
import numpy as np
from confit_runtime.gallery import Gallery

rng = np.random.default_rng()
with Gallery.open(sys.argv[1]) as gallery:
    for _ in range(int(sys.argv[3])):
        prints = rng.standard_normal((2, gallery.dim)).astype(np.float32)
        gallery.enroll(sys.argv[2], prints, sources=["a", "b" * 400], voiced_s=1.0)
        print("done", flush=True)
"""


def restore(copy: Path, path: Path) -> None:
    """Write it over the file, as cp does."""
    time.sleep(0.02)  # the clock of a file system may tick that slowly
    shutil.copyfile(copy, path)
