"""A gallery: who and what was enrolled on this device, in one SQLite file bound to one model's embedding."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from confit_runtime.arrays import Floats, duration
from confit_runtime.current import CurrentMatcher
from confit_runtime.enrollment import OF_KIND, Already, Kind, admitted, kind_of
from confit_runtime.errors import GalleryError, GalleryModelError, UsageError
from confit_runtime.gallery_file import GalleryFile, check_folder, is_there, make_file
from confit_runtime.matcher import Levels, Match, Matcher
from confit_runtime.migrations import Binding, bind, bound, damaged, keep_index_digest
from confit_runtime.model import Model
from confit_runtime.names import clean_name, known_names, new_name
from confit_runtime.prints import (
    Counts,
    Print,
    checked,
    checked_rows,
    from_blobs,
    holds,
    read_counts,
    read_holders,
    read_indexed,
    to_blobs,
)
from confit_runtime.search import build_index
from confit_runtime.shipped import as_asked_for


class Gallery:
    """Names and their prints, kept in one SQLite file. Use as a context manager; safe to share between threads, and
    each process opens its own.

    Each change is one transaction, on the disk when the call returns: a crash loses nothing that was enrolled. What
    another program or thread changes meanwhile is seen by the next call. What reads or changes the file raises GalleryError
    once it is closed, and GalleryBusyError where another program changes it for longer than one waits.
    """

    def __init__(self, file: GalleryFile, model: Model | None, levels: Levels | None) -> None:
        """Use `Gallery.open`."""
        self._file, self._model = file, model
        with file.reading() as db:
            self.binding = bound(file.path, db)
        self._current: CurrentMatcher | None = None
        if model is not None and levels is not None:
            self._current = CurrentMatcher(file, model, levels, self._admit)
            self._current.newest()

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
        """Open a gallery, or make an empty one for `model` with `create`, for names of `kind` (if not given, the model's).

        Without a model it can be listed and changed, but not matched against. `threshold` is a similarity, -1..1, that stands
        instead of those the model and the prints themselves give, `thresholds` one for some names (who may be enrolled later
        only with `create`), `margin`, 0..2, one instead of the model's. In a folder that cannot be written the file is opened
        as it is, for reading only. Raises UsageError when there is no such file, on levels that cannot be, and on thresholds
        for names that are not enrolled; GalleryError when it is damaged, of a newer version, of another model, not a gallery, in
        use by another program for longer than one waits, or where one may not look.
        """
        if not isinstance(path, str | Path):
            raise UsageError(f"a gallery is opened by the path of its file, not by {path!r}")
        path = Path(path)
        there = is_there(path)
        if model is not None and not isinstance(model, Model):
            raise UsageError(f"a gallery is opened for a loaded model, not for {model!r}: load({model!r}) gives one")
        if there and not path.is_file():
            raise UsageError(f"{path}: is not a file, expected a gallery")
        if create and model is None:
            raise UsageError(f"{path}: a new gallery needs the model it is for")
        if not create and not there:
            raise UsageError(
                f"{path}: no such gallery: `confit-edge enroll MODEL NAME CLIP... --gallery {path}` makes it"
            )
        levels = binding = None
        if model is not None:  # what is wrong with it is said before a file is made
            own = {clean_name(name): level for name, level in (thresholds or {}).items()}
            levels = Levels.of(model.contract, threshold, margin, own)
            binding = _binding(model, kind) if create else None
        if not there:
            check_folder(path.parent)
        file = GalleryFile(path, binding)
        try:
            gallery = cls(file, model, levels)
            if levels is not None and not create:
                gallery._check_enrolled(levels.own)
            return gallery
        except BaseException:
            file.close()
            raise

    def copy_layout(self, path: Path) -> Gallery:
        """An empty gallery in a new file, bound to the same model. Raises UsageError and GalleryError."""
        make_file(path, self.binding)
        return Gallery.open(path)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A matcher that was taken from it can still be used."""
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
        """What the names are; where a file of an older version does not tell, what its model says.

        Raises UsageError where neither tells.
        """
        if self.binding.kind:
            return "speaker" if self.binding.kind == "speaker" else "sound"
        if self._model is None:
            raise UsageError(
                f"{self.path}: is of a version that did not tell voices from sounds: say with --kind which it holds"
            )
        return kind_of(self._model.contract)

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
            if kept and kept == prints and binding.kind in ("", kind_of(contract)):
                again = f"`confit-edge gallery re-enroll {as_asked_for(model.path)} --gallery {self.path}`"
                advice += f"; or make its prints anew, from the audio that was kept: {again}"
            raise GalleryModelError(
                f"{self.path}: was enrolled with another model ({named}embedding {binding.embedding_id[:12]} of {binding.dim};"
                f" {model.name} has {contract.embedding_id[:12]} of {contract.embedding_dim}): {advice}"
            )

    @property
    def matcher(self) -> Matcher:
        """The prints as they are now, to match against; the same object for as long as nothing was changed.

        While another program or thread is changing them, or the file cannot be read, those from before are given (the log
        says so). Where the file was replaced (a copy was restored), it is that file's, and nobody is enrolled while there is
        none. Raises UsageError on a gallery opened without a model, GalleryError where another program bound it to another
        model.
        """
        if self._current is None:
            raise UsageError(f"{self.path}: was opened without its model, so there is nothing to match with")
        return self._current.newest()

    def match(self, embedding: npt.ArrayLike) -> Match:
        """Who an embedding `[dim]` of the model is nearest to; see `Matcher`. Raises UsageError, and what `matcher` raises."""
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
        """Add `embeddings [n, dim]` (n >= 1), one source each, to a name; all of them or, after a crash, none.

        `audio` is the sound of each as FLAC, if it is to be kept. `negative` ones are of sounds that were taken for the
        name and are not it. Those that the name has already are left out, with their share of the `voiced_s` seconds.
        Of a voice all clips are given at once, and are refused where it has less than `LEAST_VOICE_S` with them; so is a
        print that another name has, or this one with the other sign. `carried` ones were enrolled before, elsewhere, and
        are taken as they are. `kind` says what these are, voices or sounds, where the gallery's own kind is not it. Returns
        how many prints (or negative ones) the name has now. Raises UsageError, AudioError (of too little voice) and GalleryError.
        """
        name = new_name(name)
        voiced_s = duration(voiced_s, f"voiced_s, the sound that {name!r} is enrolled from")
        with self.change() as db:
            blobs = to_blobs(checked(name, embeddings, self.dim, sources, audio))
            if carried:
                own, kind = Already(self.blobs(name, negative=negative)), None
            else:
                own = self.already(name, blobs, negative=negative)
                kind = None if negative else kind or self._told_kind()
            places, heard_s = admitted(name, blobs, sources, voiced_s, own, kind, self.path)
            self._file.erase_index_of_others(db)
            db.execute("INSERT INTO names (name, voiced_s) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
            name_id = self._id_of(db, name)
            if not negative:
                db.execute("UPDATE names SET voiced_s = voiced_s + ? WHERE id = ?", (heard_s, name_id))
            for at in places:
                place = db.execute(
                    "INSERT INTO prints (name_id, embedding, source, negative) VALUES (?, ?, ?, ?)",
                    (name_id, blobs[at], str(sources[at]).encode(errors="replace").decode(), int(negative)),
                ).lastrowid
                if audio is not None:
                    db.execute("INSERT INTO audio (print_id, flac) VALUES (?, ?)", (place, audio[at]))
            return self.counts_of(name)[negative]

    def already(self, name: str, blobs: Iterable[bytes], *, negative: bool) -> Already:
        """What the gallery has already, as these prints are added to a name; negative ones are nobody else's."""
        own, contrary = (self.blobs(name, negative=sign) for sign in (negative, not negative))
        if negative:
            return Already(own, contrary=contrary, negative=True)
        seconds = self.voiced_s(name) if self.counts_of(name).prints else 0.0
        return Already(own, seconds, self.owners(blobs), contrary)

    def _told_kind(self) -> Kind | None:
        """The kind; None where neither a file of an older version nor a model tells."""
        return self.kind if self.binding.kind or self._model else None

    def names(self) -> dict[str, int]:
        """How many prints each name has, in order of name."""
        return {name: counts.prints for name, counts in self.counts().items() if counts.prints}

    def negatives(self) -> dict[str, int]:
        """How many negative prints each name (or label of the model) has, in order of name."""
        return {name: counts.negative_prints for name, counts in self.counts().items() if counts.negative_prints}

    def counts(self) -> dict[str, Counts]:
        """How many prints, and negative ones, each name (or label of the model) has, in order of name."""
        with self._file.reading() as db:
            return read_counts(self.path, db)

    def counts_of(self, name: str) -> Counts:
        """The same of one name; none where nobody is enrolled as that."""
        with self._file.reading() as db:
            return read_counts(self.path, db, name).get(name, Counts())

    def blobs(self, name: str, *, negative: bool) -> set[bytes]:
        """A name's prints of a kind, as they stand in the file; none of a name that is not enrolled."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT embedding FROM prints JOIN names ON name_id = names.id WHERE name = ? AND negative = ?",
                (name, int(negative)),
            ).fetchall()
        return {blob for (blob,) in rows}

    def owners(self, blobs: Iterable[bytes]) -> set[str]:
        """The names that have one of these prints."""
        return set().union(*self.holders(blobs).values())

    def holders(self, blobs: Iterable[bytes]) -> dict[bytes, set[str]]:
        """Of each of these prints the names that have it."""
        with self._file.reading() as db:
            return read_holders(db, blobs)

    def voiced_s(self, name: str) -> float:
        """How many seconds of sound a name was enrolled from. Raises UsageError on an unknown name."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT CAST(voiced_s AS REAL) FROM names WHERE id = ?", (self._id_of(db, clean_name(name)),)
            ).fetchone()
        if row is None or row[0] is None:
            raise damaged(self.path)
        return float(row[0])

    def prints(self, name: str) -> list[Print]:
        """A name's prints, negative ones too, in the order they were enrolled. Raises UsageError on an unknown name."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT embedding, CAST(source AS TEXT), negative, flac FROM prints"
                " LEFT JOIN audio ON print_id = prints.id WHERE name_id = ? ORDER BY prints.id",
                (self._id_of(db, clean_name(name)),),
            ).fetchall()
        if any(not isinstance(flac, bytes | None) or not isinstance(source, str) for _, source, _, flac in rows):
            raise damaged(self.path)
        return [
            Print(from_blobs(self.path, [blob], self.dim)[0], source, bool(negative), flac)
            for blob, source, negative, flac in rows
        ]

    @property
    def index_path(self) -> Path:
        """Where the index of this gallery is, if `build_index` made one."""
        return self._file.index_path

    def build_index(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Write an index of the prints beside the file, for galleries of more than 100 000. Returns how many it holds.

        It has the file's mode. Prints enrolled later are found without it; removing a name erases it. `progress` is told how
        many prints of how many are in it. Raises UsageError without usearch, GalleryError where the index cannot be written,
        and where the file was replaced or somebody removed meanwhile; then none is.
        """
        with self._file.lock:  # to its end: no other thread removes anybody meanwhile
            with self.moment() as db:
                self._file.check_stands()
                look, mode = self._file.look(db), self.path.stat().st_mode & 0o777
                ids, prints = read_indexed(self.path, db, self.dim)

            @contextmanager
            def placing(digest: str) -> Iterator[None]:
                with self.change() as db:
                    if self._file.look(db) != look and not holds(*read_indexed(self.path, db, self.dim), ids, prints):
                        raise GalleryError(
                            f"{self.path}: somebody was removed meanwhile, so there is no index: make it again"
                        )
                    keep_index_digest(db, digest)
                    yield

            build_index(self.index_path, ids, prints, progress, mode, placing)
        return len(ids)

    def remove(self, name: str) -> Counts:
        """Forget a name; nothing of it stays in the file, nor in an index. Returns how many prints of each sign it had.

        Raises UsageError on an unknown name, GalleryError where the file or its index cannot be written; then all is as it was.
        """
        name = clean_name(name)
        with self.change() as db:
            name_id = self._id_of(db, name)
            had = self.counts_of(name)
            db.execute("DELETE FROM audio WHERE print_id IN (SELECT id FROM prints WHERE name_id = ?)", (name_id,))
            db.execute("DELETE FROM prints WHERE name_id = ?", (name_id,))
            self._file.erase_index(db)
            db.execute("DELETE FROM names WHERE id = ?", (name_id,))
            self._file.shrinks = True
        return had

    def rename(self, old: str, new: str) -> None:
        """Give a name's prints another name. Raises UsageError when `old` is unknown, or `new` is taken or no name."""
        old, new = clean_name(old), new_name(new)
        with self.change() as db:
            name_id = self._id_of(db, old)
            if old != new and any(self.counts_of(new)):
                raise UsageError(f"{self.path}: {new!r} is enrolled already: remove it first, or choose another name")
            db.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))

    def replace_prints(self, model: Model, kind: Kind, names: Mapping[str, tuple[Floats, Floats]]) -> None:
        """Bind the gallery to another model: `names` gives all prints of each name, in order, and the new ones in their place.

        Both are `[n, dim]`. Raises UsageError on new ones that cannot be, and GalleryError where the gallery holds others
        than those by now; nothing is changed then.
        """
        binding = _binding(model, kind)
        with self._file.lock:
            with self.change() as db:
                held = self._held(db)
                read = {name: [row.tobytes() for row in old.astype("<f4")] for name, (old, _) in names.items()}
                if {name: [blob for _, blob in prints] for name, prints in held.items()} != read:
                    raise GalleryError(f"{self.path}: was changed meanwhile, so nothing was made anew: do it again")
                self._file.erase_index(db)
                for name, (old, new) in names.items():
                    blobs = to_blobs(checked_rows(name, new, binding.dim))
                    if len(blobs) != len(old):
                        raise UsageError(f"{len(blobs)} new prints of {name!r}, who has {len(old)}")
                    rows = [(blob, print_id) for blob, (print_id, _) in zip(blobs, held[name], strict=True)]
                    db.executemany("UPDATE prints SET embedding = ? WHERE id = ?", rows)
                bind(db, binding)
            self._model, self.binding = model, binding
            self._current = CurrentMatcher(self._file, model, Levels.of(model.contract, None, None), self._admit)

    def _held(self, db: sqlite3.Connection) -> dict[str, list[tuple[int, bytes]]]:
        """Of each name the prints, negative ones too, in the order they were enrolled: ids and embeddings."""
        held: dict[str, list[tuple[int, bytes]]] = {}
        for name, print_id, blob in db.execute(
            "SELECT name, prints.id, embedding FROM prints JOIN names ON name_id = names.id ORDER BY prints.id"
        ):
            held.setdefault(name, []).append((print_id, blob))
        return held

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, with all changes made within: all of it is on the disk afterwards, or nothing.

        Another thread's calls wait for its end. Raises GalleryError, also where another program bound the gallery to another
        model: what one has prints of by now is not what it holds.
        """
        with self._file.lock:
            try:
                with self._file.change() as db:
                    self._check_bound(db)
                    yield db
            finally:  # also of what came to nothing: the prints may have been read within
                self._outdate()

    def _outdate(self) -> None:
        if self._current is not None:
            self._current.outdate()

    @contextmanager
    def moment(self) -> Iterator[sqlite3.Connection]:
        """All that is read within is of one moment, and of the model that the gallery was opened for. Raises GalleryError."""
        with self._file.moment() as db:
            self._check_bound(db)
            yield db

    def _admit(self, db: sqlite3.Connection) -> Binding:
        """What the prints are of. Raises GalleryError where that is not the model's embedding."""
        assert self._model is not None
        binding = bound(self.path, db)
        self._check(binding, self._model)
        self.binding = binding
        return binding

    def _check_bound(self, db: sqlite3.Connection) -> None:
        """Raise GalleryError where the prints are of another model than when the gallery was opened."""
        binding = bound(self.path, db)
        if not binding.compares(self.binding):
            raise GalleryModelError(
                f"{self.path}: was bound to another model while it was open (embedding {binding.embedding_id[:12]} of"
                f" {binding.dim}, it was {self.embedding_id[:12]} of {self.dim}): open it again, for that model"
            )
        self.binding = binding

    def _check_enrolled(self, names: Iterable[str]) -> None:
        there = self.names()
        for name in names:
            if name not in there:
                enrolled = known_names(name, list(there)) or "nobody"
                raise UsageError(f"{self.path}: a threshold for {name!r}, who is not enrolled (enrolled: {enrolled})")

    def _id_of(self, db: sqlite3.Connection, name: str) -> int:
        row = db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
        if row is None:
            enrolled = known_names(name, list(self.counts())) or "nobody"
            raise UsageError(f"{self.path}: nobody is enrolled as {name!r} (enrolled: {enrolled})")
        if type(row[0]) is not int:
            raise damaged(self.path)
        return row[0]


def _binding(model: Model, kind: Kind | None) -> Binding:
    contract = model.contract
    if kind is not None and kind not in OF_KIND:
        raise UsageError(f"the names of a gallery are of kind {' or '.join(OF_KIND)}, not {kind!r}")
    return Binding(contract.embedding_id, contract.embedding_dim, contract.name, kind or kind_of(contract))
