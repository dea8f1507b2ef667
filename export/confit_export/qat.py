"""Quantisation-aware fine-tuning: a few epochs that teach the encoder to embed as before with rounded numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.runs import Run
from confit_edge.windows import make_augmenter
from confit_export.targets import Preset

LR = 2e-4
BATCH = 32
DECAY = 0.95  # of the running range of an activation, per batch


class FakeQuantWeight(nn.Module):
    """A weight rounded to int8 per output channel; gradients pass as if it were not (straight-through)."""

    def __init__(self, reduce_range: bool) -> None:
        super().__init__()
        self.limit = 64 if reduce_range else 127

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-9) / self.limit
        zero_points = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -self.limit, self.limit)


class FakeQuantInput(nn.Module):
    """A layer's input rounded to uint8 over its running range, which includes zero."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
            decay = DECAY if self.high > self.low else 0.0
            self.low.mul_(decay).add_(low, alpha=1 - decay)
            self.high.mul_(decay).add_(high, alpha=1 - decay)
        scale = max(float(self.high - self.low) / 255, 1e-9)
        zero_point = min(255, max(0, round(-float(self.low) / scale)))
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


def fine_tune(
    encoder: Encoder, corpus: Corpus, run: Run, preset: Preset, epochs: int, say: Callable[[str], None]
) -> Encoder:
    """Return a copy of `encoder` trained so that, with weights and activations rounded, it embeds like the run in fp32.

    The teacher is the run's own encoder on the same augmented clips, so no label is used, and galleries and thresholds keep
    their meaning. Jacob et al. 2018 (arXiv 1712.05877) for the rounding, Bengio et al. 2013 (arXiv 1308.3432) for
    the gradient through it.
    """
    student = copy.deepcopy(encoder).eval()  # no dropout and no random draws: the same run gives the same bytes
    layers = _trainable_layers(student)
    fake_inputs = [(layer, FakeQuantInput()) for layer in layers]
    hooks = [layer.register_forward_pre_hook(_quantize_input(fake_quant)) for layer, fake_quant in fake_inputs]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", FakeQuantWeight(preset.reduce_range))
    clips, rng = corpus.training_clips(), np.random.default_rng([run.recipe.seed, 9])
    augment = make_augmenter(encoder, corpus, run.recipe)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    steps = epochs * -(-len(clips) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        losses = []
        order = rng.permutation(len(clips))
        for start in range(0, len(clips), BATCH):
            pcm = torch.from_numpy(augment([clips.pcm[int(row)] for row in order[start : start + BATCH]], rng))
            with torch.no_grad():
                target = run.encoder(pcm)
            loss = (1 - (student(pcm) * target).sum(dim=1)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        say(f"quantisation-aware epoch {epoch + 1}/{epochs}: 1 - cosine to fp32 {np.mean(losses):.4f}")
    for hook in hooks:
        hook.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return student.eval()


def _trainable_layers(student: Encoder) -> list[nn.Module]:
    """The convolutions and linear layers that learn, without the fixed ones of a front end.

    A layer whose weight is already computed (weight norm) is left alone.
    """
    return [
        module
        for block in student.blocks()
        for part in block
        for module in part.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        and not parametrize.is_parametrized(module)
        and module.weight.requires_grad
    ]


def _quantize_input(fake_quant: FakeQuantInput) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (fake_quant(inputs[0]), *inputs[1:])

    return hook
