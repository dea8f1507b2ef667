"""What the commands of the benchmarks share: what they say while they measure, and how they end where something is missing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from confit_runtime.errors import ConfitError


def say(text: str) -> None:
    """Print a message with the time of day on stderr; results go to stdout and into files."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; an error that its user can mend is one line."""
    try:
        main()
    except ConfitError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
