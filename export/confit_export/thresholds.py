"""Chooses thresholds on a stream composed of validation clips over background that the model was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.data.augment import coloured_noise, varied
from confit_edge.data.compose import compose
from confit_edge.data.corpus import Corpus
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm
from confit_runtime.calibration import RELEASE
from confit_runtime.contract import Contract
from confit_runtime.detect import Detector, Hit, seconds_to_hops
from confit_runtime.model import Model
from confit_runtime.scoring import Score, SoundEvent, score_detections

SNR_DB = 10.0
LOWEST_LEVEL = 0.2
LOWER_LEVELS = (LOWEST_LEVEL, 0.25, 0.3, 0.35)  # tried if LEVELS finds less than half of the sounds
LEVELS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SMOOTHING = 3  # hops: a score that lasts less than a quarter of a second is not a word
MIN_HOPS = (2, 3, 4, 5)
REFRACTORY_S = 0.8
REPEATS = 2  # of each validation clip, at other places over the background
BACKGROUND_ONLY_S = 3600  # the most background, in seconds, that is heard without clips
MAX_CLIPS = 5000  # in the stream: some hours, and more would not add anything
COST_OF_FALSE_ACCEPT = 3.0  # in missed words: people mind repeating a word less than a device that acts by itself
FALSE_ACCEPT_REDUCTION = 0.75  # the share of false accepts that a raised threshold removes on new material too
TOLERANCE_SE = 0.5  # standard errors of the lowest cost: settings within that are as good as the best
MIN_FOUND_SHARE = 0.6  # the share of what the best setting finds that any setting must find
MARGIN, HIGHEST_LEVEL = 0.02, 0.97
MIN_SOUNDS, MIDDLE_LEVEL = (
    30,
    0.5,
)  # sounds; with fewer, levels do not differ, and the one closest to the middle is taken

Candidate = tuple[
    float, float, npt.NDArray[np.float32], int, int
]  # cost, level, thresholds, least duration, sounds found


@dataclass(frozen=True)
class Setting:
    """The chosen detection settings and their result on the validation stream; `loosest` is the score of the lowest level."""

    thresholds: dict[str, dict[str, float]]
    smoothing_hops: int
    min_hops: int
    report: dict[str, Any]
    loosest: Score


def choose(model: Model, corpus: Corpus, *, seed: int) -> Setting:
    """Choose thresholds for `model` on a stream of its validation clips.

    One threshold for all labels and the least duration are chosen together. The cost of a setting is its missed words plus
    `COST_OF_FALSE_ACCEPT` times its false accepts; among settings that are about as good as the cheapest, the strictest is
    taken (`strictest`). The threshold of a label that fired falsely is raised above the score that fired. New material will
    bring false accepts that this stream did not, so the count lies between the number before and after raising.
    """
    stream, truth = validation_stream(model, corpus, seed=seed, repeats=REPEATS)
    contract = model.contract
    rows, _ = model.rows(stream, contract.sample_rate)
    unknown = [contract.labels.index(contract.unknown_label)] if contract.unknown_label is not None else []

    candidates: list[Candidate] = []
    for levels in (LEVELS, LOWER_LEVELS):
        for min_hops, level in product(MIN_HOPS, levels):
            detect = partial(_detect, rows, min_hops, unknown, contract, truth)
            uniform = np.full(len(contract.labels), level, np.float32)
            before, hits = detect(uniform)
            raised = _raise_above_false_accepts(uniform, before, hits, contract)
            after, _ = detect(raised)
            expected = FALSE_ACCEPT_REDUCTION * len(after.false_accepts) + (1 - FALSE_ACCEPT_REDUCTION) * len(
                before.false_accepts
            )
            cost = after.found.count(False) + COST_OF_FALSE_ACCEPT * expected
            candidates.append((cost, level, raised, min_hops, sum(after.found)))
        if 2 * max(found for *_, found in candidates) >= len(truth):
            break
    on, min_hops = strictest(candidates, len(truth))
    score, _ = _detect(rows, min_hops, unknown, contract, truth, on)
    loosest, _ = _detect(
        rows, MIN_HOPS[0], unknown, contract, truth, np.full(len(contract.labels), LOWEST_LEVEL, np.float32)
    )
    thresholds = {
        label: {"on": round(float(value), 4), "off": round(float(value) * RELEASE, 4)}
        for label, value in zip(contract.labels, on, strict=True)
    }
    report = {
        "words": len(truth),
        "found": sum(score.found),
        "false_accepts": len(score.false_accepts),
        "seconds": round(len(stream) / contract.sample_rate, 1),
        "snr_db": SNR_DB,
        "background": "validation part of the background" if corpus.background_val else "coloured noise",
    }
    return Setting(thresholds, SMOOTHING, min_hops, report, loosest)


def strictest(candidates: list[Candidate], sounds: int) -> tuple[npt.NDArray[np.float32], int]:
    """Return the thresholds and the least duration of the strictest setting that is as good as the best.

    As good means a cost, which is a count, within half a standard error of the lowest (Breiman et al. 1984 choose a tree by
    this rule, with a whole standard error). A device will meet voices and sounds that validation does not hold, and acting by
    itself is the worse mistake. On held-out training voices, a whole standard error missed a few more words at as many
    false accepts.

    The setting must also find most of what the best one finds. A poor model misses nearly everything at any level, and
    finding nothing would be as good as finding a little. With few `sounds`, many levels do equally well, and the highest
    is no better than the others for voices never heard; then the level closest to the middle is taken.
    """
    lowest_cost, *_, best_found = min(candidates, key=lambda setting: (setting[0], -setting[4]))
    acceptable = [
        setting
        for setting in candidates
        if setting[0] <= lowest_cost + TOLERANCE_SE * max(1.0, lowest_cost) ** 0.5
        and setting[4] >= MIN_FOUND_SHARE * best_found
    ]
    _, _, on, min_hops, _ = min(
        acceptable,
        key=lambda setting: (-setting[1] if sounds >= MIN_SOUNDS else abs(setting[1] - MIDDLE_LEVEL), setting[0]),
    )
    return on, min_hops


def validation_stream(model: Model, corpus: Corpus, *, seed: int, repeats: int) -> tuple[np.ndarray, list[SoundEvent]]:
    """Compose each validation clip `repeats` times, at random places over background; also return the labels to be heard.

    After the clips comes the background by itself, from end to end, where everything that fires is false. Of more than
    `MAX_CLIPS` clips in all, that many are drawn at random.
    """
    rng = np.random.default_rng([seed, 3])
    rate, chosen = model.contract.sample_rate, list(range(len(corpus.val))) * repeats
    if len(chosen) > MAX_CLIPS:
        chosen = np.random.default_rng([seed, 6]).permutation(chosen)[:MAX_CLIPS].tolist()
    clips, rows = [corpus.val.pcm[row] for row in chosen], [str(row) for row in chosen]
    recordings = corpus.background_val or [np.float32(0.01) * coloured_noise(60 * rate, 1.0, rng)]
    background = varied(recordings, speeds=(0.8, 1.25), rate=rate, rng=rng)  # a device hears more than these
    samples = sum(map(len, clips)) + int(1.8 * rate * len(clips))
    stream, spoken = compose(clips, rows, background, samples=samples, rate=rate, snr=(SNR_DB, SNR_DB), rng=rng)
    if corpus.background_val:
        stream = np.concatenate([stream, *_first_samples(corpus.background_val, BACKGROUND_ONLY_S * rate)])
    truth = [
        SoundEvent(corpus.classes[column], word.start / rate, word.end / rate)
        for word in spoken
        for column in np.flatnonzero(corpus.val.targets[int(word.label)])
        if corpus.classes[column] != corpus.unknown
    ]
    return stream, truth


def _first_samples(recordings: list[Pcm], samples: int) -> list[Pcm]:
    """The first `samples` of the recordings in order, or all if they are shorter, so that hours of them need no memory."""
    starts = np.cumsum([0, *map(len, recordings)])
    return [recording[: max(0, samples - start)] for recording, start in zip(recordings, starts, strict=False)]


def _raise_above_false_accepts(
    on: npt.NDArray[np.float32], score: Score, hits: list[Hit], contract: Contract
) -> npt.NDArray[np.float32]:
    """Return `on` with the threshold of each label that fired falsely raised above the score that fired."""
    raised = on.copy()
    fired = {(contract.labels[hit.label], _end_s(hit, contract)): hit for hit in hits}
    for false_accept in score.false_accepts:
        hit = fired[false_accept.label, false_accept.end_s]
        raised[hit.label] = max(raised[hit.label], min(HIGHEST_LEVEL, hit.score + MARGIN))
    return raised


def _detect(
    rows: Floats,
    min_hops: int,
    ignored: list[int],
    contract: Contract,
    truth: list[SoundEvent],
    on: npt.NDArray[np.float32],
) -> tuple[Score, list[Hit]]:
    """Return the hits of `rows` at thresholds `on [classes]`, and their score against the truth."""
    detector = Detector(
        on,
        on * RELEASE,
        smoothing_hops=SMOOTHING,
        min_hops=min_hops,
        refractory_hops=seconds_to_hops(contract, contract.refractory_s),
        never=ignored,
        exclusive=not contract.multi_label,
    )
    hits = detector.push(rows)
    detected = [SoundEvent(contract.labels[hit.label], end, end) for hit in hits for end in [_end_s(hit, contract)]]
    return score_detections(truth, detected), hits


def _end_s(hit: Hit, contract: Contract) -> float:
    """The time at which a hit on rows of `Model.rows` ends, where `Stream` would place it."""
    hops = hit.row + contract.window // contract.hop
    return (hops * contract.hop - contract.latency_samples + contract.hop / 2) / contract.sample_rate
