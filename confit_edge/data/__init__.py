"""Manifests of labelled clips: reading, splitting, decoding and checking them."""

from confit_edge.data.clips import ClipProblem, ClipStore, load_clips
from confit_edge.data.manifest import Clip, Manifest, read_manifest, write_manifest
from confit_edge.data.splits import with_splits
from confit_edge.data.tables import ManifestError

__all__ = [
    "Clip",
    "ClipProblem",
    "ClipStore",
    "Manifest",
    "ManifestError",
    "load_clips",
    "read_manifest",
    "with_splits",
    "write_manifest",
]
