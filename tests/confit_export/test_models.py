"""The scripts that made the models that ship: what they stand on is still there, and the cards are of these models."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("script", sorted(MODELS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_finds_all_that_it_imports(script: Path) -> None:
    assert "main" in runpy.run_path(str(script), run_name="read")


@pytest.mark.parametrize("model", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_card_of_a_model_that_ships_is_what_its_script_writes_of_it(model: Path) -> None:
    script = runpy.run_path(str(MODELS / model.stem / "make.py"), run_name="read")
    assert script["card"]() == model.with_suffix(".md").read_text(encoding="utf-8")
