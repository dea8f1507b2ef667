"""`confit-edge study`: answer one of the method's open questions on your own clips, over several seeds."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._training import TrainingBar
from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_edge.studies.engine import Planned


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="batch, classes, convergence, dimensions, isotropy, mining, shots, temperature or unseen.",
            show_default=False,
        ),
    ],
    manifest: Annotated[
        Path,
        typer.Option(
            "--data", help="Your clips: a manifest, or a folder with one sub-folder per class.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="The folder to write. If it holds this study already, it is resumed.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How often to repeat each trial, each time with the next seed [3].")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A YAML recipe, or the name of one that ships, for what the study does not vary: encoder, epochs, ...",
            show_default=False,
        ),
    ] = None,
    train_groups: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on only this many groups (voices, kits), a different draw for each seed. Use it if all trials do well.",
            show_default=False,
        ),
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="isotropy only: a run, or another study's folder, to read instead of training; may be repeated.",
            show_default=False,
        ),
    ] = None,
    background: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE",
            help="isotropy only: the --background of runs in --from, if it has moved since training; may be repeated.",
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE",
            help="isotropy only: the --others of runs in --from, if they have moved since training; may be repeated.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials to run at once, each in a process with one thread.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and what it would cost.")] = False,
    json_lines: Json = False,
) -> None:
    """Answer one of the method's open questions on your own clips.

    A study is a plan of trainings, called trials:

    - temperature: the temperature of the contrastive loss, from 0.01 to 1
    - mining: contrastive losses x ways of mining hard pairs
    - batch: batch size x window length x hardness
    - shots: 1 to 20 clips per class, and classes with unequal numbers of clips
    - classes: the gain over vanilla fine-tuning by number of classes
    - unseen: classes that were never trained, and clips recorded in another way
    - convergence: accuracy by epoch for each objective
    - dimensions: does the balance of an embedding's dimensions make it accurate?
    - isotropy: does the geometry of an embedding predict how accurate it is?

    The study prints its cost before it starts and saves every trial as it ends; if you stop it, the same command resumes
    it. It writes a table, a plot and conclusions, with 95 % intervals over seeds and test groups. The measure is accuracy
    on test or, if clips may have several labels, mAP.

    Examples:

        confit-edge study temperature --data words.csv -o studies/temperature --dry-run
        confit-edge study temperature --data words.csv -o studies/temperature --jobs 2

    Next: `confit-edge train` with the setting that did best.
    """
    from confit_edge.launcher import check_single_process

    check_single_process("study", "; --jobs runs several of its trials at once")
    from confit_edge.data.tables import check_utf8
    from confit_edge.files import lock_folder
    from confit_edge.recipe import Recipe
    from confit_edge.studies import find
    from confit_edge.studies.bench import source_of
    from confit_edge.studies.engine import prepare, run
    from confit_edge.studies.report import write_report

    if earlier:
        for option, given in (("--seeds", seeds), ("--train-groups", train_groups)):
            if given is not None:
                raise UsageError(f"{option} is for new trainings, but --from reads finished ones: leave it out")
    places = {"background": background or [], "others": others or []}
    for key, moved in places.items():
        if moved and not earlier:
            raise UsageError(f"--{key} is only for runs in --from; for new trainings set the key '{key}' in --recipe")
    for argument in sys.argv[1:]:
        check_utf8(Path(argument))  # the results include the command
    question = find(name)
    source = source_of(manifest, Recipe.from_file(recipe) if recipe else Recipe())
    with nullcontext() if dry_run else lock_folder(out, "study"), StudyBar(json_lines) as progress:
        planned = prepare(
            question, source, out, seeds=seeds or 3, groups=train_groups, earlier=earlier, places=places, watch=progress
        )
        progress.cost(planned, jobs)
        if dry_run:
            return
        results = run(planned, jobs, progress)
        conclusions = write_report(planned, results, shlex.join(["confit-edge", *sys.argv[1:]]))
    if json_lines:
        cpu = round(sum(outcome.cpu_seconds for outcome in results.outcomes), 1)
        diverged = len(results.diverged)
        emit("summary", study=name, out=str(out), diverged=diverged, cpu_seconds=cpu, conclusions=conclusions)
        return
    print((out / "table.md").read_text(encoding="utf-8"))
    print("\n".join(conclusions))
    say(f"wrote {out}: table.md, table.csv, plot.png, conclusions.md, results.json")


class StudyBar(TrainingBar):
    """Shows a study on stderr: its cost, and how far its trials are, on a terminal as bars; or JSON lines on stdout."""

    def __init__(self, json_lines: bool) -> None:
        super().__init__(json_lines)
        self.planned: Planned | None = None

    def cost(self, planned: Planned, jobs: int) -> None:
        """Print the plan and its cost; from then on the bar shows the trials, each weighted by its expected time."""
        self.planned = planned
        done = len(planned.done)
        if self.json_lines:
            emit(
                "cost",
                trials=len(planned.trials),
                done=done,
                cpu_seconds=round(planned.cpu_seconds, 1),
                wall_seconds=round(planned.cpu_seconds / jobs, 1),
                jobs=jobs,
            )
        else:
            before = f", {done} of them done already" if done else ""
            say(
                f"{planned.study.question}\n{len(planned.trials)} trials{before}: about {duration(planned.cpu_seconds)} of"
                f" CPU time, {duration(planned.cpu_seconds / jobs)} with --jobs {jobs}"
            )
        self.show("trials", planned.cpu_seconds, 0, count=f"{done}/{len(planned.trials)}", note="")

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        if stage == "timing":
            self.show("timing one epoch", None, 0, count="", note="")
            if not (self.json_lines or self.console.is_terminal):
                say("timing one epoch, to estimate the cost")
        elif stage == "trial":
            assert self.planned is not None
            outcome, count = event["outcome"], f"{event['done']}/{event['total']} trials"
            self.bar.update(self.rows[""], advance=self.planned.cost[outcome.key], count=count)
            if self.json_lines:
                error = {"error": outcome.diverged} if outcome.diverged else {}
                emit("trial", arm=dict(outcome.arm), seed=outcome.seed, cpu_seconds=outcome.cpu_seconds, **error)
            elif outcome.diverged:
                self.console.print(
                    f"diverged: {dict(outcome.arm)}, seed {outcome.seed}: {outcome.diverged}", markup=False
                )
        elif stage == "over":  # a trial no longer runs
            if event["run"] in self.rows:
                self.bar.remove_task(self.rows.pop(event["run"]))
        elif not self.json_lines:  # where its lines are those of the trials
            super().__call__(event)


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
