"""The studies: each file in `questions/` answers one question the paper leaves open, on any corpus."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_edge.studies.study import Study


def names() -> list[str]:
    """Return the names of all studies."""
    from confit_edge.studies import questions

    return sorted(module.name for module in pkgutil.iter_modules(questions.__path__))


def find(name: str) -> Study:
    """Return the study of that name. Raises UsageError, listing all names, if there is none."""
    if name not in names():
        raise UsageError(f"study {name!r}: there is no such study; choose one of {', '.join(names())}")
    study: Study = importlib.import_module(f"confit_edge.studies.questions.{name}").STUDY
    return study
