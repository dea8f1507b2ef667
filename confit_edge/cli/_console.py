"""How verbs speak: results to stdout (as JSON lines with --json), everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout; everything else goes to stderr.")]


def emit(kind: str, /, **fields: Any) -> None:
    """One JSON line on stdout, `{"type": kind, ...}`, flushed at once for whoever reads the pipe."""
    print(json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False), flush=True)


def say(text: str = "") -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)
