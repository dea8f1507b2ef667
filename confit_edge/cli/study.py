"""`confit-edge study`: put one of the open questions to your own clips, over several seeds, and read what they answer."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._console import Bar, Json, emit, say
from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_edge.studies.engine import Planned


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="batch, classes, convergence, dimensions, isotropy, mining, shots, temperature or unseen.",
            show_default=False,
        ),
    ],
    manifest: Annotated[
        Path,
        typer.Option("--data", help="The manifest, or a folder with one sub-folder per class.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="The folder of the study; where it holds one, it is gone on with.", show_default=False
        ),
    ],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How often each trial is done, each time with the next seed [3].")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A YAML recipe, or the name of one that ships, of what the study does not vary: encoder, epochs, ...",
            show_default=False,
        ),
    ] = None,
    train_groups: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on so many groups (voices, kits) only, drawn by each seed: for data on which all do well.",
            show_default=False,
        ),
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="isotropy only: a run or another study's folder to read in place of training (several times for several).",
            show_default=False,
        ),
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE",
            help="isotropy only: the --background of runs in --from, where it has moved since training.",
        ),
    ] = None,
    others: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE", help="isotropy only: the --others of runs in --from, where they have moved since training."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials done at once, each in a process with one thread.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do, and what that would cost.")
    ] = False,
    json_lines: Json = False,
) -> None:
    """Answer one of the method's open questions on your own clips.

    A study is a plan of trainings. It says what they cost before it begins, keeps each as it ends (stopped, the same
    command goes on), and writes a table, a plot and conclusions with 95 % intervals over seeds and test groups. It tells
    accuracy on test; where clips may have several labels, mAP.

    - **temperature**: of the contrastive loss, from 0.01 to 1
    - **mining**: contrastive losses x ways of mining hard pairs
    - **batch**: size of the batch x length of the window x hardness
    - **shots**: 1 to 20 clips a class, and classes with unequal numbers of clips
    - **classes**: the gain over vanilla fine-tuning against the number of classes
    - **unseen**: classes that were never trained, and sound that comes another way
    - **convergence**: accuracy by epoch of each objective
    - **dimensions**: is it the balance of an embedding's dimensions that makes it accurate?
    - **isotropy**: does the geometry of an embedding tell how accurate it is?

    Example: `confit-edge study temperature --data words.csv -o studies/temperature --jobs 2`
    """
    from confit_edge.launched import refuse_several

    refuse_several("study", "; --jobs does several of its trials at once")
    from confit_edge.data.tables import check_utf8
    from confit_edge.files import alone
    from confit_edge.recipe import Recipe
    from confit_edge.studies import find
    from confit_edge.studies.bench import source_of
    from confit_edge.studies.engine import prepare, run
    from confit_edge.studies.report import write_report

    if earlier:
        for option, given in (("--seeds", seeds), ("--train-groups", train_groups)):
            if given is not None:
                raise UsageError(f"{option} is of trainings, and --from reads what was trained before: leave it out")
    places = {"background": background, "others": others}
    for key, place in places.items():
        if place is not None and not earlier:
            raise UsageError(
                f"--{key} is of runs in --from: a study itself takes it from its recipe, key '{key}' of --recipe"
            )
    for argument in sys.argv[1:]:
        check_utf8(Path(argument))  # results tell the command
    question = find(name)
    source = source_of(manifest, Recipe.from_file(recipe) if recipe else Recipe())
    with nullcontext() if dry_run else alone(out, "study"), StudyBar(json_lines) as progress:
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


class StudyBar(Bar):
    """Shows a study on stderr: its cost, and on a terminal a bar with the time left; or JSON lines on stdout."""

    def __init__(self, json_lines: bool) -> None:
        super().__init__(json_lines, before="note")
        self.planned: Planned | None = None

    def cost(self, planned: Planned, jobs: int) -> None:
        """Say what is to be done; from here on the bar is of the trials, each as long as it should take."""
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
            before = f", {done} of them done before" if done else ""
            say(
                f"{planned.study.question}\n{len(planned.trials)} trials{before}: about {duration(planned.cpu_seconds)} of"
                f" CPU time, {duration(planned.cpu_seconds / jobs)} with --jobs {jobs}"
            )
        self.show("trials", planned.cpu_seconds, 0, note=f"{done}/{len(planned.trials)}")

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        if stage == "decode":
            self.show("decoding", event["total"], event["done"], note=f"{event['done']}/{event['total']}")
        elif stage == "timing":
            self.show("timing one epoch", None, 0, note="")
        elif stage == "trial":
            assert self.planned is not None
            outcome = event["outcome"]
            self.bar.update(
                self.rows[""], advance=self.planned.cost[outcome.key], note=f"{event['done']}/{event['total']} trials"
            )
            if self.json_lines:
                error = {"error": outcome.diverged} if outcome.diverged else {}
                emit("trial", arm=dict(outcome.arm), seed=outcome.seed, cpu_seconds=outcome.cpu_seconds, **error)
            elif outcome.diverged:
                self.console.print(
                    f"diverged: {dict(outcome.arm)}, seed {outcome.seed}: {outcome.diverged}", markup=False
                )


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
