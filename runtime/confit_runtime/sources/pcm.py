"""Raw PCM from a pipe."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from confit_runtime.arrays import check_count, check_duration
from confit_runtime.audio import MAX_CHANNELS, check_rate
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.sources.base import PAUSE_S, Chunk, Gap, Notice, Pause, PlaybackClock, chunk_or_gap
from confit_runtime.sources.clock import boottime
from confit_runtime.sources.pipes import wait_for_data

PCM_FORMATS: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}

_FILES = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg"}  # by the first bytes of the file
_POLL_S = 0.2  # how often a silent pipe checks whether it was stopped
_PACE_S = 10.0  # over which the pace of the samples is measured
_WAITED = 0.05  # share of that time that the reader waits at least if the writer sets the pace
_NEAR, _FAR = 0.01, 0.05  # relative differences of a pace from the rate that it is, and from one that it is not
# frames per second that come from usual sound: halved where 8 bits are read as 16, doubled from two channels or 32 bits
_PACES = sorted(
    {
        times * rate // 2
        for times in (1, 2, 4)
        for rate in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
    }
)

log = logging.getLogger(__name__)


class PcmSource:
    """Raw interleaved PCM from a byte stream, passed on as it arrives. A last incomplete frame is dropped, and logged.

    The stream may already have been read from, such as a header line, and may be unbuffered.

    If nothing follows for `pause_s` after the sound received so far has played, there is a `Pause`. If nothing comes
    for `stall_s`, a notice says so, and another one when sound comes again; but there is no gap, because the writer
    may have nothing to write, such as between two calls, and have lost nothing. If samples come steadily at another
    usual rate than `rate`, a notice says so once. (Windows cannot wait for a pipe, so it has none of these.)

    Raises UsageError for an invalid rate, channel count, format or `stall_s`, and if the bytes begin like a sound
    file; DeviceError if the stream breaks off, as a socket may.
    """

    live = True

    def __init__(
        self,
        stream: io.BufferedIOBase | io.RawIOBase,
        rate: int,
        channels: int = 1,
        format: str = "s16le",
        name: str = "-",
        *,
        pause_s: float = PAUSE_S,
        stall_s: float = 10.0,
    ) -> None:
        if format not in PCM_FORMATS:
            raise UsageError(f"PCM format {format!r} is unknown (known: {', '.join(PCM_FORMATS)})")
        channels = check_count(channels, "the number of PCM channels", 1)
        if channels > MAX_CHANNELS:
            raise UsageError(f"PCM has {channels} channels; it must have 1 to {MAX_CHANNELS}")
        self.name, self.rate = name, check_rate(rate)
        self._stream, self._channels, self._dtype = stream, channels, PCM_FORMATS[format]
        self._pause_s = check_duration(pause_s, "the pause_s of a pipe")
        self._stall_s = check_duration(stall_s, "the stall_s of a pipe")
        self._stopped = threading.Event()

    def __enter__(self) -> PcmSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: the stream belongs to the caller and stays open."""

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        try:
            yield from self._items()
        except OSError as error:  # for example a socket whose other end is gone
            raise DeviceError(f"{self.name}: broke off ({error.strerror or error})") from error

    def _items(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        frame = self._dtype.itemsize * self._channels
        held = start = b""
        for data in self._pieces():
            if isinstance(data, Notice | Pause):
                yield data
                continue
            held += data
            start = (start + data[:4])[:4]
            if start in _FILES:
                raise UsageError(
                    f"the pipe contains {_FILES[start]} data, not raw PCM: write it without a header (`arecord -t"
                    " raw`, `ffmpeg ... -f s16le -`), or give the file's path as the source"
                )
            complete = len(held) // frame * frame
            frames, held = np.frombuffer(held[:complete], self._dtype), held[complete:]
            if len(frames):
                yield chunk_or_gap((frames.reshape(-1, self._channels), self.rate), "the pipe")
        if held and not self._stopped.is_set():
            log.warning(
                "%s: ended in the middle of a sample (%d of %d bytes): check format and channels",
                self.name,
                len(held),
                frame,
            )

    def stop(self) -> None:
        self._stopped.set()

    def _pieces(self) -> Iterator[bytes | Notice | Pause]:
        """Yield the bytes as they arrive, to the end or until it is stopped, and pauses and notices if none arrive."""
        read = self._stream.read if isinstance(self._stream, io.RawIOBase) else self._stream.read1
        try:
            descriptor = self._stream.fileno()
        except io.UnsupportedOperation:
            descriptor = None
        ahead = descriptor is not None and self._was_read_ahead(descriptor)
        frame = self._dtype.itemsize * self._channels
        bytes_per_second = frame * self.rate
        playback, pace, last_arrival, away, paused = PlaybackClock(), _Pace(self.rate), boottime(), False, True
        yield Pause()  # a writer that writes only while somebody speaks begins with a word
        while not self._stopped.is_set():
            if ahead or descriptor is None or wait_for_data(descriptor, _POLL_S):
                ahead, arrived = False, boottime()
                if not (data := read(65_536)):
                    return
                if away:
                    yield Notice("back", f"{self.name}: sound comes through the pipe again")
                yield data
                real = None if descriptor is None else pace.came(len(data) / frame, arrived, arrived - last_arrival)
                last_arrival, away, paused = boottime(), False, False
                playback.received(len(data) / bytes_per_second, last_arrival)
                if real is not None:
                    yield Notice(
                        "rate",
                        f"{self.name}: {real:,} samples per second come through the pipe, though its rate is said to be"
                        f" {self.rate:,} Hz: check rate, channels and format",
                    )
            elif not paused and boottime() > playback.pause_due(self._pause_s):
                paused = True
                yield Pause()
            elif not away and boottime() - last_arrival > self._stall_s:
                away = True
                yield Notice("away", f"{self.name}: nothing came through the pipe for {self._stall_s:g} s; waiting")

    def _was_read_ahead(self, descriptor: int) -> bool:
        """Whether the stream's buffer already holds data, as after a header line, which waiting would not detect."""
        if not isinstance(self._stream, io.BufferedReader) or wait_for_data(descriptor, 0.0):
            return False
        if not os.get_blocking(descriptor):
            return False
        os.set_blocking(descriptor, False)  # otherwise peeking into an empty buffer would wait for data
        try:
            return bool(self._stream.peek())
        finally:
            os.set_blocking(descriptor, True)


class _Pace:
    """Measures at how many frames per second a live writer writes, to find that `rate` is wrong.

    A recording comes as fast as it is heard: then the reader hardly ever waits, and nothing is concluded. Nor is it from
    a pace that is not usual, or not the same twice, as if the writer leaves out silence or a network is slow.
    """

    def __init__(self, rate: int) -> None:
        self._rate, self._reported = rate, False
        self._since: float | None = None  # when the current period began
        self._frames = self._waited_s = 0.0
        self._before: int | None = None  # the usual pace of the period before

    def came(self, frames: float, now: float, waited_s: float) -> int | None:
        """The real pace, once, when it proves to be another one, after `frames` for which the reader waited `waited_s`."""
        if self._since is None:  # the first frames were waiting, since nobody knows when
            self._since = now
            return None
        self._frames += frames
        self._waited_s += waited_s
        if (lasted := now - self._since) < _PACE_S:
            return None
        before, self._before = self._before, self._usual(lasted)
        self._since, self._frames, self._waited_s = now, 0.0, 0.0
        if self._reported or self._before is None or self._before != before:
            return None
        self._reported = True
        return self._before

    def _usual(self, lasted: float) -> int | None:
        """The usual pace at which frames came, if the writer set it and it is not the rate."""
        if self._waited_s < _WAITED * lasted or abs(self._frames / lasted / self._rate - 1) < _FAR:
            return None
        return next((pace for pace in _PACES if abs(self._frames / lasted / pace - 1) < _NEAR), None)
