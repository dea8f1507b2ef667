"""A checkpoint brings everything back exactly, or says that it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from confit_edge.pairtune import checkpoint
from confit_runtime.errors import ConfitError

Modules = dict[str, nn.Module]
PLAIN: dict[str, Any] = {"history": [{"epoch": 1, "loss": 0.1 + 0.2, "hardest": float("nan")}], "kept_epoch": 0}


def training(seed: int) -> tuple[Modules, torch.optim.Optimizer]:
    """Two modules and their optimiser: a convolution in channels-last layout, a part that never gets a gradient."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))
    encoder(torch.zeros(2, 3, 6, 6))
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules: Modules = {
        "encoder": encoder,
        "objective": nn.ModuleDict({"head": nn.Linear(4, 2), "idle": nn.Linear(2, 2)}),
    }
    optimiser = torch.optim.AdamW(
        [{"params": encoder.parameters(), "lr": 0.01}, {"params": modules["objective"].parameters(), "lr": 0.02}]
    )
    return modules, optimiser


def step(modules: Modules, optimiser: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    optimiser.zero_grad()
    modules["objective"].head(modules["encoder"](x)).square().sum().backward()  # type: ignore[operator, union-attr]
    optimiser.step()


def state(modules: Modules) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def test_training_continues_from_a_checkpoint_exactly(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    modules, optimiser = training(0)
    for seed in range(3):
        step(modules, optimiser, seed)
    best = {"encoder.0.bias": torch.arange(8.0)}
    checkpoint.save(path, modules, optimiser, PLAIN, best, "a training")
    fresh, fresh_optimiser = training(1)
    plain, best_again = checkpoint.restore(path, fresh, fresh_optimiser, "a training")
    assert repr(plain) == repr(PLAIN)  # NaN included
    assert best_again.keys() == best.keys()
    assert torch.equal(best_again["encoder.0.bias"], best["encoder.0.bias"])
    for seed in range(3, 6):
        step(modules, optimiser, seed)
        step(fresh, fresh_optimiser, seed)
    expected, found = state(modules), state(fresh)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    slots = fresh_optimiser.state_dict()["state"]
    assert all(torch.equal(slots[i][k], v) for i, s in optimiser.state_dict()["state"].items() for k, v in s.items())


def test_a_checkpoint_is_replaced_whole_and_holds_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    modules, optimiser = training(0)
    checkpoint.save(path, modules, optimiser, PLAIN, {}, "a training")
    before = path.read_bytes()
    step(modules, optimiser, 0)
    checkpoint.save(path, modules, optimiser, PLAIN, {}, "a training")
    assert path.read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON; a pickle or a zip begins otherwise


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "header", "no plain data"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    modules, optimiser = training(0)
    checkpoint.save(path, modules, optimiser, PLAIN, {}, "a training")
    data = path.read_bytes()
    if damage == "no plain data":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"cut": data[:-7], "text": b"not a checkpoint", "empty": b"", "header": data[:8] + b"[" + data[9:]}[damage]
        )
    with pytest.raises(ConfitError, match=str(path)) as caught:
        checkpoint.restore(path, *training(1), "a training")
    assert "remove it to train from the start" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    modules, optimiser = training(0)
    checkpoint.save(path, modules, optimiser, PLAIN, {}, "a training")
    with pytest.raises(ConfitError, match="belongs to another training"):
        checkpoint.restore(path, *training(1), "another")
    modules["objective"] = nn.Linear(9, 9)
    with pytest.raises(ConfitError, match=str(path)) as caught:
        checkpoint.restore(path, modules, optimiser, "a training")
    assert "\n" not in str(caught.value)
