"""Hard negatives: background that a linear probe mistakes for a class, found by hearing all of it and learnt as unknown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import OnEmbedded, ignore_count
from confit_edge.probes.linear import LinearProbe
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm

Labelled = tuple[Floats, npt.NDArray[np.int8]]  # embeddings `[rows, dim]` and their targets `[rows, classes]`

FIRES = 0.3  # a score that smoothing and a low threshold could let through
ROUNDS = 3  # learning moves the planes of a probe, and then other rows fire
PIECE_S = 30  # seconds of a recording at a time, because features take many times the memory of the sound
MOST_S = 7200  # seconds of all recordings that are heard


@torch.no_grad()
def embed_background(
    encoder: Encoder, recordings: list[Pcm], device: torch.device, seed: int, *, on_embedded: OnEmbedded = ignore_count
) -> Floats:
    """Embeddings `[rows, dim]` of the concatenated recordings, one per hop if the encoder streams, else one per window.

    If there are more than `MOST_S` seconds, that many are heard, in pieces drawn at random.
    """
    encoder.eval()
    length, ends = PIECE_S * encoder.sample_rate, np.cumsum([len(pcm) for pcm in recordings])
    starts = np.arange(0, ends[-1] - encoder.window + 1, length)
    if len(starts) > MOST_S // PIECE_S:
        starts = np.sort(np.random.default_rng([seed, 31]).permutation(starts)[: MOST_S // PIECE_S])
    rows = [np.zeros((0, encoder.dim), np.float32)]
    for start in starts:
        sound = torch.from_numpy(_stretch(recordings, ends, int(start), int(start) + length)).to(device)
        if encoder.streaming:
            parts = [encoder.rows(sound)]
        else:
            parts = [encoder(windows) for windows in sound.unfold(0, encoder.window, encoder.window).split(64)]
        rows += [part.float().cpu().numpy() for part in parts]
        on_embedded(1)
    return np.concatenate(rows)


def pieces(encoder: Encoder, recordings: list[Pcm]) -> int:
    """The number of pieces of the recordings that `embed_background` hears."""
    samples = sum(map(len, recordings)) - encoder.window + 1
    return min(max(0, -(-samples // (PIECE_S * encoder.sample_rate))), MOST_S // PIECE_S)


def _stretch(recordings: list[Pcm], ends: npt.NDArray[np.int64], start: int, stop: int) -> Pcm:
    """Samples `start` to `stop` of the concatenated recordings."""
    begins = ends - [len(pcm) for pcm in recordings]
    there = np.flatnonzero((begins < stop) & (ends > start))
    return np.concatenate([recordings[at][max(0, start - begins[at]) : stop - begins[at]] for at in there])


def learn_hard(
    probe: LinearProbe, fitting: Labelled, choosing: Labelled, background: Floats, *, unknown: int
) -> LinearProbe:
    """`probe` fitted again, with the rows of `background [rows, dim]` that fire as examples of the column `unknown`.

    A random draw from an hour of background contains little that fires, and all of it would outweigh a dozen clips. So the
    rows that the probe mistakes for a class are added, the most certain first and at most as many as there are rows of the
    classes, and the probe is fitted again, at most `ROUNDS` times (bootstrapping: Sung and Poggio 1998).
    """
    embeddings, targets = fitting
    most = int((targets[:, unknown] == 0).sum())
    nothing = np.eye(targets.shape[1], dtype=np.int8)[unknown]
    taken = np.zeros(len(background), bool)
    for _ in range(ROUNDS):
        score = np.delete(probe.scores(background), unknown, axis=1).max(axis=1)
        score[taken] = 0.0
        new = [row for row in np.argsort(-score, kind="stable")[: most - int(taken.sum())] if score[row] > FIRES]
        if not new:
            break
        taken[new] = True
        hard = background[taken]
        probe = LinearProbe.fit(
            np.concatenate([embeddings, hard]),
            np.concatenate([targets, np.tile(nothing, (len(hard), 1))]),
            *choosing,
            multi_label=probe.multi_label,
        )
    return probe
