"""A PulseAudio server of the tests' own, with a room to play into and a microphone that hears it; no sound card needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASOUNDRC = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"


def missing() -> str | None:
    """What this machine lacks for it, if anything."""
    for program in ("pulseaudio", "pactl", "paplay"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        import sounddevice  # noqa: F401
    except OSError as error:
        return str(error)
    if not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "ALSA has no PulseAudio plugin (libasound2-plugins)"
    return None


class Room:
    """A null sink at `rate` Hz: what is played into it is what the microphone hears, as long as it is open."""

    def __init__(self, home: Path, rate: int) -> None:
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PULSE_RUNTIME_PATH": str(home / "pulse"),
            "PULSE_SERVER": f"unix:{home}/socket",
        }
        (home / ".asoundrc").write_text(ASOUNDRC)
        self._home, self._rate = home, rate
        self._server: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Start the server, and wait until it answers."""
        command = [
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"),
            *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={self._home}/socket"),
            *("-L", f"module-null-sink sink_name=room rate={self._rate} channels=1"),
        ]
        with (self._home / "log").open("w") as log:
            self._server = subprocess.Popen(command, env=self.environment, stderr=log)
        end = time.monotonic() + 30
        while "room" not in self._ask("sinks", check=False):
            assert self._server.poll() is None, (self._home / "log").read_text()
            assert time.monotonic() < end, "PulseAudio does not answer"
            time.sleep(0.1)

    def close(self) -> None:
        """Stop the server, as a sound server that crashes or a device that is pulled out."""
        assert self._server is not None
        self._server.terminate()
        self._server.wait(timeout=30)

    def play(self, path: Path) -> None:
        subprocess.run(["paplay", "--device=room", str(path)], env=self.environment, check=True, timeout=60)

    def wait_for_listener(self, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not self._ask("source-outputs").strip():
            assert time.monotonic() < end, "nobody opened the microphone"
            time.sleep(0.05)

    def _ask(self, what: str, *, check: bool = True) -> str:
        done = subprocess.run(
            ["pactl", "list", "short", what],
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=30,
        )
        return done.stdout


@contextmanager
def room(rate: int) -> Iterator[Room]:
    """A room that is open, and closed at the end."""
    # the path of a socket must be short, so pytest's own folder will not do
    with tempfile.TemporaryDirectory(prefix="confit-pulse-") as name:
        opened = Room(Path(name), rate)
        opened.open()
        try:
            yield opened
        finally:
            opened.close()
