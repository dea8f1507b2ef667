"""Prints as stored in a gallery's file, and checked reading of a file that may contain anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Bools, Floats, Indices, as_floats
from confit_runtime.errors import UsageError
from confit_runtime.gallery_tables import damaged_error
from confit_runtime.matcher import l2_normalise

FETCH_BATCH = 20_000
QUERY_BATCH = 400  # prints requested by one statement, by two values each; SQLite accepts at least 999
NORM_TOLERANCE = 1e-4  # of 1: an undamaged print's length; float32 keeps it a hundred times closer


@dataclass(frozen=True)
class Print:
    """One enrolled sound: its embedding `[dim]` of length 1, and where it came from.

    A `negative` print is of a sound that was mistaken for the name. `audio` is the sound itself as FLAC, if it was
    kept.
    """

    embedding: Floats
    source: str
    negative: bool = False
    audio: bytes | None = None

    @property
    def blob(self) -> bytes:
        """The embedding as stored in the file."""
        return self.embedding.astype("<f4").tobytes()


class PrintCounts(NamedTuple):
    """How many prints a name has, and how many negative ones."""

    prints: int = 0
    negative_prints: int = 0


def check_enrollment(
    name: str, embeddings: npt.ArrayLike, dim: int, sources: Sequence[str | Path], audio: Sequence[bytes] | None
) -> Floats:
    """The embeddings `[n, dim]` (n >= 1) to enroll for `name`. Raises UsageError if they are invalid."""
    rows = check_embeddings(name, embeddings, dim)
    if len(sources) != len(rows) or len(audio or sources) != len(rows):
        raise UsageError(f"{len(rows)} embeddings to enroll, but {len(sources)} sources")
    return rows


def check_embeddings(name: str, embeddings: npt.ArrayLike, dim: int) -> Floats:
    """Embeddings `[n, dim]` (n >= 1) of `name`. Raises UsageError if they are invalid."""
    rows = as_floats(embeddings, f"embeddings [n, {dim}]")
    if rows.ndim != 2 or rows.shape[1] != dim or len(rows) == 0:
        raise UsageError(f"embeddings to enroll must have the shape [n, {dim}], got {list(rows.shape)}")
    lengths = np.linalg.norm(rows, axis=1)
    if not (np.isfinite(lengths).all() and (lengths > 0.0).all()):
        raise UsageError(f"an embedding of {name!r} is zero, NaN or infinite")
    return rows


def to_blobs(embeddings: Floats) -> list[bytes]:
    """Embeddings `[n, dim]` as stored in the file: of length 1, little-endian float32."""
    return [row.tobytes() for row in l2_normalise(embeddings).astype("<f4")]


def from_blobs(path: Path, blobs: Sequence[object], dim: int) -> Floats:
    """Embeddings `[n, dim]` from the bytes in the file. Raises GalleryError for invalid ones."""
    if any(not isinstance(blob, bytes) or len(blob) != 4 * dim for blob in blobs):
        raise damaged_error(path)
    embeddings = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), dim)  # type: ignore[arg-type]
    # large numbers would overflow when squared
    if (
        not (np.abs(embeddings) <= 1.01).all()
        or not (np.abs(_squared_norms(embeddings) - 1.0) <= 2.0 * NORM_TOLERANCE).all()
    ):
        raise damaged_error(path)
    return embeddings.astype(np.float32, copy=False)


def _squared_norms(rows: Floats) -> Floats:
    """The square of each row's length, without a second copy of the rows."""
    squares: Floats = np.einsum("nd,nd->n", rows, rows)
    return squares


@dataclass(frozen=True)
class StoredPrints:
    """The prints of one sign as they were read, ordered by name: ids `[n]`, their names' ids, and embeddings `[n, dim]`."""

    ids: Indices
    owners: Indices
    prints: Floats

    def find(self, ids: Indices, owners: Indices, beginnings: Floats) -> tuple[Indices, Bools]:
        """Where a file's prints are among these, and which are: an id may have been given to another print meanwhile."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        order = np.argsort(self.ids)
        at = order[np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(order) - 1)]
        same = (self.ids[at] == ids) & (self.owners[at] == owners)
        return at, same & (self.prints[at, : beginnings.shape[1]] == beginnings).all(axis=1)


class PrintListing(NamedTuple):
    """Which prints a file holds: their ids `[n]`, their names' ids, their signs, and their first numbers."""

    ids: Indices
    owners: Indices
    negative: Indices
    beginnings: Floats  # `[n, 2]`


def list_prints(path: Path, db: sqlite3.Connection, dim: int) -> PrintListing:
    """All prints, in no order. Fetched as text, because a hundred thousand rows take longer. Raises GalleryError."""
    row = db.execute(
        "SELECT group_concat(id, ' '), group_concat(CAST(name_id AS INTEGER), ' '),"
        " group_concat(CAST(negative AS INTEGER), ' '), group_concat(hex(substr(embedding, 1, 8)), '') FROM prints"
    ).fetchone()
    ids, owners, negative = (np.fromstring(text or "", np.int64, sep=" ") for text in row[:3])
    beginnings = np.frombuffer(bytes.fromhex(row[3] or ""), np.uint8)
    width = min(8, 4 * dim)
    if not len(ids) == len(owners) == len(negative) == len(beginnings) / width:
        raise damaged_error(path)
    return PrintListing(
        ids, owners, negative, beginnings.view("<f4").reshape(-1, width // 4).astype(np.float32, copy=False)
    )


def refresh_prints(
    path: Path, db: sqlite3.Connection, dim: int, listed: PrintListing, before: StoredPrints, *, negative: bool
) -> tuple[StoredPrints, Indices]:
    """The current prints of a sign, and the index of each in `before`, or -1 for a new one; only new ones are read.

    Raises GalleryError for invalid contents.
    """
    rows = np.flatnonzero(listed.negative == int(negative))
    rows = rows[np.lexsort((listed.ids[rows], listed.owners[rows]))]
    ids, owners = listed.ids[rows], listed.owners[rows]
    at, same = before.find(ids, owners, listed.beginnings[rows])
    if same.all() and len(ids) == len(before.ids):
        return before, at
    if np.count_nonzero(~same) > max(QUERY_BATCH, len(ids) // 2):
        return read_prints(path, db, dim, negative=negative), np.where(same, at, -1)
    new = _read_by_ids(path, db, dim, ids[~same])
    prints = before.prints[np.where(same, at, 0)] if same.any() else np.empty((len(ids), dim), np.float32)
    prints[~same] = new
    return StoredPrints(ids, owners, prints), np.where(same, at, -1)


def _read_by_ids(path: Path, db: sqlite3.Connection, dim: int, ids: Indices) -> Floats:
    blobs: dict[int, object] = {}
    for start in range(0, len(ids), QUERY_BATCH):
        batch = ids[start : start + QUERY_BATCH].tolist()
        blobs |= db.execute(f"SELECT id, embedding FROM prints WHERE id IN ({','.join('?' * len(batch))})", batch)
    return from_blobs(path, [blobs[number] for number in ids.tolist()], dim)


def read_prints(path: Path, db: sqlite3.Connection, dim: int, *, negative: bool) -> StoredPrints:
    """All prints of a sign. Raises GalleryError for invalid contents."""
    found = db.execute(
        "SELECT id, name_id, embedding FROM prints WHERE negative = ? ORDER BY name_id, id", (int(negative),)
    )
    ids, owners, parts = [], [], [np.zeros((0, dim), np.float32)]
    while batch := found.fetchmany(FETCH_BATCH):
        ids += [number for number, _, _ in batch]
        owners += [name_id for _, name_id, _ in batch]
        parts.append(from_blobs(path, [blob for _, _, blob in batch], dim))
    if any(type(number) is not int for number in (*ids, *owners)):
        raise damaged_error(path)
    return StoredPrints(np.array(ids, np.int64), np.array(owners, np.int64), np.concatenate(parts))


def owner_indices(path: Path, names: Sequence[int], owners: Indices) -> Indices:
    """The indices of the prints' names among `names`, ascending ids. Raises GalleryError for a print without a name."""
    ids = np.array(names, np.int64)
    indices = np.searchsorted(ids, owners)
    if len(owners) and (not len(ids) or (ids[np.minimum(indices, len(ids) - 1)] != owners).any()):
        raise damaged_error(path)
    return indices


def read_counts(path: Path, db: sqlite3.Connection, name: str | None = None) -> dict[str, PrintCounts]:
    """How many prints each name has, sorted by name, or only one name. Raises GalleryError for invalid contents."""
    rows = db.execute(
        "SELECT name, SUM(negative = 0), SUM(negative = 1) FROM prints JOIN names ON name_id = names.id"
        f"{'' if name is None else ' WHERE name = ?'} GROUP BY name ORDER BY name",
        () if name is None else (name,),
    ).fetchall()
    if any([type(value) for value in row] != [str, int, int] for row in rows):
        raise damaged_error(path)
    return {name: PrintCounts(prints, negatives) for name, prints, negatives in rows}


@dataclass(frozen=True)
class NameCalibration:
    """The similarity that a name needs in a stream, the rate of false accepts it was chosen for, and the day (ISO)."""

    threshold: float
    target_fa_per_hour: float
    made: str


def read_calibrated(path: Path, db: sqlite3.Connection) -> dict[str, NameCalibration]:
    """The calibration of each name that has one, sorted by name. Raises GalleryError for invalid contents."""
    rows = db.execute(
        "SELECT name, threshold, target_fa_per_hour, made FROM calibrated JOIN names ON name_id = names.id ORDER BY name"
    ).fetchall()
    if any([type(value) for value in row] != [str, float, float, str] for row in rows):
        raise damaged_error(path)
    return {name: NameCalibration(*values) for name, *values in rows}


def read_owners(db: sqlite3.Connection, blobs: Iterable[bytes]) -> dict[bytes, set[str]]:
    """For each of these prints, the names that have it."""
    found: dict[bytes, set[str]] = {blob: set() for blob in blobs}
    queried = list(found)
    for start in range(0, len(queried), QUERY_BATCH):
        batch = queried[start : start + QUERY_BATCH]
        placeholders = ",".join("?" * len(batch))
        rows = db.execute(
            "SELECT name, embedding FROM prints JOIN names ON name_id = names.id"
            f" WHERE negative = 0 AND substr(embedding, 1, 8) IN ({placeholders}) AND embedding IN ({placeholders})",
            [*(blob[:8] for blob in batch), *batch],  # uses the index on the beginnings
        )
        for name, blob in rows:
            found[blob].add(name)
    return found


def new_print_indices(blobs: Sequence[bytes], known: Collection[bytes]) -> list[int]:
    """The indices of the prints that are neither in `known` nor a copy of an earlier one."""
    seen, indices = set(known), []
    for at, blob in enumerate(blobs):
        if blob not in seen:
            seen.add(blob)
            indices.append(at)
    return indices
