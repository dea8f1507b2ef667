"""The same work in two processes at once, as two people at one machine do it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 1
REPEATED = """
import sys, time
from pathlib import Path
path = Path(sys.argv[1])
{begin}
print(flush=True)
sys.stdin.readline()
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    {work}
"""


def at_once(begin: str, work: str, path: Path) -> None:
    """After `begin` in both, `work` on `path` again and again for a while. Raises AssertionError with what one fails of."""
    script = REPEATED.format(begin=begin, work=work, seconds=SECONDS)
    command = [sys.executable, "-c", script, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        one.stdout.readline()
    for one in both:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], "\n".join(said)
