"""Whether a launcher (`torchrun`, `accelerate launch`) started this process as one of several. Needs no torch."""

from __future__ import annotations

import os

from confit_runtime.errors import UsageError


def is_multi_process() -> bool:
    """Whether a launcher started more than this one process."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def check_single_process(verb: str, instead: str) -> None:
    """Raise UsageError where a launcher started several processes of a single-process `verb`.

    `instead` ends the sentence with further advice.
    """
    if is_multi_process():
        raise UsageError(
            f"{verb} runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}: start it without a launcher, or"
            f" unset WORLD_SIZE{instead}"
        )
