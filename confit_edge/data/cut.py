"""Cut training clips out of long recordings: each part is written unchanged, in one pass over the recording."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from confit_edge.data.manifest import UNKNOWN, Clip
from confit_edge.data.tables import csv_text, relative
from confit_runtime.audio import flac_rate, open_sound, unreadable_error
from confit_runtime.errors import AudioError, ConfitError, UsageError
from confit_runtime.files import is_partial, make_folder, partial_folder, remove_leftovers, write_atomic
from confit_runtime.names import is_safe_in_filename

MANIFEST = "manifest.csv"
BLOCK = 65_536  # samples read at once
BROKEN_S = 0.1  # a recording whose end lacks more than this is damaged, as in `decode`
LONGEST_NAME = 90  # bytes of a label, a group or a recording: a file system allows 255 for a whole name
FLAC_CHANNELS = 8  # the most that FLAC can hold
_EXACT = (
    "WAV",
    "WAVEX",
    "RF64",
    "W64",
    "AIFF",
    "AU",
    "CAF",
    "FLAC",
)  # containers that can seek to a sample without reading those before it
_PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")


class UnwrittenError(ConfitError):
    """A file or folder (`file`) that cannot be written, for instance because the disk is full (`reason`)."""

    def __init__(self, file: Path, reason: Exception) -> None:
        super().__init__(f"{file}: cannot be written ({reason}): is the disk full?")
        self.file, self.reason = file, reason


class Part(NamedTuple):
    """A stretch of a recording, in seconds, and the path of the file to write it to, without the suffix."""

    start_s: float
    end_s: float
    stem: Path


@dataclass(frozen=True)
class Form:
    """The format in which parts of a recording are written without loss, and the sample type to read it as."""

    suffix: str
    format: str
    subtype: str
    dtype: str


@contextmanager
def atomic_folder(out: Path, option: str) -> Iterator[Path]:
    """A hidden folder to write into; it becomes `out` at the end, or is removed after an error.

    If `out` exists, the hidden folder is created inside it, because `out` may be a disk of its own; its contents are then
    moved up, files (such as a manifest) after folders. Raises UsageError if `out` is not empty, at the beginning or at the
    end, or cannot be made.
    """
    _check_free(out, option, "is not empty")
    target = Path(os.path.abspath(out))
    inside = target / target.name
    for place in (target, inside):
        remove_leftovers(place)
    make_folder(target if out.is_dir() else target.parent)
    with partial_folder(inside if out.is_dir() else target) as made:
        yield made
        _check_free(out, option, "is no longer empty: something else was written there in the meantime")
        if out.is_dir():
            for child in sorted(made.iterdir(), key=Path.is_file):
                child.replace(target / child.name)
        else:
            made.replace(target)


def is_taken(out: Path) -> bool:
    """Whether `out` is a file, or a folder that contains anything but unfinished work of other processes."""
    return out.is_file() or (out.is_dir() and not all(map(is_partial, out.iterdir())))


def _check_free(out: Path, option: str, full: str) -> None:
    """Raise UsageError where `out` is taken."""
    if is_taken(out):
        raise UsageError(f"{option} {out}: {'is a file' if out.is_file() else full}; name a new folder")


class UniqueNames:
    """Descriptive file names, each given out once, even on a file system that ignores case."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def part(self, folder: Path, words: Sequence[str], span: tuple[float, float]) -> Part:
        """A part whose path is FOLDER/`WORDS SECONDS`, where SECONDS is its start."""
        name, again = " ".join([*map(safe_name, words), f"{span[0]:09.3f}"]), 1
        stem = folder / name
        while str(stem).casefold() in self._taken:
            again += 1
            stem = folder / f"{name} ({again})"
        self._taken.add(str(stem).casefold())
        return Part(*span, stem)


def extract(path: Path, parts: Sequence[Part], progress: Callable[[float], None] = lambda seconds: None) -> list[Path]:
    """Write parts of a recording, at its own rate and with all its channels, and return their files in the same order.

    The recording is read once, from the first part to the last; where the format can seek, the sound between parts is
    skipped. Parts may overlap. `progress` is called with the seconds read so far. Raises AudioError if the recording is
    damaged, after removing the files written from it, and UnwrittenError if a file cannot be written.
    """
    written: list[Path] = []
    try:
        with open_sound(path) as sound:
            form = form_of(sound)
            written = [stem.with_name(stem.name + form.suffix) for _, _, stem in parts]
            spans = [(round(part.start_s * sound.samplerate), round(part.end_s * sound.samplerate)) for part in parts]
            _copy(sound, path, form, list(zip(spans, written, strict=True)), progress)
    except AudioError:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return written


def form_of(sound: Any) -> Form:
    """FLAC, or WAV for what FLAC cannot hold: floating point, many channels, some high rates."""
    kind = sound.subtype
    if kind in ("FLOAT", "DOUBLE"):
        return Form(".wav", "WAV", "FLOAT", "float32")
    subtype, dtype = ("PCM_24", "int32") if kind in ("PCM_24", "PCM_32") else ("PCM_16", "int16")
    if not kind.startswith(_PLAIN):
        dtype = "float32"  # the peaks of a lossy format may exceed full scale and would wrap around as integers
    fits = sound.channels <= FLAC_CHANNELS and flac_rate(sound.samplerate) == sound.samplerate
    return Form(".flac", "FLAC", subtype, dtype) if fits else Form(".wav", "WAV", subtype, dtype)


def _copy(
    sound: Any,
    path: Path,
    form: Form,
    wanted: Sequence[tuple[tuple[int, int], Path]],
    progress: Callable[[float], None],
) -> None:
    """Go through an open recording once and write each wanted span of samples to its file."""
    waiting, writing, at = sorted(wanted, reverse=True), list[tuple[int, Any]](), 0
    try:
        while waiting or writing:
            if not writing:
                at = _seek(sound, path, at, waiting[-1][0][0])
            while waiting and waiting[-1][0][0] <= at:
                (_, last), file = waiting.pop()
                writing.append((last, _create(file, sound, form)))
            stops = [last for last, _ in writing] + [span[0] for span, _ in waiting[-1:]]
            frames = _read(sound, path, min(BLOCK, min(stops) - at), form.dtype)
            if not len(frames):
                missing = max(last for last, _ in writing) - at
                if waiting or missing > BROKEN_S * sound.samplerate:
                    raise unreadable_error(path, f"it ends at {at / sound.samplerate:.1f} s")
                return
            at += len(frames)
            for _, out in writing:
                _write(out, frames)
            for _, out in (done := [one for one in writing if one[0] <= at]):
                out.close()
            writing = [one for one in writing if one not in done]
            progress(at / sound.samplerate)
    finally:
        for _, out in writing:
            out.close()


def _seek(sound: Any, path: Path, at: int, first: int) -> int:
    """Advance an open recording from sample `at` to `first`, and return the position reached.

    Raises AudioError if the recording ends before `first`, unless the format can seek.
    """
    if sound.format in _EXACT and sound.subtype.startswith(_PLAIN) and sound.expected is not None:
        try:
            return int(sound.seek(min(first, sound.frames)))
        except RuntimeError as error:
            raise unreadable_error(path, error) from error
    while at < first and (read := len(_read(sound, path, min(BLOCK, first - at), "float32"))):
        at += read
    if at < first:
        raise unreadable_error(path, f"it ends at {at / sound.samplerate:.1f} s")
    return at


def _read(sound: Any, path: Path, frames: int, dtype: str) -> Any:
    try:
        read = sound.read(frames, dtype=dtype, always_2d=True)
    except (RuntimeError, ValueError) as error:
        raise unreadable_error(path, error) from error
    if dtype == "float32" and not np.isfinite(read).all():
        raise AudioError(f"{path}: contains NaN or infinite samples")
    return read


def _create(file: Path, sound: Any, form: Form) -> Any:
    import soundfile

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return soundfile.SoundFile(
            os.fsencode(file), "w", sound.samplerate, sound.channels, form.subtype, format=form.format
        )
    except RuntimeError as error:
        raise UnwrittenError(file, error) from error


def _write(out: Any, frames: Any) -> None:
    try:
        out.write(frames)
    except RuntimeError as error:
        raise UnwrittenError(Path(os.fsdecode(out.name)), error) from error


def write_table(clips: Sequence[Clip], path: Path) -> bool:
    """Write the manifest of clips, whole or not at all; return whether it has the column `labels`, for clips with several."""
    several = any(len(clip.labels) > 1 for clip in clips)
    column = "labels" if several else "label"
    rows = [
        {"path": relative(clip.path, path.parent), column: "|".join(clip.labels) or UNKNOWN, "group": clip.group}
        for clip in clips
    ]
    write_atomic(path, csv_text(rows).encode())
    return several


def safe_name(name: str) -> str:
    """The name, changed and cut short where needed so that any file system accepts it."""
    plain = "".join(one if is_safe_in_filename(one) else "_" for one in name)
    return plain.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .") or "_"
