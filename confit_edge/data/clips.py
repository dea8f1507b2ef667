"""Decoded clips: each is decoded and resampled once, kept on disk, and judged before anything trains on it."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from confit_edge.data.manifest import Clip, Manifest, ManifestError
from confit_runtime.audio import Pcm, check_rate, load_clip, read_audio
from confit_runtime.errors import ConfitError, UsageError

log = logging.getLogger(__name__)

SILENCE = 1e-5  # full scale is 1
ProblemKind = Literal["missing", "unreadable", "empty", "not-finite", "short", "silent"]
Progress = Callable[[int, int], None]  # clips done, clips in all


@dataclass(frozen=True)
class ClipProblem:
    """A clip that cannot be used, and why."""

    path: Path
    kind: ProblemKind
    detail: str


class ClipStore:
    """Clips as mono float32 at one sample rate.

    What was decoded is kept in `clips/` under `cache_dir` (or $CONFIT_EDGE_CACHE, or ~/.cache/confit-edge), and the
    first `memory_bytes` of it in memory. A clip that changed on disk is decoded again, and so is one whose cache file
    was damaged. Where nothing can be written, each process decodes anew. Safe to use from several threads.
    """

    def __init__(self, rate: int, cache_dir: Path | None = None, *, memory_bytes: int = 1 << 30) -> None:
        self.rate = check_rate(rate)
        self.folder = (cache_dir or _default_cache()) / "clips"
        self._room = memory_bytes
        self._memory: dict[str, Pcm] = {}
        self._lock = threading.Lock()
        self._writable = True

    def get(self, path: str | Path) -> Pcm:
        """The clip, `[samples]` float32 at `rate` Hz; read-only, because everyone who asks is given the same array.

        Raises UsageError when there is no such file, and AudioError when it is not sound, empty, or not finite.
        """
        path = Path(os.path.abspath(path))
        key = self._key(path)
        with self._lock:
            kept = self._memory.get(key)
        if kept is not None:
            return kept
        pcm = self._read(key)
        if pcm is None:
            pcm = load_clip(path, self.rate)
            self._write(key, pcm)
        pcm.setflags(write=False)
        with self._lock:
            if key not in self._memory and pcm.nbytes <= self._room:
                self._room -= pcm.nbytes
                self._memory[key] = pcm
        return pcm

    def _key(self, path: Path) -> str:
        try:
            stat = path.stat()
        except OSError as error:
            raise UsageError(f"{path}: no such file ({error.strerror})") from error
        # The change time too: a file renamed over another can have its size and its modification time.
        identity = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, self.rate]
        return hashlib.sha256(repr(identity).encode()).hexdigest()

    def _read(self, key: str) -> Pcm | None:
        try:
            data = memoryview((self.folder / f"{key}.npy").read_bytes())
        except OSError:  # not there yet, or not ours to read: either way it is decoded
            return None
        body, digest = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        # Read, not memory-mapped: Python keeps a file descriptor open for each map, and there are 1024.
        pcm: Pcm = np.load(io.BytesIO(body), allow_pickle=False)
        return pcm

    def _write(self, key: str, pcm: Pcm) -> None:
        if not self._writable:
            return
        body = io.BytesIO()
        np.save(body, pcm, allow_pickle=False)
        data = body.getvalue()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}.part"
            try:
                part.write_bytes(data + hashlib.sha256(data).digest())
                os.replace(part, self.folder / f"{key}.npy")
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            self._writable = False
            log.warning("%s: decoded clips cannot be kept (%s); set CONFIT_EDGE_CACHE elsewhere", self.folder, error)


def load_clips(
    manifest: Manifest,
    store: ClipStore,
    *,
    min_seconds: float = 0.05,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[Manifest, list[Pcm], list[ClipProblem]]:
    """Decode every clip: the manifest of those that can be used, their samples in the same order, and the others.

    The samples are read-only `[samples]` float32 at the store's rate. Call it before `with_splits`, so that splits are
    made of clips that can be used. Raises ManifestError when no clip of some class is left, and with `strict` when any
    is lost.
    """
    clips: list[Clip] = []
    samples: list[Pcm] = []
    problems: list[ClipProblem] = []
    for clip, outcome in decode(manifest, store, min_seconds=min_seconds, progress=progress):
        if isinstance(outcome, ClipProblem):
            problems.append(outcome)
        else:
            clips.append(clip)
            samples.append(outcome)
    usable = replace(manifest, clips=tuple(clips))
    if problems:
        first = f"{problems[0].path}: {problems[0].detail}"
        if strict:
            raise ManifestError(f"{len(problems)} of {len(manifest)} clips cannot be used; the first is {first}")
        lost = sorted(set(manifest.classes) - set(usable.classes))
        if lost:
            names = ", ".join(map(repr, lost))
            raise ManifestError(
                f"{manifest.source}: no clip of class {names} can be used; the first problem is {first}"
            )
    return usable, samples, problems


def decode(
    manifest: Manifest, store: ClipStore, *, min_seconds: float = 0.05, progress: Progress | None = None
) -> Iterator[tuple[Clip, Pcm | ClipProblem]]:
    """Each clip of the manifest, in order, with its samples or with what is wrong with it."""
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    try:
        outcomes = pool.map(lambda clip: _judge(clip.path, store, min_seconds), manifest.clips)
        for done, (clip, outcome) in enumerate(zip(manifest.clips, outcomes, strict=True), start=1):
            if progress is not None:
                progress(done, len(manifest))
            yield clip, outcome
    finally:
        pool.shutdown(cancel_futures=True)


def count_kinds(problems: list[ClipProblem]) -> dict[str, int]:
    """How many problems there are of each kind, most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())


def _judge(path: Path, store: ClipStore, min_seconds: float) -> Pcm | ClipProblem:
    try:
        pcm = store.get(path)
    except ConfitError as error:
        return ClipProblem(path, _kind(path), str(error).removeprefix(f"{path}: "))
    seconds = len(pcm) / store.rate
    if pcm.size == 0 or seconds < min_seconds:
        return ClipProblem(path, "short", f"is {seconds:.3f} s long, shorter than {min_seconds:g} s")
    if float(np.abs(pcm).max()) < SILENCE:
        return ClipProblem(path, "silent", f"is silent (no sample above {SILENCE:g})")
    return pcm


def _kind(path: Path) -> ProblemKind:
    """What is wrong with a clip that could not be decoded."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size == 0:
        return "empty"
    try:
        pcm, _ = read_audio(path)
    except ConfitError:
        return "unreadable"
    if pcm.size == 0:
        return "empty"
    return "unreadable" if np.isfinite(pcm).all() else "not-finite"


def _default_cache() -> Path:
    chosen = os.environ.get("CONFIT_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.path.expanduser("~")
    return Path(home if home != "~" else tempfile.gettempdir(), ".cache", "confit-edge")  # a user id may have no home
