"""Files written whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, though another process writes it, too: the last one's stays. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def default_cache() -> Path:
    """$CONFIT_EDGE_CACHE, or a folder in the user's home; a user id may have none."""
    chosen = os.environ.get("CONFIT_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.path.expanduser("~")
    return Path(home if home != "~" else tempfile.gettempdir(), ".cache", "confit-edge")
