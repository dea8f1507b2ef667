"""Where a clip contains a voice, and where any sound at all: by energy and spectral flatness, in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Bools
from confit_runtime.audio import Pcm
from confit_runtime.frames import FRAME_S as LEVEL_FRAME_S
from confit_runtime.frames import frame_levels, runs

FRAME_S, STEP_S = 0.032, 0.010
LOW_HZ, HIGH_HZ = 100.0, 4000.0  # the range of most of a voice's energy
BELOW_PEAK_DB = 35.0  # a frame this far below the clip's loud parts is not voice
ABOVE_FLOOR_DB, MIN_RANGE_DB = 8.0, 15.0
MIN_VOICE_DB = -65.0  # in dB of full scale, within that range
MAX_FLATNESS = 0.42  # white noise has a flatness of 0.56, vowels below 0.1
MAX_GAP_S, MIN_VOICE_S, EDGE_S = 0.15, 0.06, 0.03
PAUSE_S = 0.6  # pauses up to this length are kept
SILENCE_DB, MAX_BELOW_PEAK_DB = -70.0, 40.0  # for a frame to count as sounding
MIN_ABOVE_NOISE_DB, SOUND_BELOW_PEAK_DB, LOUDEST_FRAMES = 10.0, 30.0, 3  # for any kind of sound to count
QUIET_S = 0.15  # kept before and after it
FRAMES_PER_BLOCK = 4096  # so that a long recording does not need all its spectra at once


def voiced_segments(pcm: Pcm, sample_rate: int) -> list[tuple[int, int]]:
    """The stretches `(first, last + 1)` in samples of a clip `[samples]` that contain a voice, in order, not touching.

    A frame is voiced if its energy between 100 and 4000 Hz is near that of the clip's loud parts and above its quiet
    ones, and its spectrum is not flat. Pauses inside words are kept; clicks are not.
    """
    frame, step = round(FRAME_S * sample_rate), round(STEP_S * sample_rate)
    if len(pcm) < frame:
        return []
    decibel, flatness = _spectra(pcm, sample_rate, frame, step)
    loud, floor = np.percentile(decibel, 95), np.percentile(decibel, 10)
    # a clip cut without pauses has no noise floor: its quiet parts are voice too
    level = max(loud - BELOW_PEAK_DB, min(floor + ABOVE_FLOOR_DB, loud - MIN_RANGE_DB), MIN_VOICE_DB)
    mask = _without_short_runs((decibel >= level) & (flatness <= MAX_FLATNESS), False, MAX_GAP_S)
    mask = _without_short_runs(mask, True, MIN_VOICE_S)
    edge = round(EDGE_S * sample_rate)
    return [
        (max(0, first * step - edge), min(len(pcm), (last - 1) * step + frame + edge))
        for first, last in runs(mask).tolist()
    ]


def voiced_seconds(pcm: Pcm, sample_rate: int) -> float:
    """Seconds of voice in a clip `[samples]`."""
    return sum(end - start for start, end in voiced_segments(pcm, sample_rate)) / sample_rate


def remove_pauses(pcm: Pcm, sample_rate: int) -> Pcm:
    """A clip without its long pauses: `[samples]`, possibly none.

    Short pauses stay. Tightly cut speech has a seam at every word, which speaker models hear: closed accuracy on the
    development voices was 97.5 % with tight cuts and 99.0 % without any.
    """
    margin, kept = round(PAUSE_S / 2 * sample_rate), np.zeros(len(pcm), bool)
    for start, end in voiced_segments(pcm, sample_rate):
        kept[max(0, start - margin) : end + margin] = True
    return pcm[kept]


def active_segments(pcm: Pcm, sample_rate: int, shortest_s: float = 0.0) -> list[tuple[int, int]]:
    """The stretches `(first, last + 1)` in samples of a clip `[samples]` that contain any sound, in order, between long pauses.

    A 20 ms frame sounds if it is near the clip's loudest and clearly above its quiet ones; some quiet is kept before
    and after each stretch. A clip of even level is one stretch. Stretches shorter than `shortest_s` are left out if
    there is a longer one.
    """
    levels = frame_levels(pcm - pcm.mean(), sample_rate)
    loud, noise = np.sort(levels)[-LOUDEST_FRAMES:][0], np.percentile(levels, 10)
    if loud - noise < MIN_ABOVE_NOISE_DB:
        return [(0, len(pcm))]
    mask = levels >= max(noise + MIN_ABOVE_NOISE_DB, loud - SOUND_BELOW_PEAK_DB)
    frame, edge = round(LEVEL_FRAME_S * sample_rate), round(QUIET_S * sample_rate)
    found: list[tuple[int, int]] = []
    for first, last in runs(mask).tolist():
        if found and (first * frame - found[-1][1]) < PAUSE_S * sample_rate:
            found[-1] = (found[-1][0], last * frame)
        else:
            found.append((first * frame, last * frame))
    long = [(first, last) for first, last in found if last - first >= shortest_s * sample_rate]
    return [(max(0, first - edge), min(len(pcm), last + edge)) for first, last in long or found]


def trim_silence(pcm: Pcm, sample_rate: int) -> Pcm:
    """A clip without the quiet before and after its sound, except for a little; a clip of even level stays as it is."""
    segments = active_segments(pcm, sample_rate)
    return pcm[segments[0][0] : segments[-1][1]]


def active_seconds(pcm: Pcm, sample_rate: int) -> float:
    """Seconds of a clip `[samples]` that contain sound: 20 ms frames within 40 dB of the loudest and above -70 dBFS.

    A DC offset is not sound, so levels are taken without the mean.
    """
    if len(pcm) == 0:
        return 0.0
    frame = max(1, round(LEVEL_FRAME_S * sample_rate))
    levels = frame_levels(np.pad(pcm - pcm.mean(), (0, -len(pcm) % frame)), sample_rate)
    softest = max(levels.max(initial=SILENCE_DB) - MAX_BELOW_PEAK_DB, SILENCE_DB)
    return float((levels > softest).sum() * frame / sample_rate)


def _spectra(pcm: Pcm, rate: int, frame: int, step: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each frame: the energy in the band in dB of full scale, and the flatness of its spectrum (0..1)."""
    window = np.hanning(frame)
    bins = np.fft.rfftfreq(frame, 1 / rate)
    band = (bins >= LOW_HZ) & (bins <= HIGH_HZ)
    frames = np.lib.stride_tricks.sliding_window_view(pcm, frame)[::step]
    decibel, flatness = np.empty(len(frames)), np.empty(len(frames))
    for at in range(0, len(frames), FRAMES_PER_BLOCK):
        part = slice(at, at + FRAMES_PER_BLOCK)
        power = np.square(np.abs(np.fft.rfft(frames[part] * window, axis=1)[:, band])) + 1e-12
        mean = power.mean(axis=1)
        decibel[part] = 10 * np.log10(2 * mean * band.sum() / np.square(window).sum() / frame)
        flatness[part] = np.exp(np.log(power).mean(axis=1)) / mean
    return decibel, flatness


def _without_short_runs(mask: Bools, value: bool, shortest_s: float) -> Bools:
    """The mask with runs of `value` shorter than this inverted; runs of False at the ends stay."""
    turned = mask.copy()
    for first, last in runs(mask == value).tolist():
        inside = value or (first > 0 and last < len(mask))
        if inside and (last - first) * STEP_S < shortest_s:
            turned[first:last] = not value
    return turned
