"""LoRA (Hu et al. 2021, arXiv 2106.09685) with peft: a few low-rank matrices train instead of the encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from confit_edge.encoders.base import Encoder
from confit_runtime.errors import UsageError


@contextlib.contextmanager
def adapted(encoder: Encoder, rank: int) -> Iterator[None]:
    """Add adapters of `rank` to an attention encoder's projections for the time of the context; none if `rank` is 0.

    Within it, only the adapters and any learned pooling of the encoder train. Adding adapters does not change its output.
    At the end they are merged into the weights, and the encoder is a plain one again, with the same trainable parameters
    as before. Raises UsageError for an encoder without attention.
    """
    if rank == 0:
        yield
        return
    from peft import LoraConfig, LoraModel

    from confit_edge.encoders.transformers import TransformersEncoder

    if not isinstance(encoder, TransformersEncoder):
        name = encoder.family.replace("_", "-")
        raise UsageError(f"recipe key 'lora_rank' is for attention encoders, not for --encoder {name}")
    learns = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(encoder.architecture.low_rank))
    adapters = LoraModel(encoder.model, settings, "default")
    try:
        yield
    finally:
        adapters.merge_and_unload()
        for parameter in learns:
            parameter.requires_grad_(True)
