"""Plots as PNG files: learning curves, confusion, accuracies, and the geometry of embeddings.

Figures are made without pyplot, and settings apply only while one is drawn, so a program that also plots keeps its own.
"""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from confit_runtime.arrays import Doubles, Floats
from confit_runtime.files import name_file_in_errors

SHOWN = 40  # classes that can be read in one plot
MAPPED = 4000  # clips in a map at most
LARGEST = 20  # dimensions plotted, those with the largest shares
FEW = 10  # with fewer clips, neighbours are too few for UMAP and t-SNE
# fonts, used if installed, for scripts that matplotlib's own font lacks
FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "IPAGothic", "IPAexGothic", "VL Gothic", "NanumGothic", "Hiragino Sans", "PingFang SC",
    "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "FreeSans",
)  # fmt: skip
INK, COLOURS = "#26323f", {"pairtune": "#0b7a75", "finetune": "#c8553d", "frozen": "#9aa5b1"}


@contextmanager
def drawing_settings() -> Iterator[None]:
    """Settings for drawing: use the installed fonts for labels in any script, and do not read `$` as a formula."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["sans-serif", *(name for name in FONTS if name in installed)]
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False}):
        yield


@contextmanager
def report_failed_plot(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Report any failure to draw `path` through `say`, so that it does not cost the results that the plot shows."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - labels, fonts and libraries can fail in any way
        say(f"warning: {path} could not be drawn ({' '.join(str(error).split()) or type(error).__name__})")


@drawing_settings()
def learning_curves(histories: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Validation accuracy per epoch of each objective: a linear probe, and vanilla fine-tuning's own head (dashed).

    The trainings of a soup are drawn separately, because each starts from the beginning.
    """
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    styles = {"val_linear": ("linear probe", "-", "o"), "val_head": ("own head", "--", "s")}
    restarts: set[float] = set()
    for name, history in histories.items():
        trainings = by_training(history)
        for number, rows in enumerate(trainings):
            for key, (probe, line, marker) in styles.items():
                if key in rows[0]:
                    axes.plot(
                        [row["epoch"] for row in rows],
                        [100 * row[key] for row in rows],
                        color=COLOURS.get(name, INK),
                        ls=line,
                        marker=marker,
                        ms=4,
                        label=None if number else f"{name}, {probe}",
                    )
        restarts |= {rows[0]["epoch"] - 0.5 for rows in trainings[1:]}
    for at in restarts:
        axes.axvline(at, color=INK, lw=0.8, ls=":")
        axes.annotate("again from the start", (at, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Learning curves")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def by_training(history: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """The epochs of each training of a soup, as a list each; a single training gives one list."""
    trainings: dict[float, list[dict[str, float]]] = {}
    for row in history:
        trainings.setdefault(row.get("training", 1), []).append(row)
    return list(trainings.values())


@drawing_settings()
def confusion_matrix(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: list[str], path: Path
) -> None:
    """A confusion matrix: rows are labels, columns are what the clips are heard as, in per cent of each row.

    A class without clips, such as `unknown`, has no row, and a column only if a clip is heard as it. With more than
    `SHOWN` classes, it shows those most often confused with others.
    """
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, predicted), 1)
    clips = counts.sum(axis=1)
    columns = np.flatnonzero(clips + counts.sum(axis=0))
    title = "Confusion on test clips\n(% of each label)"
    if len(columns) > SHOWN:
        wrong = (counts.sum(axis=0) + clips - 2 * counts.diagonal())[columns]
        columns = np.sort(columns[np.argsort(-wrong, kind="stable")[:SHOWN]])
        title = f"{title}\nthe {SHOWN} most confused of {len(classes)} classes"
    rows = columns[clips[columns] > 0]
    share = 100 * counts[np.ix_(rows, columns)] / clips[rows, None]
    size = max(4.0, 0.28 * len(columns) + 1.5)
    figure = Figure(figsize=(size, size))
    axes = figure.subplots()
    axes.imshow(share, cmap="GnBu", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(share), strict=True):
        colour = "white" if share[row, column] > 60 else INK
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(columns)), [classes[index] for index in columns], rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [classes[index] for index in rows], fontsize=8)
    axes.set(xlabel="heard as", ylabel="label", title=title)
    _save(figure, path)


@drawing_settings()
def embedding_maps(
    maps: dict[str, Floats], labels: npt.NDArray[np.int64], classes: list[str], path: Path, seed: int = 0
) -> str:
    """Draw maps of embeddings `[clips, dim]` side by side, coloured by class, in two dimensions; return how they were made.

    With more than `MAPPED` clips, that many are drawn at random; with more than `SHOWN` classes, names are left out.
    """
    made = describe_mapping(len(labels))
    if len(labels) > MAPPED:
        rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MAPPED])
        labels, maps = labels[rows], {title: embeddings[rows] for title, embeddings in maps.items()}
    figure = Figure(figsize=(6 * len(maps), 5.5))
    row = figure.subplots(1, len(maps), squeeze=False)
    colours = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, len(classes)))
    method = _method(len(labels))
    for axes, (title, embeddings) in zip(row[0], maps.items(), strict=True):
        points = _flattened(embeddings, method, seed)
        axes.scatter(points[:, 0], points[:, 1], s=9, color=colours[labels])
        for index in np.unique(labels) if len(classes) <= SHOWN else ():
            middle = np.median(points[labels == index], axis=0)
            axes.text(
                *middle,
                classes[index],
                fontsize=7,
                ha="center",
                color=INK,
                bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
            )
        axes.set(title=_wrapped(title), xticks=[], yticks=[])
    _save(figure, path)
    return made


def describe_mapping(clips: int) -> str:
    """How that many clips are mapped: by UMAP if umap-learn is installed, else by t-SNE; by PCA if there are too few clips
    for methods based on neighbours."""
    return f"{_method(clips)} of {MAPPED} clips drawn at random" if clips > MAPPED else _method(clips)


def _method(clips: int) -> str:
    return "PCA" if clips < FEW else "UMAP" if importlib.util.find_spec("umap") else "t-SNE"


def _flattened(embeddings: Floats, method: str, seed: int) -> Floats:
    """The embeddings mapped to points `[clips, 2]`."""
    if method == "PCA":
        from sklearn.decomposition import PCA

        if len(embeddings) < 2:
            return np.zeros((len(embeddings), 2), np.float32)
        return PCA(2).fit_transform(embeddings)
    if method == "UMAP":
        from umap import UMAP

        neighbours = min(15, len(embeddings) - 1)
        return UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(embeddings)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(embeddings) - 1) / 4))
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(embeddings)


@drawing_settings()
def accuracy_bars(rows: list[dict[str, Any]], split: str, path: Path) -> None:
    """The accuracy of each encoder and probe with its interval. Rows have `encoder, objective, probe, accuracy[_low/_high]`."""
    figure = Figure(figsize=(7, 0.42 * len(rows) + 1.3))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = COLOURS.get(row["objective"], INK)
        value, low, high = (100 * row[f"accuracy{end}"] for end in ("", "_low", "_high"))
        axes.barh(place, value, color=colour, alpha=0.85, height=0.7)
        axes.plot([low, high], [place, place], color=INK, lw=1.5)
    axes.set_yticks(range(len(rows)), [f"{row['encoder']}, {row['probe']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel=f"{split} accuracy (%), 95 % interval", title="Probes on the frozen encoder")
    axes.grid(alpha=0.25, axis="x")
    _save(figure, path)


@drawing_settings()
def det(curve: list[dict[str, float]], report: dict[str, Any], path: Path) -> None:
    """False rejects against false accepts per hour, with the upper end of their interval; without clips, the margin instead."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    with_clips = "frr" in curve[0]
    rates = [
        max(point["fa_per_hour"], point["fa_high"] / 10) for point in curve
    ]  # a rate of 0 has no place on a log axis
    upper = [point["fa_high"] for point in curve]
    heights = [100 * point["frr"] if with_clips else point["margin"] for point in curve]
    axes.plot(rates, heights, color=COLOURS["pairtune"], lw=1.8, label="measured")
    axes.plot(
        upper,
        heights,
        color=COLOURS["frozen"],
        lw=1.2,
        ls="--",
        label=f"upper end of its {100 * report['confidence']:g} % interval",
    )
    axes.axvline(report["fa_per_hour_bound"], color=COLOURS["finetune"], lw=1, label="promised at most")
    if with_clips:
        axes.axhline(100 * report["frr"], color=COLOURS["finetune"], lw=1, ls=":")
    axes.set(
        xscale="log", xlabel="false accepts per hour, all labels together", title=f"Detection of {report['model']}"
    )
    _plain_numbers(axes.xaxis)
    axes.set_ylabel("false rejects (% of clips)" if with_clips else "margin above each label's own level (log odds)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


@drawing_settings()
def spectra(values: dict[str, Doubles], path: Path) -> None:
    """The singular values of each embedding, as shares of their sum, largest first: a steep fall means few dimensions in use."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, shares in values.items():
        used = shares[shares > 1e-9]  # centring each vector takes one dimension away
        axes.plot(np.arange(1, len(used) + 1), used, label=name, lw=1.6)
    axes.set(yscale="log", xlabel="singular value, by size", ylabel="share of their sum", title="Spectrum")
    _plain_numbers(axes.yaxis)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


@drawing_settings()
def contributions(shares: dict[str, Doubles], path: Path) -> None:
    """The largest shares of dimensions in the cosines of pairs; a dotted line marks equal shares."""
    figure = Figure(figsize=(4.2 * len(shares), 3.4))
    row = figure.subplots(1, len(shares), squeeze=False, sharey=True)
    for axes, (name, values) in zip(row[0], shares.items(), strict=True):
        largest = np.argsort(-values, kind="stable")[:LARGEST]
        axes.bar(range(len(largest)), 100 * values[largest], color=COLOURS["pairtune"])
        axes.axhline(100 / len(values), color=INK, ls=":", lw=1)
        axes.set_xticks(range(len(largest)), largest, rotation=90, fontsize=6)
        axes.set_title(_wrapped(name), fontsize=9)
        axes.set_xlabel("dimension")
    row[0][0].set_ylabel("contribution (%)")
    _save(figure, path)


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers instead of formulas."""
    axis.set_major_formatter(_Plain())
    axis.set_minor_formatter(_Plain(labelOnlyBase=False))


class _Plain(LogFormatter):
    """Formats 2e-01 as 0.2, at the ticks that matplotlib chooses to label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, 36))


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(), name_file_in_errors(path):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # labels may be in any script, but fonts are not
        figure.tight_layout()
        figure.savefig(path, dpi=130)
