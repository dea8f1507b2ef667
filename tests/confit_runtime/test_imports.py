"""What importing the runtime costs a device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
    script = "import sys, confit_runtime.enrollment, confit_runtime.voice_activity; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "confit_runtime.voice_activity" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("confit_runtime.sources")]


@pytest.mark.parametrize(("chosen", "then"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnxruntime_telemetry_is_off_unless_enabled(chosen: dict[str, str], then: str) -> None:
    script = "import os, confit_runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    env = {**{name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}, **chosen}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == f"{then}\n"
