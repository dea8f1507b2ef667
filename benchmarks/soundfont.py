"""Reads the samples of a SoundFont 2 file by preset (SoundFont Technical Specification 2.04, section 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

INSTRUMENT, SAMPLE = 41, 53  # the generators that end a preset's zone and an instrument's zone
RIGHT = 2  # the sample type of the right half of a stereo pair

PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "<u4", 3)])
INSTRUMENTS = np.dtype([("name", "S20"), ("bag", "<u2")])
BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
GENERATOR = np.dtype([("kind", "<u2"), ("value", "<u2")])
HEADER = np.dtype(
    [
        ("name", "S20"),
        ("start", "<u4"),
        ("end", "<u4"),
        ("loop", "<u4", 2),
        ("rate", "<u4"),
        ("pitch", "<u2"),
        ("link", "<u2"),
        ("kind", "<u2"),
    ]
)


@dataclass(frozen=True)
class Preset:
    """A preset of a sound font and the indices of the samples it plays."""

    bank: int
    program: int
    name: str
    samples: tuple[int, ...]


class SoundFont:
    """A sound font: its `presets`, and `sample(index)` as 16-bit mono with the rate in Hz. Raises ValueError for other files."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
            raise ValueError(f"{path}: is not a SoundFont 2 file")
        parts = {
            name: data[start:end]
            for kind, first, last in _chunks(data, 12, len(data))
            if kind == b"LIST"
            for name, start, end in _chunks(data, first + 4, last)
        }
        self._pcm = np.frombuffer(parts[b"smpl"], "<i2")
        self._headers = np.frombuffer(parts[b"shdr"], HEADER)[:-1]  # each table ends with a terminal record
        instruments = _zones(parts, b"inst", INSTRUMENTS, b"ibag", b"igen", SAMPLE)
        self.presets = [
            Preset(
                int(record["bank"]),
                int(record["program"]),
                _text(record["name"]),
                tuple(sorted({sample for instrument in played for sample in instruments[instrument][1]})),
            )
            for record, played in _zones(parts, b"phdr", PRESET, b"pbag", b"pgen", INSTRUMENT)
        ]

    def sample(self, index: int) -> tuple[npt.NDArray[np.int16], int]:
        header = self._headers[index]
        return self._pcm[header["start"] : header["end"]], int(header["rate"])

    def is_right(self, index: int) -> bool:
        """Whether the sample is the right half of a stereo pair, whose left half is enough."""
        return int(self._headers[index]["kind"]) == RIGHT


def extract(font: Path, target: Path, *, seconds: tuple[float, float] = (0.25, 1.28)) -> None:
    """Write each sample that a melodic preset (bank 0) plays as `NUMBER.flac`, and write `presets.json`.

    `seconds` is the shortest and the longest length: shorter samples are left out, and longer ones cut. Right halves of stereo
    pairs are left out too.
    """
    source = SoundFont(font)
    target.mkdir(parents=True)
    kept: dict[int, str] = {}
    listing = []
    for preset in source.presets:
        if preset.bank:
            continue
        for index in preset.samples:
            pcm, rate = source.sample(index)
            if index not in kept and len(pcm) >= seconds[0] * rate and not source.is_right(index):
                kept[index] = f"{index:04d}.flac"
                soundfile.write(target / kept[index], pcm[: int(seconds[1] * rate)], rate)
        files = [kept[index] for index in preset.samples if index in kept]
        listing.append({"program": preset.program, "name": preset.name, "samples": files})
    (target / "presets.json").write_text(json.dumps(listing, indent=1) + "\n")


def _zones(
    parts: dict[bytes, bytes], owners: bytes, layout: np.dtype, bags: bytes, generators: bytes, operator: int
) -> list[tuple[np.void, list[int]]]:
    """Return each owner (preset or instrument) with the values of the generator `operator` in its zones."""
    records, bag = np.frombuffer(parts[owners], layout), np.frombuffer(parts[bags], BAG)["generator"]
    generator = np.frombuffer(parts[generators], GENERATOR)
    values = []
    for record, after in pairwise(records):
        inside = generator[bag[record["bag"]] : bag[after["bag"]]]
        values.append((record, [int(value) for value in inside["value"][inside["kind"] == operator]]))
    return values


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, first byte and end of each RIFF chunk between `start` and `end`."""
    while start + 8 <= end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], start + 8, start + 8 + size
        start += 8 + size + size % 2


def _text(raw: bytes) -> str:
    return re.sub(r"[^ -~]", "", raw.split(b"\0")[0].decode("latin-1")).strip()
