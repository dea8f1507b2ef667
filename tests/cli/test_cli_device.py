"""The device verbs as a user runs them: processes of their own, a real (tiny) model, real pipes and signals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.cli.record import keep
from confit_edge.data.manifest import read_manifest
from confit_runtime.recording import Take
from confit_runtime.soundcheck import soundcheck
from tests import tiny_model
from tests.cli.command import COMMAND
from tests.cli.forked import DEVICE
from tests.tiny_model import Floats, chord, silence, tone

ROOT = Path(__file__).parents[2]
BELL, BUZZ = (300.0, 2600.0), (800.0, 5000.0)
RATE = 44_100


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a scene to listen to, and clips to enroll."""
    home = tmp_path_factory.mktemp("home")
    tiny_model.build(home / "tiny.onnx")
    tiny_model.build(home / "other.onnx", name="other", embedding_id="another-embedding")
    tiny_model.build(
        home / "mute.onnx", name="mute", thresholds={label: {"on": 1.01, "off": 0.5} for label in tiny_model.LABELS}
    )
    soundfile.write(home / "scene.flac", scene(RATE), RATE)
    (home / "bells").mkdir()
    for at in range(3):
        soundfile.write(home / "bells" / f"bell-{at}.wav", chord(BELL, 0.4 + at / 10), 16_000)
    soundfile.write(home / "buzz.wav", chord(BUZZ, 0.5, 48_000), 48_000)
    soundfile.write(home / "stranger.wav", chord((300.0, 1800.0), 0.5, 22_050), 22_050)
    soundfile.write(home / "silent.wav", silence(0.5), 16_000)
    soundfile.write(home / "short.wav", tone(500, 0.03), 16_000)
    (home / "text.wav").write_text("this is not sound\n")
    (home / "text.onnx").write_text("this is not a model\n")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)
    soundfile.write(home / "damaged.flac", noise, 16_000)
    data = (home / "damaged.flac").read_bytes()
    (home / "damaged.flac").write_bytes(data[: len(data) // 2] + bytes(3000) + data[len(data) // 2 + 3000 :])
    done = run(home, "enroll", "tiny.onnx", "bell", "bells", "--gallery", "house.db", "--json")
    assert done.returncode == 0, done.stderr
    return home


def scene(rate: int) -> Floats:
    """low at 0.4 s, a bell at 1.0 s, mid at 1.8 s."""
    parts = [
        tone(500, 0.3, rate),
        silence(0.3, rate),
        chord(BELL, 0.5, rate),
        silence(0.3, rate),
        tone(1200, 0.3, rate),
    ]
    return np.concatenate([silence(0.4, rate), *parts, silence(0.4, rate)])


def environment(*first: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*first, ROOT, ROOT / "export", ROOT / "runtime"]))}


def run(
    folder: Path, *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return DEVICE.run(*arguments, stdin=stdin, cwd=folder, environment=env or environment())


def in_shell(folder: Path, env: dict[str, str], line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `"$@"` is the command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND],
        cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# listen


def test_listen_to_a_file(home: Path) -> None:
    done = run(home, "listen", "tiny.onnx", "--source", "scene.flac", "--json")
    assert done.returncode == 0
    *detections, summary = lines(done)
    assert [(one["type"], one["model"], one["label"], one["speaker"]) for one in detections] == [
        ("detection", "tiny", "low", None),
        ("detection", "tiny", "mid", None),
    ]
    for one, start in zip(detections, [0.4, 1.8], strict=True):
        assert abs(one["start_s"] - start) < 0.1
        assert one["start_sample"] == round(one["start_s"] * RATE)
        assert one["end_sample"] == round(one["end_s"] * RATE)
        assert 0.6 <= one["score"] <= 1.0
        assert "at" not in one
    assert summary == {
        "type": "summary",
        "source": "scene.flac",
        "seconds": 2.5,
        "dropped_samples": 0,
        "by_model": {"tiny": {"detections": {"low": 1, "mid": 1}, "withheld": {}}},
    }


def test_listen_prints_a_line_for_each_detection(home: Path) -> None:
    done = run(home, "listen", "tiny.onnx", "--source", "scene.flac", "--gallery", "house.db")
    assert done.returncode == 0
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["low", "bell", "mid"]
    assert done.stderr == "tiny: low 1, bell 1, mid 1 in 2.5 s\n"


def test_listen_tells_the_end_of_a_sound_where_it_is_asked_to(home: Path) -> None:
    asked = ["listen", "tiny.onnx", "--source", "scene.flac", "--gallery", "house.db", "--ends"]
    *told, summary = lines(run(home, *asked, "--json"))
    labels = ["low", "bell", "mid"]
    assert [(one["type"], one["label"]) for one in told] == [
        (kind, label) for label in labels for kind in ("detection", "ended")
    ]
    for began, ended, end in zip(told[::2], told[1::2], [0.7, 1.5, 2.1], strict=True):
        assert set(ended) == {
            "type",
            "model",
            "label",
            "start_s",
            "end_s",
            "start_sample",
            "end_sample",
            "enrolled",
            "source",
        }
        assert began["enrolled"] == ended["enrolled"] == (began["label"] == "bell")
        assert (ended["start_s"], ended["start_sample"]) == (began["start_s"], began["start_sample"])
        assert abs(ended["end_s"] - end) < 0.1
    assert summary["by_model"]["tiny"]["detections"] == dict.fromkeys(labels, 1)
    done = run(home, *asked)
    assert [line.split()[2:5] for line in done.stdout.splitlines()[1::2]] == [[one, "ended", "at"] for one in labels]


def test_listen_takes_what_beeps_for_one_sound_where_it_is_asked_to(home: Path, tmp_path: Path) -> None:
    beep = tone(500, 0.5)
    soundfile.write(tmp_path / "alarm.wav", np.concatenate([beep, silence(1.5)] * 4 + [silence(4.0), beep]), 16_000)
    asked = ["listen", "tiny.onnx", "--source", tmp_path / "alarm.wav", "--ends", "--json"]

    def places(*more: str) -> list[tuple[str, float]]:
        *told, _ = lines(run(home, *asked, *more))
        return [(one["type"], round(2 * one["start_s" if one["type"] == "detection" else "end_s"]) / 2) for one in told]

    assert places() == [(kind, at + end) for at in (0, 2, 4, 6, 12) for kind, end in (("detection", 0), ("ended", 0.5))]
    for hold in ("--hold=3", "--hold=low=3", "--hold=3 --hold=mid=0"):
        for more in ([], ["--gate", "-50"]):  # which sleeps through the pauses
            found = places(*hold.split(), *more)
            assert found == [("detection", 0), ("ended", 6.5), ("detection", 12), ("ended", 12.5)], (hold, more)
    for wrong, what in (("low=x", "expected LABEL=SECONDS"), ("-1", "may pause"), ("lov=3", "is not a label")):
        done = run(home, *asked, f"--hold={wrong}")
        assert (done.returncode, what in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("form", "channels"), [("s16le", 1), ("f32le", 2)])
def test_listen_to_a_pipe(home: Path, form: str, channels: int) -> None:
    sound = np.repeat(scene(16_000)[:, None], channels, axis=1)
    data = (sound * 32767).astype("<i2").tobytes() if form == "s16le" else sound.astype("<f4").tobytes()
    described = ["--rate", "16000", "--channels", str(channels), "--format", form]
    done = run(home, "listen", "tiny.onnx", "--source", "-", *described, "--json", stdin=data + b"\x01")
    assert [one.get("label") for one in lines(done)] == ["low", "mid", None]
    assert lines(done)[-1]["source"] == "-"


def test_a_muted_source_is_told_of(home: Path) -> None:
    pcm = np.concatenate([silence(31.0), scene(16_000)])
    told = "-: nothing but digital silence for 30 s: it is muted, or this is the wrong source"
    arguments = ["listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"]
    done = run(home, *arguments, stdin=(pcm * 32767).astype("<i2").tobytes())
    silent, fine = (one for one in lines(done) if one["type"] == "notice")
    assert (silent["type"], silent["source"], silent["state"], silent["text"]) == ("notice", "-", "silent", told)
    assert (fine["state"], fine["text"]) == ("fine", "-: has sound again")
    assert done.stderr.splitlines()[:2] == [told, "-: has sound again"]


def test_raw_pcm_does_not_come_from_a_terminal(home: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "listen", "tiny.onnx", "--source", "-", "--rate", "16000"],
        cwd=home,
        env=environment(),
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "stdin is a terminal" in done.stderr


def test_listen_with_several_models(home: Path) -> None:
    done = run(home, "listen", "other.onnx", "tiny.onnx", "--source", "scene.flac", "--gallery", "house.db", "--json")
    assert done.returncode == 0
    *detections, summary = lines(done)
    assert [one["label"] for one in detections if one["model"] == "other"] == ["low", "mid"]
    assert [one["label"] for one in detections if one["model"] == "tiny"] == ["low", "bell", "mid"]
    assert {one["source"] for one in [*detections, summary]} == {"scene.flac"}
    assert summary["by_model"] == {
        "other": {"detections": {"low": 1, "mid": 1}, "withheld": {}},
        "tiny": {"detections": {"low": 1, "bell": 1, "mid": 1}, "withheld": {}},
    }


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--threshold", "low=1"], ["mid"]),
        (["--threshold", "1"], []),
        (["--threshold", "1", "--threshold", "mid=0.5"], ["mid"]),
        (["--seconds", "1.5"], ["low"]),
        (["--seconds", "0"], []),
    ],
)
def test_listen_with_thresholds_and_for_a_while(home: Path, options: list[str], labels: list[str]) -> None:
    done = run(home, "listen", "tiny.onnx", "--source", "scene.flac", "--json", *options)
    assert [one["label"] for one in lines(done)[:-1]] == labels
    if options[0] == "--seconds":
        assert lines(done)[-1]["seconds"] == float(options[1])


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_listen_stops_with_a_summary(home: Path, signal_: signal.Signals) -> None:
    arguments = ["listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=home,
        env=environment(),
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write((scene(16_000)[:24_000] * 32767).astype("<i2").tobytes())
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["label"] == "low"  # at once, though the pipe stays open
        child.send_signal(signal_)
        assert child.wait(timeout=30) == 0
        summary = json.loads(child.stdout.read())
        assert (summary["type"], summary["by_model"]["tiny"]["detections"]) == ("summary", {"low": 1})
        assert child.stderr.read() == b""


@pytest.mark.parametrize("ignored", [False, True])
def test_listen_on_a_terminal_that_goes_away_tells_what_it_heard(home: Path, ignored: bool) -> None:
    """As an ssh session that is lost; who ignores that goes on, though its level can be drawn no more."""
    ours, theirs = pty.openpty()

    def at_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"], cwd=home, env=environment(),
        preexec_fn=at_the_terminal, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(pcm[:48_000])
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["label"] == "low"
        os.close(ours)
        if ignored:
            time.sleep(0.3)
            child.stdin.write(pcm[48_000:])
            child.stdin.close()
        assert [json.loads(line)["type"] for line in child.stdout] == ["detection"] * ignored + ["summary"]
        assert child.wait(timeout=30) == 0


def test_listen_goes_on_under_nohup_when_its_terminal_goes_away(home: Path) -> None:
    with subprocess.Popen(
        ["nohup", *COMMAND, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"],
        cwd=home, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
        child.stdin.write(pcm[:48_000])
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["label"] == "low"
        child.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        child.stdin.write(pcm[48_000:])
        child.stdin.close()
        assert [json.loads(line)["type"] for line in child.stdout] == ["detection", "summary"]
        assert child.wait(timeout=30) == 0


LISTEN = ["listen", "digits", "--source", "-", "--rate", "16000"]
IN_C = "\nexcept KeyboardInterrupt as error:\n    raise ImportError('initialization failed') from error\n"  # as pybind11 does


@pytest.mark.parametrize(
    ("module", "end", "arguments"),
    [
        ("typer", "", LISTEN),  # before there is a verb
        ("onnxruntime", "", LISTEN),
        ("onnxruntime", IN_C, LISTEN),
        ("onnxruntime", "", ["--version"]),
        ("onnxruntime", IN_C, ["--version"]),
    ],
)
def test_a_command_that_is_stopped_while_it_loads_says_so(
    tmp_path: Path, module: str, end: str, arguments: list[str]
) -> None:
    """Each module takes most of a tenth of a second, one before there is a verb and one within it."""
    waiting = "print('loading', flush=True)\n__import__('time').sleep(30)"
    (tmp_path / f"{module}.py").write_text(f"try:\n{indent(waiting, '    ')}{end}" if end else waiting)
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a script's background ignores it
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "confit_edge", *arguments],
        env=environment(tmp_path), preexec_fn=heeding, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "loading\n"
        child.send_signal(signal.SIGINT)
        assert (child.wait(timeout=30), child.stderr.read()) == (130, "confit-edge: stopped\n")


def test_what_is_kept_as_listening_is_stopped_is_whole_and_told(home: Path, tmp_path: Path) -> None:
    """The signal comes as soon as there is anything in the folder, while the sound is written."""
    options = ["--source", "-", "--rate", "16000", "--json", "--save-triggers", str(tmp_path / "kept")]
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", *options],
        cwd=home,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write((scene(16_000)[:24_000] * 32767).astype("<i2").tobytes())
        child.stdin.flush()
        until = time.monotonic() + 30
        while not ((tmp_path / "kept").is_dir() and any(os.scandir(tmp_path / "kept"))):
            assert time.monotonic() < until
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
        told, summary = map(json.loads, child.stdout.read().splitlines())
    assert (told["label"], summary["by_model"]["tiny"]["detections"]) == ("low", {"low": 1})
    (kept,) = (tmp_path / "kept").iterdir()
    assert soundfile.info(kept).frames > 0


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_listen_ends_quietly_when_nobody_reads(home: Path, form: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", "scene.flac", *form],
        cwd=home,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(timeout=30) == 0
        assert b"Traceback" not in (said := child.stderr.read())
        assert b"BrokenPipe" not in said


SOUNDDEVICE = """
import os, numpy, soundfile
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio, PortAudioError

sound, rate = soundfile.read(os.environ["FAKE_SOUND"], dtype="float32", always_2d=True)
end, _, back = os.environ["FAKE_END"].partition(", ")
portaudio = FakePortAudio(sound, rate, real_time=True, overflows={2: 4410}, then=end, present=end != "absent",
    back=Back(numpy.tile(sound, (4, 1)), rate, after=2) if back else None)
query_devices, check_input_settings = portaudio.query_devices, portaudio.check_input_settings
InputStream, _initialize, _terminate = portaudio.InputStream, portaudio._initialize, portaudio._terminate
"""


@pytest.fixture
def fake_portaudio(home: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which `import sounddevice` finds a microphone that hears the scene."""
    (tmp_path / "sounddevice.py").write_text(SOUNDDEVICE)
    return lambda end: {**environment(tmp_path), "FAKE_SOUND": str(home / "scene.flac"), "FAKE_END": end}


@pytest.mark.parametrize("source", ["mic", "-"])
def test_of_live_sound_listening_fails_soon_when_nobody_reads(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]], source: str
) -> None:
    """Before anything is detected, though nothing comes; so that a service is started again."""
    rate = [] if source == "mic" else ["--rate", "16000"]
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", source, *rate, "--threshold", "1"],
        cwd=home, env=fake_portaudio("stalls"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        time.sleep(2.0)
        assert child.poll() is None
        child.stdout.close()
        closed = time.monotonic()
        assert child.wait(timeout=30) == 1
        assert time.monotonic() - closed < 3.0
        assert child.stderr.read().splitlines()[-1].startswith("confit-edge: the reader of stdout has gone")


def test_with_a_reader_live_sound_that_ends_or_is_stopped_is_no_error(home: Path) -> None:
    pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", stdin=pcm)
    assert (done.returncode, done.stderr) == (0, "tiny: low 1, mid 1 in 2.5 s\n")


@pytest.mark.parametrize(
    ("options", "status", "said"), [("", 2, "stdout is closed"), ("--save-triggers kept", 0, "low 1")]
)
def test_without_a_stdout_live_sound_is_heard_only_where_it_is_kept(
    home: Path, tmp_path: Path, options: str, status: int, said: str
) -> None:
    (tmp_path / "pcm").write_bytes((scene(16_000) * 32767).astype("<i2").tobytes())
    arguments = f"listen {home / 'tiny.onnx'} --source - --rate 16000 {options} < pcm >&-"
    done = in_shell(tmp_path, environment(), f'"$@" {arguments}')
    assert (done.returncode, said in done.stderr, len(done.stderr.splitlines())) == (status, True, 1)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 >&3 | true"])
def test_a_stderr_that_cannot_be_written_ends_nothing(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]], redirection: str
) -> None:
    arguments = f"listen tiny.onnx --seconds 3 --json {redirection}"
    done = in_shell(home, fake_portaudio("unplugged"), f'set -o pipefail; exec 3>&1; "$@" {arguments}')
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["type"] for one in lines(done)] == ["gap", "detection", "detection", "notice", "gap", "summary"]


def test_clips_are_recorded_where_stderr_is_closed(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    arguments = "record low -o clips --group ada --countdown 0 --count 1 --seconds 0.8 --json 2>&-"
    done = in_shell(tmp_path, fake_portaudio("stalls"), f'"$@" {arguments}')
    assert done.returncode == 0
    assert [one["type"] for one in lines(done)][-2:] == ["recorded", "summary"]


def test_listen_to_a_microphone_that_drops_and_is_unplugged(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    """It is waited for, and meanwhile the clock runs on to the end of --seconds."""
    began = datetime.now(UTC)
    asked = ("listen", "tiny.onnx", "--source", "mic:usb mic", "--seconds", "3.5", "--json")
    done = run(home, *asked, env=fake_portaudio("unplugged"))
    assert done.returncode == 0
    *told, summary = lines(done)
    assert [one["type"] for one in told] == ["gap", "detection", "detection", "notice", "gap"]
    at = [(datetime.fromisoformat(one["at"]) - began).total_seconds() for one in told]
    np.testing.assert_allclose(np.subtract(at, at[1] - 0.4), [0.16, 0.4, 1.8, 2.5, 2.5], atol=0.4)
    assert 0.0 < at[0] < 15.0
    assert all(re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}\+00:00", one["at"]) for one in told)
    detections = [one for one in told if one["type"] == "detection"]
    assert [one["label"] for one in detections] == ["low", "mid"]
    np.testing.assert_allclose([one["start_s"] for one in detections], [0.4, 1.8], atol=0.1)
    assert (told[0]["samples"], told[0]["reason"]) == (4410, "this machine could not keep up")
    assert (told[3]["state"], told[4]["reason"]) == ("away", "the microphone was away")
    assert (summary["source"], summary["dropped_samples"]) == ("mic:usb mic", 4410 + told[4]["samples"])
    assert summary["seconds"] >= 3.5
    lost, gone, _ = done.stderr.splitlines()
    assert lost == "lost 0.10 s of sound: this machine could not keep up"
    assert gone == "USB Mic: Audio (hw:1,0) went away (unplugged?); waiting for it to come back"


def test_a_terminal_shows_the_microphone_live(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    said, stdout = _on_a_terminal(home, fake_portaudio("stalls"), "listen", "tiny.onnx", "--seconds", "1.2")
    assert stdout.split() == ["0.35", "s", "low", "1.00"]
    assert "[#####" in said
    assert "tiny: other 1.00" in said
    assert "heard: low 1.00 at 0:00" in said
    assert said.rstrip().endswith("tiny: low 1 in 1.2 s")


def test_a_notice_replaces_the_level_on_a_terminal(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    said, _ = _on_a_terminal(home, fake_portaudio("unplugged, back"), "doctor", "--seconds", "4")
    assert "NOW" in said
    assert "\r\x1b[KUSB Mic: Audio (hw:1,0) is back\r\n" in said


def _on_a_terminal(home: Path, env: dict[str, str], *arguments: str) -> tuple[str, str]:
    """What a command says on a terminal behind stderr, and its stdout."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=home,
        env={**env, "COLUMNS": "120", "LINES": "30", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(ours, 100_000):
            said += part
    os.close(ours)
    assert done.returncode in (0, 1), said
    return said.decode(), done.stdout


def test_listen_to_a_folder_of_clips(home: Path, tmp_path: Path) -> None:
    """Each clip has a clock of its own, and a damaged one does not stop the others."""
    for name, rate in (("a.wav", 16_000), ("c.flac", 44_100)):
        soundfile.write(tmp_path / name, scene(rate), rate)
    (tmp_path / "b.flac").write_bytes((home / "damaged.flac").read_bytes())
    done = run(home, "listen", "tiny.onnx", "--source", str(tmp_path), "--json")
    assert done.returncode == 1
    *told, summary = lines(done)
    detections = [one for one in told if one["type"] == "detection"]
    (failed,) = (one for one in told if one["type"] == "failed")
    assert failed["clip"] == str(tmp_path / "b.flac")
    assert f"confit-edge: {failed['error']}\n" in done.stderr
    heard = [(Path(one["clip"]).name, one["label"]) for one in detections if not one["clip"].endswith("b.flac")]
    assert heard == [("a.wav", "low"), ("a.wav", "mid"), ("c.flac", "low"), ("c.flac", "mid")]
    assert detections[-1]["start_s"] == pytest.approx(1.8, abs=0.1)
    assert summary["source"] == str(tmp_path)
    assert "clip" not in summary
    assert (summary["clips"], summary["failed"]) == (3, 1)
    assert "b.flac: cannot be read as sound" in done.stderr


def test_each_clip_of_a_folder_has_its_line(home: Path, tmp_path: Path) -> None:
    """Those below it, too, and those in which nothing was heard."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    soundfile.write(tmp_path / "a.wav", scene(16_000), 16_000)
    soundfile.write(tmp_path / "deep" / "er" / "b.wav", silence(1.0), 16_000)
    done = run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", ".")
    assert done.returncode == 0
    low, mid, nothing = done.stdout.splitlines()
    assert (low.split()[-2], mid.split()[-2], nothing) == ("low", "mid", "deep/er/b.wav: nothing")
    *_, first, second, whole = lines(run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", ".", "--json"))
    assert first == {
        "type": "heard",
        "source": ".",
        "clip": "a.wav",
        "seconds": 2.5,
        "dropped_samples": 0,
        "by_model": {"tiny": {"detections": {"low": 1, "mid": 1}, "withheld": {}}},
    }
    assert (second["type"], second["clip"], second["seconds"]) == ("heard", "deep/er/b.wav", 1.0)
    assert second["by_model"] == {"tiny": {"detections": {}, "withheld": {}}}
    of_all = {key: value for key, value in first.items() if key != "clip"}
    assert whole == {**of_all, "type": "summary", "clips": 2, "failed": 0, "seconds": 3.5}
    pattern = run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", "**/*.wav")
    assert pattern.stdout == done.stdout
    none = run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", "*.flac")
    assert (none.returncode, none.stderr) == (2, "confit-edge: *.flac: no sound files found\n")


def test_the_clip_in_which_listening_is_stopped_counts(home: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", scene(16_000), 16_000)
    soundfile.write(tmp_path / "b.flac", np.concatenate([scene(16_000), silence(1800)]), 16_000)
    soundfile.write(tmp_path / "c.wav", scene(16_000), 16_000)
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", str(tmp_path), "--json"],
        cwd=home,
        env=environment(),
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        while not (json.loads(child.stdout.readline()).get("clip") or "").endswith("b.flac"):
            pass
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 0
        *told, summary = map(json.loads, child.stdout.read().splitlines())
    assert "heard" not in [one["type"] for one in told]
    assert (summary["type"], summary["clips"], summary["failed"]) == ("summary", 2, 0)
    assert 2.5 < summary["seconds"] < 1800


def test_a_folder_of_which_no_clip_can_be_heard_has_its_summary(home: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text("this is not sound\n")
    done = run(home, "listen", "tiny.onnx", "--source", tmp_path, "--json")
    *failed, summary = lines(done)
    assert (done.returncode, [Path(one["clip"]).name for one in failed]) == (1, ["a.wav", "b.wav"])
    assert summary == {
        "type": "summary", "source": str(tmp_path), "clips": 2, "failed": 2, "seconds": 0.0, "dropped_samples": 0,
        "by_model": {"tiny": {"detections": {}, "withheld": {}}},
    }  # fmt: skip
    assert run(home, "listen", "tiny.onnx", "--source", tmp_path).stderr == done.stderr


def test_a_source_without_any_sound_is_no_success(home: Path, tmp_path: Path) -> None:
    """Of `arecord | confit-edge` the first may have failed."""
    soundfile.write(tmp_path / "whole.wav", scene(16_000), 16_000)
    (tmp_path / "header.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:44])
    for source in (("-", "--rate", "16000"), (str(tmp_path / "header.wav"),)):
        done = run(home, "listen", "tiny.onnx", "--source", *source)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert "ended without any sound" in done.stderr
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json")
    assert (done.returncode, lines(done)[-1]["type"]) == (1, "summary")


def test_sound_that_was_cut_off_is_told(home: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", scene(16_000), 16_000)
    data = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    done = run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", "cut.wav")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0].startswith("cut.wav: was cut short: its header promises 2.0 times as much")
    # what was written to a pipe does not know its length
    (tmp_path / "cut.wav").write_bytes(data[:40] + b"\xff\xff\xff\xff" + data[44:])
    assert len(run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", "cut.wav").stderr.splitlines()) == 1
    pcm = (scene(16_000) * 32767).astype("<i2").tobytes() + b"\x01"
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", stdin=pcm)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "-: ended in the middle of a sample (1 of 2 bytes): check format and channels"


def test_a_file_of_nan_or_of_too_little_sound_is_named(home: Path) -> None:
    sound = np.where(np.arange(16_000) == 9_000, np.float32("nan"), tone(500, 1.0))
    soundfile.write(home / "nan.wav", sound, 16_000, subtype="FLOAT")
    (home / "nan.txt").write_text("0.1\t0.5\tlow\n")
    for verb in ("listen tiny.onnx --source nan.wav", "doctor --source nan.wav", "evaluate tiny.onnx nan.wav"):
        done = run(home, *verb.split())
        told = done.stderr.splitlines()[-1]
        assert (done.returncode, told) == (1, "confit-edge: nan.wav: holds NaN or infinite samples"), verb
    done = run(home, "doctor", "--source", "short.wav")
    assert (
        done.stderr == "confit-edge: short.wav: 0.03 s of sound are too short to measure; at least 0.1 s are needed\n"
    )


def test_doctor_takes_a_pipe(home: Path) -> None:
    pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
    done = run(home, "doctor", "--source", "-", "--rate", "16000", "--json", stdin=pcm)
    assert (lines(done)[-1]["source"], lines(done)[-1]["seconds"]) == ("-", 2.5)


def test_doctor_says_that_it_measures_the_beginning_of_a_file_alone(home: Path) -> None:
    soundfile.write(home / "ten.wav", np.tile(scene(16_000), 4), 16_000)
    done = run(home, "doctor", "--source", "ten.wav")
    assert done.stderr == "ten.wav: only the first 8.0 s are measured; --seconds N measures more\n"
    done = run(home, "doctor", "--source", "ten.wav", "--seconds", "10")
    assert (done.stderr, done.stdout.splitlines()[0]) == ("", "ten.wav: 10.0 s at 16000 Hz")


def test_channels_that_cancel_are_told_of_by_doctor_and_listen(home: Path, tmp_path: Path) -> None:
    sound = np.tile(scene(16_000), 4)
    both = np.stack([sound, -sound], axis=1)
    soundfile.write(tmp_path / "both.wav", both, 16_000)
    pcm = (both * 32767).astype("<i2").tobytes()
    for source in (["both.wav"], ["-", "--rate", "16000", "--channels", "2"]):
        done = run(tmp_path, "doctor", "--source", *source, "--json", stdin=pcm)
        finding, measured = lines(done)
        assert (done.returncode, finding["level"], measured["cancelled"]) == (1, "bad", True)
        assert finding["text"].startswith("its channels cancel each other where they are averaged: use one of them")
        done = run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", *source, "--json", stdin=pcm)
        assert [line["state"] for line in lines(done) if line["type"] == "notice"] == ["cancelled"]
    soundfile.write(tmp_path / "one.wav", both[:, 0], 16_000)
    assert lines(run(tmp_path, "doctor", "--source", "one.wav", "--json"))[-1]["cancelled"] is False


def test_doctor_and_record_with_a_microphone(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(Path.cwd(), *arguments, env=fake_portaudio("stalls"))

    done = ask("doctor", "--seconds", "2", "--json")
    *findings, measured = lines(done)
    assert done.returncode == 1
    assert (measured["rate"], measured["dropped_samples"]) == (RATE, 4410)
    assert findings[0] == {
        "type": "finding",
        "level": "bad",
        "text": "0.10 s of sound were lost: this machine could not keep up (something else keeps it busy)",
    }
    assert "dropouts     0.10 s lost" in ask("doctor", "--seconds", "2").stdout

    clips = tmp_path / "clips"
    done = ask("record", "low", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35", "--json")
    *told, summary = lines(done)
    assert done.returncode == 0
    assert (summary["clips"], summary["label"]) == (1, "low")
    assert told[-1]["path"] == str(clips / "low" / summary["group"] / "0001.flac")
    assert (
        clips / "manifest.csv"
    ).read_text() == f"path,label,group\nlow/{summary['group']}/0001.flac,low,{summary['group']}\n"
    again = ask(
        *("record", "mid", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35"),
        *("--format", "wav", "--group", "ada", "--no-trim"),
    )
    assert again.stdout == f"{clips}/mid/ada/0001.wav\n", again.stderr
    assert soundfile.info(clips / "mid" / "ada" / "0001.wav").frames == round(0.3 * RATE)
    assert read_manifest(clips / "manifest.csv").classes == read_manifest(clips).classes == ["low", "mid"]
    for label in ("../low", "a|b", ""):
        refused = ask("record", label, "-o", str(clips))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)

    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "low").touch()
    for place, fault in (
        ("file", "file: cannot create this folder"),
        ("taken", "taken/low/ada: cannot create this folder"),
    ):
        refused = ask("record", "low", "-o", str(tmp_path / place), "--group", "ada")
        assert (refused.returncode, refused.stderr.startswith(f"confit-edge: {tmp_path}/{fault}")) == (2, True)

    listed = (clips / "manifest.csv").read_bytes()
    (clips / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + listed)  # as Excel saves it
    more = ask("record", "low", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35")
    assert more.returncode == 0, more.stderr
    assert len(read_manifest(clips / "manifest.csv").clips) == 3
    (clips / "manifest.csv").write_bytes(listed + b"low/caf\xe9.wav,low,ada\n")
    before = sorted(clips.rglob("*.*"))
    refused = ask("record", "low", "-o", str(clips), "--count", "1")
    assert (refused.returncode, "manifest.csv: is not UTF-8" in refused.stderr) == (2, True)
    assert sorted(clips.rglob("*.*")) == before  # nothing was recorded that would not be listed


def test_a_microphone_unplugged_while_clips_are_recorded_is_told_of_and_waited_for(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    taking = ("--seconds", "2", "--json")
    for arguments in (
        ["record", "low", "-o", str(tmp_path / "clips"), "--count", "2", "--countdown", "0.4", *taking],
        ["enroll", "tiny.onnx", "scene", "--mic", "--takes", "2", "--gallery", str(tmp_path / "house.db"), *taking],
    ):
        done = run(home, *arguments, env=fake_portaudio("unplugged, back"))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("USB Mic: Audio (hw:1,0) went away (unplugged?); waiting for it to come back\n") == 1
        assert done.stderr.count("USB Mic: Audio (hw:1,0) is back\n") == 1
        assert "not kept" not in done.stderr


def test_doctor_does_not_blame_the_machine_for_an_unplugged_microphone(
    fake_portaudio: Callable[[str], dict[str, str]],
) -> None:
    done = run(Path.cwd(), "doctor", "--seconds", "4", "--json", env=fake_portaudio("unplugged, back"))
    *findings, measured = lines(done)
    busy, away = (one["text"] for one in findings if "lost" in one["text"])
    assert busy == "0.10 s of sound were lost: this machine could not keep up (something else keeps it busy)"
    assert away.endswith(
        " s of sound were lost: the microphone was away (unplugged, a loose cable, or a weak power supply)"
    )
    assert float(away.split()[0]) == pytest.approx((measured["dropped_samples"] - 4410) / RATE, abs=0.006)


def test_record_without_a_microphone_leaves_nothing(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    done = run(Path.cwd(), "record", "low", "-o", str(tmp_path / "clips"), env=fake_portaudio("absent"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_record_stopped_before_the_first_clip_says_so(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]], signal_: signal.Signals
) -> None:
    """At once: nothing is loaded any more that Ctrl-C could interrupt halfway."""
    arguments = ["record", "low", "-o", str(tmp_path / "clips"), "--group", "ada", "--countdown", "60", "--json"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
        env=fake_portaudio("stalls"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        while "get ready" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(signal_)
        assert child.wait(timeout=30) == 0
        folder = str(tmp_path / "clips" / "low" / "ada")
        assert json.loads(child.stdout.read()) == {
            "type": "summary", "label": "low", "group": "ada", "clips": 0, "refused": 0, "folder": folder
        }  # fmt: skip


def test_a_clip_whose_row_does_not_fit_on_the_disk_is_not_kept(tmp_path: Path) -> None:
    """With the largest size that a file may have in place of a full disk: the row is cut short there as here."""
    sound, folder, manifest = tone(500, 0.2), tmp_path / "low" / "ada", tmp_path / "manifest.csv"
    folder.mkdir(parents=True)
    before = b"path,label,group\n" + b"low/bob/0001.wav,low,bob\n" * 1000
    manifest.write_bytes(before)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 8, former[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            keep(Take(sound, 16_000, soundcheck(sound, 16_000), None), tmp_path, "low", "ada", "wav", False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert manifest.read_bytes() == before
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "torn", "without"),
    [
        ("", "path,lab", ["0001", "0002"]),
        ("path,label,group\nlow/Zoë/0001.wav,low,Zoë\n", "low/Zo\udcc3", ["0002"]),
        ("path,label,group\r\nlow/Zoë/0001.wav,low,Zoë\r\n", "low/Zoë/0002.wav,low,Z", ["0002"]),
        ("path,label,group\n", "low/Zoë/0002.wav,low,", ["0002"]),
        (
            "path,label,group\nlow/Zoë/0001.wav,low,Zoë\n",
            "low/Zoë/0002.wav,low,Zoë",
            [],
        ),  # whole, as an editor leaves it
        ("path,label,group\nlow/Zoë/0001.wav,low,Zoë\n", "low/Zoë/0002.wav,mid,ada", []),
        ("", "path,label,group", []),
    ],
)
def test_a_row_that_was_not_written_to_its_end_goes_and_its_clip_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str, torn: str, without: list[str]
) -> None:
    sound, folder, manifest = tone(500, 0.2), tmp_path / "low" / "Zoë", tmp_path / "manifest.csv"
    folder.mkdir(parents=True)
    for name in ("0001.wav", "0002.wav"):
        soundfile.write(folder / name, sound, 16_000)
    manifest.write_bytes((left + torn).encode(errors="surrogateescape"))
    kept = keep(Take(sound, 16_000, soundcheck(sound, 16_000), None), tmp_path, "low", "Zoë", "wav", False)
    former = left if without else left + torn + "\n"
    assert manifest.read_bytes().decode() == (former or "path,label,group\n") + "low/Zoë/0003.wav,low,Zoë\n"
    assert kept.is_file()
    told = capsys.readouterr().err
    if without:
        names = ", ".join(f"low/Zoë/{name}.wav" for name in without)
        assert told.startswith(f"warning: {manifest}: its last row was only partly written and was removed: ")
        assert told.endswith(f". Clips without a row: {names}; add their rows, or remove the clips\n")
    else:
        assert told == ""


def test_recorders_in_one_folder_take_turns(tmp_path: Path) -> None:
    sound = tone(500, 0.2)
    take = Take(sound, 16_000, soundcheck(sound, 16_000), None)
    for label in ("low", "mid"):
        (tmp_path / label / "ada").mkdir(parents=True)

    def record(recorder: int) -> list[Path]:
        return [keep(take, tmp_path, ("low", "mid")[recorder % 2], "ada", "wav", False) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        kept = [path for paths in pool.map(record, range(8)) for path in paths]
    assert len(set(kept)) == 80
    assert sorted(clip.path for clip in read_manifest(tmp_path / "manifest.csv").clips) == sorted(kept)


def test_a_folder_called_mic_is_not_the_microphone(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    (tmp_path / "mic").mkdir()
    shutil.copy(home / "scene.flac", tmp_path / "mic")
    done = run(tmp_path, "listen", str(home / "tiny.onnx"), "--seconds", "0.5", env=fake_portaudio("stalls"))
    assert "mic/scene.flac" not in done.stdout + done.stderr
    assert "in 0.5 s" in done.stderr


def test_devices_are_listed(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    for form in ([], ["--json"]):
        done = run(Path.cwd(), "devices", *form, env=fake_portaudio("stalls"))
        assert (done.returncode, done.stderr) == (0, "")
        if form:
            assert [one["type"] for one in lines(done)] == ["device", "device", "summary"]
            assert lines(done)[0] == {
                "type": "device",
                "index": 1,
                "name": "USB Mic: Audio (hw:1,0)",
                "channels": 1,
                "default_rate": RATE,
                "default": True,
                "rates": [RATE],
            }
        else:
            assert done.stdout.splitlines()[0] == "*   1  USB Mic: Audio (hw:1,0)  44100 Hz  1 channel"


def test_that_there_is_no_microphone_is_told_to_people_and_programs(
    fake_portaudio: Callable[[str], dict[str, str]],
) -> None:
    for form in ([], ["--json"]):
        done = run(Path.cwd(), "devices", *form, env=fake_portaudio("absent"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "`confit-edge listen MODEL --source FILE`" in done.stderr
        assert lines(done) == ([{"type": "summary", "devices": 0}] if form else [])


# enroll, identify, gallery


def test_enroll_identify_and_keep_house(home: Path, tmp_path: Path) -> None:
    clips = [str(home / "bells" / "*.wav"), str(home / "buzz.wav"), str(home / "stranger.wav")]
    model = str(home / "tiny.onnx")
    assert run(tmp_path, "enroll", model, "bell", clips[0]).stdout == "bell: 3 prints from 1.5 s of sound\n"
    done = run(tmp_path, "enroll", model, "Büzz", clips[1])
    assert (done.stdout, done.stderr) == ("Büzz: 1 print from 0.5 s of sound\n", "gallery.db holds 1 print of Büzz\n")

    done = run(tmp_path, "identify", model, *clips, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    *matches, summary = lines(done)
    assert [(Path(one["clip"]).stem, one["name"], one["runner_up"]) for one in matches] == [
        ("bell-0", "bell", "Büzz"),
        ("bell-1", "bell", "Büzz"),
        ("bell-2", "bell", "Büzz"),
        ("buzz", "Büzz", "bell"),
        ("stranger", None, "Büzz"),
    ]
    assert matches[0].keys() == {
        *("type", "clip", "name", "reason", "nearest", "score", "runner_up", "runner_up_score", "margin", "threshold")
    }
    assert [(one["reason"], one["nearest"]) for one in matches[-2:]] == [(None, "Büzz"), ("too low", "bell")]
    assert summary == {"type": "summary", "clips": 5, "known": 4, "unknown": 1, "failed": 0}

    assert run(tmp_path, "gallery", "list").stdout == "Büzz  1 print  0.5 s\nbell  3 prints  1.5 s\n"
    assert lines(run(tmp_path, "gallery", "list", "--json")) == [
        {"type": "name", "name": "Büzz", "prints": 1, "negative_prints": 0, "voiced_s": 0.5},
        {"type": "name", "name": "bell", "prints": 3, "negative_prints": 0, "voiced_s": 1.5},
        {"type": "summary", "gallery": "gallery.db", "names": 2, "prints": 4, "negative_prints": 0},
    ]
    shown = lines(run(tmp_path, "gallery", "show", "bell", "--json"))
    assert [Path(one["source"]).name for one in shown[:-1]] == ["bell-0.wav", "bell-1.wav", "bell-2.wav"]
    assert all(one["similarity"] > 0.99 for one in shown[:-1])
    assert run(tmp_path, "gallery", "rename", "bell", "doorbell").stdout == "bell is now doorbell\n"
    assert lines(run(tmp_path, "gallery", "remove", "doorbell", "--json")) == [
        {"type": "removed", "name": "doorbell", "prints": 3, "negative_prints": 0}
    ]
    assert run(tmp_path, "gallery", "list").stdout == "Büzz  1 print  0.5 s\n"


def test_prints_and_negative_ones_are_told_apart(home: Path, tmp_path: Path) -> None:
    model, negative = str(home / "tiny.onnx"), ("--negative", "--json")
    assert run(tmp_path, "enroll", model, "bell", str(home / "bells"), "--gallery", "one.db").returncode == 0
    (enrolled,) = lines(
        run(tmp_path, "enroll", model, "bell", str(home / "buzz.wav"), "--gallery", "one.db", *negative)
    )
    assert (enrolled["prints"], enrolled["negative_prints"]) == (0, 1)
    run(tmp_path, "enroll", model, "low", str(home / "stranger.wav"), "--gallery", "one.db", "--negative")
    one, both = ("--gallery", "one.db"), {"prints": 3, "negative_prints": 1}
    told = {
        "name": run(tmp_path, "gallery", "list", *one, "--json"),
        "exported": run(tmp_path, "gallery", "export", "-o", "two.db", *one, "--json"),
        "imported": run(tmp_path, "gallery", "import", "one.db", "--gallery", "three.db", "--json"),
    }
    for kind, done in told.items():
        bell, low, summary = lines(done)
        assert bell.items() >= {"type": kind, "name": "bell", **both}.items()
        assert low.items() >= {"type": kind, "name": "low", "prints": 0, "negative_prints": 1}.items()
        assert summary.items() >= {"names": 2, "prints": 3, "negative_prints": 2}.items()
    again = run(tmp_path, "gallery", "import", "one.db", "--gallery", "three.db", "--json")
    assert lines(again)[-1] == {
        "type": "summary", "gallery": "three.db", "names": 0, "prints": 0, "negative_prints": 0, "left_out": 5
    }  # fmt: skip
    assert again.stderr == "5 prints left out: already in three.db\n"
    assert lines(run(tmp_path, "gallery", "show", "bell", *one, "--json"))[-1].items() >= both.items()
    assert run(tmp_path, "gallery", "export", "-o", "four.db", *one).stdout == (
        "bell: 3 prints and 1 negative print written to four.db\nlow: 1 negative print written to four.db\n"
    )
    removed = run(tmp_path, "gallery", "remove", "bell", *one)
    assert removed.stdout == "removed bell, with 3 prints and 1 negative print\n"
    assert lines(run(tmp_path, "gallery", "remove", "bell", "--gallery", "two.db", "--json"))[0].items() >= both.items()


def test_a_file_whose_name_is_not_utf8_is_called_the_same_by_every_verb(home: Path) -> None:
    clip = home / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(os.fsencode(clip), tone(500, 1.5), 16_000, format="WAV")
    *_, heard = lines(run(home, "listen", "tiny.onnx", "--source", clip.name, "--json"))
    told, _ = lines(run(home, "classify", "tiny.onnx", clip.name, "--json"))
    gallery = ("--gallery", "cafe.db")
    assert run(home, "enroll", "tiny.onnx", "cafe", clip.name, *gallery).returncode == 0
    matched, _ = lines(run(home, "identify", "tiny.onnx", clip.name, *gallery, "--json"))
    (verified,) = lines(run(home, "verify", "tiny.onnx", "cafe", clip.name, *gallery, "--json"))
    assert [one["clip"] for one in (told, matched, verified)] == [heard["source"]] * 3 == [clip.name] * 3


def test_a_bad_clip_does_not_stop_the_others(home: Path) -> None:
    clips = ["damaged.flac", "bells/bell-0.wav", "text.wav", "nothing.wav", "buzz.wav"]
    done = run(home, "identify", "tiny.onnx", *clips, "--gallery", "house.db", "--json")
    assert done.returncode == 1
    *told, summary = lines(done)
    assert [(one["type"], one["clip"], one.get("name")) for one in told] == [
        ("failed", "damaged.flac", None),
        ("match", "bells/bell-0.wav", "bell"),
        ("failed", "text.wav", None),
        ("failed", "nothing.wav", None),
        ("match", "buzz.wav", None),
    ]
    assert summary == {"type": "summary", "clips": 5, "known": 1, "unknown": 1, "failed": 3}
    said = done.stderr.splitlines()
    assert len(said) == 3
    for line, clip in zip(said, ["damaged.flac", "text.wav", "nothing.wav"], strict=True):
        assert line.startswith(f"confit-edge: {clip}: ")
    assert said == [f"confit-edge: {one['error']}" for one in told if one["type"] == "failed"]


@pytest.mark.parametrize(
    ("arguments", "status", "clips"),
    [
        ("verify tiny.onnx bell silent.wav --gallery house.db", 2, ["silent.wav"]),
        ("verify tiny.onnx bell text.wav --gallery house.db", 2, ["text.wav"]),
        ("verify tiny.onnx nobody text.wav --gallery house.db", 2, ["text.wav"]),
        ("verify nothing.onnx bell text.wav --gallery house.db", 2, []),
        ("enroll tiny.onnx hum bells/bell-0.wav text.wav silent.wav --gallery new.db", 1, ["text.wav", "silent.wav"]),
        ("enroll tiny.onnx hum text.wav --gallery new.db", 1, ["text.wav"]),
    ],
)
def test_a_clip_that_cannot_be_used_has_a_line_of_its_own(
    home: Path, arguments: str, status: int, clips: list[str]
) -> None:
    """As with `identify`, whatever else comes of it."""
    done = run(home, *arguments.split(), "--json")
    assert (done.returncode, [(one["type"], one["clip"]) for one in lines(done)]) == (
        status, [("failed", clip) for clip in clips]
    )  # fmt: skip
    assert all(f"confit-edge: {one['error']}" in done.stderr.splitlines() for one in lines(done))


def test_of_a_clip_that_is_too_long_it_is_told_how_it_is_heard(home: Path, tmp_path: Path) -> None:
    clip = tmp_path / "an hour.flac"
    soundfile.write(clip, np.ones(3_660_000, np.int16), 1000)
    too_long = f"confit-edge: {clip}: is longer than 60 minutes, the limit for files read as a whole: cut it"
    listen = f"or run `confit-edge listen tiny.onnx --source '{clip}'"
    told = run(home, "classify", "tiny.onnx", str(clip)).stderr.splitlines()
    assert told[-1] == f"{too_long}, {listen}`"
    told = run(home, "identify", "tiny.onnx", str(clip), "--gallery", "house.db").stderr.splitlines()
    assert told[-1] == f"{too_long}, {listen} --gallery house.db`"
    told = run(home, "enroll", "tiny.onnx", "hum", str(clip), "--gallery", "house.db").stderr.splitlines()
    assert too_long in told


def test_classify_tells_each_clips_label_and_all_scores_and_goes_on(home: Path) -> None:
    for label, pitch in (("low", 500), ("high", 3600)):
        soundfile.write(home / f"{label}.wav", tone(pitch, 0.5), 16_000)
    done = run(home, "classify", "tiny.onnx", "low.wav", "text.wav", "high.wav", "--json")
    assert done.returncode == 1
    first, failed, other, summary = lines(done)
    found = [first, other]
    assert (failed["type"], failed["clip"], f"confit-edge: {failed['error']}\n") == ("failed", "text.wav", done.stderr)
    assert [(one["type"], one["clip"], one["label"]) for one in found] == [
        ("classification", "low.wav", "low"),
        ("classification", "high.wav", "high"),
    ]
    for one in found:
        assert set(one["scores"]) == set(tiny_model.LABELS)
        assert one["score"] == max(one["scores"].values()) == pytest.approx(one["scores"][one["label"]])
    assert summary == {"type": "summary", "clips": 3, "by_label": {"low": 1, "high": 1}, "nothing": 0, "failed": 1}
    (line,) = run(home, "classify", "tiny.onnx", "low.wav").stdout.splitlines()
    assert line.startswith("low.wav  low  ")


def test_what_is_in_the_names_of_files_and_prints_steers_no_terminal(tmp_path: Path) -> None:
    tiny_model.build(tmp_path / "tiny.onnx")
    name = "a\x1bc\x9b2J\nb.wav  high  0.99\u202e"
    soundfile.write(tmp_path / name, chord((300.0, 2600.0), 0.4), 16_000, format="WAV")
    (tmp_path / f"{name}.txt").write_text("no sound")
    escaped = r"a\x1bc\x9b2J\nb.wav  high  0.99\u202e"
    done = run(tmp_path, "classify", "tiny.onnx", name, f"{name}.txt")
    (line,), (error,) = done.stdout.splitlines(), done.stderr.splitlines()
    assert line.startswith(f"{escaped}  ")
    assert error.startswith(f"confit-edge: {escaped}.txt: ")
    assert run(tmp_path, "enroll", "tiny.onnx", "bell", name, "--gallery", "house.db").returncode == 0
    for verb in ("show bell", "show bell --json"):
        shown = run(tmp_path, "gallery", *verb.split(), "--gallery", "house.db").stdout
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        assert "\u202e" not in shown
    print_, _ = lines(run(tmp_path, "gallery", "show", "bell", "--gallery", "house.db", "--json"))
    assert print_["source"] == name


def test_what_a_model_says_of_itself_steers_no_terminal(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    tiny_model.build(tmp_path / "tiny.onnx", name="ti\x1b[31mny", license="MIT\n(all of it)")
    told = run(tmp_path, "inspect", "tiny.onnx").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in told if line.startswith("licence")] == [r"MIT\n(all of it)"]
    said, _ = _on_a_terminal(tmp_path, fake_portaudio("stalls"), "listen", "tiny.onnx", "--seconds", "1.2")
    assert r"ti\x1b[31mny: other 1.00" in said
    assert "\x1b[31mny" not in said.replace(r"\x1b", "")


def test_classify_tells_all_labels_that_reach_their_thresholds_and_where_none_does(home: Path) -> None:
    """Of a model of several labels, whose scores here share one sum; its unknown class is no answer."""
    soundfile.write(home / "both.wav", chord((500, 3600), 0.5), 16_000)
    soundfile.write(home / "hush.wav", np.zeros(8000), 16_000)
    levels = {label: {"on": 0.3, "off": 0.1} for label in tiny_model.LABELS}
    tiny_model.build(home / "several.onnx", multi_label=True, thresholds=levels)
    both, hush, summary = lines(run(home, "classify", "several.onnx", "both.wav", "hush.wav", "--json"))
    assert sorted(both["labels"]) == ["high", "low"]
    assert both["labels"][0] == both["label"]
    assert hush["labels"] == []
    assert hush["label"] != "other"
    assert max(hush["scores"], key=hush["scores"].get) == "other"
    assert summary == {
        "type": "summary", "clips": 2, "by_label": {"high": 1, "low": 1}, "nothing": 1, "failed": 0,
    }  # fmt: skip
    one, other = run(home, "classify", "several.onnx", "both.wav", "hush.wav").stdout.splitlines()
    assert re.fullmatch(r"both\.wav  (low|high)  0\.\d\d  (low|high)  0\.\d\d  \(then mid 0\.\d\d\)", one)
    assert other.startswith("hush.wav  nothing  (then ")
    assert "other" not in other
    never = {**levels, "low": {"on": 1.01, "off": 0.9}}
    tiny_model.build(home / "several.onnx", multi_label=True, thresholds=never)
    both, _ = lines(run(home, "classify", "several.onnx", "both.wav", "--json"))
    assert ("low" in both["labels"]) == (both["scores"]["low"] >= 0.5)


def test_sound_below_the_models_rate_is_told_of_once(home: Path, tmp_path: Path) -> None:
    """By whatever verb, and of a folder for all of its clips."""
    (tmp_path / "phone").mkdir()
    for at in range(2):
        soundfile.write(tmp_path / "phone" / f"{at}.wav", scene(8_000), 8_000)
    beware = f"{tmp_path / 'phone' / '0.wav'}: comes at 8000 Hz and has nothing above 4 kHz, but tiny hears up to 8 kHz"
    enroll = ["enroll", "tiny.onnx", "phone", str(tmp_path / "phone"), "--gallery", str(tmp_path / "phone.db")]
    for verb in (["listen", "tiny.onnx", "--source", str(tmp_path / "phone")], enroll):
        done = run(home, *verb)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(beware) == done.stderr.count("--band-probability") == 1
    house, clip = ["--gallery", str(tmp_path / "phone.db")], str(tmp_path / "phone" / "0.wav")
    (tmp_path / "labels.csv").write_text(f"path,start_s,end_s,label\n{clip},1.0,1.5,low\n")
    for verb in (["identify", "tiny.onnx", clip, *house], ["verify", "tiny.onnx", "phone", clip, *house]):
        assert run(home, *verb).stderr.count(beware) == 1
    assert run(home, "evaluate", "tiny.onnx", str(tmp_path / "labels.csv")).stderr.count(beware) == 1
    done = run(home, "classify", "tiny.onnx", "text.wav", str(tmp_path / "phone"))
    assert done.stderr.count(beware) == done.stderr.count("--band-probability") == 1
    assert "--band-probability" not in run(home, "classify", "tiny.onnx", "scene.flac").stderr
    pcm = (scene(8_000) * 32767).astype("<i2").tobytes()
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "8000", "--json", stdin=pcm)
    first, *_ = map(json.loads, done.stdout.splitlines())
    assert (first["type"], first["source"], first["state"]) == ("notice", "-", "narrow")
    assert done.stderr.count(first["text"]) == 1
    tiny_model.build(tmp_path / "lower.onnx", name="lower", highest_hz=5_000.0)
    done = run(home, "listen", "tiny.onnx", tmp_path / "lower.onnx", "--source", tmp_path / "phone", "--json")
    told = [(Path(one["clip"]).name, one["text"]) for one in lines(done) if one.get("state") == "narrow"]
    assert [(clip, "tiny hears" in text, "lower hears" in text) for clip, text in told] == [
        (clip, first, not first) for clip in ("0.wav", "1.wav") for first in (True, False)
    ]
    assert [done.stderr.count(text) for _, text in told] == [1, 1, 0, 0]


def test_enrolling_what_the_model_knows_is_told_of(home: Path) -> None:
    soundfile.write(home / "known.wav", tone(500, 0.5), 16_000)
    done = run(home, "enroll", "tiny.onnx", "eve", "known.wav", "--gallery", "known.db")
    assert done.returncode == 0, done.stderr
    assert "most of these sounds are like 'low'" in done.stderr
    assert "warning" not in run(home, "enroll", "tiny.onnx", "buzz", "buzz.wav", "--gallery", "known.db").stderr
    for name in ("low", "Low"):
        said = run(home, "enroll", "tiny.onnx", name, "buzz.wav", "--gallery", "labels.db").stderr
        assert "warning: 'low' is also a label of tiny" in said


@pytest.mark.parametrize("clip", ["silent.wav", "short.wav", "text.wav", "damaged.flac", "nothing.wav"])
def test_enrolling_a_bad_clip_writes_nothing(home: Path, clip: str) -> None:
    done = run(home, "enroll", "tiny.onnx", "eve", "buzz.wav", clip, "--gallery", "new.db")
    assert done.returncode == (2 if clip == "nothing.wav" else 1)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"confit-edge: {clip}: ")
    assert not (home / "new.db").exists()


# what is wrong is said in one line


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("listen nothing.onnx --source scene.flac", 2, "nothing.onnx: no such model file"),
        ("listen text.onnx --source scene.flac", 1, "text.onnx: is not"),
        ("listen tiny.onnx tiny.onnx --source scene.flac", 2, "2 of the models are named tiny"),
        (
            "classify speakers bells",
            2,
            "speakers: has no label that can fire, and thus nothing to classify: use it with `enroll`",
        ),
        ("listen mute.onnx --source scene.flac", 2, "mute has no label that fires: give --gallery"),
        ("listen tiny.onnx --source=", 2, "the name of a source or clip is empty"),
        ("record low -o clips --source scene.flac", 2, "scene.flac: is already a recording"),
        ("record low -o clips --source -", 2, "not a pipe"),
        ("listen tiny.onnx --source text.wav", 1, "text.wav: cannot be read as sound"),
        ("listen tiny.onnx --source nothing.wav", 2, "nothing.wav: no such file"),
        ("listen tiny.onnx --source -", 2, "--rate"),
        ("listen tiny.onnx --source scene.flac --rate 8000", 2, "--rate is for source '-'"),
        ("listen tiny.onnx --source - --rate 16000 --format u8", 2, "u8"),
        (
            "listen tiny.onnx --source scene.flac --threshold yes=0.5",
            2,
            "'yes' is not a label (labels that fire: low, mid, high)",
        ),
        ("listen tiny.onnx --source scene.flac --threshold midd=0.5", 2, "low, mid, high); did you mean 'mid'?"),
        (
            "listen tiny.onnx --source scene.flac --threshold other=0.5",
            2,
            "'other' never fires (labels that fire: low,",
        ),
        ("listen tiny.onnx --source scene.flac --threshold low=high", 2, "VALUE, a number (for a label above 0 and"),
        ("listen tiny.onnx --source scene.flac --threshold 60", 2, "above 0 and at most 1"),
        ("listen tiny.onnx --source scene.flac --threshold low=0", 2, "above 0 and at most 1"),
        ("listen tiny.onnx --source scene.flac --channels 7", 2, "--channels is for source '-'"),
        ("listen tiny.onnx --source scene.flac --format nonsense", 2, "--format is for source '-'"),
        (
            "listen tiny.onnx --source scene.flac --gallery house.db --gallery copy.db",
            2,
            "`confit-edge gallery import copy.db --gallery house.db`",
        ),
        ("enroll tiny.onnx eve buzz.wav --takes 9 --gallery house.db", 2, "--takes applies only to --mic"),
        ("enroll tiny.onnx eve buzz.wav --source mic:USB --gallery house.db", 2, "--source applies only to --mic"),
        ("listen tiny.onnx --source scene.flac --gallery text.wav", 1, "text.wav: is not a gallery"),
        ("listen other.onnx --source scene.flac --gallery house.db", 1, "house.db: was enrolled with another model"),
        ("identify other.onnx buzz.wav --gallery house.db", 1, "house.db: was enrolled with another model"),
        ("identify tiny.onnx buzz.wav --gallery future.db", 1, "future.db: is from a newer confit-edge"),
        ("identify tiny.onnx buzz.wav", 2, "gallery.db: no such gallery"),
        ("enroll other.onnx eve buzz.wav --gallery house.db", 1, "house.db: was enrolled with another model"),
        ("enroll tiny.onnx eve *.mp3 --gallery house.db", 2, "*.mp3: no sound files found"),
        ("gallery show eve --gallery house.db", 2, "nobody is enrolled as 'eve' (enrolled: bell)"),
        ("gallery list --gallery cut.db", 1, "cut.db: the gallery is damaged"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(home: Path, arguments: str, status: int, message: str) -> None:
    data = (home / "house.db").read_bytes()
    (home / "future.db").write_bytes(data[:60] + (99).to_bytes(4, "big") + data[64:])  # user_version
    (home / "cut.db").write_bytes(data[: len(data) // 2])
    (home / "copy.db").write_bytes(data)
    done = run(home, *arguments.split())
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("confit-edge: ")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 0.9999])
def test_a_model_cut_short_is_said_in_one_line(home: Path, tmp_path: Path, share: float) -> None:
    data = (home / "tiny.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    done = run(home, "listen", str(tmp_path / "cut.onnx"), "--source", "scene.flac")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cut.onnx" in done.stderr


def test_a_file_damaged_on_the_way_is_said_after_the_summary(home: Path) -> None:
    done = run(home, "listen", "tiny.onnx", "--source", "damaged.flac", "--json")
    assert done.returncode == 1
    assert lines(done)[-1]["type"] == "summary"
    assert done.stderr.startswith("confit-edge: damaged.flac: cannot be read as sound")


@pytest.mark.parametrize("arguments", ["devices", "listen tiny.onnx", "doctor", "record low -o clips"])
def test_without_portaudio_it_says_what_to_install(home: Path, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    done = run(home, *arguments.split(), env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install libportaudio2" in done.stderr


@pytest.mark.parametrize("verb", ["listen", "enroll", "identify", "devices", "doctor", "record", "gallery list"])
def test_help_teaches_without_loading_anything_heavy(verb: str) -> None:
    script = (
        "import sys\nfrom confit_edge.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *verb.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0
    assert f"confit-edge {verb}" in " ".join(done.stdout.split())
    loaded = set(done.stderr.split())
    assert not {"torch", "sklearn", "onnxruntime", "soundfile", "sounddevice"} & loaded
    assert not {"confit_edge.cli.train", "confit_edge.cli.demo"} & loaded


def test_listening_loads_no_openssl(home: Path) -> None:
    script = "import sys\nfrom confit_edge.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
    arguments = ["listen", "tiny.onnx", "--source", "scene.flac", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert '"type": "detection"' in done.stdout
    assert not {"_hashlib", "_ssl"} & set(done.stdout.split())


def test_listening_leaves_nothing_in_the_home_of_who_listens(home: Path, tmp_path: Path) -> None:
    """onnxruntime keeps the number of a device there, and what it is about to tell Microsoft."""
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": environment()["PYTHONPATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, "listen", "tiny.onnx", "--source", "scene.flac"], cwd=home, env=bare, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "tiny: low 1, mid 1 in 2.5 s\n")
    assert not list(tmp_path.iterdir())
