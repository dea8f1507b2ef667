"""Trainings for test_distributed.py, by one process or, under torchrun, by several.

`processes.py MANIFEST OUT DISTILL...`: the last are the arguments of a `confit-edge distill`.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from confit_edge.cli import main as command
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders.speech_embedding import SpeechEmbedding
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.pairtune.lr_search import choose_lr
from confit_edge.pairtune.objectives import make_objective
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError

BASE: dict[str, Any] = {"epochs": 2, "classes_per_batch": 5, "clips_per_class": 3, "device": "cpu"}
CASES: dict[str, dict[str, Any]] = {  # fifteen clips a batch: one process has eight of them, the other seven
    "supcon": {},
    "finetune": {"objective": "finetune"},
    "chunks": {
        "chunk_size": 4,
        "accumulate": 2,
        "epochs": 3,
    },  # parts of 4, 4 and 4, 3: no part of a single clip, which rounds otherwise
}
OBJECTIVES = {**CASES, "proxies": {"loss": "proxy-anchor", "mining": "none"}}  # whose loss has parameters, too


class DoublePrecisionFrontEnd(nn.Module):
    def forward(self, mel: Tensor) -> Tensor:
        return mel.double()


def in_double() -> SpeechEmbedding:
    """The encoder with convolutions in float64: AdamW moves a weight as far by a gradient that is rounding alone."""
    encoder = SpeechEmbedding.pretrained(pool_hops=1)
    encoder.mask = DoublePrecisionFrontEnd()
    encoder.layers.double()
    return encoder


def weights(corpus: Corpus, lr: float = 5e-4, **changes: Any) -> dict[str, Tensor]:
    """All weights after a training, and the loss of each epoch."""
    encoder, recipe = in_double(), Recipe(**{**BASE, **changes})
    fitted = fit(encoder, corpus, recipe, lr=lr, epochs=recipe.epochs)
    losses = torch.tensor([row["loss"] for row in fitted.history])
    state = {**encoder.state_dict(), **fitted.objective.state_dict(prefix="objective."), "losses": losses}
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def gradients(ranks: Ranks) -> dict[str, Tensor]:
    """Of one batch of seven, for an encoder and for each objective's own parameters: before and after the gathering."""
    found = {}
    for name, changes in OBJECTIVES.items():
        torch.manual_seed(0)
        encoder = nn.Linear(6, 8)
        objective = make_objective(Recipe(**{**BASE, **changes}), 8, 3, False)
        pcm, targets = torch.randn(7, 6), torch.eye(3)[torch.arange(7) % 3]
        share = nn.functional.normalize(encoder(pcm[ranks.share(7)]), dim=1)
        objective(ranks.gather(share, 7), targets)[0].backward()
        parameters = {f"{name}.{key}": value for key, value in nn.ModuleList([encoder, objective]).named_parameters()}
        ranks.average_gradients(parameters.values())
        found |= {key: value.grad for key, value in parameters.items() if value.grad is not None}
    return found


def with_batch_norm(corpus: Corpus) -> None:
    encoder = SpeechEmbedding(pool_hops=1)
    encoder.layers.append(nn.BatchNorm2d(96))
    fit(encoder, corpus, Recipe(**BASE), lr=1e-4, epochs=1)


def gradients_of_unused_layers(ranks: Ranks) -> list[float | None]:
    """What is averaged where one process has a gradient of 2 for the first parameter, the other of 4 for the second, both have
    one of their number for the third, and none for the fourth."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    own = 1 if ranks.index else 0
    parameters[own].grad = torch.full((1,), 4.0 if own else 2.0)
    parameters[2].grad = torch.full((1,), float(own))
    ranks.average_gradients(parameters)
    return [None if parameter.grad is None else float(parameter.grad) for parameter in parameters]


class Drifting(SpeechEmbedding):
    """An encoder that changes a weight by itself, on each process otherwise."""

    def frames(self, pcm: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                next(self.parameters()).add_(float(os.environ["RANK"]))
        return super().frames(pcm)


def report_problems(complaints: list[str]) -> None:
    with join("cpu").share_errors():
        if complaints:
            raise UsageError(*complaints)


def rate_of_first_process(corpus: Corpus, folder: Path, rank: str) -> float:
    """The rate that is chosen of those which `rates.json` tells of, which only the first process sees."""
    own = folder / f"machine-{rank}"
    own.mkdir()
    if rank == "0":
        (own / "rates.json").write_text(json.dumps({"0.1": 0.2, "0.2": 0.9}), encoding="utf-8")
    return choose_lr(in_double(), corpus, Recipe(**BASE, lr=(0.1, 0.2)), folder=own)


def seconds_waited() -> float:
    """Seconds for which a process waits for another that works alone."""
    group = torch.distributed.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def _threads() -> list[str]:
    """Names of this process's threads, as Linux has them."""
    return [name.read_text(encoding="utf-8").strip() for name in Path("/proc/self/task").glob("*/comm")]


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except ConfitError as error:
        return str(error)
    return "none"


def main(manifest: str, out: str, *distill: str) -> None:
    rank, corpus = os.environ["RANK"], read_corpus(Path(manifest), rate=16_000, seed=0)
    # registered before the processes join, so called after what joining registers
    atexit.register(lambda: (Path(out) / f"left-{rank}.txt").write_text("\n".join(_threads()), encoding="utf-8"))
    for name, changes in CASES.items():
        save_file(weights(corpus, **changes), Path(out) / f"{name}-{rank}.safetensors")
    save_file(gradients(join("cpu")), Path(out) / f"gradients-{rank}.safetensors")
    refusals = [
        _refusal(lambda: with_batch_norm(corpus)),
        _refusal(lambda: weights(corpus, device="cpu:0")),
        # what diverged is seen in validation only, and there by the first process alone
        _refusal(lambda: weights(corpus, lr=1e6, clips_per_class=6, epochs=1)),
    ]
    # of two machines without a common folder the first alone has what it wrote
    folder = Path.cwd()
    os.chdir(out if rank == "0" else Path(out).parent)
    refusals.append(_refusal(lambda: join("cpu").exists_for_all(Path("gradients-0.safetensors"))))
    os.chdir(folder)
    problems = ["no clip"] if rank == "0" else []
    refusals += [
        _refusal(lambda: weights(corpus, seed=int(rank))),
        _refusal(lambda: fit(Drifting.pretrained(), corpus, Recipe(**BASE), lr=1e-4, epochs=1)),
        _refusal(lambda: report_problems(problems)),
        _refusal(lambda: join("cpu").check_same_command("train" if rank == "0" else "distill", resume=False)),
        _refusal(lambda: join("cpu").gather_plain("its checkpoint" if rank == "0" else "its recipe", None)),
    ]
    others = {
        "left_out": gradients_of_unused_layers(join("cpu")),
        "rate": rate_of_first_process(corpus, Path(out), rank),
        "waiting": seconds_waited(),
    }
    (Path(out) / f"others-{rank}.json").write_text(json.dumps(others), encoding="utf-8")
    (Path(out) / f"refusals-{rank}.txt").write_text("\n".join(refusals), encoding="utf-8")
    sys.argv = ["confit-edge", *distill]
    command()


if __name__ == "__main__":
    main(*sys.argv[1:])
