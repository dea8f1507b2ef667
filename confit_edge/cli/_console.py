"""How verbs speak: results to stdout (as JSON lines with --json), everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Self

import typer
from typer.core import TyperCommand

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.names import shown, shown_in_json

Json = Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout; everything else goes to stderr.")]

LARGEST = 1e12  # of anything that an option measures: seconds, shares, decibels


class Verb(TyperCommand):
    """A command whose options can be meant, in a folder that is there.

    typer lets `nan`, `inf`, `1e308` and the path without a name through.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:  # a shell asks what may come next
            return rest
        for param in self.get_params(ctx):
            value = ctx.params.get(param.name or "")
            if param.type.name == "path" and "" in (value if isinstance(value, list | tuple) else [value]):
                raise UsageError(
                    f"{param.human_readable_name}: is empty (a variable that is not set?); . is the folder you are in"
                )
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise UsageError(f"{max(param.opts, key=len)} {value:g}: is not a number that can be meant")
        return rest

    def invoke(self, ctx: Any) -> Any:
        _check_folder()
        return super().invoke(ctx)


def _check_folder() -> None:
    """Raise UsageError where the folder one is in was removed: libraries cannot be loaded there, and no error names it."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the folder that you are in was removed: cd into another one") from error


def emit(kind: str, /, **fields: Any) -> None:
    """One JSON line on stdout, `{"type": kind, ...}`, flushed at once for whoever reads the pipe."""
    print(shown_in_json(json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False)), flush=True)


def tell(line: str) -> None:
    """A line for a person, on stdout, whatever is in the names and labels that it tells."""
    print(shown(line), flush=True)


def say(text: str = "") -> None:
    """What a person is told besides, on stderr: a line, or several of our own."""
    if sys.stderr is not None:  # closed: `print` would take stdout
        print("\n".join(map(shown, text.split("\n"))), file=sys.stderr, flush=True)


def say_error(error: object) -> None:
    """What failed, in one line, on stderr."""
    say(shown(f"confit-edge: {error}"))


def say_failed(clip: str, error: object, json: bool) -> None:
    """A clip that could not be used: on stderr, and for a program in a line of its own on stdout, too."""
    say_error(error)
    emit_failed(clip, error, json)


def emit_failed(clip: str, error: object, json: bool) -> None:
    """The same, where stderr is told otherwise."""
    if json:
        emit("failed", clip=clip, error=str(error))


@contextmanager
def with_failed(json: bool) -> Iterator[None]:
    """Where what ends the verb here is a clip that cannot be used, its line `failed` comes first."""
    try:
        yield
    except ConfitError as error:
        if error.clip is not None:
            emit_failed(error.clip, error, json)
        raise


def on_a_terminal() -> bool:
    """Whether a person watches stderr, where a line can be drawn over."""
    return sys.stderr is not None and sys.stderr.isatty()


class Bar:
    """A bar with the time left on stderr, where that is a terminal and a person reads: none with --json.

    `before` and `after` the time stand fields that `show` fills; `console` prints lines above the bar.
    """

    def __init__(self, json_lines: bool, *, before: str, after: tuple[str, ...] = ()) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.json_lines = json_lines
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.fields[{before}]}}"),
            TimeRemainingColumn(),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in after),
            console=self.console,
            transient=True,
            disable=json_lines or not self.console.is_terminal,
        )
        self.rows: dict[str, Any] = {}  # the bar's task of each

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.stop()

    def show(self, what: str, total: float | None, done: float, *, row: str = "", **fields: Any) -> None:
        """`done` of `total` (None: there is no telling) of `what`, which replaces what was shown before in this `row`."""
        what = shown(f"{row}: {what}" if row else what)
        if row in self.rows and self.bar.tasks[self.bar.task_ids.index(self.rows[row])].description != what:
            self.bar.remove_task(self.rows.pop(row))
        if row not in self.rows:
            self.rows[row] = self.bar.add_task(what, total=total, **fields)
        self.bar.update(self.rows[row], completed=done, **fields)
