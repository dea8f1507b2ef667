"""Recordings: sound files, read block by block, and the clips a user names."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from confit_runtime.audio import NOT_READ, check_samples, decode, open_sound
from confit_runtime.errors import UsageError
from confit_runtime.sources.base import Chunk

SOUND_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"),
    *(".w64", ".rf64", ".voc", ".sph", ".nist"),
    *NOT_READ,  # listed, they are reported and not overlooked
)


class FileSource:
    """A sound file of any libsndfile format, rate and channel count, read block by block.

    Raises UsageError when there is no such file, and where it is iterated over again or after it was closed; AudioError when it
    is not sound, or, on the way, when it is damaged or holds NaN, infinite or absurdly large samples.
    """

    live = False

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._sound = open_sound(path)
        self.rate = int(self._sound.samplerate)
        self._stopped, self._begun = threading.Event(), False

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sound.close()

    def __iter__(self) -> Iterator[Chunk]:
        if self._begun or self._sound.closed:
            raise UsageError(
                f"{self.name}: was {'read' if self._begun else 'closed'} already: open it again to hear it"
            )
        self._begun = True
        for block in decode(self._sound, block=max(1, self.rate // 2)):
            if self._stopped.is_set():
                return
            check_samples(block, self.name)
            yield block, self.rate

    def stop(self) -> None:
        self._stopped.set()


def find_clips(specs: Sequence[str | Path]) -> list[Path]:
    """Clips from how a user names them: files, folders (the sound files in them and below) and glob patterns, in order.

    A path that names nothing is passed on, for whoever reads it to refuse. Raises UsageError on an empty name, on a
    folder or a pattern without sound, and on a folder that cannot be read.
    """
    clips: list[Path] = []
    for spec in specs:
        path = Path(spec)
        if not str(spec).strip():
            raise UsageError("a source or clip without a name: give a sound file or a folder (. is the one you are in)")
        if path.is_dir():
            found = sounds_below(path)
        elif is_pattern(str(spec)):
            found = sorted(Path(file) for file in glob.glob(str(spec), recursive=True))
        else:
            found = [path]
        if not found:
            raise UsageError(f"{spec}: no sound files there")
        clips += found
    return clips


def is_pattern(spec: str) -> bool:
    """Whether it is a glob pattern, and no file's name."""
    return glob.has_magic(spec) and not Path(spec).exists()


def sounds_below(folder: Path) -> list[Path]:
    """The sound files in a folder and those below it, sorted, hidden ones left out.

    Links to folders are followed, but for one that leads back to a folder it lies in. Raises UsageError on a folder that
    cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    found: list[Path] = []
    within = {os.fspath(folder): {os.path.realpath(folder)}}  # of each folder: itself and those above it, without links
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        above = within.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name in real if real[name] not in above]
        within |= {os.path.join(place, name): above | {real[name]} for name in folders}
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SOUND_SUFFIXES)
