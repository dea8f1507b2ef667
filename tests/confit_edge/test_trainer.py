"""The training loop: reproducible, resumable bit for bit, choosing on validation, and clear when it diverges."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders import Encoder, build, pretrained
from confit_edge.encoders.embedding import embed_clips
from confit_edge.encoders.transformers import TransformersEncoder
from confit_edge.pairtune.lr_search import choose_lr, remove_search_files
from confit_edge.pairtune.objectives import FineTune, Objective, make_objective
from confit_edge.pairtune.optimiser import AVERAGED_RATE, cosine_schedule, frozen, make_optimiser
from confit_edge.pairtune.soup import averaged
from confit_edge.pairtune.trainer import Fitted, TrainingState, fit, prepared_training
from confit_edge.pairtune.validation import head_from_probe, head_probe, quality, quick_sample, standard_error
from confit_edge.probes.linear import LinearProbe
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError

RECIPE = Recipe(epochs=3, clips_per_class=2)  # ten clips a batch, three batches an epoch
Weights = dict[str, Tensor]


class StoppedError(Exception):
    """Stands for a kill: it leaves the training wherever it is."""


@pytest.fixture(scope="module")
def speech_embedding() -> Encoder:
    return pretrained("speech-embedding", 0.8)


@pytest.fixture(scope="module")
def attention() -> Encoder:
    """A tiny random wav2vec2 with dropout."""
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    return TransformersEncoder({**config.to_diff_dict(), "model_type": "wav2vec2"}, 7680, 960)


def trained(
    encoder: Encoder, corpus: Corpus, recipe: Recipe, lr: float = 5e-4, **options: Any
) -> tuple[Fitted, Weights]:
    """Train a copy; the result and every weight of it."""
    encoder = copy.deepcopy(encoder)
    fitted = fit(encoder, corpus, recipe, lr=lr, epochs=recipe.epochs, **options)
    return fitted, {**encoder.state_dict(), **fitted.objective.state_dict(prefix="objective.")}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# the same again


def test_a_seed_gives_the_same_weights_twice_and_another_seed_others(speech_embedding: Encoder, few: Corpus) -> None:
    recipe = replace(RECIPE, epochs=1)
    one, first = trained(speech_embedding, few, recipe)
    two, second = trained(speech_embedding, few, recipe)
    torch.rand(7)  # the global generator is nobody's source of randomness
    _, other = trained(speech_embedding, few, replace(recipe, seed=1))
    assert same(first, second)
    assert one.history == two.history
    assert not same(first, other)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("speech_embedding", {"objective": "pairtune", "spec_augment": True, "speed": 0.1}),
        ("speech_embedding", {"objective": "finetune", "averaging": 0.5}),
        ("attention", {"objective": "pairtune", "lora_rank": 2, "chunk_size": 3, "accumulate": 2}),
        ("attention", {"objective": "finetune", "averaging": 0.4, "precision": "bf16", "accumulate": 2}),
        ("speech_embedding", {"objective": "pairtune", "epochs": 2, "soup": 2, "averaging": 0.5}),
    ],
)
def test_stopped_anywhere_and_resumed_the_result_is_the_same_bit_for_bit(
    kind: str, changes: dict[str, Any], few: Corpus, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(kind)
    recipe = replace(RECIPE, **changes)
    steps = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stage"] == "step"

    undisturbed, expected = trained(encoder, few, recipe, watch=count)
    per_epoch = steps // (recipe.epochs * recipe.trainings)
    assert per_epoch >= 2

    def stop_at(moment: int) -> Callable[[dict[str, Any]], None]:
        def watch(event: dict[str, Any]) -> None:
            if event["stage"] == "step" and event["epoch"] * per_epoch + event["step"] == moment:
                raise StoppedError

        return watch

    moments = sorted(int(moment) for moment in np.random.default_rng().integers(1, steps + 1, size=3))
    path = tmp_path / "checkpoint.safetensors"
    for moment in moments:
        with pytest.raises(StoppedError):
            trained(encoder, few, recipe, checkpoint_path=path, watch=stop_at(moment))
    resumed, found = trained(encoder, few, recipe, checkpoint_path=path)
    assert resumed.history == undisturbed.history, moments
    assert same(found, expected), moments
    # a checkpoint of the last epoch gives the end result without another step
    again, once_more = trained(encoder, few, recipe, checkpoint_path=path, watch=stop_at(1))
    assert again.history == undisturbed.history
    assert same(once_more, expected)


# what validation decides


def test_the_weights_are_those_of_the_last_epoch_that_validation_finds_good(
    speech_embedding: Encoder, few: Corpus
) -> None:
    encoder, after = copy.deepcopy(speech_embedding), []

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "epoch":
            after.append(copy.deepcopy(encoder.state_dict()))
        elif event["epoch"] == 2 and event["step"] == event["steps"]:  # a last epoch that spoils everything
            with torch.no_grad():
                for parameter in encoder.parameters():
                    parameter.normal_(std=0.01)

    fitted = fit(encoder, few, RECIPE, lr=5e-4, epochs=3, watch=watch)
    quality = [row["val_linear"] for row in fitted.history]
    enough = max(quality) - standard_error(max(quality), len(few.val))
    assert quality[2] < enough
    assert fitted.kept_epoch == max(epoch for epoch in range(3) if quality[epoch] >= enough) < 2
    assert same(encoder.state_dict(), after[fitted.kept_epoch])
    assert not same(encoder.state_dict(), after[2])


@given(
    st.lists(st.integers(0, 50).map(lambda right: right / 50), min_size=1, max_size=12),
    st.sampled_from([10, 50, 1000]),
    st.integers(0, 5),
)
def test_of_epochs_that_validation_cannot_distinguish_the_last_is_kept(
    shares: list[float], clips: int, since: int
) -> None:
    since = min(since, len(shares) - 1)
    progress, module = TrainingState(clips), torch.nn.Linear(1, 1, bias=False)
    for epoch, share in enumerate(shares):
        if epoch == since:  # a soup's next training
            progress.since = since
        module.weight.data.fill_(float(epoch))
        progress.add({"val_linear": share}, {"encoder": module}, averaged=False)
    best = max(shares[since:])
    smoothed = (best * clips + 1) / (clips + 2)
    enough = best - math.sqrt(smoothed * (1 - smoothed) / clips)
    kept = max(epoch for epoch in range(since, len(shares)) if shares[epoch] >= enough)
    assert progress.kept_epoch == kept
    progress.restore({"encoder": module})
    assert module.weight.item() == kept


def test_an_epoch_of_vanilla_fine_tuning_is_judged_by_its_own_head() -> None:
    assert quality({"val_linear": 0.9, "val_head": 0.6}) == 0.6
    assert quality({"val_linear": 0.9}) == 0.9


@pytest.mark.parametrize(("classes", "clips", "each"), [(35, 12, 8), (5, 30, 10), (200, 5, 3), (5, 2, 2)])
def test_the_probe_after_each_epoch_has_clips_enough_of_each_class(classes: int, clips: int, each: int) -> None:
    targets = np.eye(classes, dtype=np.int8)[np.random.default_rng(0).permutation(np.arange(classes * clips) % classes)]
    rows = quick_sample(targets)
    assert rows == sorted(set(rows))
    assert targets[rows].sum(axis=0).tolist() == [each] * classes


def test_the_probe_after_each_epoch_hears_all_kinds_of_the_unknown_class() -> None:
    """Six clips of a word, and ninety of eighteen others, listed word by word."""
    targets = np.repeat(np.eye(2, dtype=np.int8), (6, 90), axis=0)
    rows = quick_sample(targets, unknown=1)
    assert rows[:6] == list(range(6))
    assert len(rows) == 6 + 30
    assert {(row - 6) // 5 for row in rows[6:]} == set(range(18))


def test_the_probe_after_each_epoch_hears_clips_of_no_class() -> None:
    """One label, in every third of sixty clips: a probe of those alone would be a constant."""
    targets = (np.arange(60) % 3 == 0).astype(np.int8)[:, None]
    assert targets[quick_sample(targets)].sum(axis=0).tolist() == [10]
    assert len(quick_sample(targets)) == 10 + 30


@pytest.mark.parametrize("share", [0.5, 0.01])  # less than a step: the last one
def test_the_weights_are_the_mean_over_the_last_steps_where_they_are_averaged(
    speech_embedding: Encoder, few: Corpus, share: float
) -> None:
    encoder, after = copy.deepcopy(speech_embedding), []

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            after.append({name: weight.double().clone() for name, weight in encoder.state_dict().items()})

    fitted = fit(encoder, few, replace(RECIPE, averaging=share), lr=5e-4, epochs=3, watch=watch)
    averaged = after[min(len(after) - 1, math.ceil((1 - share) * len(after))) :]
    assert len(averaged) > 2 if share == 0.5 else len(averaged) == 1
    for name, weight in encoder.state_dict().items():
        mean = torch.stack([weights[name] for weights in averaged]).mean(dim=0)
        torch.testing.assert_close(weight.double(), mean, rtol=0, atol=1e-6)
    moved = [name for name, _ in encoder.named_parameters()]
    same = [torch.equal(encoder.state_dict()[name].double(), averaged[-1][name]) for name in moved]
    assert not any(same) if len(averaged) > 1 else all(same)
    assert fitted.kept_epoch == 2  # the last average, whatever validation says of the epochs


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_a_soup_is_the_mean_of_trainings_from_the_same_start(
    speech_embedding: Encoder, few: Corpus, averaging: float
) -> None:
    recipe = replace(RECIPE, epochs=2, averaging=averaging)
    encoder, ends = copy.deepcopy(speech_embedding), []

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "epoch" and event["epoch"] % 2 == 0:
            ends.append({name: weight.double().clone() for name, weight in encoder.state_dict().items()})

    fitted = fit(encoder, few, replace(recipe, soup=3), lr=5e-4, epochs=2, watch=watch)
    alone = copy.deepcopy(speech_embedding)
    fit(alone, few, recipe, lr=5e-4, epochs=2)
    assert same({name: weight.double() for name, weight in alone.state_dict().items()}, ends[0])
    assert [row["training"] for row in fitted.history] == [1, 1, 2, 2, 3, 3]
    start = {name: weight.detach() for name, weight in speech_embedding.named_parameters()}
    for name, weight in encoder.named_parameters():
        mean = torch.stack([end[name] for end in ends]).mean(dim=0)
        torch.testing.assert_close(weight.detach().double(), mean, rtol=0, atol=1e-6)
        assert not torch.equal(ends[0][name], ends[1][name])
    # each began at the start again: it is no further from there than the first went, give or take
    change = [sum(float((end[name] - start[name]).square().sum()) for name in start) for end in ends]
    assert max(change) < 2 * min(change)


def test_each_training_of_a_soup_begins_with_no_momentum_and_no_mean(speech_embedding: Encoder, few: Corpus) -> None:
    """What an optimiser remembers, and the mean of the weights so far, are of the training before."""
    recipe = replace(RECIPE, epochs=2, soup=2, averaging=0.5)
    steps: list[tuple[int, int]] = []

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            state, average = training.optimiser.state[training.parameters[0]], training.average
            assert average is not None
            steps.append((int(state["step"]), int(average.n_averaged)))

    with prepared_training(copy.deepcopy(speech_embedding), few, recipe, lr=5e-4, epochs=2, watch=watch) as training:
        training.run(None)
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    assert first == second
    assert [step for step, _ in first] == list(range(1, len(first) + 1))
    assert first[0][1] == 0 < first[-1][1] == len(first) // 2


# a head that starts as the probe and learns next to nothing, on an encoder that stays as it is: quick, and known beforehand
STILL = replace(RECIPE, objective="finetune", freeze="all", head_init="probe", head_lr=1e-9, epochs=1)


def test_trainings_of_a_soup_start_at_the_head_that_the_probe_gave(speech_embedding: Encoder, few: Corpus) -> None:
    one, _ = trained(speech_embedding, few, STILL)
    soup, _ = trained(speech_embedding, few, replace(STILL, soup=2))
    assert [row["val_head"] for row in soup.history] == [one.history[0]["val_head"]] * 2
    assert one.history[0]["val_head"] > 0.2


def test_a_resumed_soup_keeps_an_epoch_of_its_current_training(
    speech_embedding: Encoder, few: Corpus, tmp_path: Path
) -> None:
    """The second training is spoilt at once; none of its epochs is as good as the first training's."""
    recipe, objectives = replace(STILL, epochs=2, soup=2), list[Objective]()

    def make(*of: Any) -> Objective:
        objectives.append(make_objective(*of))
        return objectives[-1]

    def zero_weights(event: dict[str, Any]) -> None:
        if event["stage"] == "step" and event["epoch"] >= 2:
            objectives[-1].load_state_dict(
                {name: torch.zeros_like(x) for name, x in objectives[-1].state_dict().items()}
            )

    def stop(event: dict[str, Any]) -> None:
        zero_weights(event)
        if event["stage"] == "epoch" and event["epoch"] == 3:
            raise StoppedError

    undisturbed, expected = trained(speech_embedding, few, recipe, watch=zero_weights, make=make)
    with pytest.raises(StoppedError):
        trained(speech_embedding, few, recipe, watch=stop, make=make, checkpoint_path=tmp_path / "checkpoint")
    resumed, found = trained(
        speech_embedding, few, recipe, watch=zero_weights, make=make, checkpoint_path=tmp_path / "checkpoint"
    )
    enough = undisturbed.history[0]["val_head"] - standard_error(undisturbed.history[0]["val_head"], len(few.val))
    assert undisturbed.history[3]["val_head"] < enough
    assert resumed.kept_epoch == undisturbed.kept_epoch == 3
    assert same(found, expected)


def test_each_epoch_hears_its_clips_in_another_way(attention: Encoder, few: Corpus) -> None:
    alike = replace(few, train=replace(few.train, pcm=[few.train.pcm[0]] * len(few.train)))
    encoder, encoder_inputs = copy.deepcopy(attention), list[Tensor]()
    encoder.register_forward_pre_hook(
        lambda module, inputs: encoder_inputs.append(inputs[0]) if module.training else None
    )
    fit(encoder, alike, replace(RECIPE, epochs=2), lr=1e-4, epochs=2)
    first, second = encoder_inputs[0], encoder_inputs[len(encoder_inputs) // 2]
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_a_recipe_without_a_rate_trains_an_encoder_at_its_own(speech_embedding: Encoder, few: Corpus) -> None:
    assert choose_lr(speech_embedding, few, RECIPE) == speech_embedding.learning_rate == 1e-3
    assert choose_lr(speech_embedding, few, replace(RECIPE, lr=(2e-4,))) == 2e-4


def test_of_several_learning_rates_the_one_best_on_validation_is_taken(speech_embedding: Encoder, few: Corpus) -> None:
    tried: dict[float, float] = {}

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "search":
            tried[event["lr"]] = event["validation"]

    before = copy.deepcopy(speech_embedding.state_dict())
    recipe = replace(RECIPE, objective="finetune", search_epochs=2, lr=(0.02, 5e-4))
    chosen = choose_lr(speech_embedding, few, recipe, watch)
    assert list(tried) == [0.02, 5e-4]
    assert tried[5e-4] > tried[0.02]
    assert chosen == 5e-4
    assert same(speech_embedding.state_dict(), before)  # tried on copies
    assert choose_lr(speech_embedding, few, replace(recipe, lr=(0.3,)), watch) == 0.3
    assert len(tried) == 2


def test_a_rate_is_judged_by_the_epoch_that_its_training_keeps(speech_embedding: Encoder, few: Corpus) -> None:
    """Of a head that overshoots, in one training, though the recipe has a soup of three."""
    for seed in range(3, 20):
        recipe = replace(STILL, head_init="random", head_lr=0.1, epochs=6, lr=(1e-3, 2e-3), seed=seed)
        fitted, _ = trained(speech_embedding, few, recipe)
        reached = [quality(row) for row in fitted.history]
        kept = reached[fitted.kept_epoch]
        if kept not in (reached[0], reached[-1]):
            break
    else:
        pytest.fail("every training is best in its first or last epoch")
    events: list[dict[str, Any]] = []
    choose_lr(speech_embedding, few, replace(recipe, epochs=9, search_epochs=6, soup=3), events.append)
    assert [event["validation"] for event in events if event["stage"] == "search"] == [kept, kept]
    assert {event["epoch"] for event in events if event["stage"] == "trying"} == set(range(6))


def test_a_search_that_was_killed_continues(speech_embedding: Encoder, few: Corpus, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, lr=(2e-3, 1e6, 5e-4))
    undisturbed: list[dict[str, Any]] = []
    chosen = choose_lr(speech_embedding, few, recipe, undisturbed.append)
    steps = [event for event in undisturbed if event["stage"] == "trying" and event["lr"] == 5e-4]
    assert [event["epoch"] for event in steps] == [0, 0, 1, 1]  # tried for as long as the training is

    def killed(event: dict[str, Any]) -> None:
        if event["stage"] == "trying" and (event["lr"], event["epoch"]) == (5e-4, 1):
            raise StoppedError

    with pytest.raises(StoppedError):
        choose_lr(speech_embedding, few, recipe, killed, folder=tmp_path)
    after: list[dict[str, Any]] = []
    assert choose_lr(speech_embedding, few, recipe, after.append, folder=tmp_path) == chosen
    assert [event["epoch"] for event in after if event["stage"] == "trying"] == [1, 1]
    found = [[event for event in events if event["stage"] == "search"] for events in (undisturbed, after)]
    assert found[1] == found[0][-1:]
    remove_search_files(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_that_diverges_loses_the_search_instead_of_ending_it(
    speech_embedding: Encoder, few: Corpus
) -> None:
    recipe = replace(RECIPE, search_epochs=1, lr=(1e6, 5e-4))
    assert choose_lr(speech_embedding, few, recipe) == 5e-4
    with pytest.raises(ConfitError, match="smaller lr"):
        choose_lr(speech_embedding, few, replace(recipe, lr=(1e6, 1e7)))


@pytest.mark.parametrize("objective", ["pairtune", "finetune"])
def test_a_training_ends_when_validation_gains_no_more(
    speech_embedding: Encoder, few: Corpus, tmp_path: Path, objective: str
) -> None:
    recipe = replace(RECIPE, objective=objective, epochs=9, patience=2, freeze="all", head_lr=1e-9)
    events: list[dict[str, Any]] = []
    path = tmp_path / "checkpoint.safetensors"
    fitted, weights = trained(speech_embedding, few, recipe, checkpoint_path=path, watch=events.append)
    assert len(fitted.history) == 3  # one that sets the mark, and two that do not pass it
    assert [event["text"] for event in events if event["stage"] == "note"][1:] == [
        "no gain on validation in 2 epochs: the training ends early"
    ]
    again, same_weights = trained(speech_embedding, few, recipe, checkpoint_path=path)
    assert again.history == fitted.history
    assert same(same_weights, weights)
    whole, _ = trained(speech_embedding, few, replace(recipe, patience=0, epochs=4))
    assert len(whole.history) == 4


# what learns, and how fast


def moved(encoder: Encoder, before: Encoder) -> list[bool]:
    """Of each block, whether a weight of it has changed."""
    return [
        any(
            not torch.equal(one, other)
            for module, previous in zip(block, old, strict=True)
            for one, other in zip(module.parameters(), previous.parameters(), strict=True)
        )
        for block, old in zip(encoder.blocks(), before.blocks(), strict=True)
    ]


@pytest.mark.parametrize(("freeze", "still"), [("none", 0), ("features", 1), ("3", 4), ("all", 6)])
def test_frozen_blocks_stay_as_they_are(speech_embedding: Encoder, few: Corpus, freeze: str, still: int) -> None:
    encoder = copy.deepcopy(speech_embedding)
    fitted = fit(encoder, few, replace(RECIPE, freeze=freeze, epochs=1), lr=5e-4, epochs=1)
    assert moved(encoder, speech_embedding) == [False] * still + [True] * (6 - still)
    assert all(parameter.requires_grad for parameter in encoder.parameters())  # frozen for that training only
    assert math.isfinite(fitted.history[0]["loss"])


def test_what_never_learns_is_not_thawed(speech_embedding: Encoder) -> None:
    encoder = copy.deepcopy(speech_embedding)
    fixed, *others = (parameter for module in encoder.blocks()[0] for parameter in module.parameters())
    fixed.requires_grad_(False)
    with frozen(encoder, "features"):
        assert not any(parameter.requires_grad for parameter in others)
    assert not fixed.requires_grad
    assert all(parameter.requires_grad for parameter in others)


def test_frozen_layers_drop_nothing_out(attention: Encoder, few: Corpus) -> None:
    encoder, modes = copy.deepcopy(attention), set()

    def watch(event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            features, layer = encoder.blocks()
            modes.add((any(module.training for module in features), all(module.training for module in layer)))

    fit(encoder, few, replace(RECIPE, freeze="features", epochs=1), lr=5e-4, epochs=1, watch=watch)
    assert modes == {(False, True)}
    with pytest.raises(UsageError, match="'freeze' is 2, but this encoder has only 1 layer"):
        trained(attention, few, replace(RECIPE, freeze="2"))


def test_layers_learn_the_slower_the_lower_they_are(speech_embedding: Encoder) -> None:
    objective = make_objective(RECIPE, 96, 5, False)
    plain = make_optimiser(speech_embedding, objective, replace(RECIPE, weight_decay=0.2), 1e-3)
    assert [group["lr"] for group in plain.param_groups] == [1e-3, RECIPE.head_lr]
    layered = make_optimiser(speech_embedding, objective, replace(RECIPE, weight_decay=0.2, lr_decay=0.5), 1e-3)
    rates = {id(p): group["lr"] for group in layered.param_groups for p in group["params"]}
    assert len(rates) == len([*speech_embedding.parameters(), *objective.parameters()])
    assert {group["weight_decay"] for each in (plain, layered) for group in each.param_groups} == {0.2}
    for index, block in enumerate(speech_embedding.blocks()):
        for module in block:
            for parameter in module.parameters():
                assert rates[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (5 - index))
    assert {rates[id(p)] for p in objective.parameters()} == {RECIPE.head_lr}


@pytest.mark.parametrize(("lr", "head_lr"), [(1e-9, 1e-3), (1e-3, 1e-9)])
def test_the_head_learns_at_a_rate_of_its_own(attention: Encoder, few: Corpus, lr: float, head_lr: float) -> None:
    recipe = replace(RECIPE, objective="finetune", epochs=1, head_lr=head_lr)
    torch.manual_seed(recipe.seed)
    start = make_objective(recipe, attention.dim, len(few.classes), False).state_dict(prefix="objective.")
    _, weights = trained(attention, few, recipe, lr=lr)
    change = {
        name: float((weights[name] - before).abs().max())
        for name, before in {**attention.state_dict(), **start}.items()
    }
    head = max(change.pop(name) for name in start)
    assert (head > 1e-4, max(change.values()) > 1e-4) == (head_lr > lr, lr > head_lr)


def test_steps_stand_on_several_batches_and_the_rest_of_an_epoch(speech_embedding: Encoder, few: Corpus) -> None:
    def gradients(accumulate: int) -> tuple[list[Weights], Weights]:
        """The encoder's gradients after each of two batches, at a rate that changes next to nothing; the weights."""
        encoder, seen = copy.deepcopy(speech_embedding), []

        def watch(event: dict[str, Any]) -> None:
            if event["stage"] == "step":
                seen.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})

        fit(encoder, few, replace(RECIPE, accumulate=accumulate, head_lr=1e-12), lr=1e-12, epochs=1, watch=watch)
        return seen, encoder.state_dict()

    (first, second), _ = gradients(1)
    (half, both), weights = gradients(2)
    (_, same_both), same_weights = gradients(100)  # an epoch has fewer: its step stands on those there are
    for name in both:
        torch.testing.assert_close(half[name], first[name] / 2, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(both[name], (first[name] + second[name]) / 2, atol=1e-5, rtol=1e-3)
    assert same(both, same_both)
    assert same(weights, same_weights)


def test_a_head_may_start_as_the_probe_of_the_encoder_as_it_is(
    speech_embedding: Encoder, few: Corpus, run_corpus: Corpus
) -> None:
    still = replace(RECIPE, objective="finetune", epochs=1, freeze="all", head_lr=1e-9)
    random, _ = trained(speech_embedding, few, still)
    probed, _ = trained(speech_embedding, few, replace(still, head_init="probe"))
    assert random.history[0]["val_head"] < 0.6 < probed.history[0]["val_head"]
    objective, cpu = FineTune(speech_embedding.dim, len(few.classes), multi_label=False), torch.device("cpu")
    head_from_probe(objective, speech_embedding, few.train, few.val, cpu)
    train, val = (embed_clips(speech_embedding, clips.pcm, cpu) for clips in (few.train, few.val))
    probe = LinearProbe.fit(train, few.train.targets, val, few.val.targets)
    np.testing.assert_allclose(head_probe(objective).scores(val), probe.scores(val), atol=1e-4)
    # with an unknown class, whose clips are background and fragments
    fitted, _ = trained(speech_embedding, run_corpus, replace(still, head_init="probe"))
    assert isinstance(fitted.objective, FineTune)
    assert fitted.objective.head.weight.shape[0] == len(few.classes) + 1
    assert fitted.history[0]["val_head"] > 0.6


# one word against everything else


@pytest.mark.parametrize("objective", ["pairtune", "finetune"])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_wake_word_is_one_class_next_to_the_unknown(
    speech_embedding: Encoder, few: Corpus, run_corpus: Corpus, objective: str, noisy: bool
) -> None:
    """As from a manifest whose labels are `hey` and `unknown`, with background and without."""

    def binary(clips: Clips) -> Clips:
        hey = clips.targets[:, few.classes.index("marvin")]
        return replace(clips, targets=np.stack([hey, 1 - hey], axis=1))

    background = run_corpus.background_train if noisy else []
    wake = replace(
        few,
        classes=["hey", "unknown"],
        unknown="unknown",
        train=binary(few.train),
        val=binary(few.val),
        background_train=background,
    )
    fitted, _ = trained(speech_embedding, wake, replace(RECIPE, objective=objective, epochs=1))
    assert math.isfinite(fitted.history[0]["loss"])
    assert fitted.history[0]["val_linear"] > 0.6


# a history worth reading


@pytest.mark.parametrize(("objective", "extra"), [("pairtune", "hardest_negative"), ("finetune", "val_head")])
def test_history_has_every_epoch_and_a_head_is_a_probe(
    speech_embedding: Encoder, few: Corpus, objective: str, extra: str
) -> None:
    events: list[dict[str, Any]] = []
    recipe = replace(RECIPE, objective=objective, epochs=2)
    fitted, _ = trained(speech_embedding, few, recipe, watch=events.append)
    assert [row["epoch"] for row in fitted.history] == [1, 2]
    assert all({"loss", "lr", "val_linear", extra} <= row.keys() for row in fitted.history)
    for epoch, row in enumerate(fitted.history):
        losses = [event["loss"] for event in events if event["stage"] == "step" and event["epoch"] == epoch]
        assert row["loss"] == pytest.approx(np.mean(losses))
    if isinstance(fitted.objective, FineTune):
        embeddings = torch.nn.functional.normalize(torch.randn(4, 96), dim=1)
        with torch.no_grad():
            expected = fitted.objective.project(embeddings).softmax(dim=1)
        np.testing.assert_allclose(head_probe(fitted.objective).scores(embeddings.numpy()), expected, atol=1e-5)


# what can go wrong


@pytest.mark.parametrize("clips_per_class", [2, 6])
@pytest.mark.parametrize("objective", ["pairtune", "finetune"])
def test_a_training_that_diverges_reports_it(
    speech_embedding: Encoder, corpus: Corpus, objective: str, clips_per_class: int
) -> None:
    # with 6 there is one step an epoch, and what it broke shows only in the validation after it
    recipe = replace(RECIPE, objective=objective, clips_per_class=clips_per_class, epochs=1)
    with pytest.raises(ConfitError, match="smaller lr"):
        trained(speech_embedding, corpus, recipe, lr=1e6)


def test_masks_are_for_training_and_for_the_encoder_that_has_them(
    speech_embedding: Encoder, attention: Encoder, few: Corpus
) -> None:
    recipe = replace(RECIPE, spec_augment=True, epochs=1)
    encoder = copy.deepcopy(speech_embedding)
    fit(encoder, few, recipe, lr=1e-3, epochs=1)
    plain = build(encoder.spec())
    plain.load_state_dict(encoder.state_dict(), strict=True)
    pcm = torch.from_numpy(np.stack([few.train.pcm[0][: encoder.window]] * 2))
    with torch.no_grad():
        assert torch.equal(encoder.eval()(pcm), plain.eval()(pcm))
    assert same(copy.deepcopy(encoder).state_dict(), encoder.state_dict())
    with pytest.raises(UsageError, match="'spec_augment'"):
        trained(attention, few, recipe)


def test_batches_in_parts_are_refused_where_an_encoder_learns_from_a_whole_one(attention: Encoder, few: Corpus) -> None:
    encoder = copy.deepcopy(attention)
    encoder.add_module("norm", nn.BatchNorm1d(2))
    with pytest.raises(UsageError, match="chunk_size"):
        trained(encoder, few, replace(RECIPE, chunk_size=3))


def test_bf16_trains_weights_that_stay_fp32(speech_embedding: Encoder, few: Corpus) -> None:
    fitted, weights = trained(speech_embedding, few, replace(RECIPE, precision="bf16", epochs=1))
    assert math.isfinite(fitted.history[0]["loss"])
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_schedule_warms_up_and_falls_to_nothing() -> None:
    for steps in (1, 2, 7, 300):
        rates = [cosine_schedule(step, steps) for step in range(steps)]
        assert all(0 < rate <= 1 for rate in rates)
        top = int(np.argmax(rates))
        assert top <= max(1, 0.1 * steps)
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
    assert cosine_schedule(299, 300) < 0.001
    assert [cosine_schedule(step, 300) for step in (0, 15)] == pytest.approx([1 / 31, 16 / 31])
    assert max(cosine_schedule(step, 300) for step in range(300)) == pytest.approx(1.0)
    averaged = [cosine_schedule(step, 300, averaging=0.5) for step in range(300)]
    assert max(averaged) == pytest.approx(1.0)
    assert averaged[:31] == sorted(averaged[:31])
    assert averaged[31:] == sorted(averaged[31:], reverse=True)
    assert averaged[149] > AVERAGED_RATE
    assert averaged[150:] == pytest.approx([AVERAGED_RATE] * 150)


def test_a_mean_of_weights_and_buffers_leaves_whole_numbers_whole() -> None:
    # torch's own mean of several tensors at once, which it takes on a GPU, cannot divide them
    counted = nn.BatchNorm1d(2)
    mean = averaged(counted)
    for seen in (3, 7):
        counted.num_batches_tracked.fill_(seen)
        counted.weight.data.fill_(seen)
        counted.running_mean.fill_(seen)
        mean.update_parameters(counted)
    assert mean.module.num_batches_tracked == 7
    assert mean.module.weight.tolist() == mean.module.running_mean.tolist() == [5.0, 5.0]
    assert mean.avg_fn is not None
