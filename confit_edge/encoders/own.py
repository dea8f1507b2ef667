"""Checks, before training, that an encoder made by a user's own program follows the protocol."""

from __future__ import annotations

import copy
import json
from collections import Counter
from numbers import Integral, Real

import torch

from confit_edge.encoders.base import Encoder
from confit_runtime.errors import UsageError

NUMBERS = ("sample_rate", "window", "hop", "dim")


def check_encoder(encoder: Encoder) -> None:
    """Raise UsageError where the encoder does not follow `confit_edge.encoders.base.Encoder`; says how it differs."""
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise UsageError(f"encoder: must be a confit_edge.encoders.base.Encoder; it is a {name}")
    kinds: dict[str, type] = {"family": str, "streaming": bool, "learning_rate": Real, "gain": Real, "highest_hz": Real}
    kinds |= dict.fromkeys(NUMBERS, Integral)
    wanted: dict[type, str] = {Real: "a number", Integral: "a whole number"}
    for key, kind in kinds.items():
        if not isinstance(value := getattr(encoder, key, None), kind):
            raise UsageError(f"encoder {name}: {key} must be {wanted.get(kind, kind.__name__)}; it is {value!r}")
    for key in NUMBERS:
        if (count := getattr(encoder, key)) < 1:
            raise UsageError(f"encoder {name}: {key} must be at least 1; it is {count}")
    if not encoder.highest_hz > 0:
        raise UsageError(f"encoder {name}: highest_hz must be above 0; it is {encoder.highest_hz}")
    _check_spec(encoder, name)
    _check_blocks(encoder, name)
    _check_frames(encoder, name)


def copy_of(encoder: Encoder) -> Encoder:
    """A copy of the encoder with the same weights. Raises UsageError where torch cannot copy it."""
    try:
        return copy.deepcopy(encoder)
    except RuntimeError as error:
        raise UsageError(
            f"encoder {type(encoder).__name__}: cannot be copied ({error}); if it uses torch.nn.utils.weight_norm, use the"
            " one in torch.nn.utils.parametrizations instead"
        ) from error


def plain(spec: object) -> object:
    """A spec as `run.json` returns it. Raises TypeError or ValueError where it is not plain data."""
    return json.loads(json.dumps(spec, allow_nan=False))


def _check_spec(encoder: Encoder, name: str) -> None:
    spec = encoder.spec()
    try:
        plain(spec)
    except (TypeError, ValueError) as error:
        raise UsageError(f"encoder {name}: spec() must be plain data that JSON can hold ({error})") from error
    if not isinstance(spec, dict) or spec.get("family") != encoder.family:
        raise UsageError(
            f"encoder {name}: spec() must be a dict that names the family {encoder.family!r}; it is {spec!r}"
        )


def _check_blocks(encoder: Encoder, name: str) -> None:
    modules = [*(module for block in encoder.blocks() for module in block), *encoder.learned_pooling()]
    times = Counter(id(parameter) for module in modules for parameter in module.parameters())
    for key, parameter in encoder.named_parameters():
        if parameter.requires_grad and times[id(parameter)] != 1:
            raise UsageError(
                f"encoder {name}: {key} is in {times[id(parameter)]} of blocks(); every trainable parameter must be in exactly"
                " one, or in learned_pooling()"
            )


def _check_frames(encoder: Encoder, name: str) -> None:
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    noise = 0.1 * torch.randn(1, encoder.window, generator=torch.Generator().manual_seed(0))
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            frames = encoder.frames(noise.to(device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"encoder {name}: frames() of one window, float32 [1, {encoder.window}], fails ({error})"
        ) from error
    finally:
        encoder.train(training)
    if frames.ndim != 3 or len(frames) != 1 or frames.shape[1] < 1 or frames.shape[2] != encoder.dim:
        raise UsageError(
            f"encoder {name}: frames() of one window [1, {encoder.window}] must be [1, time, dim], with dim {encoder.dim};"
            f" it is {list(frames.shape)}"
        )
    if not frames.isfinite().all():
        raise UsageError(f"encoder {name}: frames() of a window of noise must be finite")
