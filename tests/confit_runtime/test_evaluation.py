"""The terms of an evaluation: signal-to-noise around a label, what was there when something fired, latency."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_runtime import ConfitError, Model
from confit_runtime.evaluation import judge, local_snr_db, snr_band, what_was_there
from confit_runtime.labels import Labelled, read_labelled
from confit_runtime.scoring import Heard
from tests.tiny_model import RATE, silence, tone


@pytest.mark.parametrize("snr_db", [0.0, 7.0, 25.0])
def test_the_ratio_is_that_of_the_sound_to_what_is_around_it(snr_db: float) -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) * 0.01
    signal = np.sin(np.arange(RATE) * 0.3).astype(np.float32) * np.float32(0.01 * math.sqrt(2) * 10 ** (snr_db / 20))
    noise[int(1.5 * RATE) : int(2.5 * RATE)] += signal
    other = Heard("other", 2.5, 2.9)
    noise[int(2.5 * RATE) : int(2.9 * RATE)] += tone(700, 0.4)  # another sound is not noise
    found = local_snr_db(noise, RATE, [Heard("low", 1.5, 2.5), other])
    assert found[0] == pytest.approx(snr_db, abs=0.5)


def test_ratios_that_have_no_number() -> None:
    pcm = np.concatenate([silence(1), tone(500, 0.5), silence(1)])
    assert local_snr_db(pcm, RATE, [Heard("low", 1.0, 1.5)]) == [math.inf]
    assert local_snr_db(pcm, RATE, [Heard("low", 0.0, 0.5)]) == [-math.inf]
    assert math.isnan(local_snr_db(pcm, RATE, [Heard("low", 0.0, 2.5)])[0])
    bands = [snr_band(snr) for snr in (math.nan, -math.inf, -1.0, 0.0, 9.9, 19.0, 20.0, math.inf)]
    assert bands == [
        "unknown", "below 0 dB", "below 0 dB", "0 to 5 dB", "5 to 10 dB", "10 to 20 dB", "20 dB and more", "20 dB and more",
    ]  # fmt: skip


def test_a_recording_is_judged(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, np.concatenate([tone(500, 0.3), silence(1), tone(3600, 0.3), silence(2)]), RATE)
    sounds = [Heard("low", 0.0, 0.3), Heard("parrot", 1.3, 1.6), Heard("mid", 2.8, 3.1)]
    judged = judge(model, Labelled(path, 3.6, sounds))
    assert judged.seconds == 3.6
    assert judged.score.found == [True, False]
    assert [one.label for one in judged.others] == ["parrot"]
    (accept,) = judged.score.false_accepts
    assert (accept.label, what_was_there(accept, judged)) == ("high", "parrot")
    assert what_was_there(Heard("high", 9.0, 9.1), judged) == "nothing"
    latency, missed = judged.latency_s
    assert latency is not None
    assert -0.3 < latency < 0.3
    assert missed is None


@settings(deadline=None, max_examples=80)
@given(cells=st.lists(st.text(alphabet="0123456789.,-einf\t\n \"'xé\\", max_size=60), max_size=4), table=st.booleans())
def test_labels_are_read_or_refused(cells: list[str], table: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("labels")
    (folder / "x.wav").touch()
    text = "\n".join(cells)
    if table:
        (folder / "labels.csv").write_text(f"path,start_s,end_s,label\n{text}", encoding="utf-8")
    else:
        (folder / "x.txt").write_text(text, encoding="utf-8")
    try:
        found = read_labelled(folder / "labels.csv" if table else folder)
    except ConfitError:
        return
    for recording in found:
        for heard in recording.sounds:
            assert 0 <= heard.start_s <= heard.end_s < math.inf
            assert heard.label
