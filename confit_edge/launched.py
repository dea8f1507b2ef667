"""Whether a launcher (`torchrun`, `accelerate launch`) started this process as one of several: known without torch."""

from __future__ import annotations

import os

from confit_runtime.errors import UsageError


def several() -> bool:
    """Whether there are others beside this process."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def refuse_several(verb: str, instead: str) -> None:
    """Raise UsageError where a launcher starts several processes of a `verb` that is one; `instead` says what to do."""
    if several():
        raise UsageError(
            f"{verb} is one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}: start it without a launcher, or unset"
            f" WORLD_SIZE{instead}"
        )
