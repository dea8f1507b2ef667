"""`confit-edge VERB`: one module a verb. What a verb needs is imported when it runs, so `listen` never loads torch."""

from __future__ import annotations

import sys

import typer

from confit_edge.cli import (
    analyze,
    bench,
    calibrate,
    data,
    demo,
    devices,
    distill,
    doctor,
    enroll,
    evaluate,
    export,
    gallery,
    identify,
    inspect,
    listen,
    probe,
    record,
    study,
    train,
    verify,
)
from confit_runtime.errors import ConfitError

app = typer.Typer(
    name="confit-edge",
    help="A handful of labelled clips to a calibrated, quantised, always-listening audio classifier on a CPU device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit status: 0 done, 1 the work failed, 2 wrong usage. Add --debug to any verb for a full traceback.",
)
for verb in (
    demo.demo,
    train.train,
    distill.distill,
    probe.probe,
    analyze.analyze,
    study.study,
    export.export,
    inspect.inspect,
    bench.bench,
    listen.listen,
    calibrate.calibrate,
    evaluate.evaluate,
    enroll.enroll,
    identify.identify,
    verify.verify,
    record.record,
    devices.devices,
    doctor.doctor,
):
    app.command()(verb)
app.add_typer(data.app, name="data")
app.add_typer(gallery.app, name="gallery")

_EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "transformers", "accelerate", "sklearn", "safetensors", "yaml", "pyarrow", "matplotlib"), "train"
    ),
    **dict.fromkeys(("onnx", "optimum"), "export"),
}


def main() -> None:
    """The `confit-edge` command."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except ConfitError as error:
        if debug:
            raise
        print(f"confit-edge: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if debug or extra is None:
            raise
        if arguments[:1] in (["demo"], ["export"]):
            extra = "export"  # which brings what training needs, too
        print(f"confit-edge: this verb needs {error.name}: pip install 'confit-edge[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk
        if debug:
            raise
        print(f"confit-edge: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("confit-edge: stopped", file=sys.stderr)
        sys.exit(130)
