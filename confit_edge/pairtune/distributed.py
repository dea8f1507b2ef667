"""One training in several processes: each takes its share of every batch, and the loss sees the whole batch.

accelerate's `PartialState` finds the processes that `torchrun` or `accelerate launch` started, joins them (NCCL between
GPUs, gloo between CPUs) and gives each its device; its collectives move the tensors. Higher-level tools do not fit:

- The Hugging Face Trainer assumes that a batch's loss is a mean over its rows. A contrastive loss depends on all rows
  together, so everything that Trainer does for a batch would have to be overridden.
- `Accelerator` fixes one precision for the life of a process, but a study trains many recipes in one process.
- `DistributedDataParallel` ties the exchange of gradients to one forward and one backward pass. Cached chunks and
  accumulated batches have several, and the proxies inside a loss take part in no forward pass. Here gradients are
  averaged once per step instead, after the last backward pass, in a few large pieces.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.launcher import is_multi_process
from confit_edge.pairtune.machine import named_device, pick_device
from confit_edge.runs import bytes_of
from confit_runtime.errors import ConfitError, UsageError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BUCKET_SIZE = 2**24  # values averaged in one exchange: 64 MB
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # within which every process must have joined
HINT_AFTER_S = 5.0  # a launcher's processes join within this time; after it, process 0 says that it waits for them
EXCHANGE_TIMEOUT = timedelta(hours=12)  # the longest wait in an exchange, such as for process 0 to validate and write


@dataclass(frozen=True)
class Ranks:
    """This process as one of `count`: its `index`, and the device it computes on."""

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.index == 0

    def share(self, rows: int) -> slice:
        """This process's part of a batch's `rows`: consecutive parts, whose lengths differ by at most one."""
        return slice(*(rows * edge // self.count for edge in (self.index, self.index + 1)))

    def gather(self, share: Tensor, rows: int) -> Tensor:
        """All `rows` of a batch `[rows, dim]` from every process's `share(rows)`, with gradient.

        Every process computes the same loss of the whole batch. On the way back, each receives the gradient of its own
        rows, times `count`. The mean over processes of a parameter's gradient is then the gradient of that one loss,
        both for parameters before the gathering (each process has a part of the sum) and after it (each has all of it).
        """
        if self.count == 1:
            return share
        gathered: Tensor = _Gather.apply(share, self, rows)
        return gathered

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over processes.

        A gradient that is missing on some processes, as when a layer was skipped at random, counts as zero there. One that
        is missing on all stays None.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        gradients = []
        for parameter, of_any in zip(parameters, _reduced(has, "sum").tolist(), strict=True):
            if of_any and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for piece in _buckets(gradients):
            mean = _reduced(torch.cat([gradient.reshape(-1) for gradient in piece]), "mean")
            for gradient, values in zip(piece, mean.split([gradient.numel() for gradient in piece]), strict=True):
                gradient.copy_(values.view_as(gradient))

    def agree(self, plain: Any) -> Any:
        """Process 0's `plain` data (as JSON), on every process: process 0 alone makes decisions."""
        if self.count == 1:
            return plain
        text = json.dumps(plain).encode()
        length = _broadcasted(torch.tensor([len(text)], device=self.device))
        carrier = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.main:
            carrier.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return json.loads(bytes(_broadcasted(carrier).tolist()))

    def gather_plain(self, what: str, plain: Any) -> list[Any]:
        """Every process's `plain` data, in order. Raises ConfitError, on each, where some exchange another `what`."""
        if self.count == 1:
            return [plain]
        from accelerate.utils import gather_object

        with _errors_as_ended():
            every = list(gather_object([(what, plain)]))
        for index, (its, _) in enumerate(every):
            if its != every[0][0]:
                raise ConfitError(
                    f"process {index} reports {its}, but process 0 reports {every[0][0]}: they are out of step; give"
                    " all processes the same command and the same version of confit-edge"
                )
        return [plain for _, plain in every]

    def first_different(self, what: str, plain: Any) -> int | None:
        """The first process whose `plain` data (as JSON) differ from those of process 0; None where all are the same."""
        every = self.gather_plain(what, json.dumps(plain))  # as text, because NaN does not equal itself
        return next((index for index, one in enumerate(every) if one != every[0]), None)

    def check_same_command(self, verb: str, resume: bool) -> None:
        """Raise UsageError, on every process, where they run different verbs, or only some of them resume.

        Call this before any other exchange: the command decides which exchanges follow.
        """
        every = self.gather_plain("its command", (verb, resume))
        for index, (its, goes_on) in enumerate(every):
            first, first_goes_on = every[0]
            if its != first:
                raise UsageError(
                    f"process {index} runs {its}, but process 0 runs {first}: give all processes the same command"
                )
            if goes_on != first_goes_on:
                with_it, without = (index, 0) if goes_on else (0, index)
                raise UsageError(
                    f"process {with_it} has --resume, but process {without} does not: give all processes the same command"
                )

    @contextmanager
    def share_errors(self) -> Iterator[None]:
        """An error inside on one process becomes an error on all, so that none waits for it in vain.

        The code inside must not exchange anything.
        """
        if self.count == 1:
            yield
            return
        failed: ConfitError | None = None
        try:
            yield
        except ConfitError as error:
            failed = error
        except OSError as error:
            failed = ConfitError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        every = self.gather_plain("its errors", (str(failed), failed.exit_code) if failed else None)
        for index, said in enumerate(every):
            if said:
                text, status = said
                kind = UsageError if status == UsageError.exit_code else ConfitError
                raise kind(f"process {index}: {text}" if index else text) from failed

    def check_same_weights(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise ConfitError, on every process, where the weights of `modules` differ between processes."""
        if self.count == 1:
            return
        every = self.gather_plain("its weights", _digests(modules))
        for index, digests in enumerate(every):
            if differ := sorted(name for name in every[0] if digests.get(name) != every[0][name]):
                raise ConfitError(
                    f"the weights of process {index} no longer equal those of process 0 ({len(differ)} differ, first"
                    f" {differ[0]}): an encoder may change its weights and buffers through gradients only, and all machines"
                    " must be of the same kind"
                )

    def exists_for_all(self, path: Path) -> bool:
        """Whether the file `path` exists. Raises UsageError, on every process, where only some of them see it."""
        if self.count == 1:
            return path.is_file()
        seen = int(_reduced(torch.tensor([int(path.is_file())], device=self.device), "sum"))
        if 0 < seen < self.count:
            raise UsageError(
                f"{path}: only {seen} of {self.count} processes can see it; give all processes the same folder"
            )
        return bool(seen)

    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give every process process 0's weights and buffers."""
        if self.count == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                held = tensor.detach().contiguous()
                tensor.copy_(_broadcasted(held))

    def wait(self) -> None:
        """Wait until every process is here."""
        self.agree(None)


def join(device: str) -> Ranks:
    """The processes of this training: those of the launcher (`torchrun`, `accelerate launch`), or this one alone.

    `device` is the recipe's. Raises UsageError when it names a single device for several processes, or when they cannot
    be joined.
    """
    if not is_multi_process():
        return Ranks(pick_device(device))
    wanted = named_device(device)  # not tried yet: before each process has its own device, all would try the first
    if wanted.index is not None:
        raise UsageError(f"--device {device}: each process needs a device of its own; use --device {wanted.type}")
    # functions in that module have the default `group=group.WORLD`, evaluated at import. Imported later (by torch.optim),
    # after the processes have joined, these defaults would keep the group and gloo's threads alive to the end
    import_module("torch.distributed.nn.functional")
    if not torch.distributed.is_initialized():
        _join_processes(wanted.type)
    from accelerate import PartialState

    state = PartialState(cpu=wanted.type == "cpu")
    if state.device.type != wanted.type:
        raise UsageError(f"--device {device}: the launcher started the processes for {state.device.type}")
    return Ranks(pick_device(str(state.device)), state.process_index, state.num_processes)


def _join_processes(kind: str) -> None:
    """Join the processes, each with a device of this `kind`. Raises UsageError where that fails."""
    if kind != "cpu" and os.environ.get("LOCAL_RANK", "-1") in ("", "-1"):  # which tells each process its device
        raise _join_error("LOCAL_RANK is not set")
    store, rank, count = _rendezvous()
    try:
        store.set(f"kind {rank}", kind)
        kinds = [store.get(f"kind {index}").decode() for index in range(count)]
        if other := next((index for index, one in enumerate(kinds) if one != kinds[0]), 0):
            raise UsageError(
                f"process {other} would train on {kinds[other]}, but process 0 on {kinds[0]}: give all processes the same"
                " --device and the same folder"
            )
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import PrefixStore

        group = PrefixStore("group", store)  # the timeout below applies to its exchanges
        state = PartialState(cpu=kind == "cpu", store=group, rank=rank, world_size=count, timeout=EXCHANGE_TIMEOUT)
    except (ValueError, RuntimeError, ImportError) as error:
        raise _join_error(error) from error
    if state.num_processes != count:
        raise _join_error(f"accelerate cannot join processes on {kind}")
    # gloo's threads must not outlive the interpreter: occasionally a process that had finished its work aborted on exit
    atexit.register(state.destroy_process_group)


@cache
def _rendezvous() -> tuple[Store, int, int]:
    """The store where the processes meet, the index of this one, and their number. Raises UsageError."""
    from torch.distributed.rendezvous import rendezvous  # missing in some builds of torch for small devices

    try:
        with _hint_while_waiting():
            return next(iter(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT)))
    except (ValueError, RuntimeError) as error:
        raise _join_error(error) from error


@contextmanager
def _hint_while_waiting() -> Iterator[None]:
    """Print what process 0 waits for if it takes long: with an inherited WORLD_SIZE, no other process will come."""
    telling = Timer(HINT_AFTER_S, _print_waiting_hint)
    telling.daemon = True
    if os.environ.get("RANK") == "0":
        telling.start()
    try:
        yield
    finally:
        telling.cancel()


def _print_waiting_hint() -> None:
    if sys.stderr is not None:  # if it is closed, `print` would write to stdout
        size = os.environ["WORLD_SIZE"]
        print(
            f"waiting for the other processes (WORLD_SIZE is {size}; unset it to train alone)",
            file=sys.stderr,
            flush=True,
        )


def _join_error(reason: object) -> UsageError:
    text = str(reason).strip().partition("\n")[0]
    return UsageError(
        f"WORLD_SIZE is set, but the processes cannot be joined ({text}): start them with torchrun or accelerate launch, or"
        " unset WORLD_SIZE"
    )


def already_printed(text: str) -> bool:
    """Whether another process has already printed this.

    Before the processes have joined, none can know, and each prints everything: a launcher ends all of them when the
    first one fails.
    """
    if not _rendezvous.cache_info().currsize:
        return False
    try:
        return _rendezvous()[0].add(f"said {text}", 1) > 1
    except RuntimeError:  # the process that kept the record has ended
        return False


class EndedError(ConfitError):
    """Another process of this training has ended."""


@contextmanager
def _errors_as_ended() -> Iterator[None]:
    """Raise EndedError where another process of this training has ended, which torch reports in many ways."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise EndedError("another process of this training ended; see its message above or on its machine") from error


def _reduced(tensor: Tensor, how: str) -> Tensor:
    from accelerate.utils import reduce

    with _errors_as_ended():
        reduced: Tensor = reduce(tensor, how)
    return reduced


def _broadcasted(tensor: Tensor) -> Tensor:
    from accelerate.utils import broadcast

    with _errors_as_ended():
        broadcasted: Tensor = broadcast(tensor)
    return broadcasted


def _digests(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """A digest of each weight and buffer, by name."""
    return {
        f"{of}.{name}": hashlib.sha256(bytes_of(value)).hexdigest()
        for of, module in modules.items()
        for name, value in module.state_dict().items()
    }


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: Ranks, rows: int) -> Tensor:
        from accelerate.utils import gather

        longest = -(-rows // ranks.count)
        padded = functional.pad(share.detach(), (0, 0, 0, longest - len(share)))
        with _errors_as_ended():
            parts = gather(padded).view(ranks.count, longest, -1)
        ctx.ranks, ctx.rows = ranks, rows
        shares = [Ranks(ranks.device, index, ranks.count).share(rows) for index in range(ranks.count)]
        return torch.cat([part[: own.stop - own.start] for part, own in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.ranks.share(ctx.rows)] * ctx.ranks.count, None, None


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    piece: list[Tensor] = []
    for gradient in gradients:
        piece.append(gradient)
        if sum(part.numel() for part in piece) >= BUCKET_SIZE:
            yield piece
            piece = []
    if piece:
        yield piece
