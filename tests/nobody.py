"""Programs of a user without rights: file permissions do not bind root, as which the tests may run."""

from __future__ import annotations

DROP_RIGHTS = """
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def as_nobody(imports: str, body: str) -> str:
    """A program for `python -c` that runs `imports` with all rights, because nobody may not read them, and `body` without."""
    return f"import os, sys\n{imports}\n{DROP_RIGHTS}\n{body}"
