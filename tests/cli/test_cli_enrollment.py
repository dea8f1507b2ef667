"""Enrollment as a user runs it: the shipped speaker model on real and synthetic speech, negatives, other files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.demo import DATA
from confit_runtime.audio import load_clip
from tests.cli.test_cli_device import run

RATE = 16_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of five words by three synthetic voices of the demo's test split, and a scene of a real person's digits."""
    folder, rng = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    words = sorted(path.name for path in (DATA / "words").iterdir() if path.is_dir())
    for voice in ("am_santa", "bf_lily", "zf_xiaoyi"):
        order = rng.permutation(words)
        for at in range(4):
            chosen = order[5 * at : 5 * at + 5]
            parts = [load_clip(DATA / "words" / word / f"{voice}.ogg", RATE) for word in chosen]
            soundfile.write(folder / f"{voice}-{at}.flac", np.concatenate(parts), RATE)
    pause = np.zeros(RATE, np.float32)
    digits = [load_clip(DATA / "digits-real" / f"{word}.ogg", RATE) for word in ("one", "seven")]
    soundfile.write(folder / "scene.flac", np.concatenate([pause, digits[0], pause, digits[1], pause]), RATE)
    return folder


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_voices_are_enrolled_identified_and_verified(clips: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "enroll", "speakers", "santa", str(clips / "am_santa-0.flac"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "s more, a sentence or two; nothing was written" in done.stderr
    assert not (tmp_path / "gallery.db").exists()
    for name, voice in (("santa", "am_santa"), ("lily", "bf_lily")):
        given = [str(clips / f"{voice}-{at}.flac") for at in range(3)]
        (enrolled,) = lines(run(tmp_path, "enroll", "speakers", name, *given, "--json"))
        assert (enrolled["name"], enrolled["negative"]) == (name, False)
        assert enrolled["prints"] >= 3
        assert enrolled["voiced_s"] > 4.0

    asked = [str(clips / f"{voice}-3.flac") for voice in ("am_santa", "bf_lily", "zf_xiaoyi")]
    *matches, summary = lines(run(tmp_path, "identify", "speakers", *asked, "--json"))
    assert [match["name"] for match in matches] == ["santa", "lily", None]
    assert [match["score"] >= match["threshold"] for match in matches[:2]] == [True, True]
    assert (summary["known"], summary["unknown"]) == (2, 1)

    yes = run(tmp_path, "verify", "speakers", "santa", asked[0], "--json")
    no = run(tmp_path, "verify", "speakers", "santa", asked[1], "--json")
    assert [(done.returncode, lines(done)[0]["verified"]) for done in (yes, no)] == [(0, True), (1, False)]
    assert lines(no)[0]["runner_up"] == "lily"
    assert run(tmp_path, "verify", "speakers", "nobody", asked[0]).returncode == 2


def test_a_saved_trigger_is_taught_as_a_false_alarm(clips: Path, tmp_path: Path) -> None:
    listen = ("listen", "digits", "--source", str(clips / "scene.flac"), "--json")
    first = [line for line in lines(run(tmp_path, *listen, "--save-triggers", "kept")) if line["type"] == "detection"]
    assert [line["label"] for line in first] == ["one", "seven"]
    (trigger,) = (tmp_path / "kept").glob("one-*.flac")
    done = run(tmp_path, "enroll", "digits", "one", str(trigger), "--negative", "--gallery", "house.db", "--json")
    assert lines(done)[0]["negative"] is True
    again = lines(run(tmp_path, *listen, "--gallery", "house.db"))
    assert [line["label"] for line in again if line["type"] == "detection"] == ["seven"]
    assert again[-1]["detections"] == {"seven": 1}


def test_only_one_speaker_is_listened_to(clips: Path, tmp_path: Path) -> None:
    given = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    assert run(tmp_path, "enroll", "speakers", "lily", *given).returncode == 0
    listen = ("listen", "digits", "--source", str(clips / "scene.flac"), "--gallery", "gallery.db")
    voices = ("--speaker-model", "speakers")
    heard = lines(run(tmp_path, *listen, *voices, "--json"))
    assert [(line["label"], line["speaker"]) for line in heard[:-1]] == [("one", None), ("seven", None)]
    assert len(lines(run(tmp_path, *listen, *voices, "--only", "lily", "--json"))) == 1  # the summary
    for options, what in (
        ([*listen, *voices, "--only", "ada"], "--only ada: is not enrolled"),
        (["listen", "digits", "--source", "x.wav", "--only", "lily"], "--speaker-model"),
        (["listen", "digits", "--source", "x.wav", *voices], "--gallery"),
        (["enroll", "speakers", "ada"], "--mic"),
    ):
        done = run(tmp_path, *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert what in done.stderr


def test_galleries_travel_and_are_made_anew_for_another_model(clips: Path, tmp_path: Path) -> None:
    given = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    run(tmp_path, "enroll", "speakers", "lily", *given, "--keep-audio")
    assert run(tmp_path, "gallery", "export", "lily", "-o", "lily.db").returncode == 0
    imported = lines(run(tmp_path, "gallery", "import", "lily.db", "--gallery", "new.db", "--json"))
    assert imported[0]["name"] == "lily"
    refused = run(tmp_path, "identify", "digits", given[0], "--gallery", "new.db")
    assert refused.returncode == 1
    assert "gallery re-enroll" in refused.stderr
    assert run(tmp_path, "gallery", "re-enroll", "digits", "--gallery", "new.db").returncode == 0
    answer = run(tmp_path, "identify", "digits", given[0], "--gallery", "new.db", "--kind", "speaker", "--json")
    match = lines(answer)[0]
    assert match["score"] > 0.8
