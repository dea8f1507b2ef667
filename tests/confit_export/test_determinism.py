"""The same run gives the same bytes in another process, where hashes and addresses are others."""

from __future__ import annotations

import json
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
for precision, option in (("int8", "--quantize"), ("fp32", "--no-quantize")):
    sys.argv = ["confit-edge", "export", command[0], "-o", f"{command[1]}/{precision}/words.onnx", option, "--json"]
    with suppress(SystemExit):
        main()
"""


def test_another_process_writes_the_same_bytes(exports: dict[str, Exported], run_path: Path, tmp_path: Path) -> None:
    """In another order, too: nothing is left of one export in the next."""
    command = [sys.executable, "-c", EXPORT, str(run_path), str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(exports) == ["fp32", "int8"]
    for precision, line in zip(("int8", "fp32"), done.stdout.splitlines(), strict=True):
        out, here = tmp_path / precision / "words.onnx", exports[precision]  # the model's name comes from the file's
        assert out.read_bytes() == here.path.read_bytes()
        assert sorted(entry.name for entry in out.parent.iterdir()) == ["words.md", "words.onnx"]
        summary = json.loads(line)
        assert (summary["type"], summary["path"], summary["bytes"]) == ("summary", str(out), out.stat().st_size)
        assert summary["thresholds"] == here.contract.thresholds
        assert summary["timing"]["p50_ms"] > 0
