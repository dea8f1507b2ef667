"""One training by several processes: each takes its share of every batch, and the loss sees the whole of it.

accelerate's `PartialState` finds the processes that `torchrun` or `accelerate launch` started, joins them (NCCL between
GPUs, gloo between CPUs) and gives each its device; its collectives move the tensors. The parts above it are not used:

- The Hugging Face Trainer assumes that a batch's loss is a mean over its rows. A contrastive loss is one of all rows
  together, so everything that Trainer would do for a batch would have to be overridden.
- `Accelerator` fixes one precision for the life of a process, and studies train many recipes in one.
- `DistributedDataParallel` ties the exchange of gradients to one forward and one backward pass. Cached chunks and
  accumulated batches have several, and proxies that live in a loss are in no forward pass. Gradients are averaged here
  once a step instead, after the last backward pass, in a few large pieces.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.pairtune.machine import named_device, pick_device
from confit_runtime.errors import UsageError

PIECE = 2**24  # values averaged in one exchange: 64 MB


@dataclass(frozen=True)
class Ranks:
    """This process among `count` of them: its `index`, and the device it computes on."""

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.index == 0

    def share(self, rows: int) -> slice:
        """Which of a batch's `rows` are this process's: parts in order, whose lengths differ by one at most."""
        return slice(*(rows * edge // self.count for edge in (self.index, self.index + 1)))

    def gather(self, share: Tensor, rows: int) -> Tensor:
        """All `rows` of a batch `[rows, dim]` from every process's `share(rows)`, with gradient.

        Every process computes the same loss of the whole batch; the gradient of its own rows, `count` times, is what
        comes back to it. So the mean over processes of any parameter's gradient is the gradient of that one loss: for
        parameters before the gathering (each process has one part of the sum) as for those after it (each has it all).
        """
        if self.count == 1:
            return share
        gathered: Tensor = _Gather.apply(share, self, rows)
        return gathered

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over processes."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for piece in _pieces(gradients):
            mean = reduce(torch.cat([gradient.reshape(-1) for gradient in piece]), "mean")
            for gradient, values in zip(piece, mean.split([gradient.numel() for gradient in piece]), strict=True):
                gradient.copy_(values.view_as(gradient))

    def agree(self, plain: Any) -> Any:
        """Process 0's `plain` data (what JSON holds) on every process: decisions are made once."""
        if self.count == 1:
            return plain
        from accelerate.utils import broadcast

        text = json.dumps(plain).encode()
        length = broadcast(torch.tensor([len(text)], device=self.device))
        carrier = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.main:
            carrier.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return json.loads(bytes(broadcast(carrier).tolist()))

    def everywhere(self, path: Path) -> bool:
        """Whether the file `path` is there. Raises UsageError, on every process, where only some of them see it."""
        if self.count == 1:
            return path.is_file()
        from accelerate.utils import reduce

        seen = int(reduce(torch.tensor([int(path.is_file())], device=self.device), "sum"))
        if 0 < seen < self.count:
            raise UsageError(
                f"{path}: {seen} of the {self.count} processes see it; let all of them write to and read from one folder"
            )
        return bool(seen)

    def start_alike(self, modules: Iterable[nn.Module]) -> None:
        """Give every process process 0's weights and buffers."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for module in modules:
            for tensor in module.state_dict().values():
                held = tensor.detach().contiguous()
                tensor.copy_(broadcast(held))

    def wait(self) -> None:
        """Until every process is here."""
        self.agree(None)


def join(device: str) -> Ranks:
    """The processes of this training: those of the launcher (`torchrun`, `accelerate launch`), or this one alone.

    `device` is the recipe's. Raises UsageError when it names one device for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks(pick_device(device))
    wanted = named_device(device)  # not tried before each process has its own: all of them would begin with the first
    if wanted.index is not None:
        raise UsageError(f"--device {device}: several processes take a device each; use --device {wanted.type}")
    # functions there have the default `group=group.WORLD`: what that is at import. torch.optim imports the module, and
    # after the joining its defaults would hold the group, and gloo's threads, though all had left it
    import_module("torch.distributed.nn.functional")
    from accelerate import PartialState

    state = PartialState(cpu=wanted.type == "cpu")
    _leave_at_exit()
    if state.device.type != wanted.type:
        raise UsageError(f"--device {device}: the processes were launched for {state.device.type}")
    return Ranks(pick_device(str(state.device)), state.process_index, state.num_processes)


@cache
def _leave_at_exit() -> None:
    """Gloo's threads must not outlive the interpreter: now and then a process that did its work aborted as it ended."""
    from accelerate import PartialState

    atexit.register(PartialState().destroy_process_group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: Ranks, rows: int) -> Tensor:
        from accelerate.utils import gather

        longest = -(-rows // ranks.count)
        parts = gather(functional.pad(share.detach(), (0, 0, 0, longest - len(share)))).view(ranks.count, longest, -1)
        ctx.ranks, ctx.rows = ranks, rows
        shares = [Ranks(ranks.device, index, ranks.count).share(rows) for index in range(ranks.count)]
        return torch.cat([part[: own.stop - own.start] for part, own in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.ranks.share(ctx.rows)] * ctx.ranks.count, None, None


def _pieces(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    piece: list[Tensor] = []
    for gradient in gradients:
        piece.append(gradient)
        if sum(part.numel() for part in piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
