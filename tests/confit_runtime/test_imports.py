"""What importing the runtime costs a device."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "sklearn", "transformers", "onnxruntime", "sounddevice", "soundfile", "soxr", "onnx", "scipy"}


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    script = "import sys, confit_runtime, confit_runtime.gallery, confit_runtime.sources; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
