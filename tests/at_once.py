"""The same work in two processes at once, as two people at one machine do it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 1
REPEATED = """
import os, sys, time
from importlib import import_module
from pathlib import Path
path = Path(sys.argv[1])
for module in sys.argv[2:]:
    import_module(module)
ours, theirs = os.pipe(), os.pipe()
other = os.fork()
told, heard, *others = (ours[1], theirs[0], ours[0], theirs[1]) if other else (theirs[1], ours[0], theirs[0], ours[1])
for descriptor in others:  # one that fails is not waited for
    os.close(descriptor)
{begin}
os.write(told, b"ready")
os.read(heard, 5)
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    {work}
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def at_once(begin: str, work: str, path: Path, *modules: str) -> None:
    """After `begin` in both, `work` on `path` again and again for a while. Raises AssertionError with what one fails of.

    `modules` are those that take long to load: one loads them for both.
    """
    script = REPEATED.format(begin=begin, work=work, seconds=SECONDS)
    command = [sys.executable, "-c", script, str(path), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
