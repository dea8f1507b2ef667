"""What all verbs share: the layout of help, and printing: results to stdout (JSON lines with --json), all else to stderr."""

from __future__ import annotations

import inspect
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Self, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.names import escape_controls, escape_controls_in_json

Json = Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout; everything else goes to stderr.")]

LARGEST = 1e12  # largest sensible value of any option: seconds, shares, decibels

_ADVICE_IF_REPEATED = {  # for options that are easily taken for one of several values
    "--source": "; start one process for each microphone; `listen` also takes a folder of files",
}


class _Help:
    """Help without rich, for pipes and narrow terminals: options in sections, lists and examples line by line.

    Without rich, typer ignores `rich_help_panel` and joins the lines of lists and examples.
    """

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        if text := getattr(self, "help", None):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(_wrap_help(text, formatter.width - formatter.current_indent))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            if (row := param.get_help_record(ctx)) is not None:
                general = "Arguments" if param.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or general, []).append(row)
        _write_sections(sections, formatter)


def _wrap_help(text: str, width: int) -> str:
    """Help text wrapped to `width`, in which examples and list items keep their lines; `\\b` tells click to leave it so."""

    def wrapped(block: str) -> str:
        if block.startswith("    "):  # examples
            return block
        if not block.startswith("- "):
            return textwrap.fill(" ".join(block.split()), width, break_on_hyphens=False)
        items = (" ".join(item.split()) for item in block[2:].split("\n- "))
        return "\n".join(
            textwrap.fill(item, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
            for item in items
        )

    return "\n\n".join(f"\b\n{wrapped(block)}" for block in inspect.cleandoc(text).split("\n\n"))


def _write_sections(sections: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    for name, rows in sections.items():
        if rows:
            with formatter.section(name):
                formatter.write_dl(rows)


class Verbs(_Help, TyperGroup):
    """A command of several verbs, listed under their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands), default=0)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, verb in self.commands.items():
            row = (name.ljust(width), verb.get_short_help_str(formatter.width - 6 - width))
            sections.setdefault(getattr(verb, "rich_help_panel", None) or "Commands", []).append(row)
        _write_sections(sections, formatter)


class Verb(_Help, TyperCommand):
    """A command that checks its options and the current folder before it runs.

    typer accepts `nan`, `inf`, `1e308` and an empty path, and of an option given twice it uses only the last value;
    this class refuses them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)  # typer consumes `args`
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:  # the shell is completing a command line
            return rest
        texts, _, in_order = self.make_parser(ctx).parse_args(args=given)
        self._check_not_repeated(in_order)
        for param in self.get_params(ctx):
            text, value = texts.get(param.name or ""), ctx.params.get(param.name or "")
            if "" in (text if isinstance(text, list | tuple) else [text]) and self._takes_path(param):
                name = param.metavar if param.param_type_name == "argument" else max(param.opts, key=len)
                raise UsageError(f"{name}: is empty (is a variable not set?); use . for the current folder")
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise UsageError(f"{max(param.opts, key=len)} {value:g}: is not a usable number")
        return rest

    def _takes_path(self, param: Any) -> bool:
        """Whether the verb's function declares this parameter as a path or as several."""
        assert self.callback is not None
        return "Path" in str(get_type_hints(inspect.unwrap(self.callback))[param.name])

    def _check_not_repeated(self, in_order: list[Any]) -> None:
        """Raise UsageError if an option that takes one value is given more than once."""
        for param, times in Counter(in_order).items():
            switch = getattr(param, "is_flag", False) and not param.secondary_opts  # twice is as good as once
            if param.param_type_name == "option" and times > 1 and not (param.multiple or switch):
                name = max(param.opts, key=len)
                raise UsageError(
                    f"{name}: is given {times} times, but takes one value{_ADVICE_IF_REPEATED.get(name, '')}"
                )

    def invoke(self, ctx: Any) -> Any:
        _check_folder()
        return super().invoke(ctx)


def _check_folder() -> None:
    """Raise UsageError if the current folder was removed: libraries fail to load there, with errors that do not say why."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was removed: cd into another one") from error


def emit(kind: str, /, **fields: Any) -> None:
    """Print one JSON line on stdout, `{"type": kind, ...}`, and flush it at once for whoever reads the pipe."""
    print(
        escape_controls_in_json(json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False)), flush=True
    )


def print_line(line: str) -> None:
    """Print a line for a person on stdout; control characters in names and labels are escaped."""
    print(escape_controls(line), flush=True)


def say(text: str = "") -> None:
    """Print a message for a person on stderr; line breaks in `text` are kept, so it must be our own text."""
    if sys.stderr is not None:  # closed: `print` would take stdout
        print("\n".join(map(escape_controls, text.split("\n"))), file=sys.stderr, flush=True)


def say_error(error: object) -> None:
    """Print what failed, in one line, on stderr."""
    say(escape_controls(f"confit-edge: {error}"))


def say_failed(clip: str, error: object, json: bool) -> None:
    """Report a clip that could not be used: on stderr and, with --json, as a line `failed` on stdout."""
    say_error(error)
    emit_failed(clip, error, json)


def emit_failed(clip: str, error: object, json: bool) -> None:
    """Print the line `failed` alone, for callers that write to stderr themselves."""
    if json:
        emit("failed", clip=clip, error=str(error))


@contextmanager
def failed_clip_reported(json: bool) -> Iterator[None]:
    """If an error about a clip ends the verb inside this block, print the line `failed` for it first."""
    try:
        yield
    except ConfitError as error:
        if error.clip is not None:
            emit_failed(error.clip, error, json)
        raise


def stderr_is_terminal() -> bool:
    """Whether stderr is a terminal, where a line can be redrawn."""
    return sys.stderr is not None and sys.stderr.isatty()


class Bar:
    """A progress bar with the time left, on stderr: shown only on a terminal, and not with --json.

    The fields `before` and `after` the time are filled by `show`; `console` prints lines above the bar.
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
        self.rows: dict[str, Any] = {}  # the task of the bar for each row

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.stop()

    def show_hours(self, what: str, total_s: float, before_s: float, seconds: float) -> None:
        """Show `seconds` of `what` done, after `before_s` of other sound, of `total_s` in all; for a bar with `hours`."""
        done_s = before_s + seconds
        self.show(what, total_s, done_s, hours=f"{done_s / 3600:.1f} h")

    def show(self, what: str, total: float | None, done: float, *, row: str = "", **fields: Any) -> None:
        """Show `done` of `total` (None: unknown) of `what` in `row`, in place of what that row showed before."""
        what = escape_controls(f"{row}: {what}" if row else what)
        if row in self.rows and self.bar.tasks[self.bar.task_ids.index(self.rows[row])].description != what:
            self.bar.remove_task(self.rows.pop(row))
        if row not in self.rows:
            self.rows[row] = self.bar.add_task(what, total=total, **fields)
        self.bar.update(self.rows[row], completed=done, **fields)
