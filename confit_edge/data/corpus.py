"""A decoded manifest: the clips of each split with their targets, and the background."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from confit_edge.data.background import MOST_KINDS, Background, split_background
from confit_edge.data.clips import (
    ClipProblem,
    ClipStore,
    load_clips,
    load_recordings,
    quiet_clips_warning,
    sound_digest,
)
from confit_edge.data.manifest import UNKNOWN, Clip, Manifest, read_manifest, sound_files
from confit_edge.data.others import read_others, with_others
from confit_edge.data.splits import with_splits
from confit_edge.data.tables import ManifestError
from confit_edge.progress import Progress
from confit_runtime.audio import Pcm
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_list, format_quoted_list
from confit_runtime.frames import loudest_db
from confit_runtime.voice_activity import SILENCE_DB, trim_silence

LONGEST_OTHER_S = 60  # the longest clip that --others may contain


@dataclass(frozen=True)
class Clips:
    """Decoded clips of one split: `pcm[i]` is float32 `[samples]`, `targets [clips, classes]` are 0/1, `groups[i]` its group.

    The samples that `read_corpus` returns are read-only and memory-mapped, so a slice reads only its own samples. Where
    long clips were trimmed to their sound, `uncut` holds the same clips untrimmed, as a device hears them. Raises
    UsageError if the arrays have another type or shape, or differ in number.
    """

    pcm: list[Pcm]
    targets: npt.NDArray[np.int8]
    groups: list[str]
    paths: list[Path]
    uncut: list[Pcm] | None = None

    def __post_init__(self) -> None:
        counts = {
            "pcm": len(self.pcm),
            "targets": len(self.targets),
            "groups": len(self.groups),
            "paths": len(self.paths),
        }
        if self.uncut is not None:
            counts["uncut"] = len(self.uncut)
        if len(set(counts.values())) > 1:
            counts_text = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UsageError(f"Clips: must hold one of each per clip, but there are {counts_text}")
        if not _are_targets(self.targets):
            raise UsageError(
                f"Clips: targets must be int8 0 or 1 [clips, classes], not {_describe(self.targets)}; from class numbers, use"
                " np.eye(len(classes), dtype=np.int8)[numbers]"
            )
        for name, sounds in (("pcm", self.pcm), ("uncut", self.uncut or [])):
            for row, pcm in enumerate(sounds):
                if not _is_sound(pcm):
                    raise UsageError(
                        f"Clips: {name}[{row}] ({self.paths[row]}) must be a contiguous array of float32 samples in -1..1,"
                        f" [samples], not {_describe(pcm)}; use int16 / np.float32(32768), one channel or the channel mean,"
                        " np.ascontiguousarray"
                    )

    def __len__(self) -> int:
        return len(self.pcm)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The index of each clip's first class, `[clips]`."""
        return self.targets.argmax(axis=1)

    @cached_property
    def digests(self) -> list[bytes]:
        """`sound_digest` of each clip: equal for equal samples."""
        return [sound_digest(pcm) for pcm in self.pcm]


def _is_sound(pcm: object) -> bool:
    return (
        isinstance(pcm, np.ndarray)
        and pcm.dtype == np.float32
        and pcm.ndim == 1
        and pcm.size > 0
        and pcm.flags.c_contiguous
    )


def _are_targets(given: object) -> bool:
    """Whether these are int8 `[clips, classes]`, each 0 or 1."""
    if not isinstance(given, np.ndarray) or given.dtype != np.int8 or given.ndim != 2:
        return False
    return bool(given.view(np.uint8).max(initial=0) <= 1)


def _describe(given: object) -> str:
    """A description, in words, of what was given instead of a valid array."""
    if not isinstance(given, np.ndarray):
        return f"a {type(given).__name__}"
    pieces = "" if given.flags.c_contiguous else ", not contiguous"
    return f"{given.dtype} {list(given.shape)}{pieces}"


@dataclass(frozen=True)
class Corpus:
    """Everything a training reads, at `rate` Hz. Where there is background, `classes` includes the unknown class."""

    manifest: Manifest
    classes: list[str]
    unknown: str | None
    multi_label: bool
    train: Clips
    val: Clips
    test: Clips
    background_train: list[Pcm]
    background_val: list[Pcm]
    problems: list[ClipProblem]
    rate: int
    notes: list[str] = field(default_factory=list)  # sentences for the person who trains on it
    background_kept: tuple[str, ...] = ()  # the files of `background_val`; empty where each recording was cut

    @property
    def unknown_column(self) -> int | None:
        """The index of the unknown class in `classes`, or None if there is none."""
        return None if self.unknown is None else self.classes.index(self.unknown)

    @property
    def answers(self) -> list[int]:
        """The indices in `classes` of possible answers: all, but without the unknown class if the manifest is multi-label."""
        return [at for at, label in enumerate(self.classes) if not (self.multi_label and label == self.unknown)]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that was read: clips, labels, groups, splits and background."""
        digest = hashlib.sha256(self.manifest.fingerprint().encode())
        for recording in self.background_train + self.background_val:
            digest.update(recording.data)
        return digest.hexdigest()

    @cached_property
    def order(self) -> str:
        """A digest of the order of the clips, which `fingerprint` ignores: batches are drawn by it."""
        digest = hashlib.sha256()
        for clips in (self.train, self.val, self.test):
            digest.update(b"".join(clips.digests) + clips.targets.tobytes())
        return digest.hexdigest()

    def check_rate(self, rate: int) -> None:
        """Raise UsageError if an encoder for `rate` Hz would hear this corpus at the wrong speed."""
        if rate != self.rate:
            raise UsageError(
                f"{self.manifest.source}: was read at {self.rate} Hz, but the encoder needs {rate} Hz; use read_corpus(...,"
                f" rate={rate})"
            )

    def check_training_clips(self) -> None:
        """Raise UsageError if a class has nothing to learn from: no training clip and, for unknown, no background either."""
        for clips in (self.train, self.val, self.test):
            if clips.targets.shape[1] != len(self.classes):
                raise UsageError(
                    f"{self.manifest.source}: targets have {clips.targets.shape[1]} columns, but there are {len(self.classes)}"
                    " classes; give one column for each"
                )
        without = [self.classes[column] for column in np.flatnonzero(~self.training_clips().targets.any(axis=0))]
        if without and not self.multi_label:
            raise UsageError(
                f"{self.manifest.source}: no training clip has the class {format_quoted_list(without)}; every class needs one"
            )

    def check_finite(self) -> None:
        """Raise UsageError naming the first sound with a sample that is not finite. Reads every sample once."""
        named = [
            pair for clips in (self.train, self.val, self.test) for pair in zip(clips.paths, clips.pcm, strict=True)
        ]
        named += [(Path(f"background_train[{row}]"), pcm) for row, pcm in enumerate(self.background_train)]
        named += [(Path(f"background_val[{row}]"), pcm) for row, pcm in enumerate(self.background_val)]
        for path, pcm in named:
            if not np.isfinite(pcm.sum()):
                raise UsageError(f"{path}: contains samples that are not finite; repair it or leave it out")

    def contradictions(self) -> Iterator[tuple[Path, Path]]:
        """Yield (earlier clip, clip) for each clip with the same samples as an earlier one but different labels."""
        first: dict[bytes, tuple[Path, bytes]] = {}
        for clips in (self.train, self.val, self.test):
            for digest, target, path in zip(clips.digests, clips.targets, clips.paths, strict=True):
                earlier, labels = first.setdefault(digest, (path, target.tobytes()))
                if labels != target.tobytes():
                    yield earlier, path

    def repeated(self) -> dict[str, int]:
        """How many validation and test clips decode to the same samples as a training clip."""
        trained, judged = set(self.train.digests), {"val": self.val, "test": self.test}
        return {name: sum(digest in trained for digest in clips.digests) for name, clips in judged.items()}

    def training_clips(self) -> Clips:
        """The training clips, and each training background recording as one long clip of the unknown class."""
        return self.train if self.unknown is None else self.with_unknown(self.train, self.background_train)

    def with_unknown(self, clips: Clips, pcm: list[Pcm]) -> Clips:
        """`clips`, followed by `pcm` as clips of the unknown class, which must exist."""
        assert self.unknown is not None
        target = np.zeros((len(pcm), len(self.classes)), np.int8)
        target[:, self.classes.index(self.unknown)] = 1
        return Clips(
            clips.pcm + pcm,
            np.concatenate([clips.targets, target]),
            clips.groups + [UNKNOWN] * len(pcm),
            clips.paths + [Path(UNKNOWN)] * len(pcm),
        )


def read_corpus(
    source: str | Path,
    *,
    rate: int,
    seed: int,
    label_column: str = "label",
    group_column: str = "group",
    split_by: str | None = None,
    background: str | Path | Sequence[str | Path] = (),
    others: str | Path | Sequence[str | Path] = (),
    longest_s: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Read, decode (mono float32 at `rate` Hz) and split a manifest.

    `background` is a folder or file of long recordings, or several; `others` a folder or manifest of clips, or `words`, or
    several of these. Both are learnt as the unknown class.

    Clips longer than `longest_s` lose the silence before and after their sound (except in `Clips.uncut`): otherwise a window
    from that silence would be learnt as their class. Raises ConfitError saying what to repair.
    """
    source, other_places = Path(source), list(map(str, _as_list(others)))
    background_files = {place: sound_files(place, "--background") for place in map(Path, _as_list(background))}
    manifest = read_manifest(
        source,
        label_column=label_column,
        group_column=group_column,
        split_by=split_by,
        min_classes=1 if other_places else 2,
    )
    other_clips, notes = read_others(other_places, manifest)
    store = ClipStore(rate)
    manifest, pcm, problems = load_clips(manifest, store, strict=strict, progress=progress)
    decoded = dict(zip((clip.path for clip in manifest.clips), pcm, strict=True))
    if quiet_warning := quiet_clips_warning(
        {clip: loudest_db(decoded[clip.path], rate) for clip in manifest.clips}, manifest.folder
    ):
        notes.append(f"warning: {quiet_warning}")
    manifest = with_splits(manifest, seed=seed)
    if other_places:
        other_sounds, unusable = _read_others(other_clips, manifest, decoded, store, strict, progress)
        decoded |= other_sounds
        problems += unusable
        manifest = with_others(
            manifest, [clip for clip in other_clips if clip.path in decoded], places=other_places, seed=seed
        )
    classes, background_parts = manifest.classes, Background([], [])
    if background_files:
        background_parts, unusable, background_notes = _read_background(
            background_files, manifest, decoded, store, strict, progress
        )
        problems += unusable
        notes += background_notes
        classes = classes if UNKNOWN in classes else [*classes, UNKNOWN]
    _check_several_classes(manifest, classes)
    unknown = UNKNOWN if UNKNOWN in classes else None
    columns = {label: column for column, label in enumerate(classes)}

    def sound(pcm: Pcm) -> Pcm:
        return pcm if longest_s is None or len(pcm) <= longest_s * rate else trim_silence(pcm, rate)

    def split(name: str) -> Clips:
        chosen = [clip for clip in manifest.clips if clip.split == name]
        targets = np.zeros((len(chosen), len(classes)), np.int8)
        for row, clip in enumerate(chosen):
            targets[row, [columns[label] for label in clip.labels]] = 1
        places = [clip.path for clip in chosen]
        whole = [decoded[path] for path in places]
        return Clips(list(map(sound, whole)), targets, [clip.group for clip in chosen], places, whole)

    return Corpus(
        manifest,
        classes,
        unknown,
        manifest.multi_label,
        split("train"),
        split("val"),
        split("test"),
        background_parts.train,
        background_parts.val,
        problems,
        rate,
        notes,
        background_parts.kept,
    )


def _check_several_classes(manifest: Manifest, classes: list[str]) -> None:
    """Raise ManifestError if there is only one class and every training clip has it."""
    if len(classes) == 1 and all(clip.labels for clip in manifest.select("train").clips):
        raise ManifestError(
            f"{manifest.source}: every training clip is {classes[0]!r}, the only label; add clips without it to train, or"
            " train with --background"
        )


def _as_list(places: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [places] if isinstance(places, str | Path) else list(places)


def _read_others(
    other_clips: list[Clip],
    manifest: Manifest,
    decoded: dict[Path, Pcm],
    store: ClipStore,
    strict: bool,
    progress: Progress | None,
) -> tuple[dict[Path, Pcm], list[ClipProblem]]:
    """Decode the clips of --others: returns the usable ones by path, and the problems of the rest. Raises UsageError."""
    as_unknown = replace(manifest, clips=tuple(replace(clip, labels=(UNKNOWN,)) for clip in other_clips))
    usable, pcm, problems = load_clips(as_unknown, store, strict=strict, progress=progress)
    other_sounds = dict(zip((clip.path for clip in usable.clips), pcm, strict=True))
    _check_no_overlap("--others", other_sounds, manifest, decoded)
    _check_other_lengths(other_sounds, store.rate)
    return other_sounds, problems


def _read_background(
    files: dict[Path, list[Path]],
    manifest: Manifest,
    decoded: dict[Path, Pcm],
    store: ClipStore,
    strict: bool,
    progress: Progress | None,
) -> tuple[Background, list[ClipProblem], list[str]]:
    """Read the background `files` of each place, and divide each place's by itself.

    Returns the background, the problems of unusable recordings, and notes. Raises UsageError.
    """
    background, problems, notes = Background([], []), list[ClipProblem](), list[str]()
    digests: set[bytes] = set()
    for place, paths in files.items():
        option = f"--background {place}"
        recordings, unusable = load_recordings(paths, store, option, strict=strict, progress=progress)
        problems += unusable
        _check_no_overlap("--background", recordings, manifest, decoded)
        recordings, copies = _without_repeats(recordings, digests)
        if copies:
            notes.append(f"{option}: left out {format_list(copies, 3)}: the same sound as another recording")
        if not recordings:
            continue
        parts = split_background(place, recordings)
        if parts.unlearnt:
            notes.append(
                f"warning: {option}: nothing of {format_quoted_list(parts.unlearnt)} is learnt: with more than {MOST_KINDS}"
                " names, each counts as a voice or a place, and whole voices or places are kept for thresholds. Put kinds"
                f" of sound into at most {MOST_KINDS} folders"
            )
        if quiet := [str(path) for path, one in recordings.items() if loudest_db(one, store.rate) <= SILENCE_DB]:
            notes.append(
                f"warning: {option}: almost silent, never above {SILENCE_DB:g} dBFS: {format_list(quiet, 3)}; was the"
                " microphone muted?"
            )
        kept = parts.kept
        if len(files) > 1:  # say of which place
            kept = tuple(str(place / name) for name in kept) or (f"the end of each recording of {place}",)
        background = Background(background.train + parts.train, background.val + parts.val, background.kept + kept)
    return background, problems, notes


def _without_repeats(recordings: dict[Path, Pcm], digests: set[bytes]) -> tuple[dict[Path, Pcm], list[str]]:
    """The recordings without repeated ones, and the paths of those: a repeated one could be both learnt and kept.

    `digests` are of earlier recordings; those of the recordings that are returned are added to it.
    """
    kept: dict[Path, Pcm] = {}
    for path, pcm in recordings.items():
        if (digest := sound_digest(pcm)) not in digests:
            digests.add(digest)
            kept[path] = pcm
    return kept, [str(path) for path in recordings if path not in kept]


def _check_no_overlap(option: str, sounds: dict[Path, Pcm], manifest: Manifest, decoded: dict[Path, Pcm]) -> None:
    """Raise UsageError if labelled clips are also among `sounds`: they would be taught as their class and as unknown."""
    labelled = {clip.path: decoded[clip.path] for clip in manifest.clips if clip.labels not in ((), (UNKNOWN,))}
    lengths = set(map(len, labelled.values())) & set(
        map(len, sounds.values())
    )  # clips of other lengths need not be read
    alike = {sound_digest(pcm) for pcm in labelled.values() if len(pcm) in lengths}
    both = [path for path, pcm in sounds.items() if len(pcm) in lengths and sound_digest(pcm) in alike]
    if both:
        raise UsageError(
            f"{option}: {len(both)} of its {len(sounds)} sounds are clips of your classes, such as {both[0]}, and would"
            " also be learnt as unknown; give sound without them"
        )


def _check_other_lengths(sounds: dict[Path, Pcm], rate: int) -> None:
    """Raise UsageError if a clip of --others lasts minutes: training would use only a random moment of it."""
    for path, pcm in sounds.items():
        if len(pcm) > LONGEST_OTHER_S * rate:
            raise UsageError(
                f"--others: {path} lasts {len(pcm) / rate / 60:.1f} min, but each file must be one clip, a word or a"
                " sound; give long recordings as --background"
            )


def balanced_batches(
    targets: npt.NDArray[np.int8],
    classes_per_batch: int,
    clips_per_class: int,
    rng: np.random.Generator,
    *,
    epoch: int = 0,
    negatives: npt.NDArray[np.int64] | None = None,
    paced: int | None = None,
    steps: int | None = None,
) -> Iterator[list[int]]:
    """Yield the batches of epoch `epoch`, each of P classes x K clips, as indices into the clips.

    Classes take turns in a shuffled order, and so do the clips within a class, so that every clip of a class is drawn
    equally often. The order continues from epoch to epoch, provided that `rng` starts each epoch in the same state. A
    class with fewer than K clips gives the same clip more than once (augmented differently each time). An epoch has
    `steps` batches; by default as many as would hold each clip once on average, computed with `paced` clips per class
    where that is given instead of K. `negatives` are clips of none of the classes, which take turns like one more class.
    """
    members = [np.flatnonzero(targets[:, column]) for column in range(targets.shape[1])]
    members.append(np.zeros(0, np.int64) if negatives is None else negatives)
    present = [column for column, rows in enumerate(members) if len(rows)]
    if len(present) < 2:
        raise ConfitError("training needs clips of at least two classes")
    per_batch = min(classes_per_batch, len(present))
    clips = int(targets.any(axis=1).sum()) + len(members[-1])
    steps = steps or max(1, round(clips / (per_batch * (paced or clips_per_class))))
    class_order = _forever(np.array(present), rng)
    clip_order = {column: _forever(members[column], rng) for column in present}
    waiting: list[int] = []  # classes whose turn came again within one batch
    for step in range((epoch + 1) * steps):
        chosen: list[int] = []
        later: list[int] = []
        while len(chosen) < per_batch:
            column = waiting.pop(0) if waiting else next(class_order)
            (later if column in chosen else chosen).append(column)
        waiting = later + waiting
        batch = [next(clip_order[column]) for column in chosen for _ in range(clips_per_class)]
        if step >= epoch * steps:
            yield batch


def _forever(items: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(item) for item in rng.permutation(items))
