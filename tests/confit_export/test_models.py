"""The scripts that made the models that ship: what they stand on is still there."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("script", sorted(MODELS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_finds_all_that_it_imports(script: Path) -> None:
    assert "main" in runpy.run_path(str(script), run_name="read")
