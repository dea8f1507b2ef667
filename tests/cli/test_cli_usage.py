"""What all verbs have in common: numbers that cannot be meant, extras that are missing, --version and --debug."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import typer

import confit_runtime
from confit_edge.cli import app

Confit = Callable[..., tuple[int, str, str]]

# of what only the extras bring: everything that a verb might import
EXTRAS = [
    *("torch", "transformers", "accelerate", "sklearn", "scipy", "threadpoolctl", "safetensors", "yaml", "pyarrow"),
    *("matplotlib", "pytorch_metric_learning", "peft", "torchaudio", "onnx", "optimum"),
]
HIDING = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
from confit_edge.cli import main
main()
"""


def float_options(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every option of a float, with its verb."""
    for name, verb in getattr(command, "commands", {}).items():
        yield from float_options(verb, *path, name)
    for option in command.params:
        if option.type.name.startswith("float"):
            yield path, option.opts[0]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308"])
def test_no_option_takes_a_number_that_is_none(confit: Confit, value: str) -> None:
    found = list(float_options(typer.main.get_command(app)))
    assert {verb[0] for verb, _ in found} >= {"listen", "doctor", "bench", "record", "enroll", "calibrate", "train"}
    for verb, option in found:
        needed = ["x", "y"][: {"listen": 1, "bench": 1, "export": 1, "train": 1, "distill": 1}.get(verb[0], 2)]
        if verb[0] in ("export", "train", "distill", "record"):
            needed = [*needed[:1], "-o", "z"]
        elif verb[0] == "calibrate":
            needed = ["x", "--negatives", "y"]
        elif verb[0] == "doctor":
            needed = []
        elif verb[0] == "verify":
            needed = ["x", "y", "z"]
        code, _, err = confit(*verb, *needed, option, value)
        assert code == 2, (verb, option)
        assert option in err, (verb, option, err)


@pytest.mark.parametrize("arguments", ["demo", "export run -o x.onnx", "train clips -o run", "probe run"])
def test_a_missing_extra_is_one_line(tmp_path: Path, arguments: str) -> None:
    script = HIDING.format(hidden=EXTRAS)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert re.search(r"this verb needs \w+: pip install 'confit-edge\[(train|export)\]'", done.stderr)


@pytest.mark.parametrize("module", ["scipy", "matplotlib"])
def test_any_module_that_is_missing_is_named(tmp_path: Path, module: str) -> None:
    script = HIDING.format(hidden=[module])
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", "/dev/null/out"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"confit-edge: this verb needs {module}: pip install 'confit-edge[export]'\n",
    )


def test_the_version_is_told(confit: Confit) -> None:
    code, out, _ = confit("--version")
    assert code == 0
    version, python = confit_runtime.__version__, ".".join(map(str, sys.version_info[:3]))
    assert out == f"confit-edge {version} (onnxruntime {onnxruntime.__version__}, Python {python})\n"


def test_debug_shows_where_and_keeps_the_exit_code(confit: Confit) -> None:
    code, _, err = confit("listen", "nothing.onnx", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.endswith("confit-edge: nothing.onnx: no such model file\n")


def test_usage_says_what_may_be_several(confit: Confit) -> None:
    for verb, several in (("listen", "MODEL..."), ("bench", "MODEL..."), ("analyze", "RUN...")):
        assert several in confit(verb, "--help")[1]
