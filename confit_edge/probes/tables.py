"""Tables for a person (Markdown that also reads as text) and for a program (CSV)."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from confit_edge.files import write_text


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are as wide as their longest cell; all but the first are set to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(map(line, [header, rule, *rows]))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, with a column for each key that any of them has; written whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def known(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for what is not defined: JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
