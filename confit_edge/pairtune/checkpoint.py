"""A training interrupted at any moment resumes after its last whole epoch and ends with the same weights.

On a CPU they are the same bit for bit. On a GPU, some sums have no fixed order (torch's deterministic algorithms are
slower, and some are missing), so no two trainings are equal to the last bit, interrupted or not.

A checkpoint is one safetensors file, replaced atomically after every epoch: the tensors of the modules and the optimiser,
and plain data (epoch, history, kept) as JSON in its header. The random generators need no saving, as every epoch is
seeded with (seed, epoch).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from confit_edge.files import write_tensors
from confit_runtime.errors import ConfitError


def save(
    path: Path,
    modules: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    plain: dict[str, Any],
    kept: dict[str, Tensor],
    training: str,
) -> None:
    """Write modules, optimiser, the weights of the epoch kept so far (`kept`), `plain` data, and the `training`'s digest."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    tensors |= {f"kept.{key}": value for key, value in kept.items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value for slot, value in slots.items()}
    write_tensors(path, tensors, {"plain": json.dumps(plain), "training": training})


def restore(
    path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, training: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint into modules and optimiser; returns the plain data and the weights of the epoch kept.

    Raises ConfitError when it is damaged, or belongs to another `training`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain, of = json.loads(file.metadata()["plain"]), file.metadata()["training"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfitError(f"{path}: the checkpoint is damaged ({error}); remove it to train from the start") from error

    if of != training:
        raise ConfitError(f"{path}: the checkpoint belongs to another training; remove it to train from the start")

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    try:
        for name, module in modules.items():
            module.load_state_dict(under(f"{name}."), strict=True)
    except RuntimeError as error:
        raise ConfitError(
            f"{path}: the checkpoint belongs to another training; remove it to train from the start"
        ) from error
    described = optimiser.state_dict()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimiser.").items():
        index, slot = name.split(".")
        if tensor.dim():  # copied into the parameter's memory layout, so that arithmetic takes the same path
            tensor = torch.empty_like(parameters[int(index)], device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[slot] = tensor
    optimiser.load_state_dict({**described, "state": state})
    return plain, under("kept.")
