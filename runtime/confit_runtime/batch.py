"""Streams in step: one call of the graph advances them all by one hop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, check_count
from confit_runtime.audio import as_array, check_samples, is_valid_audio, to_float
from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_runtime.model import Model
    from confit_runtime.session import State


class Batch:
    """Several streams of one model, in step. Each hears what it would hear alone.

    It returns rows of scores and embeddings. It knows of no gaps: push zeros in place of a stream's lost samples, and
    `reset` a stream after a long gap. For events, or for microphones with their own rates and times, use one
    `Model.stream` each.
    """

    def __init__(self, model: Model, streams: int) -> None:
        streams = check_count(streams, "the number of streams in a batch", 1)
        self.model, self.streams = model, streams
        contract = model.contract
        self._hops = np.zeros(streams, np.int64)  # since each stream began
        self._pcm = np.zeros((streams, contract.hop if contract.streaming else contract.window), np.float32)
        self._scores = np.zeros((streams, 1, len(contract.labels)), np.float32)
        self._embedding = np.zeros((streams, 1, contract.embedding_dim), np.float32)
        self._states = [model.initial_state(streams) for _ in range(2)]
        # in turns: the states that one call writes are those that the next one reads
        self._calls = cycle([self._bind(*self._states), self._bind(*reversed(self._states))])
        self.reset()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Batch cannot be passed to another process: pass its model and make a batch there")

    def reset(self, stream: int | None = None) -> None:
        """Start over, as if nothing had been heard: all streams, or one, so that another sound can take its place.

        Raises UsageError if there is no such stream.
        """
        if stream is not None and check_count(stream, "the stream to reset", 0) >= self.streams:
            raise UsageError(
                f"there is no stream {stream} in a batch of {self.streams}: the last is {self.streams - 1}"
            )
        of = slice(None) if stream is None else stream
        self._hops[of] = 0
        for array in (self._pcm, *self._states[0].values(), *self._states[1].values()):
            array[of] = 0

    def push(self, pcm: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Take one hop `[streams, hop]`; return scores `[streams, rows, classes]` and embeddings `[streams, rows, dim]`.

        The hop is at the model's rate: floats in -1..1, or int16 (int8, int32, uint8) of full scale. `rows` is 1, or 0
        until real audio fills the receptive field of any stream. Streams that were reset later give NaN until theirs
        is full. Raises UsageError for another shape. Raises AudioError for integers of another type, and for NaN,
        infinite or absurdly large samples, naming the stream.
        """
        shape = (self.streams, self.model.contract.hop)
        array = as_array(pcm, f"[{shape[0]}, {shape[1]}]")
        if array.shape != shape:
            raise UsageError(f"a batch of {self.streams} needs samples of shape {list(shape)}, got {list(array.shape)}")
        hop = to_float(array)
        if not is_valid_audio(hop):  # checks all streams at once
            for at, samples in enumerate(hop):
                check_samples(samples, f"stream {at} of the batch")
        return self.step(hop)

    def step(self, hop: Floats) -> tuple[Floats, Floats]:
        """Like `push`, for a float32 hop that was already checked."""
        contract = self.model.contract
        self._hops += 1
        self._pcm[:, : -contract.hop] = self._pcm[:, contract.hop :]
        self._pcm[:, -contract.hop :] = hop
        full = self._hops * contract.hop >= contract.window
        ready = int(full.any())
        if ready or contract.streaming:
            next(self._calls)()
        scores, embedding = self._scores[:, :ready].copy(), self._embedding[:, :ready].copy()
        if ready and not full.all():
            scores[~full] = embedding[~full] = np.nan
        return scores, embedding

    def _bind(self, before: State, after: State) -> Callable[[], None]:
        inputs = {"pcm": self._pcm, **before}
        outputs: State = {"scores": self._scores, "embedding": self._embedding}
        outputs |= {f"{name}_out": state for name, state in after.items()}
        if not self.model.one_window_per_call:
            return self.model.bind(inputs, outputs)
        each = [
            self.model.bind(
                *({name: array[at : at + 1] for name, array in arrays.items()} for arrays in (inputs, outputs))
            )
            for at in range(self.streams)
        ]

        def call_each() -> None:
            for call in each:
                call()

        return call_each
