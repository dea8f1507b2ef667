"""Pre-trained encoders by name, and the same architecture again from a run."""

from __future__ import annotations

from typing import Any

from confit_edge.encoders.base import Encoder
from confit_runtime.errors import ConfitError


def pretrained(name: str, window_s: float) -> Encoder:
    """`speech-embedding` (ships with confit-edge), or a transformers checkpoint: a hub name or a local directory.

    `window_s` is the longest window in seconds. Raises ConfitError when a checkpoint does not hold every encoder weight.
    """
    if name in ("speech-embedding", "speech_embedding"):
        from confit_edge.encoders.speech_embedding import SpeechEmbedding

        return SpeechEmbedding.pretrained(SpeechEmbedding.pool_hops_for(window_s))
    from confit_edge.encoders.transformers import TransformersEncoder

    return TransformersEncoder.pretrained(name, window_s)


def build(spec: dict[str, Any]) -> Encoder:
    """The architecture of `Encoder.spec()`, without weights."""
    rest = {key: value for key, value in spec.items() if key != "family"}
    if spec.get("family") == "speech_embedding":
        from confit_edge.encoders.speech_embedding import SpeechEmbedding

        return SpeechEmbedding(**rest)
    if spec.get("family") == "transformers":
        from confit_edge.encoders.transformers import TransformersEncoder

        return TransformersEncoder(**rest)
    raise ConfitError(f"encoder family {spec.get('family')!r} is not known to this version")
