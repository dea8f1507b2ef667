"""The outcomes of a study on disk: `study.json` describes the study, `trials.jsonl` has one line per finished trial.

Each line is on the disk before the next trial counts as done, so a study that is killed loses at most the trials that
were running. A line that was cut short is dropped, and its trial runs again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from confit_edge.files import write_text
from confit_edge.studies.trial import Outcome
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import name_file_in_errors

HEADER, TRIALS = "study.json", "trials.jsonl"


class Journal:
    """The outcomes, in the folder `path`, of the study that `header` (plain data) describes."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, self.header = path, header

    def open(self) -> dict[str, Outcome]:
        """Return the existing outcomes by key; write nothing. Raises UsageError if the folder holds something else.

        An encoder whose folder has moved counts as the same if its weights are the same.
        """
        if not (self.path / HEADER).is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise UsageError(f"{self.path}: is not empty and contains no study; choose another -o")
            return {}
        before = read_header(self.path / HEADER)
        changed = [key for key in self.header if key != "recipe" and before.get(key) != self.header[key]]
        recipe, other = before.get("recipe", {}), self.header["recipe"]
        moved = {"encoder"} if before.get("encoder_sha256") == self.header["encoder_sha256"] else set()
        changed += [
            f"recipe key '{key}'"
            for key in {**recipe, **other}
            if recipe.get(key) != other.get(key) and key not in moved
        ]
        if changed:
            raise UsageError(
                f"{self.path}: holds a study that differs in {', '.join(changed)}; choose another -o, or remove it"
            )
        return {outcome.key: outcome for outcome in read_outcomes(self.path)}

    @property
    def encoder(self) -> str:
        """The encoder's name when the study began, which is part of the keys of its trials."""
        header_file = self.path / HEADER
        return str((read_header(header_file) if header_file.is_file() else self.header)["recipe"]["encoder"])

    def begin(self) -> None:
        """Write the header, and drop a line that was cut short."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / HEADER).is_file():
            write_text(self.path / HEADER, json.dumps(self.header, indent=2, ensure_ascii=False) + "\n")
        trials = self.path / TRIALS
        if trials.is_file():
            whole = trials.read_bytes().rpartition(b"\n")[0]
            os.truncate(trials, len(whole) + 1 if whole else 0)

    def append(self, outcome: Outcome) -> None:
        """Add a line, and wait until it is on the disk."""
        trials = self.path / TRIALS
        with name_file_in_errors(trials), trials.open("ab") as file:
            file.write(outcome.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes in a study's folder. Raises ConfitError naming a damaged line (the last may be cut short)."""
    trials = path / TRIALS
    if not trials.is_file():
        return []
    outcomes = []
    for number, line in enumerate(trials.read_bytes().split(b"\n")[:-1], start=1):
        try:
            outcomes.append(Outcome.from_json(line.decode()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfitError(
                f"{trials}, line {number}: not an outcome ({error}); remove the line to run its trial again"
            ) from error
    return outcomes


def read_header(path: Path) -> dict[str, Any]:
    """Return the content of `study.json`. Raises ConfitError if it is damaged."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfitError(f"{path}: damaged ({error}); choose another -o, or remove the folder") from error
    if not isinstance(header, dict):
        raise ConfitError(f"{path}: damaged (it is not a JSON object); choose another -o, or remove the folder")
    return header
