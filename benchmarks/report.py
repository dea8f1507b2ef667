"""Writes results, with a description of the machine they were measured on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from confit_edge.encoders import BUILT_IN
from confit_edge.files import write_text
from confit_edge.runs import versions
from confit_runtime.gemm import processor, saturates

RESULTS = Path(__file__).parent / "results"


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write `path`: the whole file, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def machine() -> dict[str, Any]:
    return {
        "versions": versions(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "vnni": not saturates(),
    }


def encoder_argument(label: str) -> str:
    """Return an encoder's label as a command takes it; for a local folder, DIR stands for wherever the user keeps it."""
    return label if label in BUILT_IN or "/" in label else f"DIR/{label}"
