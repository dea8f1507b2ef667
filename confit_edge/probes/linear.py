"""The linear probe: how well a plane separates the classes in a frozen embedding (global structure)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats
from confit_runtime.errors import ConfitError

STRENGTHS = (0.01, 0.1, 1.0)  # inverse regularisation, tried on validation


@dataclass(frozen=True)
class LinearProbe:
    """A linear layer and softmax (sigmoid if `multi_label`): `weight [classes, dim]`, `bias [classes]`."""

    weight: Floats
    bias: Floats
    multi_label: bool = False

    def logits(self, embeddings: Floats) -> Floats:
        """Logits `[..., classes]` of embeddings `[..., dim]`."""
        return embeddings @ self.weight.T + self.bias

    def scores(self, embeddings: Floats) -> Floats:
        """Probabilities `[..., classes]`, 0..1."""
        logits = self.logits(embeddings)
        if self.multi_label:
            return np.exp(-np.logaddexp(0, -logits)).astype(np.float32)
        return softmax(logits)

    @classmethod
    def fit(
        cls,
        embeddings: Floats,
        targets: npt.NDArray[np.int8],
        val_embeddings: Floats,
        val_targets: npt.NDArray[np.int8],
        *,
        multi_label: bool = False,
        strengths: tuple[float, ...] = STRENGTHS,
    ) -> LinearProbe:
        """Logistic regression on standardised embeddings `[clips, dim]`, targets 0/1 `[clips, classes]`.

        Each regularisation strength gets one temperature, fitted to validation so that a score of 0.8 is right about
        eight times in ten; the strength with the smallest validation log loss is kept. Standardisation and temperature
        are folded into the layer. Raises ConfitError if an embedding is not finite or a class has no training clip; with
        `multi_label`, or with two classes, the log odds of such a class are learnt instead.
        """
        if not (np.isfinite(embeddings).all() and np.isfinite(val_embeddings).all()):
            raise ConfitError("the embeddings for a linear probe are not finite")
        if not multi_label and targets.shape[1] > 2 and not targets.any(axis=0).all():
            without = [str(column) for column in np.flatnonzero(~targets.any(axis=0))]
            raise ConfitError(
                f"a linear probe needs a training clip of every class; targets have none in column {', '.join(without)}"
            )
        mean, scale = embeddings.mean(axis=0), np.maximum(embeddings.std(axis=0), 1e-6)
        standard = (embeddings - mean) / scale
        best: tuple[float, LinearProbe] | None = None
        for strength in strengths:
            weight, bias = _logistic(standard, targets, strength, multi_label)
            weight = weight / scale
            probe = cls(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), multi_label)
            probe = probe.sharpened(_temperature(probe.logits(val_embeddings), val_targets, multi_label))
            loss = log_loss(probe.logits(val_embeddings), val_targets, multi_label)
            if best is None or loss < best[0]:
                best = (loss, probe)
        assert best is not None
        return best[1]

    def sharpened(self, temperature: float) -> LinearProbe:
        """The same probe with its logits divided by `temperature`."""
        return LinearProbe(self.weight / np.float32(temperature), self.bias / np.float32(temperature), self.multi_label)


def _logistic(
    embeddings: Floats, targets: npt.NDArray[np.int8], strength: float, multi_label: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    from sklearn.linear_model import LogisticRegression

    def fit(labels: npt.NDArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        if labels.min() == labels.max():  # all clips have the label, or none: only its log odds can be learnt
            odds = (labels.sum() + 0.5) / (len(labels) - labels.sum() + 0.5)
            return np.zeros((1, embeddings.shape[1])), np.log([odds])
        with warnings.catch_warnings():
            # with one or two clips per class, scikit-learn warns that this may be a regression
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
            layer = LogisticRegression(C=strength, max_iter=500, tol=1e-3).fit(embeddings, labels)
        return layer.coef_, layer.intercept_

    classes = targets.shape[1]
    if multi_label or classes == 2:
        columns = targets.T if multi_label else targets.T[1:]
        weight, bias = (np.concatenate(parts) for parts in zip(*map(fit, columns), strict=True))
        if multi_label:
            return weight, bias
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return fit(targets.argmax(axis=1))


def log_loss(logits: Floats, targets: npt.NDArray[np.int8], multi_label: bool) -> float:
    """Mean cross-entropy (binary per class if `multi_label`) of logits `[clips, classes]`, in nats."""
    logits = logits.astype(np.float64)
    if multi_label:
        return float((np.logaddexp(0, logits) - targets * logits).mean())
    top = logits.max(axis=1)
    normaliser = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((normaliser - logits[np.arange(len(logits)), targets.argmax(axis=1)]).mean())


def _temperature(logits: Floats, targets: npt.NDArray[np.int8], multi_label: bool) -> float:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599) by golden-section search over its logarithm."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.float32(np.exp(log_t)), targets, multi_label),
        bounds=(-3.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)
