"""Training clips cut out of long recordings: each part written as it is, in one pass over a recording."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from confit_edge.data.manifest import UNKNOWN, Clip
from confit_edge.data.tables import relative
from confit_runtime.audio import flac_rate, open_sound, unreadable
from confit_runtime.errors import AudioError, ConfitError, UsageError
from confit_runtime.files import is_partial, make_folder, partial_folder, remove_left, write_whole
from confit_runtime.names import fits_a_file_name

MANIFEST = "manifest.csv"
BLOCK = 65_536  # samples that are read at once
BROKEN_S = 0.1  # from here on what lacks at the end is damage, as in `decode`
LONGEST_NAME = 90  # bytes of a label, a group or a recording: a file system takes 255 of a name
FLAC_CHANNELS = 8  # at the most
_EXACT = (
    "WAV",
    "WAVEX",
    "RF64",
    "W64",
    "AIFF",
    "AU",
    "CAF",
    "FLAC",
)  # in which a sample is found without those before it
_PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")


class UnwrittenError(ConfitError):
    """A file, or a folder, that cannot be written, as on a full disk: `file`, and `reason`."""

    def __init__(self, file: Path, reason: Exception) -> None:
        super().__init__(f"{file}: cannot be written ({reason}): is the disk full?")
        self.file, self.reason = file, reason


class Part(NamedTuple):
    """A stretch of a recording in seconds, and the file that it is to be, but for the ending."""

    start_s: float
    end_s: float
    stem: Path


@dataclass(frozen=True)
class Form:
    """How parts of a recording are written, so that nothing of it is lost, and how it is read for that."""

    suffix: str
    format: str
    subtype: str
    dtype: str


@contextmanager
def made_whole(out: Path, option: str) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `out` at the end, or goes where it was left by an error.

    Where `out` is there it lies in it, for that may be a disk of its own, and the files that lie in it come last, as a
    manifest does. Raises UsageError where `out` holds something, at the beginning or at the end, or cannot be made.
    """
    _refuse_full(out, option, "is not empty")
    target = Path(os.path.abspath(out))
    inside = target / target.name
    for place in (target, inside):
        remove_left(place)
    make_folder(target if out.is_dir() else target.parent)
    with partial_folder(inside if out.is_dir() else target) as made:
        yield made
        _refuse_full(out, option, "is no longer empty: something else was written there meanwhile")
        if out.is_dir():
            for child in sorted(made.iterdir(), key=Path.is_file):
                child.replace(target / child.name)
        else:
            made.replace(target)


def is_taken(out: Path) -> bool:
    """Whether `out` is a file, or a folder that holds anything but what others are writing, or left."""
    return out.is_file() or (out.is_dir() and not all(map(is_partial, out.iterdir())))


def _refuse_full(out: Path, option: str, full: str) -> None:
    """Raise UsageError where `out` is taken."""
    if is_taken(out):
        raise UsageError(f"{option} {out}: {'is a file' if out.is_file() else full}; name a new folder")


class Names:
    """Names of files that tell what is in them: each is given once, also where a file system knows no capitals."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def part(self, folder: Path, words: Sequence[str], span: tuple[float, float]) -> Part:
        """FOLDER/`WORDS SECONDS`, the seconds being those at which it begins."""
        name, again = " ".join([*map(safe, words), f"{span[0]:09.3f}"]), 1
        stem = folder / name
        while str(stem).casefold() in self._taken:
            again += 1
            stem = folder / f"{name} ({again})"
        self._taken.add(str(stem).casefold())
        return Part(*span, stem)


def extract(path: Path, parts: Sequence[Part], tell: Callable[[float], None] = lambda seconds: None) -> list[Path]:
    """Write parts of a recording, at its own rate and with its channels, and give their files in the same order.

    It is read once, from the first part to the last, and where the format allows it not between them: parts may overlap.
    Raises AudioError where it is damaged, after removing what was written of it, and UnwrittenError where nothing can be written.
    """
    written: list[Path] = []
    try:
        with open_sound(path) as sound:
            form = form_of(sound)
            written = [stem.with_name(stem.name + form.suffix) for _, _, stem in parts]
            spans = [(round(part.start_s * sound.samplerate), round(part.end_s * sound.samplerate)) for part in parts]
            _copy(sound, path, form, list(zip(spans, written, strict=True)), tell)
    except AudioError:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return written


def form_of(sound: Any) -> Form:
    """FLAC, or WAV for what that cannot hold: floating point, many channels, some high rates."""
    kind = sound.subtype
    if kind in ("FLOAT", "DOUBLE"):
        return Form(".wav", "WAV", "FLOAT", "float32")
    subtype, dtype = ("PCM_24", "int32") if kind in ("PCM_24", "PCM_32") else ("PCM_16", "int16")
    if not kind.startswith(_PLAIN):
        dtype = "float32"  # of a lossy format, whose peaks may be above full scale: as integers they would wrap around
    fits = sound.channels <= FLAC_CHANNELS and flac_rate(sound.samplerate) == sound.samplerate
    return Form(".flac", "FLAC", subtype, dtype) if fits else Form(".wav", "WAV", subtype, dtype)


def _copy(
    sound: Any,
    path: Path,
    form: Form,
    wanted: Sequence[tuple[tuple[int, int], Path]],
    tell: Callable[[float], None],
) -> None:
    """Go through an open recording once and write each wanted span of samples to its file."""
    waiting, writing, at = sorted(wanted, reverse=True), list[tuple[int, Any]](), 0
    try:
        while waiting or writing:
            if not writing:
                at = _go_to(sound, path, at, waiting[-1][0][0])
            while waiting and waiting[-1][0][0] <= at:
                (_, last), file = waiting.pop()
                writing.append((last, _create(file, sound, form)))
            stops = [last for last, _ in writing] + [span[0] for span, _ in waiting[-1:]]
            frames = _read(sound, path, min(BLOCK, min(stops) - at), form.dtype)
            if not len(frames):
                missing = max(last for last, _ in writing) - at
                if waiting or missing > BROKEN_S * sound.samplerate:
                    raise unreadable(path, f"it ends at {at / sound.samplerate:.1f} s")
                return
            at += len(frames)
            for _, out in writing:
                _write(out, frames)
            for _, out in (done := [one for one in writing if one[0] <= at]):
                out.close()
            writing = [one for one in writing if one not in done]
            tell(at / sound.samplerate)
    finally:
        for _, out in writing:
            out.close()


def _go_to(sound: Any, path: Path, at: int, first: int) -> int:
    """Bring an open recording from sample `at` to `first`, or as far as it goes; where it stands then."""
    if sound.format in _EXACT and sound.subtype.startswith(_PLAIN) and sound.expected is not None:
        try:
            return int(sound.seek(min(first, sound.frames)))
        except RuntimeError as error:
            raise unreadable(path, error) from error
    while at < first and (read := len(_read(sound, path, min(BLOCK, first - at), "float32"))):
        at += read
    if at < first:
        raise unreadable(path, f"it ends at {at / sound.samplerate:.1f} s")
    return at


def _read(sound: Any, path: Path, frames: int, dtype: str) -> Any:
    try:
        read = sound.read(frames, dtype=dtype, always_2d=True)
    except (RuntimeError, ValueError) as error:
        raise unreadable(path, error) from error
    if dtype == "float32" and not np.isfinite(read).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
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
    """Write the manifest of clips, with the column `labels` where one has several, whole or not at all; whether it is so."""
    several = any(len(clip.labels) > 1 for clip in clips)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "labels" if several else "label", "group"])
    for clip in clips:
        table.writerow([relative(clip.path, path.parent), "|".join(clip.labels) or UNKNOWN, clip.group])
    write_whole(path, text.getvalue().encode())
    return several


def safe(name: str) -> str:
    """A name, or the beginning of it, that any file system takes."""
    plain = "".join(one if fits_a_file_name(one) else "_" for one in name)
    return plain.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .") or "_"
