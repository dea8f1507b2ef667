"""What importing the runtime costs a device."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "sklearn", "transformers", "onnxruntime", "sounddevice", "soundfile", "soxr", "onnx", "scipy"}


def test_the_package_lists_its_names_and_its_version() -> None:
    import confit_edge
    import confit_runtime

    assert set(confit_runtime.__all__) <= set(dir(confit_runtime))
    assert all(hasattr(confit_runtime, name) for name in confit_runtime.__all__)
    assert confit_runtime.__version__ == confit_edge.__version__


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    script = "import sys, confit_runtime, confit_runtime.gallery, confit_runtime.sources; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_measuring_sound_opens_no_microphone() -> None:
    script = "import sys, confit_runtime.enrollment, confit_runtime.voiced; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "confit_runtime.voiced" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("confit_runtime.sources")]
