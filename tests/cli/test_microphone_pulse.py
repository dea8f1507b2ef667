"""The microphone for real: words played into a PulseAudio sink, heard through ALSA and PortAudio by the command."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.data.manifest import read_manifest
from confit_edge.demo import DATA
from confit_runtime import load
from confit_runtime.audio import read_audio, resample
from tests.cli import pulse
from tests.cli.command import COMMAND

pytestmark = pytest.mark.skipif(pulse.missing() is not None, reason=f"no PulseAudio to hear: {pulse.missing()}")

ROOT = Path(__file__).parents[2]
WORDS = ("seven", "two", "nine")


@pytest.fixture(scope="module", params=[48_000, 44_100])
def room(request: pytest.FixtureRequest) -> Iterator[pulse.Room]:
    with pulse.room(request.param) as opened:
        opened.environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'export'}:{ROOT / 'runtime'}"
        yield opened


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three words by a person, with pauses."""
    parts = [np.zeros(24_000, np.float32)]
    for word in WORDS:
        pcm, rate = read_audio(DATA / "digits-real" / f"{word}.ogg")
        parts += [resample(pcm, rate, 48_000), np.zeros(36_000, np.float32)]
    path = tmp_path_factory.mktemp("scene") / "scene.wav"
    soundfile.write(path, np.concatenate(parts), 48_000)
    return path


def begin(room: pulse.Room, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=room.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]], str]:
    out, err = command.communicate(timeout=60)
    return command.returncode, [json.loads(line) for line in out.splitlines()], err


def test_the_microphone_hears_what_the_file_holds(room: pulse.Room, scene: Path) -> None:
    pcm, rate = read_audio(scene)
    stream = load("digits").stream(lead_in=True)
    in_file = [*stream.accept(pcm, rate), *stream.finish()]
    assert [event.label for event in in_file] == list(WORDS)

    for _ in range(3):  # a machine that is too busy once is not so each time
        command = begin(room, "listen", "digits", "--source", "mic", "--json")
        room.wait_for_listener()
        room.play(scene)
        command.terminate()  # as systemd stops a service
        status, (*detections, summary), err = finish(command)
        # a busy sound server plays holes, which it reports to nobody
        if not summary["dropped_samples"] and [event["label"] for event in detections] == list(WORDS):
            break
    assert (status, summary["dropped_samples"]) == (0, 0), err
    assert [event["label"] for event in detections] == list(WORDS)
    # when the playing began is not known, but the words are as far apart as in the file, to a hop and a little jitter
    gaps = np.diff([event.start_s for event in in_file])
    np.testing.assert_allclose(np.diff([event["start_s"] for event in detections]), gaps, atol=0.2)
    assert (summary["source"], summary["by_model"]["digits"]["detections"]) == ("mic", dict.fromkeys(WORDS, 1))


@pytest.mark.parametrize("room", [44_100], indirect=True)
def test_a_sound_server_that_dies_is_waited_for(room: pulse.Room, scene: Path) -> None:
    command = begin(room, "listen", "digits", "--json")
    room.wait_for_listener()
    time.sleep(3.0)  # it delivers, and no longer what it was opened with
    played = [time.monotonic()]
    room.play(scene)
    room.close()
    assert command.stdout is not None
    events = [json.loads(command.stdout.readline()) for _ in range(len(WORDS) + 1)]
    assert (events[-1]["type"], events[-1]["state"]) == ("notice", "away")
    room.open()
    room.wait_for_listener()
    time.sleep(3.0)
    played.append(time.monotonic())
    room.play(scene)
    command.terminate()
    status, (back, *detections, summary), err = finish(command)
    assert (status, back["state"]) == (0, "back"), err
    gap, *detections = detections
    assert (gap["type"], gap["reason"]) == ("gap", "the microphone was away")
    assert [event["label"] for event in detections if event["type"] == "detection"] == list(WORDS), err
    assert summary["by_model"]["digits"]["detections"] == dict.fromkeys(WORDS, 2)
    # what was opened again delivered nothing for a second or two
    assert detections[0]["start_s"] - events[0]["start_s"] == pytest.approx(played[1] - played[0], abs=0.9)


@pytest.mark.parametrize("room", [44_100], indirect=True)
def test_devices_doctor_and_record_at_the_microphone(room: pulse.Room, scene: Path, tmp_path: Path) -> None:
    status, (*found, _), _ = finish(begin(room, "devices", "--json"))
    assert status == 0
    assert [one["name"] for one in found if one["default"]] == ["default"]

    status, (*findings, measured), _ = finish(begin(room, "doctor", "--seconds", "1", "--json"))
    assert (status, measured["peak_db"], findings[0]["level"]) == (1, -120.0, "bad")
    assert "digital silence" in findings[0]["text"]

    clips = str(tmp_path / "clips")
    arguments = ("--count", "1", "--seconds", "1.2", "--countdown", "0", "--group", "ada", "--json")
    recording = begin(room, "record", "seven", "-o", clips, *arguments)
    room.wait_for_listener()
    room.play(scene)
    status, lines, err = finish(recording)
    assert (status, lines[-1]["clips"]) == (0, 1), err
    *_, kept, _ = lines
    pcm, _ = read_audio(kept["path"])
    assert 0.05 < np.abs(pcm).max() < 0.99
    (tmp_path / "clips" / "no" / "bob").mkdir(parents=True)
    soundfile.write(tmp_path / "clips" / "no" / "bob" / "1.wav", pcm, 44_100)
    assert read_manifest(clips).classes == ["no", "seven"]
