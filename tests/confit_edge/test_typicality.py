"""How near an embedding lies to a class: against plain loops, and what it is for, sound that is like no class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from confit_edge.probes import typicality as module
from confit_edge.probes.typicality import Typicality
from confit_edge.runs import Run, read_run
from confit_runtime.errors import ConfitError

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int8]
DIM, CLASSES = 24, 4


def unit(rows: npt.NDArray[np.float64]) -> Floats:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clouds(clips: int, seed: int, classes: int = CLASSES) -> tuple[Floats, Targets]:
    """Centred embeddings of length 1 around a middle for each class; they differ most along three directions."""
    middles = 2 * np.random.default_rng(7).standard_normal((classes, DIM))
    wide = np.random.default_rng(8).standard_normal((3, DIM))
    rng = np.random.default_rng(seed)
    labels = np.arange(clips * classes) % classes
    points = middles[labels] + 0.5 * rng.standard_normal((len(labels), DIM))
    points += rng.standard_normal((len(labels), 3)) @ wide
    return unit(points), np.eye(classes, dtype=np.int8)[labels]


def naive(train: tuple[Floats, Targets], val: tuple[Floats, Targets], rows: Floats, unknown: int | None) -> Floats:
    """Each factor by a covariance that is inverted: the leading directions as they are, one variance in all others."""
    (x, y), (val_x, val_y) = train, val
    known = [label for label in range(y.shape[1]) if label != unknown]
    means = {label: x[y[:, label] == 1].astype(np.float64).mean(axis=0) for label in known}
    within = [clip - means[label] for clip, own in zip(x, y, strict=True) for label in known if own[label]]
    scatter = sum(np.outer(one, one) for one in within)
    values, directions = np.linalg.eigh(scatter)
    rank = min(module.RANK, DIM // 3, (len(within) - len(known)) // module.ROWS_A_DIRECTION)
    rest = values[: DIM - rank].sum() / (DIM - 1 - rank)
    values = np.where(np.arange(DIM) < DIM - rank, rest, values)
    inverse = directions @ np.diag(1 / values) @ directions.T

    def distance(row: Floats, label: int) -> float:
        return float((row - means[label]) @ inverse @ (row - means[label]))

    usual = [distance(row, label) for row, own in zip(val_x, val_y, strict=True) for label in known if own[label]]
    factors = np.full((len(rows), y.shape[1]), 0.5)
    for at, row in enumerate(rows):
        for label in known:
            factors[at, label] = 2 ** (-distance(row, label) / (2 * np.median(usual)))
    return factors.astype(np.float32)


@pytest.mark.parametrize("clips", [1, 2, 4, 60])  # a class: from no direction told apart to all that may be
@pytest.mark.parametrize("unknown", [None, 2])
def test_a_factor_halves_with_twice_the_usual_mahalanobis_distance(clips: int, unknown: int | None) -> None:
    train, val, other = clouds(clips, 0), clouds(6, 1), clouds(5, 2)[0]
    found = Typicality.fit(*train, *val, unknown=unknown)
    if clips == 1:  # nothing is known of how clips of a class differ: the plain distance
        assert found.axes.shape == (0, DIM)
        labels = train[1].argmax(axis=1)
        own = {label: train[0][labels == label][0] for label in range(CLASSES)}
        plain = np.array([[((row - own[label]) ** 2).sum() for label in range(CLASSES)] for row in other])
        val_labels = val[1].argmax(axis=1)
        usual = np.median(
            [((row - own[label]) ** 2).sum() for row, label in zip(val[0], val_labels, strict=True) if label != unknown]
        )
        expected = 2 ** (-plain / (2 * usual))
        if unknown is not None:
            expected[:, unknown] = 0.5
    else:
        expected = naive(train, val, other, unknown)
    np.testing.assert_allclose(found.factors(other), expected, atol=1e-4)


@pytest.mark.parametrize("unknown", [None, 2])
def test_a_clip_of_several_classes_counts_in_each_and_one_of_none_in_none(unknown: int | None) -> None:
    rng = np.random.default_rng(3)
    sets = [clouds(60, 0), clouds(10, 1)]
    for _, targets in sets:
        more = rng.integers(CLASSES, size=len(targets))
        targets[np.arange(len(targets)), more] = 1
        targets[::7] = 0
    train, val = sets
    other, _ = clouds(3, 2)
    found = Typicality.fit(*train, *val, unknown=unknown)
    np.testing.assert_allclose(found.factors(other), naive(train, val, other, unknown), atol=1e-4)


def test_what_lies_between_classes_is_typical_of_none_and_what_clips_differ_in_anyway_counts_little() -> None:
    train, val = clouds(60, 0), clouds(10, 1)
    found = Typicality.fit(*train, *val)
    labels = val[1].argmax(axis=1)
    own = found.factors(val[0])[np.arange(len(labels)), labels]
    assert np.median(own) == pytest.approx(0.5**0.5, abs=1e-3)
    between = unit(train[0][:-1].astype(np.float64) + train[0][1:])  # neighbours are of two classes
    assert np.median(found.factors(between).max(axis=1)) < 0.6 * np.median(own)

    mean = train[0][train[1][:, 0] == 1].astype(np.float64).mean(axis=0)
    wide = np.random.default_rng(8).standard_normal(DIM)
    wide -= wide.mean()
    narrow = np.linalg.qr(np.stack([*np.random.default_rng(8).standard_normal((3, DIM)), np.ones(DIM)], axis=1))[0]
    across = np.random.default_rng(9).standard_normal(DIM)
    across -= narrow @ (narrow.T @ across)
    moved = unit(np.stack([mean + 0.5 * way / np.linalg.norm(way) for way in (wide, across)]))
    along_wide, along_narrow = found.factors(moved)[:, 0]
    assert along_wide > along_narrow + 0.2


@pytest.mark.parametrize("clips", [1, 3, 50])
def test_factors_are_shares_even_of_a_class_mean_and_of_clips_that_are_all_one_sound(clips: int) -> None:
    train, labels = clouds(clips, 0)
    for x in (train, np.repeat(train[:CLASSES], clips, axis=0)[: len(train)]):
        found = Typicality.fit(x, labels, x, labels)
        shares = found.factors(np.concatenate([x, clouds(9, 3)[0]]))
        assert np.isfinite(shares).all()
        assert ((shares >= 0) & (shares <= 1)).all()


def test_validation_of_unknown_sound_alone_leaves_the_scale_to_training_clips() -> None:
    x, y = clouds(30, 0)
    only_unknown = y[:, 1] == 1
    found = Typicality.fit(x, y, x[only_unknown], y[only_unknown], unknown=1)
    own = found.factors(x)[np.arange(len(x)), y.argmax(axis=1)][~only_unknown]
    assert np.median(own) == pytest.approx(0.5**0.5, abs=1e-3)


# in a run


def test_a_run_keeps_typicality_which_separates_words_from_other_sound(run: Run) -> None:
    labels = run.knn.targets.argmax(axis=1)
    own = run.typicality.factors(run.knn.prints)[np.arange(len(labels)), labels]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((64, run.encoder.dim))
    known = np.arange(len(run.info.classes)) != run.info.classes.index("unknown")
    assert np.median(own) > 2 * np.median(run.typicality.factors(unit(noise))[:, known].max(axis=1))
    assert (run.typicality.factors(unit(noise))[:, ~known] == 0.5).all()


@pytest.mark.parametrize("damage", ["absent", "slope", "offset", "axes"])
def test_a_run_whose_typicality_does_not_fit_is_damaged(run_path: Path, tmp_path: Path, damage: str) -> None:
    copied = shutil.copytree(run_path, tmp_path / "run")
    arrays = load_file(copied / "probe.safetensors")
    if damage == "absent":
        arrays = {key: value for key, value in arrays.items() if not key.startswith("typicality")}
    else:
        key = f"typicality.{damage}"
        arrays[key] = np.ascontiguousarray(arrays[key][..., :-1])
    save_file(arrays, copied / "probe.safetensors")
    with pytest.raises(ConfitError, match=r"probe\.safetensors: damaged or from another version"):
        read_run(copied)


def test_a_run_of_the_schema_before_says_which_is_read(run_path: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run_path, tmp_path / "run")
    raw = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**raw, "schema": 1}))
    with pytest.raises(ConfitError, match=r"this version cannot read schema 1 \(it reads 2\)"):
        read_run(copied)
