"""Effects on the way from sound to recording: a room before noise is added, a microphone and a codec after it.

They use scipy, soundfile and the generator passed in. An augmentation library would bring its own global randomness, and
a resumed training could then no longer be bit-identical.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.fft import irfft, next_fast_len, rfft

from confit_edge.data.clips import is_silent
from confit_edge.data.manifest import sound_files
from confit_runtime.audio import Pcm, load_clip
from confit_runtime.errors import UsageError

SYNTHETIC = "synthetic"
RT60_S = (0.1, 0.8)  # from a furnished room to a hall
DIRECT_DB = (-3.0, 12.0)  # level of the direct sound relative to all of its reverberation
LONGEST_S = 1.0  # the longest part of a recorded response that is used
TELEPHONE = (300.0, 3400.0)  # Hz
LOW, HIGH = (50.0, 300.0), (2000.0, 7000.0)  # Hz, the limits of small microphones and loudspeakers
SLOPE = 48.0  # dB per octave beyond the limits
# container, coding and libsndfile's compression: 8-bit mu-law, and the lowest bit rates of the others at 16 kHz
CODECS = (("WAV", "ULAW", None), ("OGG", "VORBIS", 1.0), ("MP3", "MPEG_LAYER_III", 0.95))


@dataclass(frozen=True)
class Effects:
    """The effects and how often each applies.

    `rooms` are impulse responses; if empty, responses are synthesised. `equaliser` is in dB, and each probability is a
    share of the clips.
    """

    rate: int
    rooms: tuple[Pcm, ...]
    room_probability: float
    equaliser: float
    band_probability: float
    codec_probability: float

    def room(self, pcm: Pcm, rng: np.random.Generator) -> Pcm:
        """The window `[samples]`, with probability `room_probability` as heard in a room, at its original level."""
        if rng.random() >= self.room_probability:
            return pcm
        if self.rooms:
            return reverberate(pcm, self.rooms[int(rng.integers(len(self.rooms)))])
        return reverberate(pcm, response(float(rng.uniform(*RT60_S)), float(rng.uniform(*DIRECT_DB)), self.rate, rng))

    def channel(self, pcm: Pcm, rng: np.random.Generator) -> Pcm:
        """The window `[samples]` equalised, and with their probabilities limited to a band and sent through a codec."""
        bands = [TELEPHONE] if rng.random() < 0.5 else [(float(rng.uniform(*LOW)), float(rng.uniform(*HIGH)))]
        if rng.random() >= self.band_probability:
            bands = []
        if self.equaliser or bands:
            pcm = colour(pcm, self.rate, octaves=rng.uniform(-self.equaliser, self.equaliser, 9), bands=bands)
        if rng.random() < self.codec_probability:
            pcm = through_codec(pcm, self.rate, *CODECS[int(rng.integers(len(CODECS)))])
        return pcm


def make_effects(
    rate: int,
    *,
    rooms: str | None,
    room_probability: float,
    equaliser: float,
    band_probability: float,
    codec_probability: float,
) -> Effects | None:
    """The requested effects, or None if there are none; `rooms` is a folder of impulse responses, or `synthetic`.

    Raises UsageError for a folder without sound, and AudioError for a response that cannot be read.
    """
    if rooms is None:
        room_probability = 0.0
    if not (room_probability or equaliser or band_probability or codec_probability):
        return None
    recorded = rooms is not None and rooms != SYNTHETIC
    responses = read_rooms(Path(rooms), rate) if rooms is not None and recorded else ()
    return Effects(rate, responses, room_probability, equaliser, band_probability, codec_probability)


def read_rooms(folder: Path, rate: int) -> tuple[Pcm, ...]:
    """The impulse responses in a folder at `rate`, each from its direct sound on and at most a second long.

    Raises UsageError if one is silent, because it would make every clip silent.
    """
    responses = []
    for path in sound_files(folder, "--rooms"):
        recorded = load_clip(path, rate)
        if is_silent(recorded):
            raise UsageError(f"--rooms {folder}: {path.name} is silent: remove it")
        direct = int(np.abs(recorded).argmax())
        responses.append(recorded[direct : direct + int(LONGEST_S * rate)])
    return tuple(responses)


def response(rt60: float, direct_db: float, rate: int, rng: np.random.Generator) -> Pcm:
    """A synthetic impulse response: the direct sound, and noise that decays by 60 dB in `rt60` seconds.

    `direct_db` is the energy of the direct sound relative to the noise. This is Polack's model of late reverberation,
    starting right after the direct sound: early reflections are not modelled one by one.
    """
    time = np.arange(1, max(2, int(rt60 * rate)), dtype=np.float32) / np.float32(rate)
    tail = rng.standard_normal(len(time), np.float32) * np.exp(np.float32(-3 * np.log(10) / rt60) * time)
    tail *= np.float32(10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2)))
    return np.concatenate([np.ones(1, np.float32), tail])


def reverberate(pcm: Pcm, impulse_response: Pcm) -> Pcm:
    """The sound in a room, with its length, loudness (RMS) and the position of its direct sound unchanged."""
    from scipy.signal import fftconvolve  # takes half a second to import, which only rooms need

    wet = fftconvolve(pcm, impulse_response)[: len(pcm)]
    before, after = np.sqrt(np.mean(pcm**2)), np.sqrt(np.mean(wet**2))
    return (wet * (before / after if after > 0 else 0.0)).astype(np.float32)


def colour(pcm: Pcm, rate: int, *, octaves: npt.NDArray[np.float64], bands: list[tuple[float, float]]) -> Pcm:
    """The sound through a zero-phase filter.

    `octaves` are gains in dB, one per octave from 31.25 Hz up. Beyond each band (low, high), in Hz, the response falls by
    48 dB per octave.
    """
    length = next_fast_len(
        len(pcm) + rate // 16, real=True
    )  # padding, so that ringing does not wrap around to the start
    height = np.log2(np.maximum(np.fft.rfftfreq(length, 1 / rate), 1.0) / 31.25)
    gain = np.interp(height, np.arange(len(octaves)), octaves)
    for low, high in bands:
        beyond = np.maximum(np.log2(low / 31.25) - height, height - np.log2(high / 31.25))
        gain -= SLOPE * np.maximum(beyond, 0.0)
    return irfft(rfft(pcm, length) * np.float32(10) ** (gain / 20).astype(np.float32), length)[: len(pcm)]


def through_codec(pcm: Pcm, rate: int, container: str, coding: str, compression: float | None) -> Pcm:
    """The sound encoded and decoded again, at its original length. Sound beyond full scale is scaled down to be encoded."""
    peak = max(1.0, float(np.abs(pcm).max()))
    file = io.BytesIO()
    soundfile.write(file, pcm / peak, rate, format=container, subtype=coding, compression_level=compression)
    file.seek(0)
    decoded = soundfile.read(file, dtype="float32")[0][: len(pcm)]
    return np.pad(decoded, (0, len(pcm) - len(decoded))) * np.float32(peak)
