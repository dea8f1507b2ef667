"""Gradient caching is exact: the gradients of one big batch, with the memory of a chunk."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from confit_edge.encoders.spec_augment import SpecAugment
from confit_edge.encoders.speech_embedding import SILENCE, SpeechEmbedding
from confit_edge.pairtune.grad_cache import check_no_batch_statistics, embed_in_chunks
from confit_edge.pairtune.machine import mixed_precision
from confit_edge.pairtune.objectives import make_objective
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError

CPU = torch.device("cpu")
Embed = Callable[[nn.Module, Tensor, int], Tensor]


def perceptron(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(40, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 32), nn.Dropout(dropout)]
    return nn.Sequential(*layers).train()


def masked_speech_embedding() -> nn.Module:
    encoder = SpeechEmbedding.pretrained(pool_hops=1)
    encoder.mask = SpecAugment(floor=SILENCE)
    return encoder.train()


def keeping_the_graph(encoder: nn.Module, pcm: Tensor, chunk_size: int) -> Tensor:
    """The oracle: the same chunks, with everything kept for one backward pass through all of them."""
    return torch.cat([encoder(chunk) for chunk in pcm.split(chunk_size)])


def gradients(
    embed: Embed, encoder: nn.Module, samples: int, chunk_size: int, precision: str = "fp32"
) -> tuple[dict[str, Tensor], float, Tensor]:
    """Of PairTune's loss on 14 clips of 5 classes; the loss; and what the generator gives next."""
    torch.manual_seed(1)
    pcm, targets = 0.1 * torch.randn(14, samples), torch.eye(5)[torch.arange(14) % 5]
    with torch.no_grad():
        dim = encoder.eval()(pcm[:2]).shape[1]
    encoder.train()
    objective = make_objective(Recipe(), dim, 5, False)
    encoder.zero_grad()
    torch.manual_seed(2)
    with mixed_precision(CPU, precision):  # type: ignore[arg-type]
        loss, _ = objective(embed(encoder, pcm, chunk_size), targets)
    loss.backward()
    both = [*encoder.named_parameters(), *objective.named_parameters(prefix="objective")]
    return {name: p.grad.clone() for name, p in both if p.grad is not None}, loss.item(), torch.rand(3)


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert all(float(gradient.abs().max()) > 0 for gradient in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("chunk_size", [1, 4, 13])
def test_chunks_replay_what_they_drew(chunk_size: int) -> None:
    encoder = perceptron(dropout=0.4)
    expected, loss, after = gradients(keeping_the_graph, encoder, 40, chunk_size)
    found, same_loss, same_after = gradients(embed_in_chunks, encoder, 40, chunk_size)
    assert same_loss == loss
    assert furthest(found, expected) < 1e-5
    assert torch.equal(same_after, after)  # what comes next draws as if nothing had been replayed
    other, *_ = gradients(lambda *given: (torch.rand(1), embed_in_chunks(*given))[1], encoder, 40, chunk_size)
    assert furthest(other, expected) > 1e-3  # and what is drawn does matter


def test_masks_of_spectrograms_are_replayed_too() -> None:
    encoder = masked_speech_embedding()
    samples = SpeechEmbedding(1).window
    expected, loss, _ = gradients(keeping_the_graph, encoder, samples, 5)
    found, same_loss, _ = gradients(embed_in_chunks, encoder, samples, 5)
    assert same_loss == loss
    assert furthest(found, expected) < 1e-5


@pytest.mark.parametrize("chunk_size", [0, 1, 5, 14, 99])
def test_without_chance_it_is_one_big_batch(chunk_size: int) -> None:
    encoder = perceptron(dropout=0.0)
    expected, loss, _ = gradients(lambda encoder, pcm, _: encoder(pcm), encoder, 40, 0)
    found, same_loss, _ = gradients(embed_in_chunks, encoder, 40, chunk_size)
    assert same_loss == pytest.approx(loss, abs=1e-5)
    assert furthest(found, expected) < 1e-5


def test_bf16_is_replayed_in_bf16() -> None:
    encoder = perceptron(dropout=0.4)
    expected, *_ = gradients(keeping_the_graph, encoder, 40, 4, "bf16")
    found, *_ = gradients(embed_in_chunks, encoder, 40, 4, "bf16")
    single, *_ = gradients(keeping_the_graph, encoder, 40, 4)
    assert furthest(single, expected) > 1e-5  # bf16 it is
    # each chunk's share is rounded to bf16 before the sum, or the sum is
    assert furthest(found, expected) < 0.02 * max(float(gradient.abs().max()) for gradient in expected.values())


def test_nothing_on_the_way_is_kept_but_the_embeddings() -> None:
    encoder = perceptron(dropout=0.4)
    seen: list[weakref.ref[Tensor]] = []
    handle = encoder[0].register_forward_hook(lambda *call: seen.append(weakref.ref(call[2])))
    pcm = torch.randn(14, 40)

    def alive(embeddings: Tensor) -> int:
        gc.collect()
        assert embeddings.requires_grad
        return sum(reference() is not None for reference in seen)

    assert alive(keeping_the_graph(encoder, pcm, 2)) == 7
    seen.clear()
    embeddings = embed_in_chunks(encoder, pcm, 2)
    assert len(seen) == 7
    assert alive(embeddings) == 0
    handle.remove()


def test_an_encoder_that_normalises_over_the_batch_is_refused_in_parts() -> None:
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match=r"chunk_size: .*\(1\)"):
        check_no_batch_statistics(encoder.train(), "chunk_size")
    check_no_batch_statistics(encoder.eval(), "chunk_size")  # with its own statistics it does not
    check_no_batch_statistics(nn.Sequential(nn.LayerNorm(4)), "chunk_size")
