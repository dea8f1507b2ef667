"""Training views for the linear probe, in addition to the clips themselves: clips as a device will hear them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from confit_edge.data.augment import crop
from confit_edge.data.compose import compose, nearest_clip
from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import OnEmbedded, embed_clips, ignore_count
from confit_edge.recipe import Recipe
from confit_edge.windows import STREAM_S, gaps_s, make_augmenter, off_samples
from confit_runtime.arrays import Floats, Targets
from confit_runtime.audio import Pcm

ROWS = 8  # consecutive rows from one place in the background
ON_S = 0.10  # a row within this distance represents the clip (`nearest_clip`); beyond `off_samples` it represents none


def augmented_views(
    encoder: Encoder, corpus: Corpus, recipe: Recipe, device: torch.device, *, on_embedded: OnEmbedded = ignore_count
) -> tuple[Floats, Targets]:
    """Embeddings `[views, dim]` and targets of each training clip augmented `probe_views` times."""
    augment, rng = make_augmenter(encoder, corpus, recipe), np.random.default_rng([recipe.seed, 2])
    order = rng.permutation(np.repeat(np.arange(len(corpus.train)), recipe.probe_views))
    parts = []
    for start in range(0, len(order), 64):
        views = list(augment([corpus.train.pcm[row] for row in order[start : start + 64]], rng))
        parts.append(embed_clips(encoder, views, device, on_embedded=on_embedded))
    return np.concatenate(parts), corpus.train.targets[order]


@torch.no_grad()
def stream_views(
    encoder: Encoder,
    corpus: Corpus,
    clips: Clips,
    background: list[Pcm],
    recipe: Recipe,
    device: torch.device,
    *,
    views: int,
    salt: int,
    on_embedded: OnEmbedded = ignore_count,
) -> tuple[Floats, Targets]:
    """Embeddings `[rows, dim]` and targets of rows of streams composed from `clips` over `background`.

    Each clip is in `views` streams. A row in the middle of a clip, or within a clip longer than a window, has that clip's
    labels; a row between clips, or over a fragment of one, is of the unknown class; rows in between are left out. A long
    clip gives no more rows than most clips do, or a class of long clips would seem more frequent. There are as many unknown
    rows as others. Half of the unknown rows are background alone: a device hears mostly that, and a stream dense with clips
    has none of it.
    """
    assert corpus.unknown is not None
    encoder.eval()
    unknown = corpus.classes.index(corpus.unknown)
    nothing = np.eye(len(corpus.classes), dtype=np.int8)[unknown]
    rate, gaps, embeddings, targets = encoder.sample_rate, gaps_s(encoder), [], []
    sources: list[npt.NDArray[np.int64]] = []
    for view in range(views):
        rng = np.random.default_rng([recipe.seed, salt, view])
        for part in _parts(clips, rate, gaps[1], np.random.default_rng([recipe.seed, salt, view, 1])):
            samples = sum(len(clips.pcm[at]) for at in part) + int(gaps[1] * rate * len(part))
            stream, spoken = compose(
                [clips.pcm[at] for at in part],
                [str(at) for at in part],
                background,
                samples=samples,
                rate=rate,
                snr=(recipe.snr_low, recipe.snr_high),
                rng=rng,
                gap_s=gaps,
            )
            stream = stream[: spoken[-1].end + encoder.window]
            rows = encoder.rows(torch.from_numpy(stream).to(device)).cpu().numpy()
            middles = encoder.window / 2 + encoder.hop * np.arange(len(rows))
            nearest, distance = nearest_clip(middles, spoken, encoder.window)
            own = clips.targets[[int(word.label) for word in spoken]][nearest]
            near, far = distance <= ON_S * rate, distance >= off_samples(encoder)
            embeddings.append(rows[near | far])
            targets.append(np.where(far[:, None], nothing, own)[near | far])
            before = sources[-1].max() + 1 if sources else 0
            sources.append(before + nearest[near | far])
            on_embedded(len(part))
    embedding, target = np.concatenate(embeddings), np.concatenate(targets)
    rng = np.random.default_rng([recipe.seed, salt])
    on, off = np.flatnonzero(target[:, unknown] == 0), np.flatnonzero(target[:, unknown])
    on = on[_cap_rows_per_source(np.concatenate(sources)[on], math.floor(2 * ON_S * rate / encoder.hop) + 1, rng)]
    alone = background_rows(encoder, background, max(len(on) // 2, len(on) - len(off)), device, rng)
    off = rng.choice(off, len(on) - len(alone), replace=False)
    kept = np.sort(np.concatenate([on, off]))
    return np.concatenate([embedding[kept], alone]), np.concatenate([target[kept], np.tile(nothing, (len(alone), 1))])


def _cap_rows_per_source(sources: npt.NDArray[np.int64], short: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices into `sources [rows]`: at most the median number of rows per source are kept for each, or `short` if more."""
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    most = max(short, int(np.median(counts))) if len(counts) else short
    if counts.max(initial=0) <= most:
        return np.arange(len(sources))
    order = np.lexsort((rng.random(len(sources)), inverse))  # by source, shuffled within each
    within = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[within < most])


def _parts(clips: Clips, rate: int, gap_s: float, rng: np.random.Generator) -> list[list[int]]:
    """The clips of each stream of at most `STREAM_S`: all in one stream if they fit, else shuffled."""
    lengths = [len(pcm) + gap_s * rate for pcm in clips.pcm]
    if sum(lengths) <= STREAM_S * rate:
        return [list(range(len(lengths)))]
    parts: list[list[int]] = [[]]
    held = 0.0
    for at in rng.permutation(len(lengths)):
        if parts[-1] and held + lengths[at] > STREAM_S * rate:
            parts.append([])
            held = 0.0
        parts[-1].append(int(at))
        held += lengths[at]
    return parts


@torch.no_grad()
def background_rows(
    encoder: Encoder, background: list[Pcm], count: int, device: torch.device, rng: np.random.Generator
) -> Floats:
    """Embeddings `[count, dim]` of random places in the background; every second place is mixed with another one."""
    length = encoder.window + (ROWS - 1) * encoder.hop
    shares = np.array([len(recording) for recording in background]) / sum(map(len, background))
    rows = [np.zeros((0, encoder.dim), np.float32)]
    for number in range(-(-count // ROWS)):
        first, second = (crop(background[at], length, rng) for at in rng.choice(len(background), 2, p=shares))
        gain = np.float32(rng.uniform(0.3, 1.0) if number % 2 else 0.0)
        rows.append(encoder.rows(torch.from_numpy(first + gain * second).to(device)).cpu().numpy())
    return np.concatenate(rows)[:count]
