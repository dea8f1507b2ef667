"""What the tests of the verbs share: the command run in this process, and a folder and a microphone for the device verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.cli import main
from tests import tiny_model
from tests.cli.command import Confit
from tests.cli.device import BELL, BUZZ, RATE, SOUNDDEVICE, environment, run, scene
from tests.cli.json_lines import check
from tests.tiny_model import chord, silence, tone


@pytest.fixture
def confit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Confit:
    """The command in this process, which saves importing torch again: its exit code, stdout and stderr.

    What it prints with --json is held against docs/json.md.
    """

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confit-edge", *map(str, arguments)])
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        check(arguments, out)
        return int(stopped.value.code or 0), out, err

    return run


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


@pytest.fixture
def fake_portaudio(home: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which `import sounddevice` finds a microphone that hears the scene."""
    (tmp_path / "sounddevice.py").write_text(SOUNDDEVICE)
    return lambda end: {**environment(tmp_path), "FAKE_SOUND": str(home / "scene.flac"), "FAKE_END": end}
