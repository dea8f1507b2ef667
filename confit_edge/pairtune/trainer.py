"""The training loop of stage 1, the same for PairTune and for the vanilla fine-tuning it is judged against."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confit_edge.data.augment import Augmenter, Pcm, varied
from confit_edge.data.compose import compose, fragments
from confit_edge.data.corpus import Clips, Corpus, balanced_batches
from confit_edge.encoders.base import Encoder, centred
from confit_edge.encoders.spec_augment import SpecAugment
from confit_edge.encoders.speech_embedding import SILENCE, SpeechEmbedding
from confit_edge.pairtune import checkpoint
from confit_edge.pairtune.config import Precision, Recipe
from confit_edge.pairtune.objectives import FineTune, Objective, PairTune
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import correct
from confit_runtime.errors import ConfitError, UsageError

Floats = npt.NDArray[np.float32]
Watcher = Callable[[dict[str, Any]], None]

OFF_S = 0.40  # a window speaks of nothing known when every clip's middle is further than this from its own
GAP_S = (0.1, 0.9)  # between the clips of a stream that is learnt from
QUICK_CLIPS = 10  # of each class, for the probe after each epoch


class DivergedError(ConfitError):
    """A loss or an embedding is no longer a finite number."""

    def __init__(self, what: str, epoch: int, lr: float) -> None:
        super().__init__(f"{what} at epoch {epoch}: try a smaller lr (now {lr:g}) or a higher temperature")


@dataclass
class Fitted:
    """What a training gives: the objective's head or projection (the encoder is changed in place), and its history."""

    objective: Objective
    history: list[dict[str, float]]
    best_epoch: int


def fit(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    *,
    lr: float,
    epochs: int,
    checkpoint_path: Path | None = None,
    watch: Watcher | None = None,
) -> Fitted:
    """Train `encoder` in place; it ends with the weights of the epoch that was best on validation.

    A row of history per epoch: `epoch, loss, lr, val_linear` (a quick linear probe), `val_head` for vanilla
    fine-tuning, and the miner's statistics for PairTune. With `checkpoint_path`, each epoch is saved there and a
    training found there goes on. `watch` is told of every step.
    """
    device = pick_device(recipe.device)
    torch.manual_seed(recipe.seed)
    objective = make_objective(encoder.dim, corpus, recipe)
    encoder.to(device)
    objective.to(device)
    if recipe.spec_augment:
        if not isinstance(encoder, SpeechEmbedding):
            raise UsageError(f"recipe key 'spec_augment' is for speech-embedding, not for {encoder.family}")
        encoder.mask = SpecAugment(floor=SILENCE)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in encoder.parameters() if p.requires_grad], "lr": lr},
            {"params": objective.parameters(), "lr": recipe.head_lr},
        ],
        weight_decay=recipe.weight_decay,
    )
    clips, augment = training_items(encoder, corpus, recipe), make_augmenter(encoder, corpus, recipe)
    per_epoch = sum(1 for _ in _batches(clips, corpus, recipe, 0))
    peaks = [group["lr"] for group in optimiser.param_groups]
    modules = {"encoder": encoder, "objective": objective}
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    best_epoch = 0
    if checkpoint_path and checkpoint_path.is_file():
        plain, best = checkpoint.restore(checkpoint_path, modules, optimiser)
        history, best_epoch = plain["history"], plain["best_epoch"]

    for epoch in range(len(history), epochs):
        row = _epoch(
            encoder,
            objective,
            optimiser,
            corpus,
            clips,
            augment,
            recipe,
            device,
            epoch,
            epochs,
            per_epoch,
            peaks,
            watch,
        )
        row |= _validate(encoder, objective, corpus, device, epoch + 1, lr)
        history.append(row)
        if _quality(row) >= max(_quality(earlier) for earlier in history):
            best_epoch = epoch
            best = {
                f"{name}.{key}": value.detach().cpu().clone()
                for name, module in modules.items()
                for key, value in module.state_dict().items()
            }
        if checkpoint_path:
            checkpoint.save(checkpoint_path, modules, optimiser, {"history": history, "best_epoch": best_epoch}, best)
        if watch:
            watch({"stage": "epoch", "epochs": epochs, **row})

    for name, module in modules.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in best.items() if key.startswith(f"{name}.")}
        )
    return Fitted(objective, history, best_epoch)


def _epoch(
    encoder: Encoder,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    corpus: Corpus,
    clips: Clips,
    augment: Augmenter,
    recipe: Recipe,
    device: torch.device,
    epoch: int,
    epochs: int,
    per_epoch: int,
    peaks: list[float],
    watch: Watcher | None,
) -> dict[str, float]:
    encoder.train()
    objective.train()
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch]).generate_state(1)[0]))  # for dropout
    rng = np.random.default_rng([recipe.seed, epoch, 1])
    sums: dict[str, float] = {}
    for step, chosen in enumerate(_batches(clips, corpus, recipe, epoch)):
        rate = cosine_schedule(epoch * per_epoch + step, epochs * per_epoch)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        pcm = torch.from_numpy(augment([clips.pcm[index] for index in chosen], rng)).to(device)
        targets = torch.from_numpy(clips.targets[chosen]).to(device)
        with mixed_precision(device, recipe.precision):
            loss, statistics = objective(encoder(pcm), targets)
        if not bool(torch.isfinite(loss)):
            raise DivergedError(f"the loss became {loss.item()} in step {step + 1}", epoch + 1, peaks[0])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        for key, value in {"loss": loss.item(), **statistics}.items():
            sums[key] = sums.get(key, 0.0) + value
        if watch:
            watch(
                {
                    "stage": "step",
                    "epoch": epoch,
                    "epochs": epochs,
                    "step": step + 1,
                    "steps": per_epoch,
                    "loss": loss.item(),
                }
            )
    return {"epoch": epoch + 1, "lr": peaks[0], **{key: value / per_epoch for key, value in sums.items()}}


def training_items(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> Clips:
    """The training clips; and, as the unknown class, the background and fragments of a stream composed from both."""
    clips = corpus.training_clips()
    if corpus.unknown is None or not corpus.background_train:
        return clips
    stream, spoken = compose(
        corpus.train.pcm,
        [""] * len(corpus.train),
        corpus.background_train,
        samples=sum(map(len, corpus.train.pcm)) + int(GAP_S[1] * encoder.sample_rate * len(corpus.train)),
        rate=encoder.sample_rate,
        snr=(recipe.snr_low, recipe.snr_high),
        rng=np.random.default_rng([recipe.seed, 9]),
        gap_s=GAP_S,
    )
    found = fragments(stream, spoken, window=encoder.window, off=round(OFF_S * encoder.sample_rate))
    return corpus.and_unknown(clips, found)


def _batches(clips: Clips, corpus: Corpus, recipe: Recipe, epoch: int) -> Iterator[list[int]]:
    """Batches of P classes x K clips; where there is an unknown class, 2 K of it are in each batch beside the P.

    Beside a single class (a wake word) the unknown is the other one.
    """
    rng = np.random.default_rng([recipe.seed, epoch, 0])
    known, strange = clips.targets, np.zeros(0, np.int64)
    if corpus.unknown is not None:
        column = corpus.classes.index(corpus.unknown)
        others = np.delete(known, column, axis=1)
        if np.count_nonzero(others.any(axis=0)) > 1:
            strange, known = np.flatnonzero(known[:, column]), others
    for batch in balanced_batches(known, recipe.classes_per_batch, recipe.clips_per_class, rng):
        beside = rng.choice(strange, 2 * recipe.clips_per_class if len(strange) else 0)
        yield batch + [int(row) for row in beside]


def _validate(
    encoder: Encoder, objective: Objective, corpus: Corpus, device: torch.device, epoch: int, lr: float
) -> dict[str, float]:
    some = quick_sample(corpus.train.targets)
    train = embed_clips(encoder, [corpus.train.pcm[row] for row in some], device)
    val = embed_clips(encoder, corpus.val.pcm, device)
    if not (np.isfinite(train).all() and np.isfinite(val).all()):
        raise DivergedError("the embeddings are no longer finite", epoch, lr)
    known = corpus.train.targets.any(axis=0)  # the unknown class has background only, which is not probed here
    targets, truth = corpus.train.targets[some][:, known], corpus.val.targets[:, known]
    probe = LinearProbe.fit(train, targets, val, truth, multi_label=corpus.multi_label, strengths=(0.1,))
    row = {"val_linear": float(correct(probe.scores(val), truth).mean())}
    if isinstance(objective, FineTune):
        row["val_head"] = float(correct(head_probe(objective).scores(val), corpus.val.targets).mean())
    return row


def quick_sample(targets: npt.NDArray[np.int8]) -> list[int]:
    """The first `QUICK_CLIPS` clips of each class: enough for the probe that watches a training, at a third of its cost."""
    rows = [row for column in targets.T for row in np.flatnonzero(column)[:QUICK_CLIPS]]
    return sorted({int(row) for row in rows})


def _quality(row: dict[str, float]) -> float:
    return row.get("val_head", row["val_linear"])


def head_probe(objective: FineTune) -> LinearProbe:
    """Vanilla fine-tuning's own head, as a probe on the embedding."""
    weight, bias = objective.head.weight.detach().cpu().numpy(), objective.head.bias.detach().cpu().numpy()
    return LinearProbe(weight * np.float32(weight.shape[1] ** 0.5), bias, objective.multi_label)


def make_objective(dim: int, corpus: Corpus, recipe: Recipe) -> Objective:
    """The recipe's objective for embeddings of `dim`."""
    if recipe.objective == "pairtune":
        return PairTune(dim, recipe.projection_dim, recipe.temperature, recipe.hardness)
    return FineTune(dim, len(corpus.classes), corpus.multi_label)


def make_augmenter(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> Augmenter:
    """The recipe's augmentation for windows of `encoder`."""
    background = training_background(encoder, corpus, recipe) if corpus.background_train else []
    return Augmenter(
        window=encoder.window,
        shift=round(recipe.shift * encoder.sample_rate),
        gain=recipe.gain,
        noise_probability=recipe.noise_probability,
        snr=(recipe.snr_low, recipe.snr_high),
        background=tuple(background),
        speed=recipe.speed,
    )


@torch.no_grad()
def embed_clips(encoder: Encoder, clips: list[Pcm], device: torch.device, batch: int = 64) -> Floats:
    """Embeddings `[clips, dim]` of whole clips, as a device makes them: the mean over hops, of length 1."""
    encoder.eval()
    out = np.zeros((len(clips), encoder.dim), np.float32)
    short = [index for index, clip in enumerate(clips) if len(clip) <= encoder.window]
    for start in range(0, len(short), batch):
        rows = short[start : start + batch]
        windows = torch.stack([centred(torch.tensor(clips[row]), encoder.window) for row in rows])
        out[rows] = encoder(windows.to(device)).cpu().numpy()
    for row in set(range(len(clips))) - set(short):
        mean = encoder.rows(torch.tensor(clips[row]).to(device), batch).mean(dim=0)
        out[row] = torch.nn.functional.normalize(mean, dim=0).cpu().numpy()
    return out


def training_background(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> list[Pcm]:
    """The training background, varied."""
    rng = np.random.default_rng([recipe.seed, 10])
    return varied(corpus.background_train, speeds=(0.75, 0.85, 1.15, 1.35), rate=encoder.sample_rate, rng=rng)


def cosine_schedule(step: int, steps: int, warmup: float = 0.1) -> float:
    """The share of the peak learning rate at `step` of `steps`: a linear warm-up, then half a cosine to 0."""
    warm = max(1.0, warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one, else the CPU) or a torch device by name. Raises UsageError for one not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from error
    return device


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """`auto` becomes bf16 where the device computes in it natively, else fp32; other names stay."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if device.type == "cpu" and (able.get("avx512_bf16") or able.get("amx_bf16")) else "fp32"


def mixed_precision(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 where the recipe asks for it."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
