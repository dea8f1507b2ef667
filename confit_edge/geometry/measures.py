"""Measures of the geometry of an embedding: how it fills its space, and how its classes are arranged in it.

Every function takes embeddings `[clips, dim]` (and scales them to length 1 if it measures directions) and, where classes
matter, integers `labels [clips]`. Means over pairs are exact without visiting the pairs: the sum of all cosines of unit
vectors is the squared length of their sum. A measure that is not defined for its input (one clip, one class) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import MAX_TABLE_SIZE, Doubles

Embeddings = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]

TOPS = (1, 3, 5)  # the shares in the paper's table
RATIO_FROM = 0.05  # the anisotropy below which a ratio to it is meaningless
ROTATIONS = 10
# the range of each measure; a measure that is not listed has none
RANGES = {
    "anisotropy": (-1.0, 1.0),
    "isoscore": (0.0, 1.0),
    **{f"top{top}": (0.0, 1.0) for top in TOPS},
    "top1_rotated": (0.0, 1.0),
    "top1_rotated_low": (0.0, 1.0),
    "top1_rotated_high": (0.0, 1.0),
    "effective_rank": (1.0, np.inf),
    "scatter": (0.0, np.inf),
    "fisher": (0.0, np.inf),
    "silhouette": (-1.0, 1.0),
    "alignment": (0.0, 4.0),
    "uniformity": (-8.0, 0.0),
    "neighbours": (0.0, 1.0),
}
NEAREST = 5  # neighbours of a clip
PARTS = 20  # of which each is left out once
SAMPLE = 4096  # clips whose pairs are all visited, where there is no closed form


def describe(embeddings: Embeddings, labels: Labels, seed: int = 0) -> dict[str, float]:
    """Every measure of one embedding, by name; see the function of that name for its definition.

    `top1`, `top3`, `top5` are shares of dimension contribution and `top1_ratio` the classic ratio (NaN below an
    anisotropy of 0.05); `top1_rotated` is the median of `top1` over random rotations, `top1_rotated_low` and `_high` its
    range. `scatter` is the trace ratio. Rotations and samples come from `seed`.
    """
    unit = unit_length(embeddings)
    rotated = rotated_share(unit, seed)
    return {
        **pointwise(unit, labels),
        "top1_rotated": float(np.median(rotated)),
        "top1_rotated_low": float(rotated.min()),
        "top1_rotated_high": float(rotated.max()),
        "uniformity": uniformity(unit, seed),
        "neighbours": neighbours(unit, labels, seed),
    }


def pointwise(embeddings: Embeddings, labels: Labels) -> dict[str, float]:
    """The measures of `describe` that use no randomness and are cheap enough to jackknife."""
    unit = unit_length(embeddings)
    shares = contribution(unit)
    return {
        "anisotropy": anisotropy(unit),
        "isoscore": isoscore(unit),
        **{f"top{top}": top_share(shares, top) for top in TOPS},
        "top1_ratio": top_share(contribution_ratio(unit), 1),
        "effective_rank": effective_rank(unit),
        "scatter": scatter(unit, labels),
        "fisher": fisher(unit, labels),
        "silhouette": silhouette(unit, labels),
        "alignment": alignment(unit, labels),
    }


def unit_length(embeddings: Embeddings) -> Doubles:
    """The embeddings in double precision, each scaled to length 1. Raises ValueError for anything but finite `[n, dim]`."""
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings must be [clips, dim], not {list(embeddings.shape)}")
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite numbers")
    doubles = embeddings.astype(np.float64)
    return doubles / np.maximum(np.linalg.norm(doubles, axis=1, keepdims=True), 1e-12)


# how the space is filled


def anisotropy(embeddings: Embeddings) -> float:
    """The mean cosine over all pairs of different clips, -1..1; 0 where directions cancel out (Ethayarajh 2019, D19-1006).

    Exact: (|sum z|^2 - n) / (n (n - 1)) for the n unit vectors z.
    """
    return float(_products(unit_length(embeddings)).sum())


def isoscore(embeddings: Embeddings) -> float:
    """IsoScore (Rudman et al. 2022, arXiv 2108.07344): 0 if one dimension has all the variance, 1 if all have equal shares.

    It is (k - 1) / (n - 1) if k of n dimensions share the variance evenly and the others have none. Rotation and scale do
    not change it. Fewer clips than a few times `dim` cannot fill the space, so compare only values from equal numbers of
    clips. Embeddings are used as they are, not scaled to length 1.
    """
    clips, dim = embeddings.shape
    variances = np.square(_singular_values(embeddings)) if clips > 1 else np.zeros(dim)
    variances = np.pad(variances, (0, dim - len(variances)))
    length = np.linalg.norm(variances)
    if dim < 2 or length <= 1e-12 * max(1.0, float(np.square(embeddings, dtype=np.float64).sum())):
        return float("nan")
    defect = np.linalg.norm(variances * np.sqrt(dim) / length - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    filled = dim - defect**2 * (dim - np.sqrt(dim))
    return float((filled**2 - dim) / (dim * (dim - 1)))


def effective_rank(embeddings: Embeddings) -> float:
    """The exponential of the entropy of the singular values, as shares of their sum: 1..dim (Roy and Vetterli 2007).

    The embeddings are centred on their mean first, because `anisotropy` measures what they all have in common.
    """
    values = _singular_values(embeddings)
    total = values.sum()
    if len(embeddings) < 2 or total <= 1e-12:
        return float("nan")
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spectrum(embeddings: Embeddings) -> Doubles:
    """The singular values `[min(clips, dim)]` of the centred embeddings, in descending order, as shares of their sum."""
    values = _singular_values(embeddings)
    return values / max(values.sum(), 1e-12)


def contribution(embeddings: Embeddings) -> Doubles:
    """The share `[dim]` of each dimension in the cosines of pairs; they sum to 1.

    The contribution of dimension i to the cosine of u and v is CC_i = u_i v_i / (|u| |v|) (Timkey and van Schijndel 2021,
    arXiv 2109.04404, eq. 3). The share is the mean of |CC_i| over all pairs, divided by the sum of these means. Unlike the
    ratio in the paper, which divides by the mean cosine, it is defined even if that is near 0. It is exact, because |CC_i|
    is a product of two numbers.
    """
    means = _products(np.abs(unit_length(embeddings)))
    return means / means.sum()


def contribution_ratio(embeddings: Embeddings) -> Doubles:
    """The classic share `[dim]`: the mean of CC_i over all pairs, divided by the anisotropy; NaN if that is 0.05 or less."""
    means = _products(unit_length(embeddings))
    whole = float(means.sum())
    return means / whole if whole > RATIO_FROM else np.full(len(means), np.nan)


def top_share(shares: Doubles, top: int) -> float:
    """The sum of the `top` largest shares."""
    return float(np.sort(shares)[::-1][:top].sum())


def rotated_share(embeddings: Embeddings, seed: int = 0) -> Doubles:
    """`top1` after each of `ROTATIONS` random rotations, `[rotations]`: the control for every claim about balance.

    A rotation changes no cosine, and so it does not change the kNN probe; a share that changes with it is a property of
    the axes and not of the geometry.
    """
    from scipy.stats import ortho_group

    unit = unit_length(embeddings)
    randoms = (np.random.default_rng([seed, 12, turn]) for turn in range(ROTATIONS))
    rotations = (ortho_group.rvs(unit.shape[1], random_state=random) for random in randoms)
    return np.array([top_share(contribution(unit @ rotation), 1) for rotation in rotations])


def uniformity(embeddings: Embeddings, seed: int = 0) -> float:
    """log mean exp(-2 |u - v|^2) over pairs, -8..0; lower means spread more evenly (Wang and Isola 2020, arXiv 2005.10242).

    Uses all pairs of at most 4096 clips, drawn with `seed` if there are more.
    """
    unit = unit_length(embeddings)
    if len(unit) < 2:
        return float("nan")
    some = unit[_sample_rows(len(unit), seed)]
    total = sum(float(np.exp(-4 * (1 - unit[rows] @ some.T)).sum()) for rows in _blocks(len(unit), seed))
    return float(np.log((total - len(some)) / (len(some) * (len(some) - 1))))


# how the classes are arranged in it


def alignment(embeddings: Embeddings, labels: Labels) -> float:
    """The mean |u - v|^2 over pairs of one class, 0..4; lower means closer together (Wang and Isola 2020, with alpha = 2)."""
    unit, member, sizes = _by_class(embeddings, labels)
    pairs = float((sizes * (sizes - 1)).sum())
    if not pairs:
        return float("nan")
    cosines = float(np.square(_class_sums(unit, member, len(sizes))).sum()) - len(unit)
    return 2 - 2 * cosines / pairs


def scatter(embeddings: Embeddings, labels: Labels) -> float:
    """The trace ratio tr(S_b) / tr(S_w): variance between class means over variance within classes, 0 and up."""
    within, between = _scatters(embeddings, labels)
    if not len(between):
        return float("nan")
    apart, together = float(np.square(between).sum()), float(np.square(within).sum())
    return apart / together if together > 1e-12 * (apart + together) else float("nan")


def fisher(embeddings: Embeddings, labels: Labels) -> float:
    """Fisher's criterion tr(S_w^-1 S_b) (Fukunaga 1990, ch. 10): like `scatter`, but unaffected by linear stretching.

    S_w is shrunk towards a sphere as far as the number of clips requires (Ledoit and Wolf 2004), so it can be inverted.
    """
    from sklearn.covariance import ledoit_wolf

    within, between = _scatters(embeddings, labels)
    if not len(between) or len(within) < 3 or float(np.square(within).sum()) <= 1e-12:
        return float("nan")
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    solved = np.linalg.solve(covariance * len(within), between.T)
    return float((between.T * solved).sum())


def silhouette(embeddings: Embeddings, labels: Labels) -> float:
    """The mean silhouette with the cosine distance, -1..1 (Rousseeuw 1987): is a clip nearer to its own class than to the next?

    Exact without pairs: the mean cosine distance of z to a class is 1 - z . (its mean). A clip alone in its class counts 0.
    """
    unit, member, sizes = _by_class(embeddings, labels)
    if len(sizes) < 2:
        return float("nan")
    means = _class_sums(unit, member, len(sizes)) / sizes[:, None]
    others = sizes[member] - 1
    own, nearest = np.empty(len(unit)), np.empty(len(unit))
    for rows in np.array_split(np.arange(len(unit)), -(-len(unit) * len(sizes) // MAX_TABLE_SIZE)):
        distance, of = 1 - unit[rows] @ means.T, (np.arange(len(rows)), member[rows])
        own[rows] = distance[of] * sizes[of[1]] / np.maximum(others[rows], 1)  # the clip's distance to itself is 0
        distance[of] = np.inf
        nearest[rows] = distance.min(axis=1)
    width = np.where(others > 0, (nearest - own) / np.maximum(np.maximum(nearest, own), 1e-12), 0.0)
    return float(width.mean())


def neighbours(embeddings: Embeddings, labels: Labels, seed: int = 0) -> float:
    """The share of each clip's `NEAREST` others (by cosine) that are of its class, 0..1.

    Measured on at most 4096 clips, drawn with `seed` if there are more; their neighbours are searched among all clips.
    """
    unit = unit_length(embeddings)
    k = min(NEAREST, len(unit) - 1)
    if k < 1:
        return float("nan")
    hits, asked = 0, 0
    for rows in _blocks(len(unit), seed):
        cosine = unit[rows] @ unit.T
        cosine[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        hits += int((labels[nearest] == labels[rows, None]).sum())
        asked += len(rows)
    return hits / (k * asked)


def label_sets(targets: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """A class for each clip `[clips]` of 0/1 `targets [clips, classes]`: its label, or its set of labels."""
    packed = np.packbits(targets > 0, axis=1)
    rows = packed.view(f"V{packed.shape[1]}").reshape(-1)  # whole rows are compared as bytes
    return np.unique(rows, return_inverse=True)[1].astype(np.int64)


# uncertainty


def jackknife(
    measure: Callable[[npt.NDArray[np.int64]], dict[str, float]],
    groups: list[str],
    seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `measure`, a function of the rows it may use, by leaving groups out (Efron and Stein 1981).

    Groups are divided into at most `PARTS` parts, and each part is left out once:
    value +- t sqrt((b - 1) / b sum (v_i - mean v)^2). A bootstrap would draw a clip twice, and the cosine of a clip with
    itself is 1. NaN if there is only one group. Intervals are cut off at the limits in `ranges`.
    """
    from scipy.stats import t as student

    names, member = np.unique(groups, return_inverse=True)
    parts = min(PARTS, len(names))
    whole = measure(np.arange(len(groups)))
    if parts < 2:
        return dict.fromkeys(whole, (float("nan"), float("nan")))
    part_of = np.random.default_rng([seed, 11]).permutation(np.arange(len(names)) % parts)[member]
    left = [measure(np.flatnonzero(part_of != part)) for part in range(parts)]
    found = {}
    for key, value in whole.items():
        values = np.array([one[key] for one in left])
        error = np.sqrt((parts - 1) / parts * np.square(values - values.mean()).sum())
        reach = float(student.ppf(0.975, parts - 1) * error)
        least, most = (ranges or {}).get(key, (-np.inf, np.inf))
        found[key] = (max(value - reach, least), min(value + reach, most))
    return found


# parts


def _products(values: Doubles) -> Doubles:
    """The mean `[dim]`, over all pairs of different rows of `values [n, dim]`, of the product of the two."""
    clips = len(values)
    if clips < 2:
        return np.full(values.shape[1], np.nan)
    return (np.square(values.sum(axis=0)) - np.square(values).sum(axis=0)) / (clips * (clips - 1))


def _singular_values(embeddings: Embeddings) -> Doubles:
    """Singular values of the centred embeddings, descending, `[min(clips, dim)]`; from the covariance if that is smaller."""
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    if len(centred) <= 2 * centred.shape[1]:
        return np.linalg.svd(centred, compute_uv=False)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred), 0))[::-1]


def _by_class(embeddings: Embeddings, labels: Labels) -> tuple[Doubles, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Unit embeddings, the class index of each from 0, and the number of clips of each class."""
    unit = unit_length(embeddings)
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return unit, member, sizes


def _class_sums(unit: Doubles, member: npt.NDArray[np.int64], classes: int) -> Doubles:
    first = np.searchsorted(np.sort(member), np.arange(classes))
    return np.add.reduceat(unit[np.argsort(member, kind="stable")], first, axis=0)


def _scatters(embeddings: Embeddings, labels: Labels) -> tuple[Doubles, Doubles]:
    """Each clip minus its class mean, and the class means minus the overall mean, weighted so that squares sum to S_b."""
    unit, member, sizes = _by_class(embeddings, labels)
    if len(sizes) < 2:
        return unit, unit[:0]
    means = _class_sums(unit, member, len(sizes)) / sizes[:, None]
    return unit - means[member], np.sqrt(sizes)[:, None] * (means - unit.mean(axis=0))


def _sample_rows(clips: int, seed: int) -> npt.NDArray[np.int64]:
    """The rows whose pairs are visited: all, or a random draw of `SAMPLE`."""
    if clips <= SAMPLE:
        return np.arange(clips)
    return np.sort(np.random.default_rng([seed, 13]).choice(clips, SAMPLE, replace=False))


def _blocks(clips: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """The same rows, divided into parts so that a table of cosines stays small."""
    some = _sample_rows(clips, seed)
    return np.array_split(some, -(-len(some) * clips // MAX_TABLE_SIZE))
