"""`listen` as a user runs it: files, pipes, several models, signals, and terminals that go away."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import soundfile

from tests import tiny_model
from tests.cli.command import COMMAND
from tests.cli.device import RATE, environment, lines, run, scene
from tests.tiny_model import silence, tone

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
    thresholds, summary = done.stderr.splitlines()
    assert thresholds.startswith("house.db: not calibrated, at the model's thresholds for streams: bell 0.80.")
    assert summary == "tiny: low 1, bell 1, mid 1 in 2.5 s"


def test_listen_reports_the_end_of_a_sound_when_asked(home: Path) -> None:
    arguments = ["listen", "tiny.onnx", "--source", "scene.flac", "--gallery", "house.db", "--ends"]
    *events, summary = lines(run(home, *arguments, "--json"))
    labels = ["low", "bell", "mid"]
    assert [(one["type"], one["label"]) for one in events] == [
        (kind, label) for label in labels for kind in ("detection", "ended")
    ]
    for started, finished, end in zip(events[::2], events[1::2], [0.7, 1.5, 2.1], strict=True):
        assert set(finished) == {
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
        assert started["enrolled"] == finished["enrolled"] == (started["label"] == "bell")
        assert (finished["start_s"], finished["start_sample"]) == (started["start_s"], started["start_sample"])
        assert abs(finished["end_s"] - end) < 0.1
    assert summary["by_model"]["tiny"]["detections"] == dict.fromkeys(labels, 1)
    done = run(home, *arguments)
    assert [line.split()[2:5] for line in done.stdout.splitlines()[1::2]] == [[one, "ended", "at"] for one in labels]


def test_listen_takes_beeps_for_one_sound_when_asked(home: Path, tmp_path: Path) -> None:
    beep = tone(500, 0.5)
    soundfile.write(tmp_path / "alarm.wav", np.concatenate([beep, silence(1.5)] * 4 + [silence(4.0), beep]), 16_000)
    arguments = ["listen", "tiny.onnx", "--source", tmp_path / "alarm.wav", "--ends", "--json"]

    def places(*more: str) -> list[tuple[str, float]]:
        *events, _ = lines(run(home, *arguments, *more))
        return [
            (one["type"], round(2 * one["start_s" if one["type"] == "detection" else "end_s"]) / 2) for one in events
        ]

    assert places() == [(kind, at + end) for at in (0, 2, 4, 6, 12) for kind, end in (("detection", 0), ("ended", 0.5))]
    for hold in ("--hold=3", "--hold=low=3", "--hold=3 --hold=mid=0"):
        for more in ([], ["--gate", "-50"]):  # which sleeps through the pauses
            found = places(*hold.split(), *more)
            assert found == [("detection", 0), ("ended", 6.5), ("detection", 12), ("ended", 12.5)], (hold, more)
    for wrong, message in (("low=x", "expected LABEL=SECONDS"), ("-1", "may pause"), ("lov=3", "is not a label")):
        done = run(home, *arguments, f"--hold={wrong}")
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("form", "channels"), [("s16le", 1), ("f32le", 2)])
def test_listen_to_a_pipe(home: Path, form: str, channels: int) -> None:
    sound = np.repeat(scene(16_000)[:, None], channels, axis=1)
    data = (sound * 32767).astype("<i2").tobytes() if form == "s16le" else sound.astype("<f4").tobytes()
    described = ["--rate", "16000", "--channels", str(channels), "--format", form]
    done = run(home, "listen", "tiny.onnx", "--source", "-", *described, "--json", stdin=data + b"\x01")
    assert [one.get("label") for one in lines(done)] == ["low", "mid", None]
    assert lines(done)[-1]["source"] == "-"


def test_a_muted_source_is_reported(home: Path) -> None:
    pcm = np.concatenate([silence(31.0), scene(16_000)])
    warning = "-: nothing but digital silence for 30 s: it is muted, or this is the wrong source"
    arguments = ["listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"]
    done = run(home, *arguments, stdin=(pcm * 32767).astype("<i2").tobytes())
    silent, fine = (one for one in lines(done) if one["type"] == "notice")
    assert (silent["type"], silent["source"], silent["state"], silent["text"]) == ("notice", "-", "silent", warning)
    assert (fine["state"], fine["text"]) == ("fine", "-: has sound again")
    assert done.stderr.splitlines()[:2] == [warning, "-: has sound again"]


def test_raw_pcm_does_not_come_from_a_terminal(home: Path) -> None:
    controller, terminal = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "listen", "tiny.onnx", "--source", "-", "--rate", "16000"],
        cwd=home,
        env=environment(),
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(terminal)
    os.close(controller)
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
def test_listen_on_a_terminal_that_goes_away_prints_its_summary(home: Path, ignored: bool) -> None:
    """As an ssh session that is lost; who ignores that goes on, though its level can be drawn no more."""
    controller, terminal = pty.openpty()

    def at_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", "--json"], cwd=home, env=environment(),
        preexec_fn=at_the_terminal, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal,
    ) as child:  # fmt: skip
        os.close(terminal)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(pcm[:48_000])
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["label"] == "low"
        os.close(controller)
        if ignored:
            time.sleep(0.3)
            child.stdin.write(pcm[48_000:])
            child.stdin.close()
        assert [json.loads(line)["type"] for line in child.stdout] == ["detection"] * ignored + ["summary"]
        assert child.wait(timeout=30) == 0


def test_listen_continues_under_nohup_when_its_terminal_goes_away(home: Path) -> None:
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
def test_a_command_that_is_stopped_while_it_loads_reports_it(
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


def test_a_trigger_kept_as_listening_stops_is_complete_and_reported(home: Path, tmp_path: Path) -> None:
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
        detection, summary = map(json.loads, child.stdout.read().splitlines())
    assert (detection["label"], summary["by_model"]["tiny"]["detections"]) == ("low", {"low": 1})
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
        assert b"Traceback" not in (err := child.stderr.read())
        assert b"BrokenPipe" not in err


def test_sound_below_the_models_rate_is_reported_once(home: Path, tmp_path: Path) -> None:
    """By whatever verb, and of a folder for all of its clips."""
    (tmp_path / "phone").mkdir()
    for at in range(2):
        soundfile.write(tmp_path / "phone" / f"{at}.wav", scene(8_000), 8_000)
    warning = (
        f"{tmp_path / 'phone' / '0.wav'}: comes at 8000 Hz and has nothing above 4 kHz, but tiny hears up to 8 kHz"
    )
    enroll = ["enroll", "tiny.onnx", "phone", str(tmp_path / "phone"), "--gallery", str(tmp_path / "phone.db")]
    for verb in (["listen", "tiny.onnx", "--source", str(tmp_path / "phone")], enroll):
        done = run(home, *verb)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(warning) == done.stderr.count("--band-probability") == 1
    house, clip = ["--gallery", str(tmp_path / "phone.db")], str(tmp_path / "phone" / "0.wav")
    (tmp_path / "labels.csv").write_text(f"path,start_s,end_s,label\n{clip},1.0,1.5,low\n")
    for verb in (["identify", "tiny.onnx", clip, *house], ["verify", "tiny.onnx", "phone", clip, *house]):
        assert run(home, *verb).stderr.count(warning) == 1
    assert run(home, "evaluate", "tiny.onnx", str(tmp_path / "labels.csv")).stderr.count(warning) == 1
    done = run(home, "classify", "tiny.onnx", "text.wav", str(tmp_path / "phone"))
    assert done.stderr.count(warning) == done.stderr.count("--band-probability") == 1
    assert "--band-probability" not in run(home, "classify", "tiny.onnx", "scene.flac").stderr
    pcm = (scene(8_000) * 32767).astype("<i2").tobytes()
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "8000", "--json", stdin=pcm)
    first, *_ = map(json.loads, done.stdout.splitlines())
    assert (first["type"], first["source"], first["state"]) == ("notice", "-", "narrow")
    assert done.stderr.count(first["text"]) == 1
    tiny_model.build(tmp_path / "lower.onnx", name="lower", highest_hz=5_000.0)
    done = run(home, "listen", "tiny.onnx", tmp_path / "lower.onnx", "--source", tmp_path / "phone", "--json")
    warnings = [(Path(one["clip"]).name, one["text"]) for one in lines(done) if one.get("state") == "narrow"]
    assert [(clip, "tiny hears" in text, "lower hears" in text) for clip, text in warnings] == [
        (clip, first, not first) for clip in ("0.wav", "1.wav") for first in (True, False)
    ]
    assert [done.stderr.count(text) for _, text in warnings] == [1, 1, 0, 0]


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
