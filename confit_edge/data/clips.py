"""Decoded clips: each clip is decoded and resampled once, cached on disk, and checked before training uses it."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from confit_edge.data.manifest import UNKNOWN, Clip, Manifest
from confit_edge.data.pack import Pack
from confit_edge.data.tables import ManifestError, relative
from confit_edge.progress import Progress
from confit_runtime.audio import Pcm, check_rate, load_clip, read_audio
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import default_cache
from confit_runtime.formatting import format_count, format_list
from confit_runtime.voice_activity import SILENCE_DB

log = logging.getLogger(__name__)

SILENCE = 1e-5  # full scale is 1
MIN_S = 0.05  # a shorter clip is too short to contain a sound
READING = 2  # version of how compressed sound is read; increment it on a change, so that cached clips are decoded again
PLAIN = (".wav", ".flac")  # formats whose reading has not changed
ProblemKind = Literal["missing", "unreadable", "empty", "not-finite", "short", "silent"]


@dataclass(frozen=True)
class ClipProblem:
    """A clip or a recording that cannot be used, and why."""

    path: Path
    kind: ProblemKind
    detail: str


class ClipStore:
    """Clips as mono float32 at one sample rate.

    Decoded clips are cached in `clips/` under `cache_dir` (or $CONFIT_EDGE_CACHE, or ~/.cache/confit-edge) and read
    from there through memory maps, so a corpus may be larger than memory. A clip is decoded again if its file changed or
    its cached copy is damaged. If the cache cannot be written, each clip is decoded on every request and held in memory
    by the caller. Safe to use from several threads.
    """

    def __init__(self, rate: int, cache_dir: Path | None = None) -> None:
        self.rate = check_rate(rate)
        self._pack = Pack((cache_dir or default_cache()) / "clips")
        self._usable = True

    @property
    def folder(self) -> Path:
        """The folder of cached clips. You may remove it whenever nothing is running."""
        return self._pack.folder

    def get(self, path: str | Path) -> Pcm:
        """The clip, `[samples]` float32 at `rate` Hz; read-only, because all callers share the same array.

        Raises UsageError when there is no such file, and AudioError when it is not sound, is empty, or is not finite.
        """
        path = Path(os.path.abspath(path))
        key = self._key(path)
        kept = self._ask_pack(lambda: self._pack.get(key))
        if kept is not None:
            return kept
        pcm = load_clip(path, self.rate, None)  # background may be hours long
        pcm.setflags(write=False)
        kept = self._ask_pack(lambda: self._pack.put(key, pcm))
        return pcm if kept is None else kept

    def _ask_pack(self, ask: Callable[[], Pcm | None]) -> Pcm | None:
        """The pack's answer; None if the pack cannot be used, which is logged once."""
        if not self._usable:
            return None
        try:
            return ask()
        except (OSError, sqlite3.Error) as error:
            if self._usable:  # another thread may have been here
                log.warning("%s: decoded clips cannot be cached (%s); set CONFIT_EDGE_CACHE", self.folder, error)
            self._usable = False
            return None

    def _key(self, path: Path) -> str:
        try:
            stat = path.stat()
        except OSError as error:
            raise UsageError(f"{path}: no such file ({error.strerror})") from error
        # The change time is needed too: a file renamed over another can have the same size and modification time.
        identity = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, self.rate]
        if path.suffix.lower() not in PLAIN:
            identity.append(READING)
        return hashlib.sha256(repr(identity).encode()).hexdigest()


def load_clips(
    manifest: Manifest,
    store: ClipStore,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[Manifest, list[Pcm], list[ClipProblem]]:
    """Decode every clip: returns the manifest of the usable clips, their samples in the same order, and the problems.

    The samples are read-only `[samples]` float32 at the store's rate. Call it before `with_splits`, so that splits are
    made of usable clips only. Raises ManifestError when a class has no usable clip left, and with `strict` when any clip
    is unusable.
    """
    samples: list[Pcm] = []
    usable, problems = usable_clips(manifest, store, progress=progress, keep=samples.append)
    if problems:
        first = f"{problems[0].path}: {problems[0].detail}"
        if strict:
            raise ManifestError(
                f"{len(problems)} of {len(manifest)} clips cannot be used; the first problem is {first}"
            )
        lost = sorted(set(manifest.classes) - set(usable.classes))
        if lost:
            names = ", ".join(map(repr, lost))
            raise ManifestError(
                f"{manifest.source}: no clip of class {names} can be used; the first problem is {first}"
            )
    return usable, samples, problems


def usable_clips(
    manifest: Manifest,
    store: ClipStore,
    *,
    progress: Progress | None = None,
    keep: Callable[[Pcm], object] = lambda pcm: None,
) -> tuple[Manifest, list[ClipProblem]]:
    """The manifest of the usable clips and the problems of the others; `keep` receives the usable samples one by one."""
    clips: list[Clip] = []
    problems: list[ClipProblem] = []
    for clip, outcome in decode(manifest, store, progress=progress):
        if isinstance(outcome, ClipProblem):
            problems.append(outcome)
        else:
            clips.append(clip)
            keep(outcome)
    return replace(manifest, clips=tuple(clips)), problems


def decode(
    manifest: Manifest, store: ClipStore, *, progress: Progress | None = None
) -> Iterator[tuple[Clip, Pcm | ClipProblem]]:
    """Yield each clip of the manifest, in order, with its samples or with its problem."""
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    try:
        outcomes = pool.map(lambda clip: read_clip(clip.path, store), manifest.clips)
        for done, (clip, outcome) in enumerate(zip(manifest.clips, outcomes, strict=True), start=1):
            if progress is not None:
                progress(done, len(manifest))
            yield clip, outcome
    finally:
        pool.shutdown(cancel_futures=True)


def count_kinds(problems: list[ClipProblem]) -> dict[str, int]:
    """The number of problems of each kind, most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())


def load_recordings(
    paths: Sequence[Path], store: ClipStore, option: str, *, strict: bool = False, progress: Progress | None = None
) -> tuple[dict[Path, Pcm], list[ClipProblem]]:
    """Decode long recordings: returns the usable ones by path, and the problems of the others.

    They are checked like clips, but one after another, because each may last hours. Raises UsageError, naming the
    `option` that gave them, when none is usable, and ConfitError with `strict` when any is unusable.
    """
    found: dict[Path, Pcm] = {}
    problems: list[ClipProblem] = []
    for done, path in enumerate(paths, start=1):
        outcome = read_clip(path, store)
        if isinstance(outcome, ClipProblem):
            problems.append(outcome)
        else:
            found[path] = outcome
        if progress is not None:
            progress(done, len(paths))
    if problems:
        first = f"{problems[0].path}: {problems[0].detail}"
        if not found:
            raise UsageError(f"{option}: no recording can be used; the first problem is {first}")
        if strict:
            raise ConfitError(
                f"{option}: {len(problems)} of {len(paths)} recordings cannot be used; the first problem is {first}"
            )
    return found, problems


def read_clip(path: Path, store: ClipStore) -> Pcm | ClipProblem:
    """The samples of a sound file, or its problem."""
    try:
        pcm = store.get(path)
    except ConfitError as error:
        return ClipProblem(path, _kind(path), str(error).removeprefix(f"{os.path.abspath(path)}: "))
    seconds = len(pcm) / store.rate
    if pcm.size == 0 or seconds < MIN_S:
        return ClipProblem(path, "short", f"is {seconds:.3f} s long, shorter than {MIN_S:g} s")
    if is_silent(pcm):
        return ClipProblem(path, "silent", f"is silent (no sample above {SILENCE:g})")
    return pcm


def is_silent(pcm: Pcm) -> bool:
    """Whether a recording is digitally silent, as only a muted microphone is. Makes no copy, even of hours of sound."""
    return not pcm.size or max(float(pcm.max()), -float(pcm.min())) < SILENCE


def quiet_clips_warning(levels_db: Mapping[Clip, float], folder: Path) -> str | None:
    """A warning about labelled clips whose loudest moment is below the level that `enroll` calls silent; None without any.

    Clips of `unknown`, or without a label, may be that quiet: a quiet room is none of the classes.
    """
    quiet = [clip for clip, level in levels_db.items() if level <= SILENCE_DB and clip.labels not in ((), (UNKNOWN,))]
    if not quiet:
        return None
    names = format_list([relative(clip.path, folder) for clip in quiet], 3)
    return (
        f"{format_count(len(quiet), 'labelled clip is', 'labelled clips are')} almost silent, never above {SILENCE_DB:g} dBFS"
        f" ({names}): the model learns the recorder's hiss as their class. Record them louder, or remove them (label a quiet"
        f" room {UNKNOWN!r})"
    )


def _kind(path: Path) -> ProblemKind:
    """The kind of problem of a clip that could not be decoded."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size == 0:
        return "empty"
    try:
        pcm, _ = read_audio(path, None)
    except ConfitError:
        return "unreadable"
    if pcm.size == 0:
        return "empty"
    return "unreadable" if np.isfinite(pcm).all() else "not-finite"


def sound_digest(pcm: Pcm) -> bytes:
    """A digest that is equal for two clips exactly when they decode to the same samples."""
    return hashlib.sha256(pcm.data).digest()
