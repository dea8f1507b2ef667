"""The one place that imports torchaudio: its pure-PyTorch parts, without its native library.

torchaudio's wheel links CUDA. With a CPU-only torch its native library fails to load, and the whole import fails with
it. Nothing here needs that library.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from confit_runtime.errors import UsageError


def skip_native_library() -> None:
    """Make the first `import torchaudio`, ours or transformers', skip its native library."""
    if "torchaudio" not in sys.modules:
        extension: Any = ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
        extension.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = extension


def torchaudio() -> ModuleType:
    """The torchaudio module. Raises UsageError with the command that installs it when it is absent."""
    if find_spec("torchaudio") is None:
        raise UsageError("recipe key 'spec_augment' needs torchaudio: pip install 'confit-edge[train]'")
    skip_native_library()
    return import_module("torchaudio")
