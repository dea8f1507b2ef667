"""Score rows of long recordings, as a stream would produce them, cached so that no hour is scored twice."""

from __future__ import annotations

import io
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm, StreamResampler, check_samples, decode, open_sound, sound_seconds
from confit_runtime.chunk_scorer import ChunkScorer
from confit_runtime.digest import sha256
from confit_runtime.errors import AudioError, UsageError, clip_errors
from confit_runtime.files import default_cache, write_atomic
from confit_runtime.formatting import format_count
from confit_runtime.intervals import MIN_GROUPS
from confit_runtime.model import Model

log = logging.getLogger(__name__)

Output = Literal["scores", "embedding"]  # of the model, of which rows are made

MAX_UNIT_S = 1800.0  # where recordings are few, a longer one counts as several of this length
MIN_UNIT_S = 60.0  # shorter files in a folder count as one recording, made in one go
_READ_BYTES = 1 << 20
_NO_ROWS: Floats = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Recording:
    """One unit of resampling: rows `[hops, columns]` of each piece of sound in it, and its length.

    `places` gives, for each piece, its file and the second at which it begins there.
    """

    name: str
    pieces: list[Floats]
    seconds: float
    places: list[tuple[str, float]]


@dataclass
class RowCache:
    """Rows by model and content of the sound file: `heard/MODEL/FILE.npy` under a folder; embeddings `FILE.embedding.npy`."""

    folder: Path
    output: Output = "scores"
    _warned: bool = field(default=False, init=False, repr=False)

    @classmethod
    def default(cls, output: Output = "scores") -> RowCache:
        """The cache in `default_cache()`."""
        return cls(default_cache() / "heard", output)

    def rows(self, model: Model, path: Path, progress: Callable[[float], None]) -> tuple[Floats, float]:
        """`stream_rows` of a file, and its seconds, from the cache if available. Raises what `stream_rows` does."""
        kind = "" if self.output == "scores" else f".{self.output}"
        cache_file = self.folder / model.digest[:32] / f"{_digest(path)[:32]}{kind}.npy"
        rows = _NO_ROWS
        with self._tolerate_errors():
            rows = _load_rows(cache_file)
        if rows.ndim == 2 and rows.shape[1] == _width(model, self.output) and rows.dtype == np.float32:
            seconds = sound_seconds(path)
            progress(seconds)
            return rows, seconds
        with self._tolerate_errors():  # report before scoring an hour that the result cannot be kept
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache_file.parent).close()
        rows, seconds = stream_rows(model, path, progress, self.output)
        data = io.BytesIO()
        np.save(data, rows, allow_pickle=False)
        with self._tolerate_errors():
            write_atomic(cache_file, data.getvalue())
        return rows, seconds

    @contextmanager
    def _tolerate_errors(self) -> Iterator[None]:
        """Continue if the cache cannot be used, for example on a full disk, and warn once: its rows can be computed again."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                log.warning("%s: scored rows cannot be kept (%s); set CONFIT_EDGE_CACHE", self.folder, error.strerror)
            self._warned = True


def _width(model: Model, output: Output) -> int:
    return len(model.labels) if output == "scores" else model.contract.embedding_dim


def _load_rows(kept: Path) -> Floats:
    """The rows in a cache file; empty if it is missing or damaged, so that they are computed again."""
    try:
        rows: Floats = np.load(kept, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return _NO_ROWS
    return rows


def score_recordings(
    model: Model, paths: Sequence[Path], cache: RowCache, progress: Callable[[str, float, float], None]
) -> list[Recording]:
    """The recordings in sound files. `progress(name, seconds done, seconds in all)` is called during the work.

    Short files in one folder are one recording, because they were probably made together. If there are fewer than
    `MIN_GROUPS` recordings in all, a long one counts as several, although its parts are alike: so few would not show
    at all how much sound differs. Scored rows go into the cache at once, so that a killed process loses no hour.
    Raises UsageError, AudioError; an unusable file is the error's `clip`.
    """
    lengths = {path: sound_seconds(path) for path in paths}
    check_duplicate_recordings(paths)
    total_s, done = sum(lengths.values()), 0.0
    by_folder: dict[str, list[tuple[Path, Floats, float]]] = {}
    long: list[tuple[Path, Floats, float]] = []
    for path, length in lengths.items():
        with clip_errors(path):
            rows, seconds = cache.rows(model, path, partial(_report_total, progress, path.name, done, total_s))
        done += length
        (by_folder.setdefault(str(path.parent), []) if seconds < MIN_UNIT_S else long).append((path, rows, seconds))
    few = len(long) + len(by_folder) < MIN_GROUPS
    found = [part for path, rows, seconds in long for part in _split(str(path), rows, seconds, few)]
    for folder, parts in by_folder.items():
        files, pieces, lengths_s = zip(*parts, strict=True)
        locations = [(str(path), 0.0) for path in files]
        found.append(
            Recording(f"{folder} ({format_count(len(parts), 'short file')})", list(pieces), sum(lengths_s), locations)
        )
    return found


def check_duplicate_recordings(paths: Sequence[Path]) -> None:
    """Raise UsageError if two files are the same recording, or one is listed twice: its hours would count twice."""
    sizes = Counter(path.stat().st_size for path in paths)
    first: dict[str, Path] = {}
    for path in paths:
        if sizes[path.stat().st_size] > 1:
            digest = _digest(path)
            if digest in first:
                problem = (
                    f"{path} and {first[digest]} are the same" if first[digest] != path else f"{path} is listed twice"
                )
                raise UsageError(f"{problem}: list each recording once")
            first[digest] = path


def stream_rows(
    model: Model,
    path: Path,
    progress: Callable[[float], None] = lambda seconds: None,
    output: Output = "scores",
) -> tuple[Floats, float]:
    """Rows `[hops, classes or dim]` of a sound file of any length as `listen` hears it, and its seconds.

    Silence is added before and after it, so that all of it is scored, and as often as any sound on a device: the file
    counts for exactly its length. `progress(seconds)` is called during the work. Raises UsageError and AudioError; also
    for digital silence, because only a muted microphone gives that, which proves nothing.
    """
    with open_sound(path) as sound:
        rate = int(sound.samplerate)
        resampler = StreamResampler(rate, model.contract.sample_rate)
        before, after = _silence_padding(model)
        scorer, samples, sounds = ChunkScorer(model), 0, False
        parts = list(scorer.push(before))
        for block in decode(sound):
            check_samples(block, path)
            samples, sounds = samples + len(block), sounds or bool(block.any())
            parts += scorer.push(resampler.push(block))
            progress(samples / rate)
        parts += scorer.push(np.concatenate([resampler.finish(), after]), last=True)
    if samples == 0:
        raise AudioError(f"{path}: holds no samples")
    if not sounds:
        raise AudioError(f"{path}: is digital silence, all zeros: was the microphone muted? Leave it out")
    return _join(model, parts, output), samples / rate


def clip_rows(model: Model, pcm: Pcm, output: Output = "scores") -> Floats:
    """Rows of a clip at the model's rate as a stream hears it between two silences, one row per hop of all that."""
    before, after = _silence_padding(model)
    return _join(model, ChunkScorer(model).push(np.concatenate([before, pcm, after]), last=True), output)


def _join(model: Model, parts: Iterable[tuple[Floats, Floats]], output: Output) -> Floats:
    rows = [scores if output == "scores" else embeddings for scores, embeddings in parts]
    return np.concatenate([np.zeros((0, _width(model, output)), np.float32), *rows])


def _silence_padding(model: Model) -> tuple[Pcm, Pcm]:
    """The silence before and after a sound that is needed to make, and smooth, every row that covers it."""
    contract = model.contract
    tail = contract.latency_samples + (contract.smoothing_hops + contract.min_hops) * contract.hop
    return np.zeros(contract.window, np.float32), np.zeros(tail + contract.hop, np.float32)


def _report_total(
    progress: Callable[[str, float, float], None], name: str, before: float, total_s: float, seconds: float
) -> None:
    progress(name, before + seconds, total_s)


def _split(name: str, rows: Floats, seconds: float, few: bool) -> list[Recording]:
    """A recording as one, or, if it is long and one of few, as several of equal length."""
    count = max(1, round(seconds / MAX_UNIT_S)) if few else 1
    parts = np.array_split(rows, count)
    names = [name] if count == 1 else [f"{name} ({part + 1} of {count})" for part in range(count)]
    return [
        Recording(part, [piece], seconds / count, [(name, at * seconds / count)])
        for at, (part, piece) in enumerate(zip(names, parts, strict=True))
    ]


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
