"""Tables for a person (Markdown that also reads as text) and for a program (CSV)."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

from confit_edge.files import write_text

# of Markdown and HTML; a bracket is one only where a link or an image may follow, and not in `90.0 [81.2, 95.1]`
_MARKS = re.compile(r"[\\`*_<>&|~]|\](?=[(\[])")


def escaped(text: str) -> str:
    """A name, of a class or a run, as Markdown shows it: on one line, and whatever is in it is no link, picture or tag."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


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
    """The rows, with a column for each key that any of them has; written whole or not at all.

    Names stand as they are, also one like `=A1`, which a spreadsheet takes for a formula: programs find them again so.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def known(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for what is not defined: JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
