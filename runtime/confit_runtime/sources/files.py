"""Recordings: sound files, read block by block, and the clips that a user names."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from confit_runtime.audio import SOUND_SUFFIXES, check_samples, decode_channels, open_sound
from confit_runtime.errors import UsageError
from confit_runtime.sources.base import Chunk, downmix


class FileSource:
    """A sound file of any libsndfile format, rate and channel count, read block by block.

    Raises UsageError if there is no such file, and on iterating again or after closing; AudioError if it is not sound
    or, during iteration, if it is damaged or contains NaN, infinite or absurdly large samples.
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
            raise UsageError(f"{self.name}: was already {'read' if self._begun else 'closed'}: open it again")
        self._begun = True
        for block in decode_channels(self._sound, block=max(1, self.rate // 2)):
            if self._stopped.is_set():
                return
            chunk = downmix((block, self.rate))
            check_samples(chunk[0], self.name)
            yield chunk

    def stop(self) -> None:
        self._stopped.set()


def find_clips(specs: Sequence[str | Path]) -> list[Path]:
    """Find the clips that a user names: files, folders (the sound files in them and below) and glob patterns, in order.

    A path that does not exist is passed on, and refused when it is read. Raises UsageError for an empty name, for a
    folder or a pattern without sound files, and for a folder that cannot be read.
    """
    clips: list[Path] = []
    for spec in specs:
        path = Path(spec)
        if not str(spec).strip():
            raise UsageError(
                "the name of a source or clip is empty: give a sound file or a folder (. is the current one)"
            )
        if path.is_dir():
            found = find_sound_files(path)
        elif is_pattern(str(spec)):
            found = sorted(Path(file) for file in glob.glob(str(spec), recursive=True))
        else:
            found = [path]
        if not found:
            raise UsageError(f"{spec}: no sound files found")
        clips += found
    return clips


def is_pattern(spec: str) -> bool:
    """Whether `spec` is a glob pattern and not the name of an existing file."""
    return glob.has_magic(spec) and not Path(spec).exists()


def find_sound_files(folder: Path) -> list[Path]:
    """The sound files in a folder and below, sorted, without hidden ones.

    Links to folders are followed, except those that lead back to a folder containing them. Raises UsageError for a
    folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    found: list[Path] = []
    # for each folder: the real paths of itself and those above it
    within = {os.fspath(folder): {os.path.realpath(folder)}}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        above = within.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name in real if real[name] not in above]
        within |= {os.path.join(parent, name): above | {real[name]} for name in folders}
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SOUND_SUFFIXES)
