"""Where the files that ship with confit-edge are: models, encoder weights."""

from __future__ import annotations

from pathlib import Path

from confit_runtime.errors import UsageError

_HERE = Path(__file__).resolve().parent
# next to this module in an installed wheel, at the top level in a checkout
MODELS = _HERE / "models" if (_HERE / "models").is_dir() else _HERE.parents[1] / "models"


def display_name(path: Path) -> str:
    """A model file as a user names it: a shipped one by its name, any other by its path."""
    return path.stem if path.parent == MODELS else str(path)


def shipped_model(name: str) -> Path:
    """The path of a model that ships with confit-edge, by its name. Raises UsageError listing the shipped models."""
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in MODELS.glob("*.onnx"))) or "none"
        what = "is a folder" if Path(name).is_dir() else "no such file"
        raise UsageError(
            f"{name}: {what}, and no shipped model has that name (shipped: {names}){did_you_mean(Path(name))}"
        )
    return path


def did_you_mean(path: Path) -> str:
    """A hint if a model file exists under that name plus the missing suffix."""
    return f"; did you mean {path}.onnx?" if Path(f"{path}.onnx").is_file() else ""
