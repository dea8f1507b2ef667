"""The protocol every encoder follows: PCM windows in, feature frames out, averaged over time and normalised."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_runtime.errors import ConfitError

AT_ONCE, AT_ONCE_S = 64, 82.0  # windows, and seconds of sound in them


class Encoder(nn.Module, ABC):
    """A pre-trained audio encoder with its front end inside.

    Attributes:
    - `sample_rate` in Hz.
    - `window`: the number of samples that one embedding is made from.
    - `hop`: the number of samples between two embeddings on a device.
    - `dim`: the size of the embedding.
    - `streaming`: whether it can be exported with state carried from hop to hop.
    - `learning_rate`, `gain`: the peak rate of fine-tuning, and the most dB by which clips become louder or softer, unless
      the recipe gives its own.
    - `highest_hz`: the highest frequency its front end hears, if that is below half the sample rate.
    """

    family: str
    sample_rate: int
    window: int
    hop: int
    dim: int
    streaming: bool
    learning_rate: float
    gain: float = 6.0
    highest_hz: float = math.inf

    @abstractmethod
    def frames(self, pcm: Tensor) -> Tensor:
        """Feature frames `[batch, time, dim]` of `pcm [batch, samples]` in -1..1 at `sample_rate`."""

    @abstractmethod
    def blocks(self) -> list[list[nn.Module]]:
        """The modules with weights, from input to output, for freezing and for layer-wise learning rates.

        The first block is everything before the first layer (the convolutional feature encoder, the projection,
        position tables); each of the others is one layer. Every trainable parameter is in exactly one block, or in
        `learned_pooling`.
        """

    @property
    def at_once(self) -> int:
        """How many windows to embed together outside training: fewer if they are long, to bound memory."""
        return max(1, min(AT_ONCE, int(AT_ONCE_S * self.sample_rate) // self.window))

    def learned_pooling(self) -> list[nn.Module]:
        """The modules that pool frames with newly learned weights, which start as a plain mean; not pre-trained layers."""
        return []

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain data from which `confit_edge.encoders.build` rebuilds the same architecture (without weights)."""

    def streaming_layers(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers from `[streams, 1, samples]` to pooled frames `[streams, dim, hops]`: the front end, and the rest.

        All of them stream exactly. Raises ConfitError if the encoder cannot stream (`streaming` is False).
        """
        raise ConfitError(f"{self.family} cannot stream: it takes whole windows")

    def pooled(self, pcm: Tensor) -> Tensor:
        """Frames of windows `[batch, window]` averaged over time, `[batch, dim]`."""
        return self.frames(pcm).float().mean(dim=1)

    def forward(self, pcm: Tensor) -> Tensor:
        """Embeddings `[batch, dim]` of windows `[batch, window]`: pooled over time, then normalised."""
        return normalise(self.pooled(pcm))

    @torch.no_grad()
    def rows(self, clip: Tensor) -> Tensor:
        """Embeddings `[hops, dim]` of one clip `[samples]`, exactly as a device computes them hop by hop.

        A clip shorter than the window is centred in it; a longer one is padded at its end to a whole hop.
        """
        windows = whole_hops(clip, self.window, self.hop).unfold(0, self.window, self.hop)
        return torch.cat([self(part) for part in windows.split(self.at_once)])


def normalise(pooled: Tensor) -> Tensor:
    """Centre each vector `[..., dim]` on its own mean and scale it to length 1.

    A LayerNorm without parameters, except for the constant factor sqrt(dim). Raw frames of a pre-trained encoder share
    one large component; without this step every cosine is near 1.
    """
    return functional.normalize(pooled - pooled.mean(dim=-1, keepdim=True), dim=-1)


def whole_hops(clip: Tensor, window: int, hop: int) -> Tensor:
    """A clip `[samples]` padded to one window, or if longer to whole hops beyond it, as the contract prescribes."""
    clip = centred(clip, window)
    return functional.pad(clip, (0, -(len(clip) - window) % hop))


def centred(clip: Tensor, window: int) -> Tensor:
    """The clip `[samples]` padded with zeros on both sides to the window's length; longer clips are returned unchanged."""
    missing = window - len(clip)
    return functional.pad(clip, (missing // 2, missing - missing // 2)) if missing > 0 else clip
