"""The command, as the tests of the verbs run it: in a process of its own, or in theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable

COMMAND = [sys.executable, "-c", "from confit_edge.cli import main; main()"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # of what trains
Confit = Callable[..., tuple[int, str, str]]  # the fixture `confit`: arguments to exit status, stdout and stderr
