"""A gallery: who and what was enrolled on this device, in one SQLite file bound to one model's embedding."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from confit_runtime.arrays import Floats, check_duration
from confit_runtime.enrollment import KIND_PLURALS, ExistingPrints, Kind, model_kind, select_new_prints
from confit_runtime.errors import GalleryError, GalleryModelError, UsageError
from confit_runtime.gallery_file import GalleryFile, check_folder, make_file, path_exists
from confit_runtime.gallery_tables import Binding, damaged_error, read_binding, write_binding
from confit_runtime.matcher import Levels, Match, Matcher
from confit_runtime.model import Model
from confit_runtime.names import check_new_name, clean_name, format_known_names
from confit_runtime.prints import (
    NameCalibration,
    Print,
    PrintCounts,
    check_embeddings,
    check_enrollment,
    from_blobs,
    read_calibrated,
    read_counts,
    read_owners,
    to_blobs,
)
from confit_runtime.reloading_matcher import ReloadingMatcher
from confit_runtime.shipped import display_name


class Gallery:
    """Enrolled names and their prints, in one SQLite file. Use it as a context manager.

    A print is the embedding of one enrolled sound, or of a few seconds of a voice. A negative print is of a sound that
    was mistaken for the name.

    A gallery is safe to share between threads; each process opens its own. Every change is one transaction and is on
    the disk when the call returns, so a crash loses nothing that was enrolled. The next call sees what another program
    or thread has changed.

    Methods that read or change the file raise GalleryError once it is closed, and GalleryBusyError if another program
    is changing it for longer than the time limit.
    """

    def __init__(self, file: GalleryFile, model: Model | None, levels: Levels | None) -> None:
        """Use `Gallery.open`."""
        self._file, self._model = file, model
        with file.reading() as db:
            self.binding = read_binding(file.path, db)
        self._current: ReloadingMatcher | None = None
        if model is not None and levels is not None:
            self._current = ReloadingMatcher(file, model, levels, self._read_binding)
            self._current.current()

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Model | None = None,
        *,
        create: bool = False,
        kind: Kind | None = None,
        threshold: float | None = None,
        margin: float | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Gallery:
        """Open a gallery or, with `create`, make an empty one for `model` if there is none.

        - `model`: without it, the gallery can be listed and changed, but not matched against.
        - `kind`: what the names of a new gallery are; by default the model's kind.
        - `threshold`: a similarity, -1..1, that replaces the thresholds derived from the model and the prints.
        - `thresholds`: the same for single names. With `create`, they may be enrolled later.
        - `margin`: 0..2, replaces the model's.

        In a folder without write permission, the file is opened as it is, read-only.

        Raises UsageError if the file does not exist, for invalid levels, and for thresholds of names that are not
        enrolled. Raises GalleryError if the file is damaged, of another version, for another model, not a gallery,
        in use by another program for longer than the time limit, or not accessible.
        """
        if not isinstance(path, str | Path):
            raise UsageError(f"path must be the path of a gallery file, got {path!r}")
        path = Path(path)
        exists = path_exists(path)
        if model is not None and not isinstance(model, Model):
            raise UsageError(f"model must be a loaded model, got {model!r}: load({model!r}) returns one")
        if exists and not path.is_file():
            raise UsageError(f"{path}: is not a file, so it cannot be a gallery")
        if create and model is None:
            raise UsageError(f"{path}: a new gallery needs the model that it is for")
        if not create and not exists:
            raise UsageError(
                f"{path}: no such gallery: `confit-edge enroll MODEL NAME CLIP... --gallery {path}` creates it"
            )
        levels = binding = None
        if model is not None:  # report its errors before a file is made
            own = {clean_name(name): level for name, level in (thresholds or {}).items()}
            levels = Levels.of(model.contract, threshold, margin, own)
            binding = _binding(model, kind) if create else None
        if not exists:
            check_folder(path.parent)
        file = GalleryFile(path, binding)
        try:
            gallery = cls(file, model, levels)
            if levels is not None and not create:
                gallery._check_enrolled(levels.per_name)
            return gallery
        except BaseException:
            file.close()
            raise

    def copy_layout(self, path: Path) -> Gallery:
        """Make an empty gallery in a new file, bound to the same model. Raises UsageError and GalleryError."""
        make_file(path, self.binding)
        return Gallery.open(path)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A matcher taken from it remains usable."""
        self._file.close()

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def embedding_id(self) -> str:
        return self.binding.embedding_id

    @property
    def dim(self) -> int:
        return self.binding.dim

    @property
    def kind(self) -> Kind:
        """What the names are."""
        return self.binding.kind

    def check(self, model: Model) -> None:
        """Raise GalleryError unless this gallery was enrolled with `model`'s embedding."""
        self._check(self.binding, model)

    def _check(self, binding: Binding, model: Model) -> None:
        contract = model.contract
        if (binding.embedding_id, binding.dim) != (contract.embedding_id, contract.embedding_dim):
            with self._file.reading() as db:
                prints, kept = db.execute(
                    "SELECT (SELECT COUNT(*) FROM prints), (SELECT COUNT(*) FROM audio)"
                ).fetchone()
            named = f"{binding.model}, " if binding.model else ""
            advice = "use that model, or another --gallery"
            if kept and kept == prints and binding.kind == model_kind(contract):
                again = f"`confit-edge gallery re-enroll {display_name(model.path)} --gallery {self.path}`"
                advice += f"; or compute its prints again from the audio that was kept: {again}"
            raise GalleryModelError(
                f"{self.path}: was enrolled with another model ({named}embedding {binding.embedding_id[:12]} of"
                f" {binding.dim} dimensions; {model.name} has {contract.embedding_id[:12]} of"
                f" {contract.embedding_dim}): {advice}"
            )

    @property
    def matcher(self) -> Matcher:
        """The current prints, to match against; the same object for as long as nothing changes.

        While another program or thread is changing them, or the file cannot be read, this is the previous state, and
        the log says so. If the file was replaced, for example by a backup, its prints are used; while there is no
        file, nobody is enrolled. Raises UsageError if the gallery was opened without a model, and GalleryError if
        another program bound it to another model.
        """
        if self._current is None:
            raise UsageError(f"{self.path}: was opened without its model, so it cannot match anything")
        return self._current.current()

    def match(self, embedding: npt.ArrayLike) -> Match:
        """Return the enrolled name that an embedding `[dim]` of the model matches; see `Matcher`.

        Raises UsageError, and what `matcher` raises.
        """
        return self.matcher.match(embedding)

    def enroll(
        self,
        name: str,
        embeddings: npt.ArrayLike,
        *,
        sources: Sequence[str | Path],
        voiced_s: float,
        negative: bool = False,
        audio: Sequence[bytes] | None = None,
        carried: bool = False,
        kind: Kind | None = None,
    ) -> int:
        """Add `embeddings [n, dim]` (n >= 1), one source each, to a name: all of them or, after a crash, none.

        - `voiced_s`: the seconds of sound or voice that all of them were made from.
        - `negative`: they are sounds that were mistaken for the name.
        - `audio`: the sound of each as FLAC, if it is to be kept.
        - `carried`: they were enrolled before, in another gallery, and are taken as they are.
        - `kind`: whether these are voices or sounds, if it differs from the gallery's kind.

        Prints that the name already has are left out, together with their share of `voiced_s`. A print that belongs to
        another name, or to this one with the other sign, is refused. Pass all clips of a voice at once: they are
        refused if the name then has less than `MIN_VOICE_S` seconds of voice.

        A calibration of the name's threshold in streams ends with new prints, because they change its scores; with
        negative ones it stays, because they only refuse more.

        Returns how many prints (or negative prints) the name has now. Raises UsageError, AudioError (too little voice)
        and GalleryError.
        """
        name = check_new_name(name)
        voiced_s = check_duration(voiced_s, f"voiced_s, the seconds of sound that {name!r} is enrolled from")
        with self.change() as db:
            blobs = to_blobs(check_enrollment(name, embeddings, self.dim, sources, audio))
            if carried:
                own, kind = ExistingPrints(self.blobs(name, negative=negative)), None
            else:
                own = self.already(name, blobs, negative=negative)
                kind = None if negative else kind or self.kind
            indices, heard_s = select_new_prints(name, blobs, sources, voiced_s, own, kind, self.path)
            db.execute("INSERT INTO names (name, voiced_s) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
            name_id = self._id_of(db, name)
            if not negative:
                db.execute("UPDATE names SET voiced_s = voiced_s + ? WHERE id = ?", (heard_s, name_id))
            if indices and not negative:
                db.execute("DELETE FROM calibrated WHERE name_id = ?", (name_id,))
            for at in indices:
                print_id = db.execute(
                    "INSERT INTO prints (name_id, embedding, source, negative) VALUES (?, ?, ?, ?)",
                    (name_id, blobs[at], str(sources[at]).encode(errors="replace").decode(), int(negative)),
                ).lastrowid
                if audio is not None:
                    db.execute("INSERT INTO audio (print_id, flac) VALUES (?, ?)", (print_id, audio[at]))
            return self.counts_of(name)[negative]

    def already(self, name: str, blobs: Iterable[bytes], *, negative: bool) -> ExistingPrints:
        """What the gallery already holds when these prints are added to a name.

        Negative prints are not compared with other names.
        """
        own, contrary = (self.blobs(name, negative=sign) for sign in (negative, not negative))
        if negative:
            return ExistingPrints(own, contrary=contrary, negative=True)
        seconds = self.voiced_s(name) if self.counts_of(name).prints else 0.0
        return ExistingPrints(own, seconds, self.owners(blobs), contrary)

    def names(self) -> dict[str, int]:
        """How many prints each name has, sorted by name."""
        return {name: counts.prints for name, counts in self.counts().items() if counts.prints}

    def negatives(self) -> dict[str, int]:
        """How many negative prints each name (or label of the model) has, sorted by name."""
        return {name: counts.negative_prints for name, counts in self.counts().items() if counts.negative_prints}

    def counts(self) -> dict[str, PrintCounts]:
        """How many prints and negative prints each name (or label of the model) has, sorted by name."""
        with self._file.reading() as db:
            return read_counts(self.path, db)

    def counts_of(self, name: str) -> PrintCounts:
        """How many prints and negative prints one name has; zero if it is not enrolled."""
        with self._file.reading() as db:
            return read_counts(self.path, db, name).get(name, PrintCounts())

    def blobs(self, name: str, *, negative: bool) -> set[bytes]:
        """A name's prints (or negative prints) as stored in the file; empty if the name is not enrolled."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT embedding FROM prints JOIN names ON name_id = names.id WHERE name = ? AND negative = ?",
                (name, int(negative)),
            ).fetchall()
        return {blob for (blob,) in rows}

    def owners(self, blobs: Iterable[bytes]) -> set[str]:
        """The names that have any of these prints."""
        return set().union(*self.holders(blobs).values())

    def holders(self, blobs: Iterable[bytes]) -> dict[bytes, set[str]]:
        """For each of these prints, the names that have it."""
        with self._file.reading() as db:
            return read_owners(db, blobs)

    def voiced_s(self, name: str) -> float:
        """How many seconds of sound a name was enrolled from. Raises UsageError for an unknown name."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT CAST(voiced_s AS REAL) FROM names WHERE id = ?", (self._id_of(db, clean_name(name)),)
            ).fetchone()
        if row is None or row[0] is None:
            raise damaged_error(self.path)
        return float(row[0])

    def prints(self, name: str) -> list[Print]:
        """A name's prints, including negative ones, in the order they were enrolled.

        Raises UsageError for an unknown name.
        """
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT embedding, CAST(source AS TEXT), negative, flac FROM prints"
                " LEFT JOIN audio ON print_id = prints.id WHERE name_id = ? ORDER BY prints.id",
                (self._id_of(db, clean_name(name)),),
            ).fetchall()
        if any(not isinstance(flac, bytes | None) or not isinstance(source, str) for _, source, _, flac in rows):
            raise damaged_error(self.path)
        return [
            Print(from_blobs(self.path, [blob], self.dim)[0], source, bool(negative), flac)
            for blob, source, negative, flac in rows
        ]

    def remove(self, name: str) -> PrintCounts:
        """Forget a name: nothing of it stays in the file. Returns how many prints of each sign it had.

        Raises UsageError for an unknown name, and GalleryError, changing nothing, if the file cannot be written.
        """
        name = clean_name(name)
        with self.change() as db:
            name_id = self._id_of(db, name)
            had = self.counts_of(name)
            db.execute("DELETE FROM audio WHERE print_id IN (SELECT id FROM prints WHERE name_id = ?)", (name_id,))
            db.execute("DELETE FROM prints WHERE name_id = ?", (name_id,))
            db.execute("DELETE FROM calibrated WHERE name_id = ?", (name_id,))
            db.execute("DELETE FROM names WHERE id = ?", (name_id,))
            self._file.needs_vacuum = True
        return had

    def rename(self, old: str, new: str) -> None:
        """Give a name's prints another name.

        Raises UsageError if `old` is unknown, or `new` is taken or not a valid name.
        """
        old, new = clean_name(old), check_new_name(new)
        with self.change() as db:
            name_id = self._id_of(db, old)
            if old != new and any(self.counts_of(new)):
                raise UsageError(f"{self.path}: {new!r} is already enrolled: remove it first, or choose another name")
            db.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))

    def calibrate(self, thresholds: Mapping[str, float], target_fa_per_hour: float, made: str) -> None:
        """Store the similarities that names need in a stream, the rate they were chosen for, and the day (an ISO date).

        They replace what was stored for these names. Raises UsageError for a name that is not enrolled, and for a
        threshold that is not a similarity.
        """
        with self.change() as db:
            for name, threshold in thresholds.items():
                if not (isinstance(threshold, Real) and -1.0 <= threshold <= 1.0):
                    raise UsageError(f"the threshold of {name!r} must be a similarity from -1 to 1, not {threshold!r}")
                db.execute(
                    "INSERT OR REPLACE INTO calibrated (name_id, threshold, target_fa_per_hour, made) VALUES (?, ?, ?, ?)",
                    (self._id_of(db, clean_name(name)), float(threshold), float(target_fa_per_hour), made),
                )

    def uncalibrate(self, names: Iterable[str] = ()) -> list[str]:
        """Remove the calibration of some names (of all, if none is given); return the names that had one.

        Raises UsageError for a name that is not enrolled.
        """
        with self.change() as db:
            had = list(read_calibrated(self.path, db))
            wanted = [clean_name(name) for name in names] or had
            for name in wanted:
                db.execute("DELETE FROM calibrated WHERE name_id = ?", (self._id_of(db, name),))
            return [name for name in had if name in wanted]

    def calibrated(self) -> dict[str, NameCalibration]:
        """The calibration of each name that has one, sorted by name."""
        with self._file.reading() as db:
            return read_calibrated(self.path, db)

    def replace_prints(self, model: Model, kind: Kind, names: Mapping[str, tuple[Floats, Floats]]) -> None:
        """Bind the gallery to another model. `names` maps each name to all its prints, in order, and to the new ones.

        Both are `[n, dim]`. Calibrated thresholds are removed. Raises UsageError for invalid new prints, and
        GalleryError if the gallery's prints have changed meanwhile; nothing is changed then.
        """
        binding = _binding(model, kind)
        with self._file.lock:
            with self.change() as db:
                held = self._prints_by_name(db)
                read = {name: [row.tobytes() for row in old.astype("<f4")] for name, (old, _) in names.items()}
                if {name: [blob for _, blob in prints] for name, prints in held.items()} != read:
                    raise GalleryError(f"{self.path}: was changed meanwhile, so nothing was re-enrolled: try again")
                db.execute("DELETE FROM calibrated")
                for name, (old, new) in names.items():
                    blobs = to_blobs(check_embeddings(name, new, binding.dim))
                    if len(blobs) != len(old):
                        raise UsageError(f"{len(blobs)} new prints for {name!r}, which has {len(old)}")
                    rows = [(blob, print_id) for blob, (print_id, _) in zip(blobs, held[name], strict=True)]
                    db.executemany("UPDATE prints SET embedding = ? WHERE id = ?", rows)
                write_binding(db, binding)
            self._model, self.binding = model, binding
            self._current = ReloadingMatcher(
                self._file, model, Levels.of(model.contract, None, None), self._read_binding
            )

    def _prints_by_name(self, db: sqlite3.Connection) -> dict[str, list[tuple[int, bytes]]]:
        """The prints of each name, including negative ones, in the order they were enrolled: ids and embeddings."""
        held: dict[str, list[tuple[int, bytes]]] = {}
        for name, print_id, blob in db.execute(
            "SELECT name, prints.id, embedding FROM prints JOIN names ON name_id = names.id ORDER BY prints.id"
        ):
            held.setdefault(name, []).append((print_id, blob))
        return held

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction around all changes made within: afterwards all of it is on the disk, or nothing.

        Calls of other threads wait for its end. Raises GalleryError, also if another program bound the gallery to
        another model, because prints of the old model no longer fit.
        """
        with self._file.lock:
            try:
                with self._file.change() as db:
                    self._check_bound(db)
                    yield db
            finally:  # also after a failure: the prints may have been read within
                self._invalidate_matcher()

    def _invalidate_matcher(self) -> None:
        if self._current is not None:
            self._current.invalidate()

    @contextmanager
    def moment(self) -> Iterator[sqlite3.Connection]:
        """Everything read within is from one moment, and of the model that the gallery was opened for.

        Raises GalleryError.
        """
        with self._file.moment() as db:
            self._check_bound(db)
            yield db

    def _read_binding(self, db: sqlite3.Connection) -> Binding:
        """What the prints are of. Raises GalleryError if that is not the model's embedding."""
        assert self._model is not None
        binding = read_binding(self.path, db)
        self._check(binding, self._model)
        self.binding = binding
        return binding

    def _check_bound(self, db: sqlite3.Connection) -> None:
        """Raise GalleryError if the prints are of another model than when the gallery was opened."""
        binding = read_binding(self.path, db)
        if not binding.is_comparable_to(self.binding):
            raise GalleryModelError(
                f"{self.path}: was bound to another model while it was open (embedding {binding.embedding_id[:12]}"
                f" of {binding.dim} dimensions, before: {self.embedding_id[:12]} of {self.dim}): open it again, for"
                " that model"
            )
        self.binding = binding

    def _check_enrolled(self, names: Iterable[str]) -> None:
        enrolled_names = self.names()
        for name in names:
            if name not in enrolled_names:
                enrolled = format_known_names(name, list(enrolled_names)) or "nobody"
                raise UsageError(
                    f"{self.path}: there is a threshold for {name!r}, which is not enrolled (enrolled: {enrolled})"
                )

    def _id_of(self, db: sqlite3.Connection, name: str) -> int:
        row = db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
        if row is None:
            enrolled = format_known_names(name, list(self.counts())) or "nobody"
            raise UsageError(f"{self.path}: nobody is enrolled as {name!r} (enrolled: {enrolled})")
        if type(row[0]) is not int:
            raise damaged_error(self.path)
        return row[0]


def _binding(model: Model, kind: Kind | None) -> Binding:
    contract = model.contract
    if kind is not None and kind not in KIND_PLURALS:
        raise UsageError(f"kind must be {' or '.join(KIND_PLURALS)}, not {kind!r}")
    return Binding(contract.embedding_id, contract.embedding_dim, contract.name, kind or model_kind(contract))
