"""Large batches in little memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the whole batch at once, but only its embeddings. So the batch is embedded in chunks that keep
no intermediate results, and the loss and miner see all embeddings. On the backward pass, each chunk is embedded once
more, with the same state of the random generators, and receives the gradient of its own embeddings. The result is exact;
it costs one more forward pass and needs the memory of one chunk. torch's checkpointing does this for one chunk; it
replays the random generators of the CPU and the device, the only ones that encoders use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from confit_runtime.errors import UsageError


def embed_in_chunks(encoder: nn.Module, pcm: Tensor, chunk_size: int) -> Tensor:
    """Embeddings `[batch, dim]` of windows `pcm [batch, samples]`, at most `chunk_size` at a time (0: all at once)."""
    if not 0 < chunk_size < len(pcm):
        return encoder(pcm)
    return torch.cat([checkpoint(encoder, chunk, use_reentrant=False) for chunk in pcm.split(chunk_size)])


def check_no_batch_statistics(encoder: nn.Module, why: str) -> None:
    """Raise UsageError when `encoder` normalises over the batch: part of a batch would give different embeddings."""
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise UsageError(f"{why}: this encoder normalises over the batch ({name}), so a batch cannot be divided")
