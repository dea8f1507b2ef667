"""Where sound comes from: a file, raw PCM on a pipe, a microphone. A source gives chunks, and says what it dropped."""

from __future__ import annotations

import glob
import io
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np

from confit_runtime.audio import Pcm, check_rate, decode, open_sound, to_mono
from confit_runtime.errors import DeviceError, UsageError

PCM_FORMATS: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
MAX_CHANNELS = 64

_BLOCK_S = 0.02  # what PortAudio is asked to deliver at a time
_POLL_S = 0.2  # how often a silent microphone is asked whether it is still there


@dataclass(frozen=True)
class Gap:
    """The source lost `samples` (per channel, at its own rate) between the chunk before and the chunk after."""

    samples: int


Chunk = tuple[Pcm, int]  # mono [samples] in -1..1, and its rate in Hz


class Source(Protocol):
    """A context manager to iterate over once: chunks of sound as they come, and gaps where some were lost."""

    name: str
    rate: int

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Chunk | Gap]: ...


class FileSource:
    """A sound file of any libsndfile format, rate and channel count, read block by block.

    Raises UsageError when there is no such file; AudioError when it is not sound, or, on the way, when it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._sound = open_sound(path)
        self.rate = int(self._sound.samplerate)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sound.close()

    def __iter__(self) -> Iterator[Chunk]:
        for block in decode(self._sound, block=max(1, self.rate // 2)):
            yield block, self.rate


class PcmSource:
    """Raw interleaved PCM from a byte stream, passed on as it arrives. A last incomplete frame is dropped.

    Raises UsageError on a rate, channel count or format that cannot be.
    """

    def __init__(
        self, stream: io.BufferedIOBase, rate: int, channels: int = 1, format: str = "s16le", name: str = "-"
    ) -> None:
        if format not in PCM_FORMATS:
            raise UsageError(f"PCM format {format!r} is not known (known: {', '.join(PCM_FORMATS)})")
        if not 1 <= channels <= MAX_CHANNELS:
            raise UsageError(f"{channels} channels: expected 1 to {MAX_CHANNELS}")
        self.name, self.rate = name, check_rate(rate)
        self._stream, self._channels, self._dtype = stream, channels, PCM_FORMATS[format]

    def __enter__(self) -> PcmSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The stream belongs to the caller and stays open."""

    def __iter__(self) -> Iterator[Chunk]:
        frame = self._dtype.itemsize * self._channels
        held = b""
        while data := self._stream.read1(65_536):
            held += data
            whole = len(held) // frame * frame
            frames, held = np.frombuffer(held[:whole], self._dtype), held[whole:]
            if len(frames):
                yield to_mono(frames.reshape(-1, self._channels)), self.rate


class Microphone:
    """A microphone through PortAudio, at the device's own default rate; several channels are averaged.

    `device` is an index, a part of a name, or None for the default. A bounded queue stands between PortAudio's thread
    and the reader: what does not fit, and what PortAudio itself lost, comes back as a `Gap`. `portaudio` is the
    sounddevice module, imported here when not given. Raises DeviceError when there is no PortAudio, no such device, or,
    on the way, when it delivers nothing for `timeout_s`.
    """

    def __init__(
        self,
        device: int | str | None = None,
        *,
        queue_s: float = 5.0,
        timeout_s: float = 5.0,
        portaudio: Any = None,
    ) -> None:
        self._portaudio = portaudio or import_portaudio()
        self._timeout_s = timeout_s
        self.name = "mic" if device is None else f"mic:{device}"
        try:
            info = self._portaudio.query_devices(device, "input")
        except (ValueError, self._portaudio.PortAudioError) as error:
            what = "no default microphone" if device is None else f"no microphone {device!r}"
            raise DeviceError(f"{what} ({_line(error)}); `confit-edge devices` lists what there is") from error
        self.rate = check_rate(round(info["default_samplerate"]))
        self._settings = {"device": info["index"], "dtype": "float32", "samplerate": self.rate}
        self._channels_there = int(info["max_input_channels"])
        self._queue: queue.Queue[tuple[int, Pcm]] = queue.Queue(maxsize=max(1, round(queue_s / _BLOCK_S)))
        self._lost = 0  # samples lost since the last block that was queued; only PortAudio's thread touches these two
        self._expected_s = 0.0  # when the next block's first sample should be recorded, on PortAudio's clock

    def __enter__(self) -> Microphone:
        try:
            self._stream = self._portaudio.InputStream(
                channels=self._channels(),
                blocksize=int(self.rate * _BLOCK_S),
                callback=self._callback,
                **self._settings,
            )
            self._stream.start()
        except self._portaudio.PortAudioError as error:
            raise DeviceError(
                f"{self.name}: cannot be opened at {self.rate} Hz ({_line(error)}); is it in use?"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Chunk | Gap]:
        heard = time.monotonic()
        while True:
            try:
                lost, block = self._queue.get(timeout=min(_POLL_S, self._timeout_s))
            except queue.Empty as error:
                if not self._stream.active or time.monotonic() - heard > self._timeout_s:
                    raise DeviceError(f"{self.name}: the microphone went away (unplugged?)") from error
                continue
            heard = time.monotonic()
            if lost:
                yield Gap(lost)
            yield to_mono(block), self.rate

    def _channels(self) -> int:
        """One where the device (or its driver) can do that, else all it has."""
        try:
            self._portaudio.check_input_settings(channels=1, **self._settings)
        except self._portaudio.PortAudioError:
            return self._channels_there
        return 1

    def _callback(self, block: Pcm, frames: int, times: Any, status: Any) -> None:
        """PortAudio's thread: `block [frames, channels]` is only lent."""
        if status.input_overflow:
            missing = round((times.inputBufferAdcTime - self._expected_s) * self.rate)
            # drivers that keep no clock give no duration: then at least one block is gone
            self._lost += missing if 0 < missing < 60 * self.rate else frames
        self._expected_s = times.inputBufferAdcTime + frames / self.rate
        try:
            self._queue.put_nowait((self._lost, block.copy()))
        except queue.Full:
            self._lost += frames
        else:
            self._lost = 0


@dataclass(frozen=True)
class InputDevice:
    """A microphone that PortAudio offers: `mic:{index}`, or `mic:` and a part of its name."""

    index: int
    name: str
    channels: int
    default_rate: int
    default: bool


def input_devices(portaudio: Any = None) -> list[InputDevice]:
    """The microphones there are. `portaudio` as for `Microphone`. Raises DeviceError without PortAudio."""
    portaudio = portaudio or import_portaudio()
    try:
        default = portaudio.query_devices(None, "input")["index"]
    except (ValueError, portaudio.PortAudioError):
        default = None  # PortAudio's way to say that there is none
    return [
        InputDevice(
            index, info["name"], int(info["max_input_channels"]), round(info["default_samplerate"]), index == default
        )
        for index, info in enumerate(portaudio.query_devices())
        if info["max_input_channels"] > 0
    ]


def import_portaudio() -> Any:
    """The sounddevice module. Raises DeviceError, saying what to install, where there is no PortAudio library."""
    try:
        import sounddevice
    except OSError as error:
        raise DeviceError(
            f"no microphone support: {error}. On Debian, Ubuntu and Raspberry Pi OS: apt-get install libportaudio2"
            " (sound files and PCM on stdin work without it)"
        ) from error
    return sounddevice


def open_source(spec: str, *, rate: int | None = None, channels: int = 1, format: str = "s16le") -> Source:
    """A source from how a user names it: `mic`, `mic:ID`, `mic:NAME`, a file's path, or `-` for PCM on stdin.

    `rate`, `channels` and `format` describe the PCM on stdin. Raises UsageError, AudioError, DeviceError.
    """
    if spec == "-":
        if rate is None:
            raise UsageError("raw PCM on stdin does not say its rate: give --rate HZ")
        if sys.stdin.isatty():
            raise UsageError("source '-' reads raw PCM from a pipe, but stdin is a terminal")
        return PcmSource(cast(io.BufferedIOBase, sys.stdin.buffer), rate, channels, format)
    if rate is not None:
        raise UsageError(f"--rate is for source '-'; {spec} knows its own")
    kind, _, device = spec.partition(":")
    if kind == "mic":
        return Microphone(int(device) if device.isdecimal() else device or None)
    return FileSource(spec)


def find_clips(specs: Sequence[str | Path]) -> list[Path]:
    """Clips from how a user names them: files, folders (the sound files in them) and glob patterns, in order.

    A path that names nothing is passed on, for whoever reads it to refuse. Raises UsageError on a folder or a pattern
    without sound.
    """
    import soundfile

    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus", ".oga"}
    clips: list[Path] = []
    for spec in specs:
        path = Path(spec)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
        elif not path.exists() and glob.has_magic(str(spec)):
            found = sorted(Path(file) for file in glob.glob(str(spec), recursive=True))
        else:
            found = [path]
        if not found:
            raise UsageError(f"{spec}: no sound files there")
        clips += found
    return clips


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
