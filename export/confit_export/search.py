"""Quantises as many layers as the gate allows: all of them first, then all but the ones with the largest error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from confit_export.gate import Verdict
from confit_export.quantize import Quantizer
from confit_export.sensitivity import Sweep, sweep
from confit_runtime.errors import UsageError
from confit_runtime.names import closest_name

Say = Callable[[str], None]
Judge = Callable[[onnx.ModelProto], Verdict]


@dataclass(frozen=True)
class SearchResult:
    """A quantised graph with its verdict, the layers quantised and kept in fp32, and the sweep if one was needed."""

    graph: onnx.ModelProto
    layers: list[str]
    kept: list[str]
    verdict: Verdict
    sweep: Sweep | None


def search(
    quantizer: Quantizer,
    judge: Judge,
    windows: npt.NDArray[np.float32],
    keep: tuple[str, ...],
    *,
    cache: Path,
    minutes: float,
    say: Say,
) -> SearchResult:
    """Quantise fewer and fewer layers until one graph passes the gate; if none does, return the one with all layers.

    `keep` names the layers that stay in fp32 from the start (`kept_by_name`). At most half of the layers are given up:
    beyond that a model is better left in fp32. Raises UsageError when an entry of `keep` matches no layer.
    """
    kept, wanted = kept_by_name(quantizer.layers, keep), layers_to_quantize(quantizer.layers, keep)
    graph = quantizer(wanted)
    with_all_layers = SearchResult(graph, wanted, kept, judge(graph), None)
    if not with_all_layers.verdict.failures or not wanted:
        return with_all_layers
    say(
        f"with all {len(wanted)} layers quantised, {with_all_layers.verdict.failures[0]}: looking for the layers that cause it"
    )
    sensitivity = sweep(quantizer, windows, cache, minutes)
    if sensitivity.unmeasured:
        say(f"layers not measured within {minutes:g} minutes: {sensitivity.unmeasured}; export again to continue")
    most_sensitive = [layer for layer in sensitivity.errors if layer in wanted]
    for count in _candidate_counts(min(len(wanted) // 2, len(most_sensitive))):
        given_up = set(most_sensitive[:count])
        layers = [layer for layer in wanted if layer not in given_up]
        graph = quantizer(layers)
        result = SearchResult(graph, layers, kept + most_sensitive[:count], judge(graph), sensitivity)
        if not result.verdict.failures:
            say(
                f"passed the gate with {count} of {len(wanted)} layers kept in fp32: {', '.join(most_sensitive[:count])}"
            )
            return result
    return SearchResult(with_all_layers.graph, wanted, kept, with_all_layers.verdict, sensitivity)


def layers_to_quantize(layers: tuple[str, ...], keep: tuple[str, ...]) -> list[str]:
    """The layers that `keep` does not match. Raises UsageError if `keep` leaves no layer to quantise."""
    kept = kept_by_name(layers, keep)
    quantised = [layer for layer in layers if layer not in kept]
    if kept and not quantised:
        raise UsageError(f"--keep-fp32 {' '.join(keep)}: leaves no layer to quantise; export with --no-quantize")
    return quantised


def kept_by_name(layers: tuple[str, ...], keep: tuple[str, ...]) -> list[str]:
    """The layers that an entry of `keep` names, or whose name continues it after a slash or a dot.

    So `/stack/layers.2` names `/stack/layers.2/Conv`, but not `/stack/layers.20/Conv`. Raises UsageError for an entry that
    names no layer.
    """
    parts = {layer: _name_parts(layer) for layer in layers}
    wanted = {name: _name_parts(name) for name in keep}
    for name, begin in wanted.items():
        if not any(_begins_with(layer, begin) for layer in parts.values()):
            scopes = dict.fromkeys("".join(layer[:count]) for layer in parts.values() for count in range(2, len(layer)))
            near = closest_name(name, [*layers, *scopes])
            examples = f"did you mean {near}?" if near else f"they are {', '.join(layers[:4])}, ..."
            raise UsageError(f"--keep-fp32 {name}: names none of the {len(layers)} layers; {examples}")
    return [layer for layer in layers if any(_begins_with(parts[layer], begin) for begin in wanted.values())]


def _name_parts(name: str) -> list[str]:
    """The parts of a layer's name, each with the slash or dot before it; a slash or dot at the end counts for nothing."""
    return re.findall(r"^[^/.]+|[/.][^/.]*", name.rstrip("/."))


def _begins_with(parts: list[str], begin: list[str]) -> bool:
    return parts[: len(begin)] == begin


def _candidate_counts(limit: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to `limit`."""
    count = 1
    while count <= limit:
        yield count
        count += max(1, 1 << max(0, count.bit_length() - 2))
