"""Errors of the device verbs: one line each; and their help, which loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.device import environment, run

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
def test_what_is_wrong_is_reported_in_one_line(home: Path, arguments: str, status: int, message: str) -> None:
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
def test_a_model_cut_short_is_reported_in_one_line(home: Path, tmp_path: Path, share: float) -> None:
    data = (home / "tiny.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    done = run(home, "listen", str(tmp_path / "cut.onnx"), "--source", "scene.flac")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cut.onnx" in done.stderr


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
