"""The command as the tests look into it: every verb, and its options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from confit_edge.cli import command_line

PROGRAM = typer.main.get_command(command_line())


def _verbs(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    for name, verb in getattr(command, "commands", {}).items():
        yield " ".join((*path, name)), verb
        yield from _verbs(verb, *path, name)


VERBS = dict(_verbs(PROGRAM))  # every verb, and every verb of a group, under its name
