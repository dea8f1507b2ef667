"""Measures of an embedding's geometry against plain loops over pairs, scikit-learn, and data of known shape."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import silhouette_score

from confit_edge.encoders.base import normalise
from confit_edge.geometry import measures as m
from confit_edge.geometry import plots

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def cone(clips: int = 40, dim: int = 6, shift: float = 0.8, seed: int = 0) -> Floats:
    """Points on unequal axes about a shared direction, of unequal lengths."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((clips, dim)) * np.linspace(0.3, 1.5, dim) + shift).astype(np.float32)


def classes(clips: int = 40, seed: int = 0) -> tuple[Floats, Ints]:
    """Four classes of unequal sizes, the last of one clip."""
    labels = np.array([0, 1, 1, 2] * (clips // 4))
    labels[0] = 3
    middles = 2 * np.random.default_rng(9).standard_normal((4, 6))
    return (middles[labels] + cone(clips, seed=seed)).astype(np.float32), labels


def unit(x: Floats) -> npt.NDArray[np.float64]:
    return np.array([row / math.sqrt(sum(v * v for v in row)) for row in x.astype(np.float64)])


def rotated(x: Floats, seed: int = 3) -> npt.NDArray[np.float64]:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((x.shape[1], x.shape[1])))
    return x.astype(np.float64) @ rotation


# how the space is filled


def test_what_is_a_mean_over_pairs_is_that_of_the_loop() -> None:
    x = cone()
    signed, absolute = np.zeros(6), np.zeros(6)
    for u, v in combinations(unit(x), 2):
        signed += u * v
        absolute += abs(u * v)
    pairs = 40 * 39 / 2
    assert m.anisotropy(x) == pytest.approx(signed.sum() / pairs)
    np.testing.assert_allclose(m.contribution(x), absolute / absolute.sum())
    np.testing.assert_allclose(m.contribution_ratio(x), signed / signed.sum())
    assert m.contribution(x).sum() == pytest.approx(1)
    assert m.top_share(m.contribution(x), 3) == pytest.approx(sum(sorted(m.contribution(x))[-3:]))
    kernel = [math.exp(-2 * sum((u - v) ** 2)) for u, v in combinations(unit(x), 2)]
    assert m.uniformity(x) == pytest.approx(math.log(np.mean(kernel)))


def test_the_ratio_is_not_reported_where_anisotropy_vanishes() -> None:
    x = np.concatenate([cone(), -cone()])  # every direction has its opposite
    assert abs(m.anisotropy(x)) < m.RATIO_FROM < m.anisotropy(cone())
    assert np.isnan(m.contribution_ratio(x)).all()
    assert np.isfinite(m.contribution(x)).all()
    found = m.describe(x, np.arange(80) % 2)
    assert math.isnan(found["top1_ratio"])
    assert 0 < found["top1"] < found["top3"] < found["top5"] < 1


@pytest.mark.parametrize("clips", [40, 4])
def test_isoscore_is_the_papers_formula(clips: int) -> None:
    """Also of fewer clips than dimensions, of which some then hold no variance."""
    x = cone(clips)
    variances = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))
    n = len(variances)
    normed = variances * math.sqrt(n) / math.sqrt(sum(v * v for v in variances))
    defect = math.sqrt(sum((v - 1) ** 2 for v in normed)) / math.sqrt(2 * (n - math.sqrt(n)))
    expected = ((n - defect**2 * (n - math.sqrt(n))) ** 2 - n) / (n * (n - 1))
    assert m.isoscore(x) == pytest.approx(expected)


def test_isoscore_knows_the_extremes() -> None:
    rng = np.random.default_rng(0)
    assert m.isoscore(rng.standard_normal((20_000, 8)) + 5) > 0.99
    line = np.outer(rng.standard_normal(500), rng.standard_normal(8))
    assert m.isoscore(line) == pytest.approx(0, abs=1e-9)
    corners = np.concatenate([np.eye(8)[:4], -np.eye(8)[:4]])  # four of eight dimensions, equally
    assert m.isoscore(corners) == pytest.approx((4 - 1) / (8 - 1))
    assert math.isnan(m.isoscore(np.ones((5, 3))))
    assert math.isnan(m.isoscore(np.ones((1, 3))))


def test_effective_rank_counts_the_dimensions_in_use() -> None:
    corners = np.concatenate([np.eye(8)[:4], -np.eye(8)[:4]]) + 3
    assert m.effective_rank(corners) == pytest.approx(4)
    assert m.effective_rank(np.outer(np.arange(5.0), np.ones(3))) == pytest.approx(1, abs=1e-3)
    values = np.linalg.svd(cone() - cone().mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    assert m.effective_rank(cone()) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)
    np.testing.assert_allclose(m.spectrum(cone()), shares, rtol=1e-3)
    assert math.isnan(m.effective_rank(np.ones((4, 3))))


def test_a_rotation_changes_contributions_and_nothing_else() -> None:
    x, labels = classes()
    before, after = m.pointwise(x, labels), m.pointwise(rotated(x), labels)
    for name, value in before.items():
        if not name.startswith("top"):
            assert after[name] == pytest.approx(value, abs=1e-9), name
    assert after["top1"] != pytest.approx(before["top1"], abs=1e-3)
    assert m.uniformity(rotated(x)) == pytest.approx(m.uniformity(x))
    assert m.neighbours(rotated(x), labels) == m.neighbours(x, labels)


def test_the_rotation_control_takes_a_dominant_axis_away() -> None:
    x = np.random.default_rng(0).standard_normal((300, 32))
    x[:, 7] = 6
    found = m.describe(x, np.arange(300) % 3, seed=4)
    assert found["top1"] > 0.5
    assert found["top1_rotated_low"] < found["top1_rotated"] < found["top1_rotated_high"] < 0.4
    again = m.rotated_share(x, seed=4)
    assert np.median(again) == found["top1_rotated"]
    assert not np.array_equal(again, m.rotated_share(x, seed=5))


# how the classes lie in it


def test_class_measures_are_those_of_the_loops() -> None:
    x, labels = classes()
    points = unit(x)
    near = [sum((points[a] - points[b]) ** 2) for a, b in combinations(range(40), 2) if labels[a] == labels[b]]
    assert m.alignment(x, labels) == pytest.approx(np.mean(near))
    assert m.silhouette(x, labels) == pytest.approx(silhouette_score(x, labels, metric="cosine"), abs=1e-6)
    mean, within, between = points.mean(axis=0), np.zeros((6, 6)), np.zeros((6, 6))
    for label in range(4):
        own = points[labels == label]
        middle = own.mean(axis=0)
        between += len(own) * np.outer(middle - mean, middle - mean)
        for point in own:
            within += np.outer(point - middle, point - middle)
    assert m.scatter(x, labels) == pytest.approx(np.trace(between) / np.trace(within))
    middles = np.array([points[labels == label].mean(axis=0) for label in labels])
    shrunk = ledoit_wolf(points - middles, assume_centered=True)[0] * 40
    assert m.fisher(x, labels) == pytest.approx(np.trace(np.linalg.inv(shrunk) @ between))
    hits = []
    for row in range(40):
        order = sorted((other for other in range(40) if other != row), key=lambda other: -points[row] @ points[other])
        hits += [labels[other] == labels[row] for other in order[:5]]
    assert m.neighbours(x, labels) == pytest.approx(np.mean(hits))


def test_classes_that_come_apart_raise_every_measure_of_classes() -> None:
    x, labels = classes()
    middles = np.array([x[labels == label].mean(axis=0) for label in labels])
    mixed, separated = m.describe(x, labels), m.describe(middles + 0.2 * (x - middles), labels)
    for name in ("scatter", "fisher", "silhouette", "neighbours"):
        assert separated[name] > mixed[name], name
    assert separated["alignment"] < mixed["alignment"]


def test_more_clips_than_are_paired_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = classes(400)
    whole = m.uniformity(x), m.neighbours(x, labels)
    monkeypatch.setattr(m, "SAMPLE", 200)
    sampled = m.uniformity(x, seed=1), m.neighbours(x, labels, seed=1)
    assert sampled != whole
    assert sampled == pytest.approx(whole, abs=0.05)
    assert sampled == (m.uniformity(x, seed=1), m.neighbours(x, labels, seed=1))
    drawn = np.random.default_rng([1, 13]).choice(len(x), 200, replace=False)
    assert sampled[0] == pytest.approx(m.uniformity(x[drawn]))


def test_what_is_not_defined_is_nan_and_what_is_wrong_is_an_error() -> None:
    x, _ = classes()
    one_class = m.describe(x, np.zeros(40, np.int64))
    assert all(math.isnan(one_class[name]) for name in ("scatter", "fisher", "silhouette"))
    assert math.isfinite(one_class["alignment"])
    all_apart = m.describe(x, np.arange(40))
    assert math.isnan(all_apart["alignment"])
    assert math.isnan(all_apart["scatter"])
    single = m.describe(x[:1], np.zeros(1, np.int64))
    assert all(math.isnan(value) for value in single.values())
    for wrong in (x[0], x[:0], np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="embeddings must be"):
            m.describe(wrong, np.zeros(len(wrong), np.int64))


def test_a_set_of_labels_is_a_class() -> None:
    sets = m.label_sets(np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], np.int8))
    assert sets[0] == sets[2]
    assert len(set(sets.tolist())) == 3


@settings(max_examples=50)
@given(clips=st.integers(1, 30), classes=st.integers(1, 20), seed=st.integers(0, 99), single=st.booleans())
def test_classes_are_the_different_rows_of_targets(clips: int, classes: int, seed: int, single: bool) -> None:
    rng = np.random.default_rng(seed)
    several = rng.random((clips, classes)) < 2 / classes
    targets = (np.eye(classes)[rng.integers(classes, size=clips)] if single else several).astype(np.int8)
    assert m.label_sets(targets).tolist() == np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).tolist()


def test_clips_are_held_against_many_classes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2000, 4)), rng.integers(400, size=2000)
    monkeypatch.setattr(m, "MAX_TABLE_SIZE", 50_000)
    tracemalloc.start()
    found = m.silhouette(x, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2000 * 400 / 4  # a quarter of all distances
    assert found == pytest.approx(silhouette_score(x, labels, metric="cosine"), abs=1e-6)


def test_centring_each_vector_leaves_what_vectors_share() -> None:
    """The encoders' normalisation takes one direction out of the space, not the common component of a corpus."""
    x = torch.from_numpy(cone(200, 16, shift=0.0) + 3 * np.random.default_rng(1).standard_normal(16).astype(np.float32))
    constant = normalise(x + 7).numpy()
    np.testing.assert_allclose(normalise(x).numpy(), constant, atol=1e-5)  # the constant component is gone
    assert m.anisotropy(constant) > 0.6  # the shared one is not
    full = np.random.default_rng(0).standard_normal((50_000, 16)).astype(np.float32)
    assert m.isoscore(normalise(torch.from_numpy(full)).numpy()) == pytest.approx((15 - 1) / (16 - 1), abs=1e-3)
    assert m.spectrum(constant)[-1] < 1e-6


# how sure


def test_the_jackknife_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(0).standard_normal(20)
    found = m.jackknife(lambda rows: {"mean": float(values[rows].mean())}, [str(row) for row in range(20)])
    half = 2.093 * values.std(ddof=1) / math.sqrt(20)
    assert found["mean"] == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)


def test_the_jackknife_leaves_whole_groups_out() -> None:
    seen: list[set[str]] = []
    groups = [f"voice {clip % 47}" for clip in range(94)]

    def measure(rows: Ints) -> dict[str, float]:
        seen.append({groups[row] for row in rows})
        return {"clips": float(len(rows))}

    m.jackknife(measure, groups, seed=1)
    other = seen[1:]
    seen.clear()
    m.jackknife(measure, groups)
    assert seen[1:] != other
    assert (len(seen[0]), sorted(map(len, seen[1:]))) == (47, [*[44] * 7, *[45] * 13])
    assert set.intersection(*seen[1:]) == set()
    assert all(math.isnan(end) for end in m.jackknife(measure, ["one"] * 5)["clips"])


def test_the_interval_of_a_measure_holds_its_value_on_new_voices() -> None:
    """Over 40 samples of ten voices, intervals of the anisotropy hold that of 2,000 voices about 95 times in a hundred."""

    def sample(voices: int, seed: int) -> tuple[Floats, list[str]]:
        rng = np.random.default_rng(seed)
        own = rng.standard_normal((voices, 6)) + 1.0
        points = np.repeat(own, 5, axis=0) + 0.5 * rng.standard_normal((5 * voices, 6))
        return points.astype(np.float32), [str(clip // 5) for clip in range(5 * voices)]

    truth, held = m.anisotropy(sample(2000, 99)[0]), 0
    for seed in range(40):
        points, groups = sample(10, seed)
        low, high = m.jackknife(lambda rows, of=points: {"a": m.anisotropy(of[rows])}, groups)["a"]
        held += low <= truth <= high
    assert held >= 34


def test_an_interval_ends_where_its_measure_does_and_that_of_a_change_does_not() -> None:
    x, labels = classes(12, seed=1)
    groups = [str(clip // 4) for clip in range(12)]

    def measure(rows: Ints) -> dict[str, float]:
        return m.pointwise(x[rows], labels[rows])

    clipped, free = m.jackknife(measure, groups, ranges=m.RANGES), m.jackknife(measure, groups)
    for name, (low, high) in free.items():
        least, most = m.RANGES.get(name, (-math.inf, math.inf))
        assert clipped[name] == (max(low, least), min(high, most)), name
    assert free["anisotropy"][1] > 1
    assert free["isoscore"][0] < 0
    assert free["fisher"][0] < 0


def test_every_measure_with_a_range_is_one_and_is_inside() -> None:
    found = m.describe(*classes())
    assert m.RANGES.keys() == found.keys() - {"top1_ratio"}
    assert all(least <= found[name] <= most for name, (least, most) in m.RANGES.items())


# plots

PLOTS_ITSELF = """
import sys
from pathlib import Path
import matplotlib
import numpy as np
matplotlib.rcParams["font.family"] = ["serif"]
before = dict(matplotlib.rcParams)
import confit_edge.pairtune.session
import confit_edge.studies.questions.isotropy
from confit_edge.geometry import plots
assert dict(matplotlib.rcParams) == before, "imported"
plots.spectra({"a": np.linspace(1, 0.1, 9)}, Path(sys.argv[1]))
assert dict(matplotlib.rcParams) == before, "drawn"
assert "matplotlib.pyplot" not in sys.modules
print(matplotlib.get_backend())
"""


def test_a_program_that_plots_itself_keeps_its_own_backend_and_settings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLOTS_ITSELF, str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "svg"},
    )
    assert (done.returncode, done.stdout) == (0, "svg\n"), done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_plots_of_geometry_are_written(tmp_path: Path) -> None:
    x, labels = classes()
    method = plots.embedding_maps({"before": x, "after": x[:, :3]}, labels, list("abcd"), tmp_path / "map.png")
    assert method in ("UMAP", "t-SNE")
    plots.spectra({"before": m.spectrum(x), "after": m.spectrum(x[:, :3])}, tmp_path / "spectrum.png")
    plots.contributions({"before": m.contribution(x)}, tmp_path / "contribution.png")
    row = {
        "encoder": "r",
        "objective": "frozen",
        "probe": "knn",
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "accuracy_high": 0.6,
    }
    plots.accuracy_bars([row, row], "val", tmp_path / "bars.png")
    for name in ("map", "spectrum", "contribution", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_with_two_dollars_is_no_formula(tmp_path: Path) -> None:
    x, labels = classes()
    names, row = ["win_$5_or_$10", "a", "b", "c"], {"encoder": "r$5_or_$1", "objective": "frozen", "probe": "knn"}
    detected = {"fa_per_hour": 2.0, "fa_high": 3.0, "frr": 0.5}
    plots.confusion_matrix(labels, labels, names, tmp_path / "confusion.png")
    plots.embedding_maps({"r$5_or_$1": x}, labels, names, tmp_path / "map.png")
    plots.spectra({"r$5_or_$1": m.spectrum(x)}, tmp_path / "spectrum.png")
    plots.contributions({"r$5_or_$1": m.contribution(x)}, tmp_path / "contribution.png")
    plots.accuracy_bars(
        [{**row, **dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), 0.5)}], "val", tmp_path / "bars.png"
    )
    plots.det(
        [detected],
        {"model": "m$5_or_$1", "fa_per_hour_bound": 3.0, "frr": 0.5, "confidence": 0.95},
        tmp_path / "det.png",
    )
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_numbers_of_a_logarithmic_axis_are_numbers(tmp_path: Path) -> None:
    """Where no `$` begins a formula, those that matplotlib writes as formulas would be drawn as they are spelt."""
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(0.1, 100))
    plots._plain_numbers(axes.xaxis)
    assert [axes.xaxis.get_major_formatter()(value) for value in (0.1, 1, 10, 100)] == ["0.1", "1", "10", "100"]
    axes.set(xlim=(0.15, 0.9))
    tick_labels = axes.xaxis.get_minor_formatter().format_ticks([0.2, 0.3, 0.4, 0.5, 0.6])
    assert tick_labels == ["0.2", "0.3", "0.4", "", "0.6"]


def test_of_many_classes_the_most_confused_are_shown_and_a_plot_stays_small(tmp_path: Path) -> None:
    names = [f"speaker {number}" for number in range(630)]
    truth = np.arange(630)
    predicted = truth.copy()
    predicted[[5, 6]] = [6, 5]
    plots.confusion_matrix(truth, predicted, names, tmp_path / "confusion.png")
    plots.confusion_matrix(truth[:40], truth[:40], names[:40], tmp_path / "whole.png")
    many, whole = (imread(tmp_path / f"{name}.png").shape for name in ("confusion", "whole"))
    assert max(many) < 1.1 * max(whole)


def test_a_class_without_clips_has_no_row_and_a_column_only_if_it_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    for heard in ([0, 0, 1, 3], [0, 0, 1, 1]):
        plots.confusion_matrix(
            np.array([0, 0, 1, 1]), np.array(heard), ["no", "yes", "never", "unknown"], tmp_path / "x.png"
        )
    axes = [figure.axes[0] for figure in drawn]
    assert [[text.get_text() for text in one.get_yticklabels()] for one in axes] == [["no", "yes"]] * 2
    assert [[text.get_text() for text in one.get_xticklabels()] for one in axes] == [
        ["no", "yes", "unknown"],
        ["no", "yes"],
    ]
    assert axes[0].images[0].get_array().tolist() == [[100, 0, 0], [0, 50, 50]]  # type: ignore[union-attr]


def test_a_map_of_many_clips_is_of_some_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MAPPED", 30)
    method = plots.embedding_maps({"before": cone(80)}, np.arange(80) % 2, ["a", "b"], tmp_path / "map.png")
    assert method.endswith("of 30 clips drawn at random")


@pytest.mark.parametrize("method", ["UMAP", "t-SNE"])
def test_a_map_keeps_neighbours_together_and_is_the_same_again(method: str) -> None:
    if method == "UMAP":
        pytest.importorskip("umap", reason="umap-learn is not installed")
    labels = np.repeat(np.arange(4), 15)
    x = (np.eye(8)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 8))).astype(np.float32)
    points = plots._flattened(x, method, seed=0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(60)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(plots._flattened(x, method, seed=0), points)


@pytest.mark.parametrize("clips", [1, 2, 9, 10])
def test_a_map_of_few_clips_is_drawn_too(clips: int, tmp_path: Path) -> None:
    method = plots.embedding_maps({"before": cone(clips)}, np.arange(clips) % 2, ["a", "b"], tmp_path / "map.png")
    assert (method == "PCA") == (clips < 10)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("installed", [True, False])
def test_maps_are_by_umap_where_it_is_installed(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def flattened(embeddings: Floats, method: str, seed: int) -> Floats:
        used.append(method)
        return embeddings[:, :2]

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(plots, "_flattened", flattened)
    method = plots.embedding_maps({"before": cone(12)}, np.arange(12) % 2, ["a", "b"], tmp_path / "map.png")
    assert [method] == used == ["UMAP" if installed else "t-SNE"]
