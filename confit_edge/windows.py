"""The sound that training and the probes both give an encoder: augmented windows, and clips composed into a stream."""

from __future__ import annotations

import numpy as np

from confit_edge.data.augment import Augmenter, varied
from confit_edge.data.corpus import Corpus
from confit_edge.data.effects import make_effects
from confit_edge.encoders.base import Encoder
from confit_edge.recipe import Recipe
from confit_runtime.audio import Pcm

OFF_S = 0.40  # a window of `SHORT_S` at least this far from every clip (`nearest_clip`) contains none of them
SHORT_S = 1.28  # a longer window contains a whole clip for as much longer, so distances grow with it
STREAM_S = 1800  # length of a stream to learn from: enough, and 115 MB
GAP_S = (0.1, 0.9)  # between the clips of a stream to learn from, for windows of `SHORT_S`


def off_samples(encoder: Encoder) -> int:
    """The distance in samples from every clip (see `nearest_clip`) at which a window contains nothing known."""
    return round(OFF_S * encoder.sample_rate) + max(0, encoder.window - round(SHORT_S * encoder.sample_rate)) // 2


def gaps_s(encoder: Encoder) -> tuple[float, float]:
    """The least and the most seconds between the clips of a stream to learn from: so long that a window holds few clips."""
    stretch = max(1.0, encoder.window / (SHORT_S * encoder.sample_rate))
    return GAP_S[0] * stretch, GAP_S[1] * stretch


def gain_db(encoder: Encoder, recipe: Recipe) -> float:
    """The most by which clips are made louder or softer, in dB: the recipe's gain, or else the encoder's."""
    return encoder.gain if recipe.gain is None else recipe.gain


def make_augmenter(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> Augmenter:
    """The recipe's augmentation for windows of `encoder`."""
    background = training_background(encoder, corpus, recipe) if corpus.background_train else []
    return Augmenter(
        window=encoder.window,
        shift=round(recipe.shift * encoder.sample_rate),
        gain=gain_db(encoder, recipe),
        noise_probability=recipe.noise_probability,
        snr=(recipe.snr_low, recipe.snr_high),
        background=tuple(background),
        babble=not corpus.multi_label,
        speed=recipe.speed,
        effects=make_effects(
            encoder.sample_rate,
            rooms=recipe.rooms,
            room_probability=recipe.room_probability,
            equaliser=recipe.equaliser,
            band_probability=recipe.band_probability,
            codec_probability=recipe.codec_probability,
        ),
    )


def training_background(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> list[Pcm]:
    """The training background, with variations of it (see `varied`)."""
    rng = np.random.default_rng([recipe.seed, 10])
    return varied(corpus.background_train, speeds=(0.75, 0.85, 1.15, 1.35), rate=encoder.sample_rate, rng=rng)
