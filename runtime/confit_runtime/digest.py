"""SHA-256 as Python itself computes it: hashlib would load OpenSSL, 3.5 MB that a device does not otherwise need."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    for _module in ("_sha2", "_sha256", "hashlib"):  # from Python 3.12, before it, and builds without either
        try:
            sha256 = import_module(_module).sha256
            break
        except ImportError:
            continue

__all__ = ["sha256"]
