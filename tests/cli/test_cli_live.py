"""What a terminal shows during listening: the highest scores of the last moments, and the nearest enrolled name."""

from __future__ import annotations

import time

import numpy as np
import pytest

from confit_edge.cli._live import HOLD_S, Reading
from confit_runtime import EnergyGate, Model, load
from tests import tiny_model
from tests.tiny_model import RATE, silence, tone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny_model.build(tmp_path_factory.mktemp("live") / "tiny.onnx"))


def shown(reading: Reading) -> dict[str, float]:
    """The scores in the line of a reading, by label; empty if there is no line."""
    words = " ".join(reading.lines()).removeprefix("tiny: ").split()
    return {label: float(score.partition("/")[0]) for label, score in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize("chunk_s", [0.04, 0.5, 2.0])
def test_a_peak_in_the_middle_of_a_chunk_is_shown(model: Model, chunk_s: float) -> None:
    stream = model.stream()
    reading = Reading(stream)
    sound = np.concatenate([silence(0.8), tone(500, 0.25), silence(0.95)])
    fired = []
    for at in range(0, len(sound), samples := round(chunk_s * RATE)):
        fired += stream.accept(sound[at : at + samples], RATE)
    (detection,) = fired
    assert shown(reading)[detection.label] >= round(detection.score, 2) - 0.005


def test_what_was_heard_last_disappears_when_the_stream_scores_no_more(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = model.stream(gate=EnergyGate(RATE))
    reading = Reading(stream)
    stream.accept(np.concatenate([silence(0.5), tone(500, 0.5)]), RATE)
    assert "low" in shown(reading)
    stream.accept(silence(20), RATE)
    assert stream.scores is None
    later = time.monotonic() + HOLD_S + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert shown(reading) == {}
