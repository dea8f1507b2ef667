"""What a few seconds of sound reveal about a microphone: level, noise, clipping, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from confit_runtime.audio import Pcm, check_samples
from confit_runtime.channels import ONE_CHANNEL, ChannelCheck
from confit_runtime.errors import AudioError
from confit_runtime.frames import FLOOR_DB, frame_levels, runs, to_db
from confit_runtime.sources.base import MICROPHONE_AWAY, OVERRUN

CLIPPED = 1e-4  # share of clipped samples that is too much

_SPEECH_HZ = 8_000.0  # the band of speech that a device should hear
_SPECTRUM = 1024
_SPECTRA_PER_BLOCK = 1000  # spectra
_LOSS_CAUSES = {  # by a gap's reason
    OVERRUN: "something else keeps it busy",
    MICROPHONE_AWAY: "unplugged, a loose cable, or a weak power supply",
}
_ROUNDING_LEVEL = 1e-4  # -80 dB: the level of a signal barely above the last of 16 bits


@dataclass(frozen=True)
class Soundcheck:
    """Measurements of some sound. Levels are in dB of full scale, over 20 ms frames, without the DC offset.

    `loud_db` is exceeded by one twentieth of the frames and `noise_db` by nine tenths. `clipped` is the share of
    clipped samples in the channel that has the most, and `cancelled` whether the channels cancel each other
    (`confit_runtime.channels`). `dc_offset` is the mean sample, `holes` how often live sound broke off in digital
    silence. `bandwidth_hz` is the highest frequency whose power is less than 75 dB below the strongest one.
    """

    seconds: float
    rate: int
    peak_db: float
    loud_db: float
    noise_db: float
    clipped: float
    cancelled: bool
    dc_offset: float
    holes: int
    bandwidth_hz: float


@dataclass(frozen=True)
class Finding:
    """One finding about a microphone: it is `good`, a `warning`, or `bad` (nothing will be heard well)."""

    level: Literal["good", "warning", "bad"]
    text: str


def soundcheck(pcm: Pcm, rate: int, channels: ChannelCheck | None = None) -> Soundcheck:
    """Measure `[samples]` of sound; `channels` has heard the channels it was averaged from, if there were several.

    Raises AudioError for less than a tenth of a second, and if it is not sound.
    """
    if len(pcm) < rate // 10:
        raise AudioError(f"{len(pcm) / rate:.2f} s of sound are too short to measure; at least 0.1 s are needed")
    check_samples(pcm, "the sound")
    if channels is None:
        channels = ChannelCheck()
        channels.hear((pcm, rate))
    offset = float(pcm.mean(dtype=np.float64))
    centred = pcm - np.float32(offset)
    levels = frame_levels(centred, rate)
    return Soundcheck(
        seconds=len(pcm) / rate,
        rate=rate,
        peak_db=to_db(float(np.abs(pcm).max())),
        loud_db=float(np.percentile(levels, 95)),
        noise_db=float(np.percentile(levels, 10)),
        clipped=channels.clipped,
        cancelled=channels.cancelled,
        dc_offset=offset,
        holes=_count_dropouts(pcm, rate),
        bandwidth_hz=_bandwidth(centred, rate),
    )


def find_fault(check: Soundcheck, *, quiet: bool = False) -> str | None:
    """Why a clip is unusable (cancelled, clipped, silent, or torn), or None. A clip of a `quiet` room may be soft."""
    if check.cancelled:
        return f"its channels cancel each other; {ONE_CHANNEL}"
    if check.peak_db <= FLOOR_DB:
        return "it is silent, all zeros; is the microphone muted?"
    if check.loud_db < -65.0 and not quiet:
        return "it is silent; speak louder or come closer"
    if check.clipped > CLIPPED:
        return f"it is clipped ({check.clipped:.1%} of its samples); turn the microphone down or step back"
    if check.holes:
        return "some of its sound was lost"
    return None


def findings(check: Soundcheck, *, lost_s: Mapping[str, float] | None = None) -> list[Finding]:
    """What the measurements, and the seconds lost by reason of the gap, mean; the worst first.

    Returns a single good finding if there is nothing to do.
    """
    found = [*_level_findings(check), *_flaw_findings(check, lost_s or {})]
    order = ("bad", "warning")
    return sorted(found, key=lambda one: order.index(one.level)) or [Finding("good", "nothing to do: it sounds right")]


def _level_findings(check: Soundcheck) -> list[Finding]:
    if check.peak_db <= FLOOR_DB and not check.cancelled:
        return [
            Finding(
                "bad",
                "digital silence: the microphone is muted, or this is the wrong one (`confit-edge devices` lists them)",
            )
        ]
    found = []
    if check.clipped > CLIPPED:
        found.append(
            Finding(
                "bad", f"{check.clipped:.2%} of the samples are clipped: turn its gain down (alsamixer, F4) by 6 dB"
            )
        )
    if check.cancelled:  # what is left of the sound has no level to judge
        return [
            *found,
            Finding("bad", f"its channels cancel each other where they are averaged: {ONE_CHANNEL}"),
        ]
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
                f"speech is only {check.loud_db - check.noise_db:.0f} dB above the noise (or nobody spoke): come closer",
            )
        )
    return found


def _flaw_findings(check: Soundcheck, lost_s: Mapping[str, float]) -> list[Finding]:
    found = []
    if abs(check.dc_offset) > 0.01 and check.clipped <= CLIPPED:  # clipping one side more than the other leaves one
        found.append(
            Finding(
                "warning",
                f"a DC offset of {check.dc_offset:+.3f}: cheap hardware; it costs headroom, but `digits` and `speakers`"
                " hear as well with it",
            )
        )
    for reason, seconds in lost_s.items():
        why = f" ({_LOSS_CAUSES[reason]})" if reason in _LOSS_CAUSES else ""
        found.append(Finding("bad", f"{seconds:.2f} s of sound were lost: {reason}{why}"))
    if check.holes:
        found.append(
            Finding(
                "bad", f"the sound broke off {check.holes} times: a loose cable, a weak power supply, a busy USB bus"
            )
        )
    if check.peak_db > FLOOR_DB and not check.cancelled and check.bandwidth_hz < 0.6 * _SPEECH_HZ:
        found.append(
            Finding(
                "warning",
                f"hears nothing above {check.bandwidth_hz / 1000:.1f} kHz: a headset in telephone mode, or sound"
                " resampled from a low rate",
            )
        )
    return found


def _count_dropouts(pcm: Pcm, rate: int) -> int:
    """How often sound breaks off and begins again, with 3 to 100 ms of digital silence in between.

    Lost samples leave a sound that stops and resumes at its previous level. A noise gate or noise suppression fades
    sound out instead, down to what rounding alone would leave. So both the 3 ms before and the 3 ms after must be
    louder than that.
    """
    starts, ends = runs(pcm == 0.0).T
    lengths = ends - starts
    edge = round(0.003 * rate)
    there = (lengths >= edge) & (lengths <= 0.1 * rate) & (starts >= edge) & (ends <= len(pcm) - edge)
    return sum(
        bool(np.square(pcm[start - edge : start]).mean() > _ROUNDING_LEVEL**2 < np.square(pcm[end : end + edge]).mean())
        for start, end in zip(starts[there], ends[there], strict=True)
    )


def _bandwidth(pcm: Pcm, rate: int) -> float:
    frames = np.lib.stride_tricks.sliding_window_view(pcm, min(_SPECTRUM, len(pcm)))[:: _SPECTRUM // 2]
    window, power = np.hanning(frames.shape[1]), np.zeros(frames.shape[1] // 2 + 1)
    for part in np.array_split(frames, max(1, len(frames) // _SPECTRA_PER_BLOCK)):
        power += np.square(np.abs(np.fft.rfft(part * window, axis=1))).sum(axis=0)
    power /= len(frames)
    power = np.convolve(power[1:], np.ones(5) / 5, mode="same")
    above = np.flatnonzero(power > power.max() * 10**-7.5)
    return float((above[-1] + 1) * rate / frames.shape[1]) if power.max() > 0 else 0.0
