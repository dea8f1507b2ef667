"""Turn sound that arrives in parts into rows, running as many hops per call as are available."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from confit_runtime.arrays import Floats

if TYPE_CHECKING:
    from confit_runtime.model import Model


# for streaming and for windowed models: the limit keeps memory constant for long recordings
HOPS_PER_CALL, WINDOWS_PER_CALL = 256, 16


class ChunkScorer:
    """Takes sound at the model's rate, and returns the rows after the warm-up.

    `push` yields scores `[hops, classes]` and embeddings `[hops, dim]`, one call of the graph at a time. Sound that
    does not fill a call is held back. With `last`, its whole hops are run too; a remaining part of a hop is never
    heard.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._state = model, model.initial_state(1)
        self._buffer = np.zeros(0, np.float32)
        self._discard = model.contract.warmup_hops

    def push(self, pcm: Floats, *, last: bool = False) -> Iterator[tuple[Floats, Floats]]:
        contract = self._model.contract
        self._buffer = np.concatenate([self._buffer, pcm])
        step = (
            HOPS_PER_CALL * contract.hop
            if contract.streaming
            else contract.window + (WINDOWS_PER_CALL - 1) * contract.hop
        )
        while len(self._buffer) >= step:
            yield self._run(step)
        complete = len(self._buffer) // contract.hop * contract.hop
        if last and complete >= (contract.hop if contract.streaming else contract.window):
            yield self._run(complete)

    def _run(self, samples: int) -> tuple[Floats, Floats]:
        contract, pcm = self._model.contract, self._buffer[:samples]
        if contract.streaming:
            self._buffer = self._buffer[samples:]
            scores, embedding, self._state = self._model.run(pcm[None], self._state)
            early, self._discard = self._discard, max(0, self._discard - len(scores[0]))
            return scores[0][early:], embedding[0][early:]
        windows = np.lib.stride_tricks.sliding_window_view(pcm, contract.window)[:: contract.hop]
        self._buffer = self._buffer[len(windows) * contract.hop :]
        scores, embedding, _ = self._model.run(np.ascontiguousarray(windows), {})
        return scores[:, 0], embedding[:, 0]
