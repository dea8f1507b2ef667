"""Oracles in plain loops and float64 for what training does with the pairs of a batch, and batches of odd shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Doubles = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int8]


def one_hot(labels: list[int]) -> Targets:
    return np.eye(6, dtype=np.int8)[labels]


CASES = {
    "single label": one_hot([0, 0, 1, 1, 1, 2]),
    "several labels": np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], np.int8),
    "an anchor without a positive": one_hot([0, 1, 1, 2]),
    "no anchor with a positive": one_hot([0, 1, 2, 3]),
    "empty label sets": np.zeros((4, 3), np.int8),
    "all of one class": one_hot([2, 2, 2, 2]),
    "one clip": one_hot([0]),
}


@st.composite
def label_sets(draw: st.DrawFn, clips: int) -> Targets:
    """Label sets as they come: one or several labels, all alike, all different, empty."""
    kind = draw(st.sampled_from(["single", "several", "one class", "all different", "empty", "some empty"]))
    if kind == "one class":
        return np.eye(clips, dtype=np.int8)[[0] * clips]
    if kind == "all different":
        return np.eye(clips, dtype=np.int8)
    if kind == "empty":
        return np.zeros((clips, 3), np.int8)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "several":
        return rng.integers(0, 2, (clips, 3)).astype(np.int8)
    targets = np.eye(3, dtype=np.int8)[rng.integers(3, size=clips)]
    return targets * rng.integers(0, 2, (clips, 1)).astype(np.int8) if kind == "some empty" else targets


@st.composite
def batches(draw: st.DrawFn, repeats: bool = True) -> tuple[Doubles, Targets]:
    """Projections `[clips, 5]` and their label sets; with `repeats`, some clips may be there several times."""
    clips = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    projections = rng.standard_normal((clips, 5))
    if repeats and draw(st.booleans()):
        projections = projections[rng.integers(clips, size=clips)]
    return projections, draw(label_sets(clips))


def overlap(targets: Targets) -> Doubles:
    sets = [set(np.flatnonzero(row)) for row in targets]
    return np.array(
        [[len(a & b) / len(a | b) if i != j and a | b else 0.0 for j, b in enumerate(sets)] for i, a in enumerate(sets)]
    ).reshape(len(sets), len(sets))


def unit(z: Doubles) -> Doubles:
    return np.array([row / math.sqrt(sum(value**2 for value in row)) for row in z])


def cosines(z: Doubles) -> Doubles:
    return np.array([[float(a @ b) for b in unit(z)] for a in unit(z)])


def sides(pairs: Doubles, i: int) -> tuple[list[int], list[int]]:
    """The positives and the negatives of anchor `i`."""
    others = [a for a in range(len(pairs)) if a != i]
    return [a for a in others if pairs[i, a] > 0], [a for a in others if pairs[i, a] == 0]


def supcon(z: Doubles, pairs: Doubles, temperature: float, weights: Doubles | None = None) -> float:
    """Ours: the mean over anchors that have a positive of -sum_p v_p log(share of p), v adding up to 1."""
    h = np.ones_like(pairs) if weights is None else weights
    cosine, losses = cosines(z), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(pairs[i, p] * h[i, p] for p in others)
        if total == 0:
            continue
        below = sum(h[i, a] * math.exp(cosine[i, a] / temperature) for a in others)
        losses.append(
            -sum(
                pairs[i, p] * h[i, p] / total * math.log(math.exp(cosine[i, p] / temperature) / below)
                for p in others
                if pairs[i, p] * h[i, p] > 0
            )
        )
    return sum(losses) / len(losses) if losses else 0.0


def none(cosine: Doubles, pairs: Doubles) -> Doubles:
    return _by_anchor(cosine, pairs, lambda near, positives, negatives: dict.fromkeys(positives + negatives, 1.0))


def hardness(cosine: Doubles, pairs: Doubles, beta: float) -> Doubles:
    def weigh(near: dict[int, float], positives: list[int], negatives: list[int]) -> dict[int, float]:
        raw = {a: math.exp(beta * near[a] / 0.5) for a in negatives}
        mean = sum(raw.values()) / max(1, len(raw))
        return dict.fromkeys(positives, 1.0) | {a: value / mean for a, value in raw.items()}

    return _by_anchor(cosine, pairs, weigh)


def _count(share: float, pairs: list[int]) -> int:
    return max(1, round(float(np.float32(share) * np.float32(len(pairs)))))


def hardest_negatives(cosine: Doubles, pairs: Doubles, share: float) -> Doubles:
    def weigh(near: dict[int, float], positives: list[int], negatives: list[int]) -> dict[int, float]:
        bound = sorted((near[a] for a in negatives), reverse=True)[: _count(share, negatives)]
        return dict.fromkeys(positives, 1.0) | {a: 1.0 for a in negatives if near[a] >= bound[-1]}

    return _by_anchor(cosine, pairs, weigh)


def hardest_positives(cosine: Doubles, pairs: Doubles, share: float) -> Doubles:
    def weigh(near: dict[int, float], positives: list[int], negatives: list[int]) -> dict[int, float]:
        bound = sorted(near[a] for a in positives)[: _count(share, positives)]
        return dict.fromkeys(negatives, 1.0) | {a: 1.0 for a in positives if near[a] <= bound[-1]}

    return _by_anchor(cosine, pairs, weigh)


def semi_hard(cosine: Doubles, pairs: Doubles, margin: float) -> Doubles:
    def weigh(near: dict[int, float], positives: list[int], negatives: list[int]) -> dict[int, float]:
        kept = {}
        for p in positives:
            for n in negatives:
                if near[n] < near[p] < near[n] + margin:
                    kept[p] = kept[n] = 1.0
        return kept

    return _by_anchor(cosine, pairs, weigh)


def multi_similarity(cosine: Doubles, pairs: Doubles, margin: float) -> Doubles:
    def weigh(near: dict[int, float], positives: list[int], negatives: list[int]) -> dict[int, float]:
        kept = {}
        for n in negatives:
            if any(near[n] > near[p] - margin for p in positives):
                kept[n] = 1.0
        for p in positives:
            if any(near[p] < near[n] + margin for n in negatives):
                kept[p] = 1.0
        return kept

    return _by_anchor(cosine, pairs, weigh)


def _by_anchor(
    cosine: Doubles, pairs: Doubles, weigh: Callable[[dict[int, float], list[int], list[int]], dict[int, float]]
) -> Doubles:
    weights = np.zeros_like(cosine)
    for i in range(len(cosine)):
        for a, weight in weigh(dict(enumerate(cosine[i])), *sides(pairs, i)).items():
            weights[i, a] = weight
    return weights


def statistics(cosine: Doubles, pairs: Doubles, weights: Doubles) -> dict[str, float]:
    kept: dict[str, list[bool]] = {"positives_kept": [], "negatives_kept": []}
    hardest: dict[str, list[float]] = {"hardest_positive": [], "hardest_negative": []}
    for i in range(len(cosine)):
        positives, negatives = sides(pairs, i)
        kept["positives_kept"] += [weights[i, a] > 0 for a in positives]
        kept["negatives_kept"] += [weights[i, a] > 0 for a in negatives]
        if positives:
            hardest["hardest_positive"].append(min(cosine[i, a] for a in positives))
        if negatives:
            hardest["hardest_negative"].append(max(cosine[i, a] for a in negatives))
    values: dict[str, list[Any]] = {**kept, **hardest}
    return {key: sum(found) / len(found) if found else math.nan for key, found in values.items()}


def triplet(z: Doubles, pairs: Doubles, weights: Doubles, margin: float) -> float:
    cosine, losses = cosines(z), []
    for i in range(len(z)):
        positives, negatives = sides(pairs, i)
        for p in positives:
            for n in negatives:
                violation = cosine[i, n] - cosine[i, p] + margin
                if weights[i, p] and weights[i, n] and violation > 0:
                    losses.append(violation)
    return sum(losses) / len(losses) if losses else 0.0


def nt_xent(z: Doubles, pairs: Doubles, weights: Doubles, temperature: float) -> float:
    near, losses = np.exp(cosines(z) / temperature), []
    if not any(weights[i, n] for i in range(len(z)) for n in sides(pairs, i)[1]):
        return 0.0
    for i in range(len(z)):
        positives, negatives = sides(pairs, i)
        below = sum(near[i, n] for n in negatives if weights[i, n])
        losses += [-math.log(near[i, p] / (near[i, p] + below)) for p in positives if weights[i, p]]
    return sum(losses) / len(losses) if losses else 0.0


def n_pairs(z: Doubles, labels: list[int], pairs: Doubles, weights: Doubles, temperature: float) -> float:
    chosen: dict[int, tuple[int, int]] = {}
    for i in range(len(z)):
        for p in sides(pairs, i)[0]:
            if weights[i, p]:
                chosen.setdefault(labels[i], (i, p))
    near, losses = np.exp(cosines(z) / temperature), []
    for anchor, positive in chosen.values():
        losses.append(-math.log(near[anchor, positive] / sum(near[anchor, p] for _, p in chosen.values())))
    return sum(losses) / len(losses) if losses else 0.0


def proxy_anchor(z: Doubles, labels: list[int], proxies: Doubles, margin: float, scale: float) -> float:
    """Kim et al. 2020, eq. 4."""
    pull, push = 0.0, 0.0
    for label, proxy in enumerate(unit(proxies)):
        near = [float(row @ proxy) for row in unit(z)]
        same = [math.exp(-scale * (s - margin)) for s, own in zip(near, labels, strict=True) if own == label]
        other = [math.exp(scale * (s + margin)) for s, own in zip(near, labels, strict=True) if own != label]
        pull += math.log(1 + sum(same))
        push += math.log(1 + sum(other))
    return pull / len(set(labels)) + push / len(proxies)
