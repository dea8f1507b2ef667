"""What can be told of a microphone from a few seconds of its sound: level, noise, clipping, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from confit_runtime.audio import Pcm, check_samples
from confit_runtime.errors import AudioError
from confit_runtime.frames import QUIETEST_DB, decibel, frame_levels, runs
from confit_runtime.sources.base import MICROPHONE_AWAY, OVERRUN

FULL = 0.99  # a sample at or above this, with as loud neighbours, is clipped

_SPEECH_HZ = 8_000.0  # what a device should hear of speech
_SPECTRUM = 1024
_AT_ONCE = 1000  # spectra
_WHY_LOST = {  # by a gap's reason
    OVERRUN: "something else keeps it busy",
    MICROPHONE_AWAY: "unplugged, a loose cable, or a weak power supply",
}
_ROUNDING = 1e-4  # -80 dB: the level of a signal that is hardly more than the last bit of 16


@dataclass(frozen=True)
class Soundcheck:
    """Measures of some sound. Levels are in dB of full scale, of 20 ms frames and without the DC offset.

    `loud_db` is exceeded by a twentieth of the frames and `noise_db` by nine tenths. `clipped` is the share of samples
    in runs at full scale, `dc_offset` the mean sample, `holes` how often a live sound broke off in digital silence.
    `bandwidth_hz` is the highest frequency at which there is more than 75 dB below the strongest one.
    """

    seconds: float
    rate: int
    peak_db: float
    loud_db: float
    noise_db: float
    clipped: float
    dc_offset: float
    holes: int
    bandwidth_hz: float


@dataclass(frozen=True)
class Finding:
    """One thing to know about a microphone: that it is `good`, a `warning`, or `bad` (nothing will be heard well)."""

    level: Literal["good", "warning", "bad"]
    text: str


def soundcheck(pcm: Pcm, rate: int) -> Soundcheck:
    """Measure `[samples]` of sound. Raises AudioError on less than a tenth of a second, and on what is no sound."""
    if len(pcm) < rate // 10:
        raise AudioError(f"{len(pcm) / rate:.2f} s of sound are too little to judge it")
    check_samples(pcm, "the sound")
    offset = float(pcm.mean(dtype=np.float64))
    levels = frame_levels(pcm - np.float32(offset), rate)
    return Soundcheck(
        seconds=len(pcm) / rate,
        rate=rate,
        peak_db=decibel(float(np.abs(pcm).max())),
        loud_db=float(np.percentile(levels, 95)),
        noise_db=float(np.percentile(levels, 10)),
        clipped=clipped_share(pcm),
        dc_offset=offset,
        holes=_holes(pcm, rate),
        bandwidth_hz=_bandwidth(pcm, rate),
    )


def fault_of(check: Soundcheck, *, quiet: bool = False) -> str | None:
    """Why a clip is of no use, if it is: clipped, silent, or torn. One of what is heard in a `quiet` room may be soft."""
    if check.peak_db <= QUIETEST_DB:
        return "it is silent, nothing but zeros; is the microphone muted?"
    if check.loud_db < -65.0 and not quiet:
        return "it is silent; speak louder or come closer"
    if check.clipped > 1e-4:
        return f"it is clipped ({check.clipped:.1%} of it at full scale); turn the microphone down or step back"
    if check.holes:
        return "sound was lost in it"
    return None


def findings(check: Soundcheck, *, lost_s: Mapping[str, float] | None = None) -> list[Finding]:
    """What the measures, and the seconds lost by the reason of their gaps, mean: the worst first.

    A single good finding where there is nothing to do.
    """
    found = [*_level_findings(check), *_flaw_findings(check, lost_s or {})]
    order = ("bad", "warning")
    return sorted(found, key=lambda one: order.index(one.level)) or [Finding("good", "nothing to do: it sounds right")]


def _level_findings(check: Soundcheck) -> list[Finding]:
    if check.peak_db <= QUIETEST_DB:
        return [
            Finding("bad", "digital silence: the microphone is muted, or another one is meant (`confit-edge devices`)")
        ]
    found = []
    if check.clipped > 1e-4:
        found.append(
            Finding(
                "bad", f"{check.clipped:.2%} of the samples are clipped: turn its gain down (alsamixer, F4) by 6 dB"
            )
        )
    if check.loud_db < -50.0:
        found.append(
            Finding("bad", f"very quiet ({check.loud_db:.0f} dB): turn its gain up, or speak while it measures")
        )
    elif check.loud_db < -38.0:
        found.append(Finding("warning", f"quiet ({check.loud_db:.0f} dB when loud): turn its gain up or come closer"))
    if check.noise_db > -40.0:
        found.append(
            Finding("warning", f"noisy ({check.noise_db:.0f} dB when quiet): a fan nearby, a cable, or too much gain")
        )
    if check.loud_db - check.noise_db < 10.0 and check.loud_db >= -50.0:
        found.append(
            Finding(
                "warning",
                f"speech stands only {check.loud_db - check.noise_db:.0f} dB above the noise (or nobody spoke): come closer",
            )
        )
    return found


def _flaw_findings(check: Soundcheck, lost_s: Mapping[str, float]) -> list[Finding]:
    found = []
    if abs(check.dc_offset) > 0.01:
        found.append(
            Finding(
                "warning", f"a DC offset of {check.dc_offset:+.3f}: cheap hardware; it costs headroom, not accuracy"
            )
        )
    for reason, seconds in lost_s.items():
        why = f" ({_WHY_LOST[reason]})" if reason in _WHY_LOST else ""
        found.append(Finding("bad", f"{seconds:.2f} s were lost: {reason}{why}"))
    if check.holes:
        found.append(
            Finding(
                "bad", f"the sound broke off {check.holes} times: a loose cable, a weak power supply, a busy USB bus"
            )
        )
    if check.peak_db > QUIETEST_DB and check.bandwidth_hz < 0.6 * _SPEECH_HZ:
        found.append(
            Finding(
                "warning",
                f"hears nothing above {check.bandwidth_hz / 1000:.1f} kHz: a headset in telephone mode, or a low rate"
                " resampled on the way",
            )
        )
    return found


def clipped_share(pcm: Pcm) -> float:
    """The share of samples that stand at full scale beside others that do."""
    starts, ends = runs(np.abs(pcm) >= FULL).T
    lengths = ends - starts
    return float(lengths[lengths >= 3].sum() / len(pcm))


def _holes(pcm: Pcm, rate: int) -> int:
    """How often sound breaks off, and begins again, with a digital silence of 3 to 100 ms between.

    What is lost leaves a sound that stops and starts at the level it had. One that a noise gate or a noise suppression
    ends fades to nothing, and what is as soft as a rounding is none: so both the 3 ms before and those after must be
    louder than that.
    """
    starts, ends = runs(pcm == 0.0).T
    lengths = ends - starts
    edge = round(0.003 * rate)
    there = (lengths >= edge) & (lengths <= 0.1 * rate) & (starts >= edge) & (ends <= len(pcm) - edge)
    return sum(
        bool(np.square(pcm[start - edge : start]).mean() > _ROUNDING**2 < np.square(pcm[end : end + edge]).mean())
        for start, end in zip(starts[there], ends[there], strict=True)
    )


def _bandwidth(pcm: Pcm, rate: int) -> float:
    frames = np.lib.stride_tricks.sliding_window_view(pcm, min(_SPECTRUM, len(pcm)))[:: _SPECTRUM // 2]
    window, power = np.hanning(frames.shape[1]), np.zeros(frames.shape[1] // 2 + 1)
    for part in np.array_split(frames, max(1, len(frames) // _AT_ONCE)):
        power += np.square(np.abs(np.fft.rfft(part * window, axis=1))).sum(axis=0)
    power /= len(frames)
    power = np.convolve(power[1:], np.ones(5) / 5, mode="same")
    above = np.flatnonzero(power > power.max() * 10**-7.5)
    return float((above[-1] + 1) * rate / frames.shape[1]) if power.max() > 0 else 0.0
