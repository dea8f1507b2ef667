"""The device verbs in processes of their own: a scene to listen to, a fake microphone, and terminals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.cli.command import COMMAND
from tests.cli.forked import DEVICE
from tests.tiny_model import Floats, chord, silence, tone

ROOT = Path(__file__).parents[2]
BELL, BUZZ = (300.0, 2600.0), (800.0, 5000.0)
RATE = 44_100


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


def on_a_terminal(home: Path, env: dict[str, str], *arguments: str) -> tuple[str, str]:
    """What a command says on a terminal behind stderr, and its stdout."""
    controller, terminal = pty.openpty()
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=home,
        env={**env, "COLUMNS": "120", "LINES": "30", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(controller, 100_000):
            output += part
    os.close(controller)
    assert done.returncode in (0, 1), output
    return output.decode(), done.stdout
