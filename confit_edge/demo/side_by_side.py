"""Run the demo's trainings at the same time: the first in this process, every other one in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from confit_edge.pairtune.session import Trained, train
from confit_edge.progress import Watcher, ignore_event
from confit_edge.recipe import Recipe
from confit_edge.workers import Events, forwarded, limited_to, workers
from confit_runtime.memory import peak_bytes


def train_all(
    manifest: Path, runs: Path, recipes: dict[str, Recipe], watch: Watcher | None
) -> tuple[dict[str, Trained], int | None]:
    """Train each recipe into the folder of its name in `runs`; also returns the sum of the processes' peak memory, in bytes.

    The memory is None where the system does not report it. The trainings share the processor's cores. Events passed to
    `watch` carry the name as `run`.
    """
    threads = max(1, (os.cpu_count() or 1) // len(recipes))
    (first, recipe), *others = recipes.items()
    with forwarded(watch or ignore_event) as events:
        _set_events(events)
        with workers(
            len(others), threads=threads, initializer=_set_events, args=(events,), advice="the demo needs 3 GB"
        ) as pool:
            futures = {name: pool.submit(_train, manifest, runs / name, other) for name, other in others}
            with limited_to(threads):
                done = {first: _train(manifest, runs / first, recipe, list(futures.values()))}
            done |= {name: future.result() for name, future in futures.items()}
    peaks = [peak for _, peak in done.values() if peak is not None]
    return {name: trained for name, (trained, _) in done.items()}, sum(peaks) if len(peaks) == len(done) else None


_events: Events  # where this process reports the progress of its training


def _set_events(events: Events) -> None:
    global _events
    _events = events


def _train(
    manifest: Path, out: Path, recipe: Recipe, others: Sequence[Future[tuple[Trained, int | None]]] = ()
) -> tuple[Trained, int | None]:
    """Train; if one of the `others` fails, stop and raise its error."""

    def notify(event: dict[str, Any]) -> None:
        for other in others:
            if other.done():
                other.result()
        _events.put({"run": out.name, **event})

    trained = train(manifest, out, recipe, watch=notify)
    assert trained is not None
    return trained, peak_bytes()
