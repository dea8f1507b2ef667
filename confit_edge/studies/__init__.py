"""The studies: the questions the paper leaves open, each put to any corpus by one file in `questions/`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_edge.studies.study import Study


def names() -> list[str]:
    """Every study there is."""
    from confit_edge.studies import questions

    return sorted(module.name for module in pkgutil.iter_modules(questions.__path__))


def find(name: str) -> Study:
    """The study of that name. Raises UsageError listing all of them where there is none."""
    if name not in names():
        raise UsageError(f"study {name!r}: there is none of that name; there are {', '.join(names())}")
    study: Study = importlib.import_module(f"confit_edge.studies.questions.{name}").STUDY
    return study
