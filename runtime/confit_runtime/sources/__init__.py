"""Where sound comes from: files, raw PCM on a pipe, microphones, network streams; and how a user names them."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import cast

from confit_runtime.errors import UsageError
from confit_runtime.sources.base import Chunk, Gap, InputChunk, InputSource, Item, Notice, Pause, Source
from confit_runtime.sources.files import FileSource, find_clips, is_pattern
from confit_runtime.sources.microphone import Microphone
from confit_runtime.sources.network import NetworkSource, is_url, without_secrets
from confit_runtime.sources.pcm import PCM_FORMATS, PcmSource
from confit_runtime.sources.portaudio import InputDevice, import_portaudio, input_devices

__all__ = [
    "PCM_FORMATS",
    "Chunk",
    "FileSource",
    "Gap",
    "InputChunk",
    "InputDevice",
    "InputSource",
    "Item",
    "Microphone",
    "NetworkSource",
    "Notice",
    "Pause",
    "PcmSource",
    "Source",
    "find_clips",
    "import_portaudio",
    "input_devices",
    "is_clip_spec",
    "open_source",
    "without_secrets",
]

_MICROPHONE = re.compile(r"mic(?::?(?P<name>(?<=:).*|#\d{1,3}))?", re.DOTALL)


def is_clip_spec(spec: str) -> bool:
    """Whether `spec` names what `find_clips` finds, a folder or a glob pattern, rather than one source to open."""
    if spec == "-" or _MICROPHONE.fullmatch(spec) is not None or is_url(spec):
        return False
    return Path(spec).is_dir() or is_pattern(spec)


def open_source(spec: str | Path, *, rate: int | None = None, channels: int = 1, format: str = "s16le") -> Source:
    """Open a source by the name a user gives: `mic`, `mic:ID`, `mic:NAME`, a file's path, a URL, or `-` for PCM on stdin.

    A `Path` is always a file. `#N` after a microphone selects its channel N, from 1, instead of the mean of all
    channels (for microphone arrays with a processed or a loopback channel). `rate`, `channels` and `format` describe
    the PCM on stdin. Raises UsageError, AudioError, DeviceError.
    """
    if isinstance(spec, str) and not spec.strip():
        raise UsageError("--source is empty: give mic, a sound file, a folder, a URL or -")
    if spec == "-":
        if rate is None:
            raise UsageError(
                "raw PCM on stdin does not state its rate: give --rate HZ, or in a program open_source('-', rate=HZ)"
            )
        if sys.stdin is None:
            raise UsageError("source '-' reads raw PCM from a pipe, but stdin is closed")
        if sys.stdin.isatty():
            raise UsageError("source '-' reads raw PCM from a pipe, but stdin is a terminal")
        return PcmSource(cast(io.BufferedIOBase, sys.stdin.buffer), rate, channels, format)
    for option, given in (("--rate", rate), ("--channels", channels != 1), ("--format", format != "s16le")):
        if given:
            raise UsageError(f"{option} is for source '-' only; {without_secrets(str(spec))} has its own")
    if isinstance(spec, Path):
        return FileSource(spec)
    if microphone := _MICROPHONE.fullmatch(spec):
        return Microphone.named(microphone["name"] or "")
    if is_url(spec):
        return NetworkSource(spec)
    return FileSource(spec)
