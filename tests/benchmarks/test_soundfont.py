"""The reader of sound fonts, on a small one made here by the letter of the specification."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.soundfont import SoundFont, extract

LEFT, TICK, RIGHT = (
    np.arange(start, start + length, dtype="<i2") for start, length in ((1, 4000), (9000, 100), (1, 4000))
)


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def listing(kind: bytes, *chunks: bytes) -> bytes:
    return chunk(b"LIST", kind + b"".join(chunks))


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """Preset "Lute" (program 24) plays an instrument of all three samples; preset "Kit" lies in bank 128."""
    samples = b"".join(part.tobytes() for part in (LEFT, TICK, RIGHT))
    starts = np.cumsum([0, len(LEFT), len(TICK), len(RIGHT)])
    headers = b"".join(
        struct.pack("<20sIIIIIBbHH", name, start, end, 0, 0, 8000, 60, 0, 0, kind)
        for name, start, end, kind in (
            (b"left", starts[0], starts[1], 4),
            (b"tick", starts[1], starts[2], 1),
            (b"right", starts[2], starts[3], 2),
            (b"EOS", 0, 0, 0),
        )
    )
    presets = [(b"Lute", 24, 0, 0), (b"Kit", 0, 128, 1), (b"EOP", 0, 0, 2)]
    instruments = [(b"strings", 0), (b"EOI", 4)]
    tables = [
        chunk(b"phdr", b"".join(struct.pack("<20sHHH3I", *one, 0, 0, 0) for one in presets)),
        chunk(b"pbag", struct.pack("<6H", 0, 0, 1, 0, 2, 0)),
        chunk(b"pgen", struct.pack("<6H", 41, 0, 41, 0, 0, 0)),
        chunk(b"inst", b"".join(struct.pack("<20sH", *one) for one in instruments)),
        chunk(b"ibag", struct.pack("<10H", 0, 0, 1, 0, 2, 0, 3, 0, 5, 0)),
        chunk(b"igen", struct.pack("<12H", 17, 9, 53, 0, 53, 1, 58, 60, 53, 2, 0, 0)),
        chunk(b"shdr", headers),
    ]
    body = b"sfbk" + listing(b"INFO", chunk(b"INAM", b"odd")) + listing(b"sdta", chunk(b"smpl", samples))
    path = tmp_path / "small.sf2"
    path.write_bytes(chunk(b"RIFF", body + listing(b"pdta", *tables)))
    return path


def test_presets_and_the_samples_they_play(font: Path) -> None:
    source = SoundFont(font)
    assert [(one.bank, one.program, one.name, one.samples) for one in source.presets] == [
        (0, 24, "Lute", (0, 1, 2)),
        (128, 0, "Kit", (0, 1, 2)),
    ]
    pcm, rate = source.sample(1)
    assert rate == 8000
    np.testing.assert_array_equal(pcm, TICK)
    assert [source.is_right(index) for index in range(3)] == [False, False, True]


def test_extract_keeps_long_left_samples_of_melodic_presets(font: Path, tmp_path: Path) -> None:
    extract(font, tmp_path / "out", seconds=(0.25, 0.4))
    assert json.loads((tmp_path / "out" / "presets.json").read_text()) == [
        {"program": 24, "name": "Lute", "samples": ["0000.flac"]}
    ]
    pcm, rate = soundfile.read(tmp_path / "out" / "0000.flac", dtype="int16")
    assert rate == 8000
    np.testing.assert_array_equal(pcm, LEFT[:3200])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.sf2").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    with pytest.raises(ValueError, match="SoundFont"):
        SoundFont(tmp_path / "no.sf2")
