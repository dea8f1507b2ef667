"""Replaces activations that no runtime fuses with one that runtimes do, and refits the layers after it to compensate.

max(leaky_relu(x, 0.2), -0.4) costs a streaming step one node after each of its convolutions, and a node costs more than its
arithmetic. The convolution itself computes max(x, -0.3), and in int8 that is free, because it is the end of the range.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.speech_embedding import ClippedLeakyReLU
from confit_edge.runs import Run
from confit_edge.windows import make_augmenter

WINDOWS = 320
BATCH_SIZE = 16  # windows whose taps are in memory at the same time
RIDGE = 1e-3  # of the mean square of a tap: a weight that few windows determine stays close to its old value


class Floor(nn.Module):
    """max(x, low)."""

    pointwise_in_time = True

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.low)


REPLACEMENTS: dict[type[nn.Module], Callable[[], nn.Module]] = {ClippedLeakyReLU: partial(Floor, -0.3)}


def can_fuse(encoder: Encoder) -> bool:
    """Whether the encoder streams and has an activation with a stand-in."""
    return encoder.streaming and any(type(layer) in REPLACEMENTS for layer in encoder.streaming_layers()[1])


@torch.no_grad()
def fuse_activations(encoder: Encoder, corpus: Corpus, run: Run) -> Encoder:
    """Return a copy of a streaming encoder with stand-ins for its activations, which embeds nearly as before.

    From the first layer to the last, each convolution after a stand-in gets new weights: those that, from its changed input,
    best reproduce the output it used to give. They come from ridge regression on augmented training windows, towards the old
    weights, so each layer corrects the errors of the layers before it as far as a linear layer can. No label is used. A
    grouped convolution, or one that pads with anything but zeros, keeps its weights.
    """
    clips, rng = corpus.training_clips(), np.random.default_rng([run.recipe.seed, 8])
    rows = np.resize(rng.permutation(len(clips)), WINDOWS)
    windows = make_augmenter(encoder, corpus, run.recipe)([clips.pcm[int(row)] for row in rows], rng)
    fused = copy.deepcopy(encoder).eval()
    names = {module: name for name, module in fused.named_modules()}
    front_end, layers = fused.streaming_layers()
    x = torch.from_numpy(windows)[:, None]
    for layer in front_end:
        x = layer(x)
    reference_x = fused_x = x
    for layer in layers:
        reference_y = layer(reference_x)
        if make_replacement := REPLACEMENTS.get(type(layer)):
            replacement = make_replacement()
            fused.set_submodule(names[layer], replacement)
            fused_x = replacement(fused_x)
        elif fused_x is reference_x:
            fused_x = reference_y
        else:
            if isinstance(layer, nn.Conv2d):
                _refit(layer, fused_x, reference_y)
            fused_x = layer(fused_x)
        reference_x = reference_y
    return fused


def _refit(layer: nn.Conv2d, x: Tensor, target: Tensor) -> None:
    """Give `layer` the weights that map `x` closest to `target` in least squares, by the normal equations."""
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return
    weight, with_bias = layer.weight.flatten(1).double(), layer.bias is not None
    size = weight.shape[1] + with_bias
    gram, cross = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, len(weight), dtype=torch.double)
    for batch_x, batch_target in zip(x.split(BATCH_SIZE), target.split(BATCH_SIZE), strict=True):
        taps = functional.unfold(batch_x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        taps = taps.transpose(1, 2).flatten(0, 1).double()  # [positions, inputs * kernel]
        residual = (batch_target - layer(batch_x)).flatten(2).transpose(1, 2).flatten(0, 1).double()
        if with_bias:
            taps = functional.pad(taps, (0, 1), value=1.0)
        gram += taps.T @ taps
        cross += taps.T @ residual
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    update = torch.linalg.solve(gram, cross).T
    layer.weight.add_(update[:, : weight.shape[1]].reshape(layer.weight.shape).float())
    if layer.bias is not None:
        layer.bias.add_(update[:, -1].float())
