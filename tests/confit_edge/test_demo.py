"""What the demo does beside its trainings; `tests/demo_check.py` runs it from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from confit_edge.data.manifest import read_manifest
from confit_edge.demo import DATA
from confit_edge.demo.steps import Demo
from confit_edge.demo.voices import ask_speaker_model


@pytest.mark.parametrize("seed", [0, 6, 18])
def test_voices_that_speak_fast_are_enrolled_too(tmp_path: Path, seed: int) -> None:
    """Of ten of their words some seeds draw less than the 4 s that a voice needs."""
    fast, lines = ["zf_xiaoyi", "zm_yunxi"], list[str]()
    every = read_manifest(DATA / "words" / "manifest.csv")
    test = [clip for clip in every.clips if clip.split == "test" and clip.group in (*fast, "am_santa")]
    found = ask_speaker_model(Demo(tmp_path, seed, lines.append, None), test, fast)
    assert found["n"] == 2 * found["unknown_n"] > 0
    assert found["correct"] > found["mistaken"]
    assert f"{found['correct']} of {found['n']} such sentences named correctly" in " ".join(lines[0].split())
