"""Background that a probe takes for a class is found by hearing all of it, and learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.probes import dual, hard
from confit_edge.probes.hard import FIRES, PIECE_S, ROUNDS, embed_background, learn_hard
from confit_edge.probes.linear import LinearProbe
from confit_edge.recipe import Recipe

CPU = torch.device("cpu")
Floats = npt.NDArray[np.float32]


def noise(seconds: float, seed: int = 0) -> Floats:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.float32)


@pytest.mark.parametrize("family", ["speech-embedding", "ge2e"])
def test_all_of_the_background_is_heard(family: str) -> None:
    """By a naive loop over pieces of all that is joined: a streaming encoder at each hop, another window by window."""
    encoder = pretrained(family, 1.28)
    recordings = [
        noise(PIECE_S + 4),
        noise(2.0, 1),
        *(noise(0.3, seed) for seed in range(2, 9)),
    ]  # most shorter than a window
    joined = np.concatenate(recordings)
    pieces = [joined[: PIECE_S * 16_000], joined[PIECE_S * 16_000 :]]
    step = encoder.hop if encoder.streaming else encoder.window
    naive = []
    for piece in pieces:
        padded = len(piece) + (-(len(piece) - encoder.window) % encoder.hop if encoder.streaming else 0)
        whole = np.pad(piece, (0, padded - len(piece)))
        naive += [whole[at : at + encoder.window] for at in range(0, len(whole) - encoder.window + 1, step)]
    with torch.no_grad():
        expected = encoder(torch.from_numpy(np.stack(naive))).numpy()
    embedded = embed_background(encoder, recordings, CPU, 0)
    assert embedded.shape == expected.shape
    np.testing.assert_allclose(embedded, expected, atol=2e-5)


def test_of_much_background_pieces_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = pretrained("speech-embedding", 1.28)
    monkeypatch.setattr(hard, "PIECE_S", 2)
    recordings = [noise(10.0), noise(6.0, 1)]
    every = embed_background(encoder, recordings, CPU, 0)
    monkeypatch.setattr(hard, "MOST_S", 6)
    drawn = [embed_background(encoder, recordings, CPU, seed) for seed in (0, 0, 1)]
    assert [len(rows) * 8 for rows in drawn] == [len(every) * 3] * 3
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert {row.tobytes() for row in drawn[2]} < {row.tobytes() for row in every}


def clusters(rng: np.random.Generator, centres: list[list[float]], each: int) -> tuple[Floats, npt.NDArray[np.int8]]:
    points = np.repeat(np.array(centres), each, axis=0) + 0.2 * rng.standard_normal((each * len(centres), 3))
    return points.astype(np.float32), np.repeat(np.eye(len(centres), dtype=np.int8), each, axis=0)


def fires(probe: LinearProbe, rows: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.delete(probe.scores(rows), 2, axis=1).max(axis=1) > FIRES)


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_fires_in_the_background_is_learnt_and_the_classes_are_kept(multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    centres = [[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]
    fitting, choosing = clusters(rng, centres, 40), clusters(rng, centres, 20)
    probe = LinearProbe.fit(*fitting, *choosing, multi_label=multi_label)
    quiet = 0.2 * rng.standard_normal((3000, 3))
    speech = np.array([1.0, 0, 1.5]) + 0.2 * rng.standard_normal((60, 3))  # like the first class but for what none has
    background = np.concatenate([quiet, speech]).astype(np.float32)
    taught = learn_hard(probe, fitting, choosing, background, unknown=2)
    assert fires(probe, background[3000:]).mean() > 0.9
    assert fires(taught, background[3000:]).mean() < 0.1
    right = taught.scores(choosing[0]).argmax(axis=1) == choosing[1].argmax(axis=1)
    assert right.mean() > 0.9


def test_background_never_outweighs_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows than there are of the classes, the most certain first, in a few rounds; none where none fires."""
    rng = np.random.default_rng(1)
    centres = [[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]
    fitting, choosing = clusters(rng, centres, 10), clusters(rng, centres, 10)
    probe = LinearProbe.fit(*fitting, *choosing)
    like_a_class = (np.array([1.0, 0, 0]) + 0.3 * rng.standard_normal((500, 3))).astype(np.float32)
    fitted: list[Floats] = []
    fit = LinearProbe.fit

    def recording_fit(embeddings: Floats, *rest: npt.NDArray, multi_label: bool = False) -> LinearProbe:
        fitted.append(embeddings[30:])
        return fit(embeddings, *rest, multi_label=multi_label)

    monkeypatch.setattr(hard.LinearProbe, "fit", recording_fit)
    learn_hard(probe, fitting, choosing, like_a_class, unknown=2)
    assert 1 <= len(fitted) <= ROUNDS
    hardest = np.sort(np.delete(probe.scores(like_a_class), 2, axis=1).max(axis=1))[::-1]
    first = np.sort(np.delete(probe.scores(fitted[0]), 2, axis=1).max(axis=1))[::-1]
    np.testing.assert_allclose(first, hardest[:20])
    assert max(map(len, fitted)) == 20
    fitted.clear()
    assert learn_hard(probe, fitting, choosing, fitting[0][20:], unknown=2) is probe
    assert not fitted


def test_the_linear_probe_learns_from_all_the_background(run_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is said now and then in long background is no word to be found; before, few of its rows were drawn."""
    encoder = pretrained("speech-embedding", 1.28)
    word = next(pcm for pcm, target in zip(run_corpus.train.pcm, run_corpus.train.targets, strict=True) if target[0])
    radio = np.concatenate(
        [run_corpus.background_train[0], *(np.concatenate([word, noise(4.0, at)]) for at in range(9))]
    )
    corpus = replace(run_corpus, background_train=[radio.astype(np.float32)])

    def count_fires(probed: Encoder) -> int:
        rows = embed_background(probed, corpus.background_train, CPU, 0)
        probes = dual.dual_probe(probed, corpus, Recipe(probe_views=1), CPU)
        assert probes.typicality.unknown == corpus.unknown_column
        scores = probes.linear.scores(rows)
        return int((np.delete(scores, corpus.unknown_column or 0, axis=1).max(axis=1) > FIRES).sum())

    learnt = count_fires(encoder)
    monkeypatch.setattr(dual, "learn_hard", lambda probe, *of, **how: probe)
    assert learnt < 0.5 * count_fires(encoder)


@pytest.mark.parametrize("multi_label", [False, True])
def test_in_each_round_the_surest_that_are_new_are_added(multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the background is like a class in all, and fires however often it is learnt: it is not taken again."""
    rng = np.random.default_rng(0)
    centres = [[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]
    fitting, choosing = clusters(rng, centres, 40), clusters(rng, centres, 20)
    like_a_class = np.array([1.0, 0, 0]) + 0.05 * rng.standard_normal((6, 3))
    between = np.array([0.3, 0, 0.3]) + 0.8 * rng.standard_normal((60, 3))
    background = np.concatenate([like_a_class, between]).astype(np.float32)
    probe = LinearProbe.fit(*fitting, *choosing, multi_label=multi_label)
    fitted: list[tuple[Floats, LinearProbe]] = []
    fit = LinearProbe.fit

    def noted(embeddings: Floats, *rest: npt.NDArray, multi_label: bool = False) -> LinearProbe:
        fitted.append((embeddings[120:], fit(embeddings, *rest, multi_label=multi_label)))
        return fitted[-1][1]

    monkeypatch.setattr(hard.LinearProbe, "fit", noted)
    last = learn_hard(probe, fitting, choosing, background, unknown=2)
    taken: list[int] = []
    for rows, after in fitted:
        new = hardest(probe, background, taken)
        assert new
        taken += new[: 80 - len(taken)]
        assert np.array_equal(rows, background[sorted(taken)])
        probe = after
    assert last is probe
    assert last.multi_label == multi_label
    assert 2 <= len(fitted) < ROUNDS
    assert len(taken) < 80
    assert hardest(probe, background, taken) == []
    assert fires(probe, background[:6]).all()


def hardest(probe: LinearProbe, background: Floats, taken: list[int]) -> list[int]:
    """The rows that fire and were not taken before, by their scores."""
    scores = np.delete(probe.scores(background), 2, axis=1).max(axis=1)
    new = [row for row in range(len(background)) if row not in taken and scores[row] > FIRES]
    return sorted(new, key=lambda row: -scores[row])
