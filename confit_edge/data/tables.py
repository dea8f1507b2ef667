"""Tables on disk: read from CSV, JSONL, Parquet or a folder per class, as rows that know their place; written as CSV."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from shlex import quote

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.labels import read_utf8
from confit_runtime.sources.files import find_sound_files

log = logging.getLogger(__name__)

Row = tuple[str, dict[str, object]]  # its place ("line 4"), and its cells by column
Table = tuple[list[str], list[Row]]  # the columns, and the rows


class ManifestError(ConfitError):
    """A manifest that cannot be used for training as it is; the message names the row, class or group at fault."""


def read_table(source: Path, wanted: Collection[str | None]) -> Table:
    """The columns and rows of a manifest (from Parquet, only the `wanted` columns). Raises as `read_manifest` does."""
    if not source.exists():
        raise UsageError(f"{source}: no such manifest file or folder")
    suffix = source.suffix.lower()
    try:
        if source.is_dir():
            columns, rows = _read_folder(source)
        elif suffix == ".csv":
            columns, rows = _read_csv(source)
        elif suffix in (".jsonl", ".ndjson"):
            columns, rows = _read_jsonl(source)
        elif suffix in (".parquet", ".pq"):
            columns, rows = _read_parquet(source, wanted)
        else:
            raise UsageError(
                f"{source}: expected a .csv, .jsonl or .parquet file, or a folder with one sub-folder per class"
            )
    except OSError as error:
        raise ManifestError(f"{source}: cannot be read ({error.strerror or error})") from error
    twice = sorted({name for name in columns if name in wanted and columns.count(name) > 1})
    if twice:
        raise ManifestError(f"{source}: more than one column is called {twice[0]!r}")
    return columns, rows


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV, with a column for each key in any of them. Lines end with a line feed alone.

    Names are written unchanged, so that programs can match them, even one like `=A1`, which a spreadsheet reads as a formula.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_csv(source: Path) -> Table:
    reader = csv.reader(io.StringIO(read_utf8(source, ManifestError), newline=""), strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
            elif len(cells) != len(columns):
                raise ManifestError(
                    f"{source}, line {reader.line_num}: has {len(cells)} cells, but the header has {len(columns)}"
                )
            else:
                rows.append((f"line {reader.line_num}", dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise ManifestError(f"{source}, line {reader.line_num}: is not CSV ({error})") from error
    if not columns:
        raise ManifestError(f"{source}: is empty")
    return columns, rows


def _read_jsonl(source: Path) -> Table:
    rows: list[Row] = []
    for number, line in enumerate(read_utf8(source, ManifestError).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{source}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{source}, line {number}: expected one JSON object per line, got {line.strip():.60}")
        rows.append((f"line {number}", row))
    if not rows:
        raise ManifestError(f"{source}: is empty")
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _read_parquet(source: Path, wanted: Collection[str | None]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            columns = list(file.schema_arrow.names)
            cells = file.read(columns=[name for name in columns if name in wanted]).to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise ManifestError(f"{source}: cannot be read as Parquet ({error})") from error
    return columns, [(f"row {number}", row) for number, row in enumerate(cells, start=1)]


def _read_folder(source: Path) -> Table:
    sounds = sorted(relative(path, source) for path in find_sound_files(source))
    clips = [name for name in sounds if "/" in name]
    if odd := [os.fsencode(name) for name in clips if not is_unicode(name)]:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ManifestError(
            f"{source}: has names that are not UTF-8: {', '.join(map(repr, odd[:3]))}{more}; rename them, for example with"
            f" `convmv -r -f latin1 -t utf8 --notest {source}`"
        )
    rows: list[Row] = []
    for name in clips:
        label, *inner, _ = name.split("/")
        rows.append((name, {"path": name, "label": label, "group": inner[0] if inner else None}))
    classes = {row["label"] for _, row in rows}
    for inside in sorted(source.iterdir()):
        if inside.is_dir() and not inside.name.startswith(".") and inside.name not in classes:
            log.warning("%s: contains no readable sound, so there is no class of that name", inside)
    beside = [name for name in sounds if "/" not in name]
    if not classes:
        lie = f"; its sound files ({len(beside)}, such as {beside[0]}) are not in a sub-folder" if beside else ""
        if tables := sorted(source.glob("manifest.*")):
            lie += f"; to use its manifest, give {tables[0]}"
        raise ManifestError(f"{source}: has no sub-folder with sound files; expected one sub-folder per class{lie}")
    if beside:
        log.warning(
            "%s: left out sound files outside the class folders, which have no class (%d, such as %s)",
            source, len(beside), beside[0],
        )  # fmt: skip
    return ["path", "label", "group"], rows


def relative(path: Path, folder: Path) -> str:
    """The path relative to `folder`, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def check_utf8(path: Path) -> None:
    """Raise UsageError if a name in a path is not UTF-8: text cannot represent it, and safetensors cannot open it."""
    for place in (*reversed(path.parents), path):
        try:
            place.name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{path}: the name {os.fsencode(place.name)!r} in it is not UTF-8; rename it, for example with"
                f" `convmv -f latin1 -t utf8 --notest {quote(str(place.parent))}/*`"
            ) from error


def is_unicode(text: str) -> bool:
    return not any(unicodedata.category(character) == "Cs" for character in text)
