"""Tables for people (Markdown that is also readable as text) and for programs (CSV)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from confit_edge.data.tables import csv_text
from confit_edge.files import write_text

# marks of Markdown and HTML; a closing bracket counts only before ( or [, so not in `90.0 [81.2, 95.1]`
_MARKS = re.compile(r"[\\`*_<>&|~]|\](?=[(\[])")
_CODE = re.compile(r"(`[^`]+`)")


def escaped(text: str) -> str:
    """A name escaped for Markdown: on one line, and nothing in it is read as a link, image or tag."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def escaped_sentence(text: str) -> str:
    """A sentence escaped like a name, except that `code` between backticks stays code, also in a cell of a table."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if at % 2 else _MARKS.sub(r"\\\g<0>", part) for at, part in enumerate(parts)
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with columns as wide as their longest cell; all but the first column are right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(map(line, [header, rule, *rows]))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as `csv_text` has them; the file is written whole or not at all."""
    write_text(path, csv_text(rows))


def nan_to_none(row: dict[str, Any]) -> dict[str, Any]:
    """The row with NaN replaced by None, because JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
