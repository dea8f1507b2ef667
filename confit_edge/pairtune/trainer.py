"""The training loop of stage 1, the same for PairTune and for the vanilla fine-tuning it is compared with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.lora import adapted
from confit_edge.encoders.spec_augment import SpecAugment
from confit_edge.encoders.speech_embedding import SILENCE, SpeechEmbedding
from confit_edge.pairtune import checkpoint
from confit_edge.pairtune.distill import Distil, Teaching
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.pairtune.grad_cache import check_no_batch_statistics, embed_in_chunks
from confit_edge.pairtune.items import epoch_batches, prefetched, training_items
from confit_edge.pairtune.machine import keep_freed_memory, mixed_precision
from confit_edge.pairtune.objectives import FineTune, MakeObjective, Objective, make_objective
from confit_edge.pairtune.optimiser import cosine_schedule, frozen, make_optimiser
from confit_edge.pairtune.resuming import digest
from confit_edge.pairtune.soup import Soup, averaged
from confit_edge.pairtune.validation import Validation, head_from_probe, quality, standard_error
from confit_edge.probes.metrics import merit_name
from confit_edge.progress import Watcher, ignore_event
from confit_edge.recipe import Recipe
from confit_edge.windows import make_augmenter
from confit_runtime.errors import ConfitError, UsageError

START_WINDOWS = 256  # from which the start of a student's map into its teacher's space is computed


class DivergedError(ConfitError):
    """A loss or an embedding is no longer a finite number."""

    def __init__(self, what: str, epoch: int, lr: float) -> None:
        super().__init__(f"{what} at epoch {epoch}: try a smaller lr (now {lr:g}) or a higher temperature")


@dataclass
class Fitted:
    """The result of a training: the objective's head or projection, and the history. The encoder changes in place."""

    objective: Objective
    history: list[dict[str, float]]
    kept_epoch: int


@dataclass
class TrainingState:
    """The epochs so far: a row of history for each, and the weights of the epoch that is kept.

    That is the last epoch within one standard error of the best (Breiman et al. 1984), given the number of validation
    `clips`. The learning rate falls to zero, so the last epochs are more often truly the best than an early one that
    scored high by chance. In a soup, only epochs of the current training count, which began at epoch `since`.
    """

    clips: int
    history: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    since: int = 0

    def add(self, row: dict[str, float], modules: dict[str, nn.Module], averaged: bool) -> None:
        """Add an epoch. The latest `averaged` weights are always kept: they average the most steps."""
        self.history.append(row)
        best = max(map(quality, self.history[self.since :]))
        if averaged or quality(row) >= best - standard_error(best, self.clips):
            self.kept_epoch = len(self.history) - 1
            self.kept = {
                f"{name}.{key}": value.detach().cpu().clone()
                for name, module in modules.items()
                for key, value in module.state_dict().items()
            }

    def restore(self, modules: dict[str, nn.Module]) -> None:
        """Give `modules` the weights that are kept."""
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict(
                {key.removeprefix(prefix): value for key, value in self.kept.items() if key.startswith(prefix)}
            )

    def epochs_without_gain(self) -> int:
        """Epochs since validation last reached a new best."""
        values = list(map(quality, self.history))
        return len(values) - 1 - values.index(max(values)) if values else 0


def fit(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    *,
    lr: float,
    epochs: int,
    checkpoint_path: Path | None = None,
    watch: Watcher | None = None,
    teaching: Teaching | None = None,
    make: MakeObjective = make_objective,
) -> Fitted:
    """Train `encoder` in place; it ends with the weights of an epoch chosen on validation, or with an average of weights.

    - By default: the last epoch within one standard error of the best.
    - With the recipe's `averaging`: the mean over the steps in that last share of the training, at half the peak rate
      (Izmailov et al. 2018, arXiv 1803.05407). It lies in a flatter region, where new speakers and rooms matter less.
    - With `soup`: that many trainings of `epochs` each run one after another from the same start, and the mean of their
      final weights is kept.

    The history has a row per epoch: `epoch, loss, lr, val_linear` (a quick linear probe), `val_head` for vanilla
    fine-tuning, the miner's statistics for PairTune, and for a soup the number of the `training`. The training ends early
    after `patience` epochs without a gain on validation. With `checkpoint_path`, every epoch is saved there, and a
    training found there is resumed. `watch` is called for every batch. With `teaching`, the encoder is a student and the
    loss is the teaching's; otherwise the loss is that of the objective `make` returns, by default the recipe's. Under a
    launcher of several processes, each of them calls this with the same arguments; all end with the same weights.

    Raises DivergedError where a loss or an embedding is no longer finite, UsageError where the encoder or the batches do
    not suit the recipe, and ConfitError where the checkpoint is damaged or from another training.
    """
    ready = prepared_training(encoder, corpus, recipe, lr=lr, epochs=epochs, watch=watch, teaching=teaching, make=make)
    with keep_freed_memory(), ready as training:
        return training.run(checkpoint_path)


@contextlib.contextmanager
def prepared_training(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    *,
    lr: float,
    epochs: int,
    watch: Watcher | None = None,
    teaching: Teaching | None = None,
    make: MakeObjective = make_objective,
) -> Iterator[Training]:
    """The training of `fit`, ready to run. Raises UsageError where the encoder or the batches do not suit the recipe."""
    ranks = join(recipe.device)
    torch.manual_seed(recipe.seed)
    make = teaching.objective if teaching else make
    objective = make(recipe, encoder.dim, len(corpus.classes), corpus.multi_label)
    encoder.to(ranks.device)
    objective.to(ranks.device)
    if recipe.spec_augment:
        if not isinstance(encoder, SpeechEmbedding):
            raise UsageError(f"recipe key 'spec_augment' works with speech-embedding only, not with {encoder.family}")
        encoder.mask = SpecAugment(floor=SILENCE)
    with adapted(encoder, recipe.lora_rank), frozen(encoder, recipe.freeze) as frozen_modules:
        notify = watch if ranks.main else None
        yield Training(encoder, objective, corpus, recipe, lr, epochs, ranks, frozen_modules, notify, teaching)


class Training:
    """One training: its data, the modules it changes, and the devices it runs on.

    Its random numbers depend on the recipe alone: every epoch is seeded with (seed, epoch). Each process draws the
    batches and their augmentation for the whole batch, so several processes see the windows that a single one would.
    Dropout differs between processes.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        corpus: Corpus,
        recipe: Recipe,
        lr: float,
        epochs: int,
        ranks: Ranks,
        frozen_modules: list[nn.Module],
        watch: Watcher | None,
        teaching: Teaching | None,
    ) -> None:
        self.teaching = teaching
        self.encoder, self.objective, self.corpus, self.recipe = encoder, objective, corpus, recipe
        self.lr, self.epochs, self.ranks, self.frozen_modules = lr, epochs, ranks, frozen_modules
        self.notify: Watcher = watch or ignore_event
        self.modules: dict[str, nn.Module] = {"encoder": encoder, "objective": objective}
        self.all_modules = nn.ModuleDict(self.modules)
        self.average = averaged(self.all_modules) if recipe.averaging else None
        self.soup = Soup(self.all_modules) if recipe.trainings > 1 else None
        self.optimiser = make_optimiser(encoder, objective, recipe, lr)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.clips, self.augment = training_items(encoder, corpus, recipe), make_augmenter(encoder, corpus, recipe)
        sizes = list(map(len, epoch_batches(self.clips, corpus, recipe, 0)))
        self.batches = len(sizes)
        if other := ranks.first_different("its recipe", self._digest()):
            raise UsageError(
                f"process {other} has a different recipe, corpus, lr or number of epochs from process 0; give all processes"
                " the same"
            )
        self.steps = -(-self.batches // recipe.accumulate)
        self._check_batch_parts(min(sizes))
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        self.validate = Validation(corpus, ranks.device, encoder_frozen=not learns)
        if not learns:
            self.notify(
                {"stage": "note", "text": "freeze: the encoder does not change; only the layers on top of it learn"}
            )

    def _check_batch_parts(self, smallest: int) -> None:
        if smallest < self.ranks.count:
            raise UsageError(
                f"a batch of {smallest} clips cannot be shared by {self.ranks.count} processes; start fewer processes"
            )
        self._train_mode()
        if self.ranks.count > 1 or self.recipe.chunk_size:
            check_no_batch_statistics(self.encoder, "chunk_size" if self.recipe.chunk_size else "several processes")

    def run(self, checkpoint_path: Path | None) -> Fitted:
        """All epochs of all trainings, from the checkpoint where there is one."""
        state = self._start(checkpoint_path)
        for epoch in range(len(state.history), self.epochs * self.recipe.trainings):
            if self.soup and epoch % self.epochs == 0:
                state.since = epoch
                self._start_next_training(self.soup)
            if self.recipe.patience and state.epochs_without_gain() >= self.recipe.patience:
                text = f"no gain on validation in {self.recipe.patience} epochs: the training ends early"
                self.notify({"stage": "note", "text": text})
                break
            row = self._epoch(epoch)
            self.ranks.check_same_weights(self.modules)
            judged, averaged = self._modules_to_judge()
            checked = self.ranks.agree(self.validate(*judged.values()) if self.ranks.main else None)
            if checked is None:
                raise DivergedError("the embeddings are no longer finite", epoch + 1, self.lr)
            state.add(row | checked, judged, averaged)
            if self.soup and (epoch + 1) % self.epochs == 0:
                state.restore(self.modules)
                self.soup.add(self.all_modules)
            if checkpoint_path and self.ranks.main:
                plain = {"history": state.history, "kept_epoch": state.kept_epoch}
                checkpoint.save(
                    checkpoint_path, self._checkpoint_modules(), self.optimiser, plain, state.kept, self._digest()
                )
            merit = merit_name(multi_label=self.corpus.multi_label)
            planned = {"epochs": self.epochs * self.recipe.trainings}
            if self.soup:
                planned["trainings"] = self.recipe.trainings
            self.notify({"stage": "epoch", **planned, "merit": merit, **state.history[-1]})
        if self.soup:
            self.soup.load_mean(self.all_modules)
        else:
            state.restore(self.modules)
        return Fitted(self.objective, state.history, state.kept_epoch)

    def _start_next_training(self, soup: Soup) -> None:
        """Start another training of the soup. Its batches differ, as they are drawn by the overall number of the epoch."""
        soup.reset_to_start(self.all_modules)
        self.optimiser.state.clear()
        if self.average:
            self.average.n_averaged.zero_()

    def _modules_to_judge(self) -> tuple[dict[str, Any], bool]:
        """Encoder and objective as they would be kept now, and whether they are averages."""
        if self.average is None or not self.average.n_averaged:
            return self.modules, False
        return dict(self.average.module.named_children()), True

    def _checkpoint_modules(self) -> dict[str, nn.Module]:
        """The modules in a checkpoint, which also holds the optimiser."""
        beside = {"average": self.average, "soup": self.soup}
        return self.modules | {name: module for name, module in beside.items() if module is not None}

    def _digest(self) -> str:
        return digest(self.recipe, self.corpus, self.lr, self.epochs)

    def _start(self, checkpoint_path: Path | None) -> TrainingState:
        if checkpoint_path and self.ranks.exists_for_all(checkpoint_path):
            with self.ranks.share_errors():
                plain, kept = checkpoint.restore(
                    checkpoint_path, self._checkpoint_modules(), self.optimiser, self._digest()
                )
            # this exchange also makes sure that all have read it before the first replaces or removes it
            if other := self.ranks.first_different("its checkpoint", plain):
                raise UsageError(
                    f"{checkpoint_path}: process {other} sees a different checkpoint; give all processes the same folder"
                )
            self.ranks.check_same_weights(self.modules)
            done = len(plain["history"])
            since = (done - 1) // self.epochs * self.epochs if self.soup else 0  # start of the last epoch's training
            of_soup = f" of training {since // self.epochs + 1} of {self.recipe.trainings}" if self.soup else ""
            self.notify({"stage": "note", "text": f"resuming after epoch {done - since} of {self.epochs}{of_soup}"})
            return TrainingState(len(self.corpus.val), plain["history"], plain["kept_epoch"], kept, since)
        if self.recipe.head_init == "probe" and isinstance(self.objective, FineTune):
            head_from_probe(self.objective, self.encoder, self.clips, self.corpus.val, self.ranks.device)
        if isinstance(self.objective, Distil):
            self._start_map(self.objective)
        self.ranks.broadcast_weights(self.modules.values())
        if self.soup:
            self.soup.set_start(self.all_modules)
        return TrainingState(len(self.corpus.val))

    def _start_map(self, objective: Distil) -> None:
        """Start the map from the first windows of the training, as many as a regression needs."""
        pcm, targets = [], []
        for epoch in range(START_WINDOWS):
            for windows, beside in self._windows(epoch):
                pcm.append(windows)
                targets.append(beside[self.ranks.share(len(beside))])
                if sum(map(len, pcm)) >= START_WINDOWS:
                    device = self.ranks.device
                    objective.start(self.encoder, torch.cat(pcm).to(device), torch.cat(targets).to(device))
                    return

    def _epoch(self, epoch: int) -> dict[str, float]:
        self._train_mode()
        process = [self.ranks.index] if self.ranks.index else []
        torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, epoch, *process]).generate_state(1)[0]))
        sums: dict[str, float] = {}
        with contextlib.closing(prefetched(self._windows(epoch))) as windows:
            for number, (pcm, targets) in enumerate(windows):
                first = number - number % self.recipe.accumulate
                step_batches = min(self.recipe.accumulate, self.batches - first)  # an epoch's last step may have fewer
                if number == first:
                    self.optimiser.zero_grad(set_to_none=True)
                numbers = self._backward(pcm, targets, step_batches)
                if not math.isfinite(numbers["loss"]):
                    raise DivergedError(f"the loss became {numbers['loss']} in step {number + 1}", epoch + 1, self.lr)
                if number + 1 == first + step_batches:
                    self._step(epoch % self.epochs * self.steps + number // self.recipe.accumulate)
                for key, value in numbers.items():
                    sums[key] = sums.get(key, 0.0) + value
                at = {
                    "epoch": epoch,
                    "epochs": self.epochs * self.recipe.trainings,
                    "step": number + 1,
                    "steps": self.batches,
                }
                self.notify({"stage": "step", **at, "loss": numbers["loss"]})
        training = {"training": epoch // self.epochs + 1} if self.soup else {}
        means = {key: value / self.batches for key, value in sums.items()}
        return {"epoch": epoch + 1, **training, "lr": self.lr, **means}

    def _train_mode(self) -> None:
        self.encoder.train()
        self.objective.train()
        for module in self.frozen_modules:
            module.eval()

    def _windows(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch: this process's share of the windows `[share, window]`, and the targets of all."""
        rng = np.random.default_rng([self.recipe.seed, epoch, 1])
        pinned = self.ranks.device.type == "cuda"
        for chosen in epoch_batches(self.clips, self.corpus, self.recipe, epoch):
            pcm = self.augment([self.clips.pcm[index] for index in chosen], rng)
            targets: npt.NDArray[Any] = self.clips.targets[chosen]
            if self.teaching:
                pcm, targets = self.teaching.extend(pcm, targets, self.augment, self.recipe, self.ranks.device, rng)
            tensors = torch.from_numpy(pcm[self.ranks.share(len(pcm))]), torch.from_numpy(targets)
            yield (tensors[0].pin_memory(), tensors[1].pin_memory()) if pinned else tensors

    def _backward(self, pcm: Tensor, targets: Tensor, step_batches: int) -> dict[str, float]:
        """Add the gradient of one of the `step_batches` batches of a step; returns its loss and the miner's statistics."""
        pcm, targets = (tensor.to(self.ranks.device, non_blocking=True) for tensor in (pcm, targets))
        with mixed_precision(self.ranks.device, self.recipe.precision):
            share = embed_in_chunks(self.encoder, pcm, self.recipe.chunk_size)
            loss, statistics = self.objective(self.ranks.gather(share, len(targets)), targets)
        (loss / step_batches).backward()
        return {"loss": loss.item(), **statistics}

    def _step(self, step: int) -> None:
        self.ranks.average_gradients(self.parameters)
        steps, averaging = self.epochs * self.steps, self.recipe.averaging
        rate = cosine_schedule(step, steps, averaging)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self.optimiser.step()
        if self.average and step >= min(steps - 1, (1 - averaging) * steps):
            self.average.update_parameters(self.all_modules)
