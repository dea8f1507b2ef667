"""Finds the layers that quantisation hurts: quantises each alone, and compares the embeddings with those of fp32."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_export.quantize import Quantizer
from confit_runtime.arrays import Floats
from confit_runtime.files import write_atomic
from confit_runtime.session import open_session

WINDOWS = 48
BATCH_SIZE = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """The error of each measured layer, 1 - mean cosine, largest first; and how many layers there was no time to measure."""

    errors: dict[str, float]
    unmeasured: int


def validation_windows(encoder: Encoder, corpus: Corpus, seed: int) -> Floats:
    """Return windows `[n, window]` of validation clips drawn at random, each cropped or centred as on a device."""
    rng = np.random.default_rng([seed, 8])
    chosen = sorted(rng.permutation(len(corpus.val))[:WINDOWS])
    windows = np.zeros((len(chosen), encoder.window), np.float32)
    for window, index in zip(windows, chosen, strict=True):
        clip = corpus.val.pcm[index][: encoder.window]
        offset = (encoder.window - len(clip)) // 2
        window[offset : offset + len(clip)] = clip
    return windows


def sweep(quantizer: Quantizer, windows: Floats, cache: Path, minutes: float) -> Sweep:
    """Measure each layer of the quantizer, in the order of the graph, for at most `minutes`.

    The results are kept in `cache`: a sweep that was stopped resumes where it was, and a finished one is not repeated.
    """
    journal = cache / "sweeps" / f"{_fingerprint(quantizer, windows)}.json"
    errors = _load_errors(journal)
    reference = embed(quantizer.fp32, windows)
    deadline, saved = time.monotonic() + 60 * minutes, True
    for layer in quantizer.layers:
        if layer in errors:
            continue
        if time.monotonic() > deadline:
            break
        cosine = (embed(quantizer([layer]), windows) * reference).sum(axis=1)
        errors[layer] = round(float(1 - cosine.mean()), 6)
        if saved:
            saved = _save_errors(journal, errors)
    ordered = sorted(errors, key=lambda layer: (-errors[layer], layer))
    return Sweep({layer: errors[layer] for layer in ordered}, len(quantizer.layers) - len(errors))


def _load_errors(journal: Path) -> dict[str, float]:
    """The results measured before; none if they cannot be read, since they can be measured again."""
    try:
        stored = json.loads(journal.read_text(encoding="utf-8"))
        return {str(layer): float(error) for layer, error in stored.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: cannot be read (%s); measuring its layers again", journal, error)
        return {}


def _save_errors(journal: Path, errors: dict[str, float]) -> bool:
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(journal, (json.dumps(errors, indent=1) + "\n").encode())
    except OSError as error:
        log.warning("%s: measurements cannot be kept (%s); set CONFIT_EDGE_CACHE", journal.parent, error.strerror)
        return False
    return True


def embed(model: onnx.ModelProto, windows: Floats) -> Floats:
    """Return the embeddings `[n, dim]` of windows `[n, window]`; for a stream, that of its last hop."""
    session = open_session(model.SerializeToString(), threads=1)
    states = [entry for entry in session.get_inputs() if entry.name != "pcm"]
    batch_size = 1 if session.get_inputs()[0].shape[0] == 1 else BATCH_SIZE
    embeddings = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        feed = {entry.name: np.zeros((len(batch), *entry.shape[1:]), np.float32) for entry in states}
        embeddings.append(session.run(["embedding"], {"pcm": batch, **feed})[0][:, -1])
    return np.concatenate(embeddings)


def _fingerprint(quantizer: Quantizer, windows: Floats) -> str:
    digest = hashlib.sha256(f"{quantizer.scheme} {quantizer.target} {quantizer.calibration}".encode())
    digest.update(quantizer.fp32.SerializeToString(deterministic=True))
    for values in [windows, *(array for feed in quantizer.feeds for array in feed.values())]:
        digest.update(values.tobytes())
    return digest.hexdigest()[:24]
