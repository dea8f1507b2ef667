"""Plots as PNG files: learning curves, confusion, maps of an embedding."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Floats = npt.NDArray[np.float32]

INK, COLOURS = "#26323f", {"pairtune": "#0b7a75", "finetune": "#c8553d"}


def learning_curves(histories: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Validation accuracy by epoch of each objective: a linear probe, and vanilla fine-tuning's own head (dashed)."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, history in histories.items():
        colour = COLOURS.get(name, INK)
        epochs = [row["epoch"] for row in history]
        axes.plot(
            epochs,
            [100 * row["val_linear"] for row in history],
            color=colour,
            marker="o",
            ms=4,
            label=f"{name}, linear probe",
        )
        if "val_head" in history[0]:
            axes.plot(
                epochs,
                [100 * row["val_head"] for row in history],
                color=colour,
                ls="--",
                marker="s",
                ms=4,
                label=f"{name}, own head",
            )
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Learning curves")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def confusion_matrix(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: list[str], path: Path
) -> None:
    """Rows are what was said, columns what was heard, in per cent of each row."""
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, predicted), 1)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(4.0, 0.28 * len(classes) + 1.5)
    figure, axes = plt.subplots(figsize=(size, size))
    axes.imshow(share, cmap="GnBu", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(share), strict=True):
        colour = "white" if share[row, column] > 60 else INK
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="heard", ylabel="said", title="Confusion on test clips (% of what was said)")
    _save(figure, path)


def embedding_maps(
    maps: dict[str, Floats], labels: npt.NDArray[np.int64], classes: list[str], path: Path, seed: int = 0
) -> None:
    """t-SNE maps in two dimensions of embeddings `[clips, dim]`, side by side, coloured by class."""
    from sklearn.manifold import TSNE

    figure, row = plt.subplots(1, len(maps), figsize=(6 * len(maps), 5.5), squeeze=False)
    colours = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, len(classes)))
    for axes, (title, embeddings) in zip(row[0], maps.items(), strict=True):
        perplexity = min(30.0, max(2.0, (len(embeddings) - 1) / 4))
        points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(embeddings)
        axes.scatter(points[:, 0], points[:, 1], s=9, color=colours[labels])
        for index in np.unique(labels):
            middle = np.median(points[labels == index], axis=0)
            axes.text(
                *middle,
                classes[index],
                fontsize=7,
                ha="center",
                color=INK,
                bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
            )
        axes.set(title=title, xticks=[], yticks=[])
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
