"""What the verbs that train share: options, the display of a training, and the table of its probes."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._console import Bar, emit, say
from confit_edge.launcher import is_multi_process
from confit_runtime.formatting import format_count, format_interval
from confit_runtime.names import escape_controls

if TYPE_CHECKING:
    from confit_edge.pairtune.session import Trained

ENCODER, OBJECTIVE, SCHEDULE, MACHINE = "Encoder", "Objective", "Batch and schedule", "Machine"  # panels of --help
# A linear probe this far behind the kNN probe, on at least FEWEST_CLIPS clips, has not learnt what the embedding holds.
KNN_LEAD, FEWEST_CLIPS = 0.15, 20
MANY_SOUNDS = 1000  # sounds from which on a probe without a bar prints a line for every tenth


def option(help_text: str, panel: str, *names: str) -> Any:
    """An option that is a key of the recipe. The help states the default, because None means the recipe's value."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False)


RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="A YAML recipe, or the name of one that ships, such as esc50. Options given here override it."
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume a stopped training. The result is the same as without the stop (on a CPU bit for bit).",
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard to the run's folder `tensorboard`.")
]
Epochs = Annotated[int | None, option("Passes over the training clips [12].", SCHEDULE)]
Rates = Annotated[
    str | None,
    option("Learning rate of the encoder [its own]. Of several, separated by commas, validation chooses.", SCHEDULE),
]
Device = Annotated[str | None, option("auto (default), cpu, cuda, cuda:1, ...", MACHINE)]
Precision = Annotated[
    str | None, option("fp32 (default), bf16, or auto: bf16 if the device computes in it, else fp32.", MACHINE)
]


def learning_rates(text: str) -> list[float]:
    """The learning rates in `0.0005` or `0.0005,0.001`. Raises UsageError."""
    from confit_runtime.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--lr {text}: give a number, or several separated by commas") from error


@contextmanager
def naming_flags(flags: Collection[str], source: str) -> Iterator[None]:
    """In errors about a recipe key, name the flag instead if the key came from `flags` and not from `source`.

    Raises UsageError.
    """
    from confit_runtime.errors import UsageError

    try:
        yield
    except UsageError as error:
        head, of_recipe, complaint = str(error).partition("recipe key")
        if head not in ("", f"{source}: "):
            raise
        message = re.sub(
            r"recipe key '(\w+)'",
            lambda key: f"--{key[1].replace('_', '-')}" if key[1] in flags else key[0],
            of_recipe + complaint,
        )
        raise UsageError(f"{head if 'recipe key' in message else ''}{message}") from error


@contextmanager
def printed_once() -> Iterator[None]:
    """Print an error that several processes share only once, by the first that fails; with --debug each prints it."""
    from confit_runtime.errors import ConfitError

    try:
        yield
    except ConfitError as error:
        if "--debug" not in sys.argv and _already_printed(str(error)):
            raise typer.Exit(error.exit_code) from error
        raise


@contextmanager
def resume_hint_when_stopped(out: Path) -> Iterator[None]:
    """On Ctrl-C, say whether anything was saved, and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        started = (out / "started.json").is_file()
        if _already_printed("stopped"):
            pass
        elif started:
            say(f"{out}: stopped; the same command with --resume continues after the last finished epoch")
        else:
            say(f"{out}: stopped before the first epoch; nothing was written")
        raise typer.Exit(130) from None


def _already_printed(text: str) -> bool:
    """Whether another process of this training has printed `text`."""
    if not is_multi_process():
        return False
    from confit_edge.pairtune.distributed import already_printed

    return already_printed(text)


def print_trained(trained: Trained | None, out: Path, device: str, json_lines: bool, **of_verb: Any) -> None:
    """Print the result of a training on `device` (None: it was finished before), from the first of its processes only."""
    from confit_edge.pairtune.distributed import join

    if not join(device).main:
        return
    if trained is None:
        say(f"{out}: this training was finished before; nothing to do")
        return
    info, metrics = trained.info, trained.metrics
    if json_lines:
        emit("summary", run=str(out), **of_verb, labels=info.classes, kept_epoch=info.kept_epoch, metrics=metrics)
        return
    print_probes(metrics)
    say(f"wrote {out}. Next: confit-edge export {quote(str(out))} -o MODEL.onnx")


def print_probes(metrics: dict[str, Any]) -> None:
    """Print the table of probes on stdout, and warnings about them on stderr."""
    from confit_edge.pairtune.validation import standard_error
    from confit_edge.probes.metrics import Merit, named_probes

    for whose, probe, result in named_probes(metrics):
        name = f"{whose}, {probe}" if whose else probe
        judged = result["test"] or result["val"]
        where, merit = "test" if result["test"] else "validation", Merit.of(judged)
        print(
            f"{name:<30} {'mAP ' if 'map' in judged else ''}{100 * merit.value:5.1f} %"
            f"  {format_interval(100 * merit.low, 100 * merit.high)}"
            f"  on {format_count(merit.clips, f'{where} clip')} of {format_count(merit.groups, 'group')}"
            + (f"; without unknown: {judged['own']['right']} of {judged['own']['n']} right" if "own" in judged else "")
            + (f"; {100 * judged['map_weighed']:.1f} % weighted by typicality" if "map_weighed" in judged else "")
            + (f" (validation {100 * _merit_value(result['val']):.1f} %)" if result["test"] and result["val"] else "")
        )
    linear, knn = (metrics["probes"][key]["test"] or metrics["probes"][key]["val"] for key in ("linear", "knn"))
    if (behind := _merit_value(knn) - _merit_value(linear)) >= KNN_LEAD and linear["n"] >= FEWEST_CLIPS:
        say(
            f"warning: the linear probe, which export writes, is {100 * behind:.0f} points behind the kNN probe;"
            " `confit-edge probe RUN` shows which classes are confused. If many clips are taken for unknown, check that the"
            " background holds none of your classes"
        )
    before, after = metrics.get("frozen", {}).get("linear", {}).get("val"), metrics["probes"]["linear"]["val"]
    if (
        before
        and after
        and _merit_value(before) - _merit_value(after) > standard_error(_merit_value(after), after["n"])
    ):
        what = "mAP" if "map" in after else "accuracy"
        cure = "more --unlabelled sound" if "teacher" in metrics else "--freeze all, which trains only the probes"
        say(
            f"warning: validation {what} fell from {100 * _merit_value(before):.1f} % with the frozen encoder to"
            f" {100 * _merit_value(after):.1f} % with the trained one: training made it worse. Try {cure}, or a smaller --lr;"
            " more clips help more than either"
        )


def _epoch_text(event: dict[str, Any]) -> str:
    """`epoch 1/3`; of several trainings that are averaged, `training 2/4, epoch 1/3`, as --epochs counts them."""
    if "training" not in event:
        return f"epoch {event['epoch']}/{event['epochs']}"
    epochs = event["epochs"] // event["trainings"]
    epoch = event["epoch"] - (event["training"] - 1) * epochs
    return f"training {event['training']}/{event['trainings']}, epoch {epoch}/{epochs}"


def _merit_prefix(event: dict[str, Any]) -> str:
    """The name of an event's measure with a space, or nothing if it is the accuracy."""
    return "" if event["merit"] == "accuracy" else f"{event['merit']} "


def _merit_value(found: dict[str, Any]) -> float:
    """The measure that choices are made by: mAP if clips have several labels, else accuracy."""
    return float(found.get("map", found["accuracy"]))


class TrainingBar(Bar):
    """Shows a training on stderr: a line per epoch and, on a terminal, a bar with the loss; or JSON lines on stdout."""

    def __init__(self, json_lines: bool) -> None:
        super().__init__(json_lines, before="count", after=("note",))
        self.probed: dict[str, int] = {}  # by run: tenths of its sounds that the current probe has heard

    def __call__(self, event: dict[str, Any]) -> None:
        stage, run = event["stage"], event.get("run", "")  # named if several trainings run at once
        of = f"{run}: " if run else ""
        if self.json_lines:
            kind = "probing" if stage == "probe" else stage  # `probe` is the type of the results of the verb `probe`
            if stage not in ("step", "trying", "decode") and (stage != "probe" or self._is_news(run, event)):
                known = {key: None if value != value else value for key, value in event.items()}  # JSON has no NaN
                emit(kind, **{key: value for key, value in known.items() if key != "stage"})
            return
        if stage == "step":
            self._show(
                run,
                "training",
                event["epochs"] * event["steps"],
                event["epoch"] * event["steps"] + event["step"],
                f"loss {event['loss']:.3f}",
            )
        elif stage == "trying":
            total, done = event["epochs"] * event["steps"], event["epoch"] * event["steps"] + event["step"]
            self._show(run, f"trying lr {event['lr']:g}", total, done, f"loss {event['loss']:.3f}")
        elif stage == "decode":
            self._show(run, "decoding", event["total"], event["done"], "")
        elif stage == "epoch":
            head = f", head {100 * event['val_head']:.1f} %" if "val_head" in event else ""
            self.console.print(
                f"{of}{_epoch_text(event)}: loss {event['loss']:.3f},"
                f" validation probe {_merit_prefix(event)}{100 * event['val_linear']:.1f} %{head}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        elif stage == "problem":
            self.console.print(
                escape_controls(f"{of}left out {event['path']}: {event['kind']} ({event['detail']})"),
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        elif stage == "note":
            self.console.print(escape_controls(f"{of}{event['text']}"), highlight=False, markup=False, soft_wrap=True)
        elif stage == "search":
            self.console.print(
                f"{of}lr {event['lr']:g}: {_merit_prefix(event)}{100 * event['validation']:.1f} % on validation",
                highlight=False,
                markup=False,
            )
        elif stage == "probe":
            self._show_probe(run, event)

    def _show_probe(self, run: str, event: dict[str, Any]) -> None:
        done, total, what = event["done"], event["total"], f"probing {event['of']}"
        if done < total:
            self._show(run, what, total, done, "")
        else:
            self._show(run, f"fitting the probes of {event['of']}", None, 0, "")
        news = self._is_news(run, event)
        if news and not self.console.is_terminal:  # probing may take minutes without any other line
            of, count = f"{run}: " if run else "", f": {done} of {total} sounds" if done else ""
            self.console.print(f"{of}{what}{count}", highlight=False, markup=False, soft_wrap=True)

    def _is_news(self, run: str, event: dict[str, Any]) -> bool:
        """Whether a probe starts, or has heard another tenth of its many sounds."""
        done, total = event["done"], event["total"]
        before, self.probed[run] = self.probed.get(run, 0), 10 * done // max(1, total)
        return not done or (total >= MANY_SOUNDS and self.probed[run] > before)

    def _show(self, run: str, what: str, total: int | None, done: int, note: str) -> None:
        self.show(what, total, done, row=run, note=note, count=f"{done}/{total}" if total else "")
