"""Prints as they stand in a gallery's file, and as they are read from one that may hold anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, Places, floats
from confit_runtime.errors import UsageError
from confit_runtime.matcher import unit
from confit_runtime.migrations import damaged

ROWS_AT_ONCE = 20_000
ASKED_AT_ONCE = 400  # prints that one statement asks for, by two values; SQLite takes 999 at the least
LENGTH_WITHIN = 1e-4  # of 1, of a print that is not damaged: float32 keeps it a hundred times nearer


@dataclass(frozen=True)
class Print:
    """One enrolled sound: its embedding `[dim]` of length 1, and where it came from.

    `negative` prints are of a sound that was taken for the name and is not it. `audio` is the sound itself as FLAC,
    where it was kept.
    """

    embedding: Floats
    source: str
    negative: bool = False
    audio: bytes | None = None

    @property
    def blob(self) -> bytes:
        """The embedding as it stands in the file."""
        return self.embedding.astype("<f4").tobytes()


class Counts(NamedTuple):
    """How many prints a name has, and how many negative ones."""

    prints: int = 0
    negative_prints: int = 0


def checked(
    name: str, embeddings: npt.ArrayLike, dim: int, sources: Sequence[str | Path], audio: Sequence[bytes] | None
) -> Floats:
    """The embeddings `[n, dim]` (n >= 1) that `name` is enrolled with. Raises UsageError on what are none."""
    rows = checked_rows(name, embeddings, dim)
    if len(sources) != len(rows) or len(audio or sources) != len(rows):
        raise UsageError(f"{len(rows)} embeddings to enroll, but {len(sources)} sources")
    return rows


def checked_rows(name: str, embeddings: npt.ArrayLike, dim: int) -> Floats:
    """Embeddings `[n, dim]` (n >= 1) of `name`. Raises UsageError on what are none."""
    rows = floats(embeddings, f"embeddings [n, {dim}]")
    if rows.ndim != 2 or rows.shape[1] != dim or len(rows) == 0:
        raise UsageError(f"embeddings to enroll are [n, {dim}], got {list(rows.shape)}")
    lengths = np.linalg.norm(rows, axis=1)
    if not (np.isfinite(lengths).all() and (lengths > 0.0).all()):
        raise UsageError(f"an embedding of {name!r} is zero, NaN or infinite")
    return rows


def to_blobs(embeddings: Floats) -> list[bytes]:
    """Embeddings `[n, dim]` as they stand in the file: of length 1, little-endian float32."""
    return [row.tobytes() for row in unit(embeddings).astype("<f4")]


def from_blobs(path: Path, blobs: Sequence[object], dim: int) -> Floats:
    """Embeddings `[n, dim]` from the bytes in the file. Raises GalleryError on what is no embedding of ours."""
    if any(not isinstance(blob, bytes) or len(blob) != 4 * dim for blob in blobs):
        raise damaged(path)
    embeddings = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), dim)  # type: ignore[arg-type]
    # large numbers would overflow as they are squared
    if not (np.abs(embeddings) <= 1.01).all() or not (np.abs(_squares(embeddings) - 1.0) <= 2.0 * LENGTH_WITHIN).all():
        raise damaged(path)
    return embeddings.astype(np.float32, copy=False)


def _squares(rows: Floats) -> Floats:
    """The square of each row's length, without a second table of the rows."""
    squares: Floats = np.einsum("nd,nd->n", rows, rows)
    return squares


def read_prints(
    path: Path, db: sqlite3.Connection, dim: int, place: Mapping[int, int], *, negative: bool
) -> tuple[Places, Places, Floats]:
    """All prints of a kind, in order of name: ids `[n]`, the places of their names `[n]`, embeddings `[n, dim]`.

    `place` is that of each name, by its id. Raises GalleryError on contents that make no sense.
    """
    found = db.execute(
        "SELECT id, name_id, embedding FROM prints WHERE negative = ? ORDER BY name_id, id", (int(negative),)
    )
    ids, owners, parts = [], [], [np.zeros((0, dim), np.float32)]
    while some := found.fetchmany(ROWS_AT_ONCE):
        ids += [number for number, _, _ in some]
        owners += [place.get(name_id, -1) for _, name_id, _ in some]
        parts.append(from_blobs(path, [blob for _, _, blob in some], dim))
    if -1 in owners or any(type(number) is not int for number in ids):
        raise damaged(path)
    return np.array(ids, np.int64), np.array(owners, np.int64), np.concatenate(parts)


def read_counts(path: Path, db: sqlite3.Connection, name: str | None = None) -> dict[str, Counts]:
    """How many prints each name has, in order of name, or one alone. Raises GalleryError on contents that make no sense."""
    rows = db.execute(
        "SELECT name, SUM(negative = 0), SUM(negative = 1) FROM prints JOIN names ON name_id = names.id"
        f"{'' if name is None else ' WHERE name = ?'} GROUP BY name ORDER BY name",
        () if name is None else (name,),
    ).fetchall()
    if any([type(value) for value in row] != [str, int, int] for row in rows):
        raise damaged(path)
    return {name: Counts(prints, negatives) for name, prints, negatives in rows}


def read_holders(db: sqlite3.Connection, blobs: Iterable[bytes]) -> dict[bytes, set[str]]:
    """Of each of these prints the names that have it."""
    found: dict[bytes, set[str]] = {blob: set() for blob in blobs}
    asked = list(found)
    for start in range(0, len(asked), ASKED_AT_ONCE):
        some = asked[start : start + ASKED_AT_ONCE]
        these = ",".join("?" * len(some))
        rows = db.execute(
            "SELECT name, embedding FROM prints JOIN names ON name_id = names.id"
            f" WHERE negative = 0 AND substr(embedding, 1, 8) IN ({these}) AND embedding IN ({these})",
            [*(blob[:8] for blob in some), *some],  # by an index on the beginnings
        )
        for name, blob in rows:
            found[blob].add(name)
    return found


def read_indexed(path: Path, db: sqlite3.Connection, dim: int) -> tuple[Places, Floats]:
    """What an index is made of: ids `[n]` and embeddings `[n, dim]`. Raises GalleryError on contents that make no sense."""
    place = {name_id: at for at, (name_id,) in enumerate(db.execute("SELECT id FROM names").fetchall())}
    ids, _, prints = read_prints(path, db, dim, place, negative=False)
    return ids, prints


def holds(ids: Places, prints: Floats, some: Places, those: Floats) -> bool:
    """Whether all of `some` ids are among `ids`, with `those` prints."""
    order = np.argsort(ids)
    at = order[np.searchsorted(ids[order], some[np.isin(some, ids)])]
    return len(at) == len(some) and np.array_equal(prints[at], those)


def new_places(blobs: Sequence[bytes], known: Collection[bytes]) -> list[int]:
    """The places of the prints that are neither among `known` nor a copy of one before them."""
    seen, places = set(known), []
    for at, blob in enumerate(blobs):
        if blob not in seen:
            seen.add(blob)
            places.append(at)
    return places
