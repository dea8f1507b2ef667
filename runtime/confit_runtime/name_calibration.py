"""Enrolled names as labels whose scores are similarities, so that they are calibrated by the same method as labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.contract import Contract
from confit_runtime.detect import name_hops
from confit_runtime.matcher import Matcher
from confit_runtime.recordings import Recording


def names_contract(contract: Contract, matcher: Matcher) -> Contract:
    """A contract whose labels are the enrolled names, with the rules of names and the thresholds before any calibration.

    A name for which the model says nothing above 0 needs a similarity above 0.
    """
    levels = {name: max(1e-6, matcher.stream_threshold(name, calibrated=False)) for name in matcher.enrolled}
    return dataclasses.replace(
        contract,
        labels=tuple(levels),
        thresholds={name: {"on": level, "off": level} for name, level in levels.items()},
        unknown_label=None,
        multi_label=True,  # names do not compete by these scores: the matcher has decided
        smoothing_hops=1,
        min_hops=name_hops(contract),
    )


def name_rows(embeddings: Floats, matcher: Matcher) -> Floats:
    """Score rows `[hops, names]` of embedding rows `[hops, dim]`: the similarity of the name that a row is answered with.

    All other names of the row score 0. `matcher` must let the best name pass at any similarity, so that only the rules
    without a threshold refuse it.
    """
    columns = {name: column for column, name in enumerate(matcher.enrolled)}
    rows = np.zeros((len(embeddings), len(columns)), np.float32)
    for row, embedding in zip(rows, embeddings, strict=True):
        if np.isfinite(embedding).all() and (match := matcher.match(embedding, in_stream=True)).name is not None:
            row[columns[match.name]] = match.score
    return rows


def name_recordings(recordings: Sequence[Recording], matcher: Matcher) -> list[Recording]:
    """The recordings with `name_rows` in place of embedding rows."""
    return [
        dataclasses.replace(recording, pieces=[name_rows(piece, matcher) for piece in recording.pieces])
        for recording in recordings
    ]
