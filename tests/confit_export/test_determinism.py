"""The same run gives the same bytes in another process, where hashes and addresses are others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from confit_export.export import Exported


@pytest.mark.parametrize(("precision", "option"), [("fp32", "--no-quantize"), ("int8", "--quantize")])
def test_another_process_writes_the_same_bytes(
    precision: str, option: str, exports: dict[str, Exported], run_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "words.onnx"  # the model's name, which is in the file, comes from it
    command = [sys.executable, "-m", "confit_edge", "export", str(run_path), "-o", str(out), option]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == exports[precision].path.read_bytes()
