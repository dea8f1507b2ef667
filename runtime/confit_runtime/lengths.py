"""How much sound a file really contains, counted from MP3 frames and Ogg streams.

libsndfile itself relies on a header or a guess.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from confit_runtime.errors import AudioError

_VERSIONS = {0b00: 2.5, 0b10: 2, 0b11: 1}  # of MPEG
_RATES = {1: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 2.5: (11_025, 12_000, 8_000)}  # in Hz
_KILOBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")  # how a frame of layer III begins
_STATED = (b"Xing", b"Info", b"VBRI")  # in a first frame without sound, which states how many frames follow


def mp3_seconds(path: Path) -> tuple[float, bool]:
    """How long the frames of an MP3 file (layer III) last, and whether its first frame states how many there are.

    Skips tags, pictures and padding between frames. Does not find frames of free bit rate. Raises AudioError if the
    folder does not allow files to be mapped into memory; so does `is_joined`.
    """
    seconds, first = 0.0, None
    with _mapped(path) as data:
        at, frames = 0, _frames()
        while at < len(data):
            frame = frames.get(data[at : at + 3])
            if frame is None:
                at = _next_frame(data, at)
                continue
            first = at if first is None else first
            at, seconds = at + frame[0], seconds + frame[1]
        head = b"" if first is None else data[first : first + 64]
    return seconds, any(word in head for word in _STATED)


def is_joined(path: Path) -> bool:
    """Whether an Ogg file contains another stream after the first."""
    with _mapped(path) as data:
        at, begun = 0, False  # streams that play at the same time all begin before any other page
        last: dict[bytes, int] = {}  # the number of each stream's last page, by stream
        while at >= 0 and at + 27 <= len(data):
            if data[at : at + 5] != b"OggS\0":  # a stream that was cut off, or other data between two streams
                at = data.find(b"OggS\0", at + 1)
                continue
            begins, stream = bool(data[at + 5] & 2), data[at + 14 : at + 18]
            number = int.from_bytes(data[at + 18 : at + 22], "little")
            if begun and (begins or number <= last.get(stream, number)):
                return True
            begun, last[stream] = not begins, number
            parts = data[at + 27 : at + 27 + data[at + 26]]
            at += 27 + len(parts) + sum(parts)
    return False


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:  # some network folders do not support it
        raise AudioError(f"{path}: cannot be mapped into memory ({error.strerror}): copy it to a local disk") from error
    with data:
        yield data


@cache
def _frames() -> dict[bytes, tuple[int, float, int]]:
    """Map the first three bytes of every possible frame header to the frame's bytes, seconds and rate."""
    found = {}
    for bits, version in _VERSIONS.items():
        half = 1 if version == 1 else 2
        for index, kilobits in enumerate(_KILOBITS[half], start=1):
            for column, rate in enumerate(_RATES[version]):
                for low in range(4):  # the padding bit, and a bit for private use
                    size = 144_000 * kilobits // half // rate + low // 2
                    for checked in (0, 1):
                        header = bytes([0xFF, 0xE2 | bits << 3 | checked, index << 4 | column << 2 | low])
                        found[header] = size, 1152 / half / rate, rate
    return found


def _next_frame(data: mmap.mmap, at: int) -> int:
    """Where the next frame begins after `at` that is followed by another frame of its rate; the end if there is none."""
    if data[at : at + 3] == b"ID3" and at + 10 <= len(data):
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        return at + 10 + size
    frames = _frames()
    for match in _SYNC.finditer(data, at + 1):
        frame = frames.get(data[match.start() : match.start() + 3])
        if frame is not None:
            after = match.start() + frame[0]
            follows = frames.get(data[after : after + 3])
            if follows is not None and follows[2] == frame[2]:
                return match.start()
    return len(data)
