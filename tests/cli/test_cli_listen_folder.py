"""`listen` with folders of clips, and with files that are damaged, silent, clipped or of cancelling channels."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.command import COMMAND
from tests.cli.device import environment, lines, run, scene
from tests.tiny_model import silence, tone


def test_listen_to_a_folder_of_clips(home: Path, tmp_path: Path) -> None:
    """Each clip has a clock of its own, and a damaged one does not stop the others."""
    for name, rate in (("a.wav", 16_000), ("c.flac", 44_100)):
        soundfile.write(tmp_path / name, scene(rate), rate)
    (tmp_path / "b.flac").write_bytes((home / "damaged.flac").read_bytes())
    done = run(home, "listen", "tiny.onnx", "--source", str(tmp_path), "--json")
    assert done.returncode == 1
    *events, summary = lines(done)
    detections = [one for one in events if one["type"] == "detection"]
    (failed,) = (one for one in events if one["type"] == "failed")
    assert failed["clip"] == str(tmp_path / "b.flac")
    assert f"confit-edge: {failed['error']}\n" in done.stderr
    detected = [(Path(one["clip"]).name, one["label"]) for one in detections if not one["clip"].endswith("b.flac")]
    assert detected == [("a.wav", "low"), ("a.wav", "mid"), ("c.flac", "low"), ("c.flac", "mid")]
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
    *_, first, second, last = lines(run(tmp_path, "listen", str(home / "tiny.onnx"), "--source", ".", "--json"))
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
    assert last == {**of_all, "type": "summary", "clips": 2, "failed": 0, "seconds": 3.5}
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
        *events, summary = map(json.loads, child.stdout.read().splitlines())
    assert "heard" not in [one["type"] for one in events]
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


def test_sound_that_was_cut_off_is_reported(home: Path, tmp_path: Path) -> None:
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
        message = done.stderr.splitlines()[-1]
        assert (done.returncode, message) == (1, "confit-edge: nan.wav: holds NaN or infinite samples"), verb
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


def test_channels_that_cancel_are_reported_by_doctor_and_listen(home: Path, tmp_path: Path) -> None:
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


def test_a_file_damaged_on_the_way_is_reported_after_the_summary(home: Path) -> None:
    done = run(home, "listen", "tiny.onnx", "--source", "damaged.flac", "--json")
    assert done.returncode == 1
    assert lines(done)[-1]["type"] == "summary"
    assert done.stderr.startswith("confit-edge: damaged.flac: cannot be read as sound")
