"""Embeddings of whole clips, as a device makes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from confit_edge.encoders.base import Encoder, centred
from confit_edge.progress import Progress
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm

OnEmbedded = Callable[[int], None]  # is called with the number of sounds embedded since the last call


def counted(progress: Progress, total: int) -> OnEmbedded:
    """A callback that counts sounds as they are embedded, and reports, from 0 on, how many of the `total` have been."""
    done = 0

    def on_embedded(sounds: int) -> None:
        nonlocal done
        done += sounds
        progress(done, total)

    on_embedded(0)
    return on_embedded


def ignore_count(sounds: int) -> None:
    """A callback for progress that ignores it."""


@torch.no_grad()
def embed_clips(
    encoder: Encoder, clips: list[Pcm], device: torch.device, *, on_embedded: OnEmbedded = ignore_count
) -> Floats:
    """Embeddings `[clips, dim]` of whole clips, as a device makes them: the mean over hops, of length 1."""
    encoder.eval()
    out = np.zeros((len(clips), encoder.dim), np.float32)
    short = [index for index, clip in enumerate(clips) if len(clip) <= encoder.window]
    for start in range(0, len(short), encoder.at_once):
        rows = short[start : start + encoder.at_once]
        windows = torch.stack([centred(torch.tensor(clips[row]), encoder.window) for row in rows])
        out[rows] = encoder(windows.to(device)).cpu().numpy()
        on_embedded(len(rows))
    for row in set(range(len(clips))) - set(short):
        mean = encoder.rows(torch.tensor(clips[row]).to(device)).mean(dim=0).float()
        out[row] = torch.nn.functional.normalize(mean, dim=0).cpu().numpy()
        on_embedded(1)
    return out
