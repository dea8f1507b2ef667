"""Decoding and resampling: soundfile reads, soxr resamples; all audio inside is mono float32 in -1..1."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_runtime.errors import AudioError, TooLongError, UsageError, clip_errors
from confit_runtime.lengths import is_joined, mp3_seconds

Pcm = npt.NDArray[np.float32]

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_CLIP_S = 3600  # of a file that is read as a whole: several times its samples are held in memory
_STUDIO_RATE = 48_000  # at higher rates, no more samples than this are read as a whole
MAX_AMPLITUDE = 100.0  # where 1 is full scale: audio editors' files peak below 10, floats made from integers far above
# from phones and browsers; libsndfile has no decoder for them
UNSUPPORTED_SUFFIXES = (".m4a", ".aac", ".mp4", ".wma", ".amr", ".3gp", ".webm")
SOUND_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"),
    *(".w64", ".rf64", ".voc", ".sph", ".nist"),
    *UNSUPPORTED_SUFFIXES,  # so that they are reported instead of overlooked
)

_WAV_UNKNOWN_LENGTH = 0x7F000000  # a program that writes to a pipe does not know the length, and promises this or more
_MP3_PADDING = (
    10_000  # samples that an MP3 encoder may add at both ends (12 bits each), plus the frame that states them
)
_MP3_LENGTH_ERROR = 0.01  # relative error of a length guessed from the first frame of an MP3

_FLAC_UNKNOWN_LENGTH = 1 << 62  # sample count in a FLAC that was written to a pipe

log = logging.getLogger(__name__)


def read_audio(path: str | Path, longest_s: float | None = MAX_CLIP_S) -> tuple[Pcm, int]:
    """Read a sound file of any libsndfile format, rate and channel count; `longest_s=None` reads it however long it is.

    Returns `(pcm [samples] float32 mono, sample_rate in Hz)`. Raises UsageError if the file does not exist. Raises
    AudioError if it is not sound that libsndfile can read to its end, or if it is too long: longer than `longest_s`,
    or, above 48 kHz, if it has more samples than `longest_s` has at 48 kHz.
    """
    with open_sound(path) as sound:
        rate = int(sound.samplerate)
        max_samples = math.inf if longest_s is None else longest_s * min(rate, _STUDIO_RATE)
        return np.concatenate([np.zeros(0, np.float32), *_decode_limited(max_samples, sound)]), rate


def _decode_limited(max_samples: float, sound: Any) -> Iterator[Pcm]:
    """`decode` for a file of at most `max_samples` samples. Raises AudioError as soon as the file proves to be longer."""
    _check_length(sound, sound.expected or 0, max_samples)
    samples = 0
    for block in decode(sound):
        samples += len(block)
        _check_length(sound, samples, max_samples)
        yield block


def _check_length(sound: Any, samples: int, max_samples: float) -> None:
    if samples > max_samples:
        minutes = max_samples / sound.samplerate / 60
        raise TooLongError(
            f"{os.fsdecode(sound.name)}: is longer than {minutes:.0f} minutes, the limit for files read as a whole:"
            " cut it"
        )


def open_sound(path: str | Path) -> Any:
    """Open a sound file for `decode`, as a `soundfile.SoundFile`. Raises UsageError, AudioError."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UsageError(f"{path}: no such file" if not path.is_dir() else f"{path}: is a folder, not a sound file")
        with path.open("rb") as file:  # libsndfile does not say why the system refuses a file, or that it is empty
            if not file.read(1):
                raise AudioError(f"{path}: is an empty file (0 bytes)")
        # the name need not be UTF-8, and as bytes it need not be text either
        sound = _forward_only_class()(str(path) if os.name == "nt" else os.fsencode(path))
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (RuntimeError, ValueError, TypeError) as error:  # TypeError: headerless PCM, recognised by its suffix .raw
        raise unreadable_error(path, error) from error
    if sound.channels > MAX_CHANNELS:
        raise AudioError(f"{path}: has {sound.channels} channels; at most {MAX_CHANNELS} are supported")
    if not MIN_RATE <= sound.samplerate <= MAX_RATE:
        raise AudioError(f"{path}: its sample rate of {sound.samplerate} Hz is outside {MIN_RATE}..{MAX_RATE} Hz")
    sound.expected = _expected_samples(path, sound)
    return sound


def _expected_samples(path: Path, sound: Any) -> int | None:
    """How many samples a file must yield, or None if it does not say.

    Raises AudioError if it contains more than libsndfile would read.
    """
    if sound.format == "OGG" and is_joined(path):
        raise AudioError(
            f"{path}: contains several joined streams, of which only the first can be read; {_conversion_hint(path)}"
        )
    if sound.subtype != "MPEG_LAYER_III":
        return int(sound.frames) if sound.frames < _FLAC_UNKNOWN_LENGTH else None
    contained_s, stated = mp3_seconds(path)
    readable_s = sound.frames / sound.samplerate
    if contained_s - readable_s > max(_MP3_PADDING / sound.samplerate, _MP3_LENGTH_ERROR * contained_s):
        raise AudioError(
            f"{path}: contains about {contained_s:.1f} s of sound, of which only {readable_s:.1f} s can be read, because it is"
            " joined from several files or has a variable bit rate without a header that states its length;"
            f" {_conversion_hint(path)}"
        )
    # a guessed length also counts tags and pictures
    return int(sound.frames) if stated or not contained_s else min(sound.frames, round(contained_s * sound.samplerate))


@cache
def _forward_only_class() -> type[Any]:
    """The class of a `soundfile.SoundFile` that never seeks.

    After each read of a seekable file, soundfile seeks to where it already is. In an MP3, a frame may depend on the
    frames before it, which a seek forgets: read in blocks, sound of a low bit rate was damaged at the seams.
    """
    import soundfile

    class Forward(soundfile.SoundFile):
        expected: int | None  # how many samples must come

        def seekable(self) -> bool:
            return False

    return Forward


def sound_seconds(path: str | Path) -> float:
    """How long a sound file is, without decoding it if its header says so.

    Raises UsageError, and AudioError also if it contains no samples, with the file as their `clip`.
    """
    with clip_errors(path), open_sound(path) as sound:
        samples = sum(map(len, decode(sound))) if sound.expected is None else sound.expected
        if not samples:
            raise AudioError(f"{path}: holds no samples")
        return float(samples / sound.samplerate)


def decode(sound: Any) -> Iterator[Pcm]:
    """Yield a sound file that `open_sound` just opened, as mono blocks. Raises what `decode_channels` raises."""
    yield from map(to_mono, decode_channels(sound))


def decode_channels(sound: Any, block: int = 65_536) -> Iterator[Pcm]:
    """Yield a sound file that `open_sound` just opened, as blocks `[<= block, channels]`.

    Raises AudioError if the file breaks off or is damaged. Some decoders stop early without an error, so the number of
    samples is compared with what the file promises (to 0.1 s, because the first frames of an MP3 may depend on missing
    ones). Reads no further than that: whatever follows may not be sound.
    """
    missing = sound.expected
    try:
        while len(frames := sound.read(_read_size(block, missing), dtype="float32", always_2d=True)):
            missing = None if missing is None else missing - len(frames)
            yield frames
    except (RuntimeError, ValueError) as error:
        raise unreadable_error(os.fsdecode(sound.name), error) from error
    if missing is not None and missing > sound.samplerate // 10:
        raise unreadable_error(os.fsdecode(sound.name), f"{missing / sound.samplerate:.1f} s are missing")
    if cut := _truncation_ratio(sound):
        log.warning(
            "%s: was cut short: its header promises %.1f times as much; reading as far as it goes",
            os.fsdecode(sound.name),
            cut,
        )


def _read_size(block: int, missing: int | None) -> int:
    return block if missing is None else min(block, missing)


def _truncation_ratio(sound: Any) -> float | None:
    """How many times more data a WAV header promises than the file has, if it does. libsndfile corrects the header."""
    match = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    promised, present = map(int, match.groups()) if match else (0, 0)
    return promised / present if present < promised < _WAV_UNKNOWN_LENGTH and present else None


def flac_rate(rate: int) -> int:
    """The highest FLAC rate up to `rate`, both in Hz: above 65,535 only multiples of ten, up to 655,350."""
    return rate if rate <= 65_535 else min(rate // 10 * 10, 655_350)


def unreadable_error(path: str | Path, why: object) -> AudioError:
    """The error for a sound file that cannot be decoded: the reason, and what to do."""
    reason = str(why).rsplit(": ", 1)[-1].strip().rstrip(".")
    if (suffix := Path(path).suffix.lower()) in UNSUPPORTED_SUFFIXES:
        advice = f"{suffix} is not supported: {_conversion_hint(path)}"
    else:
        advice = "is it a complete audio file?"
    return AudioError(f"{path}: cannot be read as sound ({reason}); {advice}")


def _conversion_hint(path: str | Path) -> str:
    return f"convert it, for example with `ffmpeg -i {Path(path).name} {Path(path).stem}.flac`"


def to_mono(pcm: npt.ArrayLike) -> Pcm:
    """Mono float32 in -1..1 from `[samples]` or `[samples, channels]` (channels are averaged).

    Raises AudioError for what `as_channels` refuses.
    """
    return mean_of_channels(as_channels(pcm))


def as_channels(pcm: npt.ArrayLike) -> Pcm:
    """float32 in -1..1 of the shape that was given, `[samples]` or `[samples, channels]`.

    Samples are what `to_float` takes. Raises AudioError for what it refuses, for another shape, and for no
    channels or more than 64.
    """
    array = as_array(pcm, "[samples] or [samples, channels]")
    if array.ndim not in (1, 2):
        raise AudioError(f"audio must be [samples] or [samples, channels], got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        raise AudioError(
            f"audio of shape {array.shape} has {array.shape[1]} channels; at most {MAX_CHANNELS} are supported:"
            " samples come first, [samples, channels]"
        )
    if array.ndim == 2 and array.shape[1] == 0:
        raise AudioError(f"audio of shape {array.shape} has no channels: at least one is needed, [samples, channels]")
    return to_float(array)


def mean_of_channels(channels: Pcm) -> Pcm:
    """Mono `[samples]`, from `[samples]` or `[samples, channels]`.

    If a channel is not sound, it is the largest magnitude instead of the mean, for `check_samples` to refuse: in the
    mean, opposite channels would cancel each other, and large ones overflow.
    """
    if channels.ndim == 1:
        return channels
    if channels.shape[1] == 1:
        return channels[:, 0]
    return channels.mean(axis=1, dtype=np.float32) if is_valid_audio(channels) else np.abs(channels).max(axis=1)


def as_array(pcm: npt.ArrayLike, shape: str) -> npt.NDArray[Any]:
    """Samples as an array of whatever type they have.

    Raises AudioError for bytes, and if numpy cannot make an array.
    """
    try:
        array = np.asarray(pcm)
    # TypeError and RuntimeError come from tensors: bfloat16, or with a gradient
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"audio must be {shape} ({error})") from error
    if array.dtype.kind == "S" or (array.dtype == np.uint8 and not hasattr(pcm, "__array__")):
        # a bytearray or memoryview would be read as 8-bit sound, which turns 16-bit PCM into noise
        raise AudioError(
            "bytes do not say what samples they contain: for 16-bit PCM, pass numpy.frombuffer(pcm, '<i2')"
        )
    return array


def to_float(array: npt.NDArray[Any]) -> Pcm:
    """Samples of any shape as float32 in -1..1.

    Floats are taken to be in -1..1. int8, int16 and int32 have the full scale of their type; uint8 has its silence at
    128. Raises AudioError for integers of any other type, such as a list of them, because their scale is unknown, and
    for what is not PCM.
    """
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128.0) / 128.0
    elif array.dtype.kind == "i" and array.dtype.itemsize <= 4:
        array = array.astype(np.float32) / float(-np.iinfo(array.dtype).min)
    elif array.dtype.kind != "f":
        raise AudioError(
            f"audio must be float32 in -1..1, or integers of full scale such as int16; got {array.dtype}: convert"
            " it, for example with numpy.asarray(pcm, numpy.int16)"
        )
    with np.errstate(over="ignore"):  # values too large for float32 become infinite
        return array.astype(np.float32, copy=False)


def is_valid_audio(pcm: Pcm) -> bool:
    """Whether all samples are numbers and none is absurdly large. Does not copy the array, which may hold hours of sound."""
    return not pcm.size or bool(pcm.min() >= -MAX_AMPLITUDE and pcm.max() <= MAX_AMPLITUDE)


def check_samples(pcm: Pcm, source: str | Path) -> None:
    """Raise AudioError, naming the `source`, for NaN, infinite or absurdly large samples."""
    if is_valid_audio(pcm):
        return
    if not np.isfinite(pcm).all():
        raise AudioError(f"{source}: holds NaN or infinite samples")
    raise AudioError(
        f"{source}: holds samples up to {np.abs(pcm).max():.5g}, but sound lies in -1..1: divide floats made from"
        " integers by their full scale (32768 for int16), or pass the integers; if it was not made from integers,"
        " is it damaged?"
    )


def check_rate(rate: float) -> int:
    """The rate as an int. Raises UsageError if it is not a sample rate in Hz."""
    if not isinstance(rate, Real):
        raise UsageError(f"sample rate must be a number in Hz, got {rate!r}")
    if not (MIN_RATE <= rate <= MAX_RATE) or int(rate) != rate:
        raise UsageError(f"sample rate {rate} Hz is not a whole number of Hz in {MIN_RATE}..{MAX_RATE}")
    return int(rate)


def resample(pcm: Pcm, rate: int, to: int) -> Pcm:
    """Resample a whole clip `[samples]` from `rate` to `to` Hz (soxr, high quality)."""
    check_rate(rate)
    if rate == to:
        return pcm
    return _soxr(rate, to).resample(pcm, rate, to, quality="HQ").astype(np.float32, copy=False)


def _soxr(rate: int, to: int) -> Any:
    """The soxr module, needed only for resampling. Raises UsageError, saying what to do, if it is not installed."""
    try:
        import soxr
    except ImportError as error:
        raise UsageError(
            f"resampling sound from {rate} Hz to {to} Hz needs soxr ({error}): pip install soxr, or provide sound"
            f" at {to} Hz"
        ) from error
    return soxr


def bandwidth_warning(source: str, rate: int, models: str, highest_hz: float) -> str | None:
    """A warning if a source at `rate` Hz lacks frequencies that models hear (up to `highest_hz`), and what to do; else None."""
    if rate >= 2 * highest_hz:
        return None
    return (
        f"{source}: comes at {rate} Hz and has nothing above {rate / 2000:g} kHz, but {models} hears up to"
        f" {highest_hz / 1000:g} kHz and will miss more sounds. Use a source of {2 * highest_hz:g} Hz or more, or"
        " train for this one: `confit-edge train ... --band-probability 0.5`"
    )


def load_clip(path: str | Path, rate: int, longest_s: float | None = MAX_CLIP_S) -> Pcm:
    """Read a clip as mono float32 at `rate` Hz. It is resampled while it is read, so a higher rate takes no more memory.

    Raises what `read_audio` and `check_samples` raise, and AudioError for a clip with no samples.
    """
    with open_sound(path) as sound:
        max_samples = math.inf if longest_s is None else longest_s * sound.samplerate
        blocks = _resampled(
            _check_blocks(_decode_limited(max_samples, sound), path), sound.samplerate, check_rate(rate)
        )
        pcm: Pcm = np.concatenate(list(blocks))
    return pcm


def _check_blocks(blocks: Iterator[Pcm], source: str | Path) -> Iterator[Pcm]:
    """Yield the blocks of a file. Raises AudioError if it has no samples, and for what `check_samples` refuses."""
    block = None
    for block in blocks:
        check_samples(block, source)
        yield block
    if block is None:
        raise AudioError(f"{source}: holds no samples")


def _resampled(blocks: Iterator[Pcm], rate: int, to: int) -> Iterator[Pcm]:
    """Yield the blocks at another rate; together they are exactly what `resample` returns for the whole."""
    if rate == to:
        yield from blocks
        return
    stream = _soxr_stream(rate, to)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _soxr_stream(rate: int, to: int) -> Any:
    return _soxr(rate, to).ResampleStream(rate, to, 1, dtype="float32", quality="HQ")


class StreamResampler:
    """Resamples a stream that is pushed in chunks of any length; soxr's output does not depend on their lengths."""

    def __init__(self, rate: int, to: int) -> None:
        self.rate, self.to = check_rate(rate), to
        self._soxr = None if rate == to else _soxr_stream(rate, to)

    def push(self, pcm: Pcm) -> Pcm:
        """Take `[samples]` at `rate`; return what is ready at `to` (possibly nothing)."""
        if self._soxr is None:
            return pcm
        resampled: Pcm = self._soxr.resample_chunk(pcm)
        return resampled

    def finish(self) -> Pcm:
        """Return the rest. Nothing can be pushed afterwards."""
        if self._soxr is None:
            return np.zeros(0, np.float32)
        rest: Pcm = self._soxr.resample_chunk(np.zeros(0, np.float32), last=True)
        return rest
