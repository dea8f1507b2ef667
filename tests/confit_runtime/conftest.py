"""The tiny models, built once, and one that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from confit_runtime import Model, load
from tests import tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the streaming tiny model."""
    return tiny_model.build(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="session")
def model(tiny: Path) -> Model:
    return load(tiny)


@pytest.fixture(scope="session")
def digits() -> Model:
    """A model that ships."""
    return load("digits")


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny_model.build(tmp_path_factory.mktemp("windowed") / "tiny.onnx", windowed=True))


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny_model.build(tmp_path_factory.mktemp("recurrent") / "tiny.onnx", recurrent=True))
