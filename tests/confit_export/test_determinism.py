"""The same run gives the same bytes in another process, where hashes and addresses are others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from confit_export.export import Exported

EXPORT = """
import sys
from contextlib import suppress
from confit_edge.cli import main
command = sys.argv[1:3]
for precision, option in (("fp32", "--no-quantize"), ("int8", "--quantize")):
    sys.argv = ["confit-edge", "export", command[0], "-o", f"{command[1]}/{precision}/words.onnx", option]
    with suppress(SystemExit):
        main()
"""


def test_another_process_writes_the_same_bytes(exports: dict[str, Exported], run_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXPORT, str(run_path), str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    for precision, here in exports.items():
        # the model's name, which is in the file, comes from the file's
        assert (tmp_path / precision / "words.onnx").read_bytes() == here.path.read_bytes(), done.stderr
