"""Run a study: plan it, estimate its cost, run its trials in parallel and keep each outcome."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confit_edge import __version__
from confit_edge.files import check_folder
from confit_edge.pairtune.machine import keep_freed_memory
from confit_edge.pairtune.trainer import DivergedError
from confit_edge.probes.metrics import merit_name
from confit_edge.progress import Watcher, ignore_event
from confit_edge.runs import weights_sha256
from confit_edge.studies import find
from confit_edge.studies.bench import Bench, Source, pairtuned
from confit_edge.studies.cost import Pace, expected, measure_pace
from confit_edge.studies.journal import Journal
from confit_edge.studies.results import Results
from confit_edge.studies.study import Places, Study
from confit_edge.studies.subset import cut
from confit_edge.studies.trial import Outcome, Subset, Trial
from confit_edge.workers import Events, forwarded, limited_to, workers
from confit_runtime.errors import UsageError

WITHIN_TRIAL = ("trying", "step", "probe")  # the stages of a training that tell how far a trial is


@dataclass(frozen=True)
class Planned:
    """A study ready to run: its trials, the expected CPU seconds of each, and the outcomes that already exist."""

    study: Study
    source: Source
    journal: Journal
    figure: str  # the figure of merit, see `merit_name`
    trials: dict[str, Trial]  # by key
    cost: dict[str, float]
    done: dict[str, Outcome]

    @property
    def left(self) -> list[str]:
        """The keys of the trials still to run."""
        return [key for key in self.trials if key not in self.done]

    @property
    def cpu_seconds(self) -> float:
        """The expected cost of the trials still to run."""
        return sum(self.cost[key] for key in self.left)


def prepare(
    study: Study,
    source: Source,
    out: Path,
    *,
    seeds: int,
    groups: int | None = None,
    earlier: list[Path] | None = None,
    places: Places | None = None,
    watch: Watcher | None = None,
) -> Planned:
    """Read the data, plan the trials of `seeds` seeds and estimate their cost. Writes nothing.

    With `groups`, every trial trains on only that many training groups, drawn with its seed. With `earlier`, the trials
    read finished runs and studies; `places` gives the present locations of a run's `background` and `others`. Raises
    UsageError if the study cannot use such data, or if `out` holds something else or cannot be a folder.
    """
    check_folder(out, "study")
    with limited_to(1):
        bench = Bench(
            source, (lambda done, total: watch({"stage": "decode", "done": done, "total": total})) if watch else None
        )
        corpus = bench.corpus()
        planned: list[Trial] = []
        if earlier:
            if study.plan_from is None:
                raise UsageError(
                    f"--from: study {study.name} trains its own encoders; only isotropy reads earlier runs and studies"
                )
            _check_distinct_names(earlier)
            planned = study.plan_from(earlier, corpus, source.recipe, places or {})
        else:
            for seed in range(source.recipe.seed, source.recipe.seed + seeds):
                planned += study.plan(cut(corpus, Subset(groups=groups), seed), replace(source.recipe, seed=seed))
            planned = [replace(trial, subset=replace(trial.subset, groups=groups)) for trial in planned]
        header = {
            "study": study.name,
            "recipe": source.recipe.to_dict(),
            "train_groups": groups,
            "manifest": str(source.manifest),
            "fingerprint": corpus.fingerprint,
            "encoder_sha256": weights_sha256(bench.encoder(source.recipe)),
            "figure": (figure := merit_name(multi_label=corpus.multi_label)),
            "version": __version__,
        }
        journal = Journal(out, header)
        outcomes = journal.open()
        trials = {_with_first_encoder_name(trial, source, journal).key(study.name): trial for trial in planned}
        done = {key: outcome for key, outcome in outcomes.items() if key in trials}
        if watch:
            watch({"stage": "timing"})
        paces: dict[tuple[str, float], Pace] = {}
        cost: dict[str, float] = {}
        for key, trial in trials.items():
            kind = (trial.recipe.encoder, trial.recipe.window)
            if trial.done:
                cost[key] = 0.0
                continue
            if key not in done and kind not in paces:
                timed = replace(pairtuned(trial.recipe), seed=source.recipe.seed)
                paces[kind] = measure_pace(bench, timed, bench.starting_encoder(trial))
            cost[key] = done[key].cpu_seconds if key in done else expected(study, trial, bench, paces[kind])
    return Planned(study, source, journal, figure, trials, cost, done)


def _with_first_encoder_name(trial: Trial, source: Source, journal: Journal) -> Trial:
    """Return the trial with the encoder's name from when the study began, even if its folder has moved since."""
    if trial.recipe.encoder != source.recipe.encoder:
        return trial
    return replace(trial, recipe=replace(trial.recipe, encoder=journal.encoder))


def _check_distinct_names(earlier: list[Path]) -> None:
    """Raise UsageError where two folders share a name, because the study identifies each by its name."""
    name, times = Counter(path.resolve().name for path in earlier).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"--from: {times} folders are named {name}; rename them, because the table identifies each by its name"
        )


def run(planned: Planned, jobs: int, watch: Watcher | None = None) -> Results:
    """Run the remaining trials, `jobs` at a time with one thread each, and keep each outcome as it ends.

    A trial that diverges is an outcome. Any other error ends the study; the same call resumes it later. `watch` receives
    an event `trial` for each outcome, the events of each running trial with its name as `run`, and `over` at its end.
    With several jobs those come from another thread.
    """
    planned.journal.begin()
    done = dict(planned.done)
    with contextlib.closing(_outcomes(planned, jobs, watch or ignore_event)) as outcomes:
        for outcome in outcomes:
            planned.journal.append(outcome)
            done[outcome.key] = outcome
            if watch:
                watch({"stage": "trial", "outcome": outcome, "done": len(done), "total": len(planned.trials)})
    return Results((done[key] for key in planned.trials), planned.figure)


def _outcomes(planned: Planned, jobs: int, watch: Watcher) -> Generator[Outcome]:
    """Yield the outcomes of the remaining trials as they finish."""
    if jobs == 1:
        bench = Bench(planned.source)
        with limited_to(1):
            for key in planned.left:
                yield attempt(planned.study, bench, key, planned.trials[key], watch)
        return
    with (
        forwarded(watch) as events,
        workers(
            min(jobs, max(1, len(planned.left))),
            threads=1,
            initializer=_open_bench,
            args=(planned.source, events),
            advice="run the same command with fewer --jobs to resume",
        ) as pool,
    ):
        running = [pool.submit(_work, planned.study.name, key, planned.trials[key]) for key in planned.left]
        for future in as_completed(running):
            yield future.result()


def attempt(study: Study, bench: Bench, key: str, trial: Trial, watch: Watcher = ignore_event) -> Outcome:
    """Run one trial."""
    name = ", ".join(map(str, [*trial.arm.values(), f"seed {trial.recipe.seed}"]))

    def notify(event: dict[str, Any]) -> None:
        if event["stage"] in WITHIN_TRIAL:
            watch({"run": name, **event})

    bench.notify = notify
    start = time.process_time()
    points, diverged = [], ""
    try:
        with keep_freed_memory():
            points = study.measure(bench, trial)
    except DivergedError as error:
        diverged = str(error)
    watch({"run": name, "stage": "over"})
    return Outcome(
        key, trial.arm, trial.recipe.seed, trial.subset, points, round(time.process_time() - start, 3), diverged
    )


_bench: Bench  # of this worker process
_events: Events  # where it reports the progress of its trials


def _open_bench(source: Source, events: Events) -> None:
    global _bench, _events
    _bench, _events = Bench(source), events


def _work(study: str, key: str, trial: Trial) -> Outcome:
    return attempt(find(study), _bench, key, trial, _events.put)
