"""What all verbs have in common: numbers that cannot be meant, extras that are missing, --version and --debug."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import onnxruntime
import pytest
import soundfile

import confit_runtime
from confit_edge.cli import _MODULES_OF_EXTRA, _is_out_of_memory, _os_error_text
from tests.cli.command import COMMAND, Confit
from tests.cli.forked import DEVICE
from tests.cli.verbs import VERBS
from tests.nobody import as_nobody

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


def float_options() -> Iterator[tuple[list[str], str]]:
    """Every option of a float, with its verb."""
    for name, verb in VERBS.items():
        declared = get_type_hints(inspect.unwrap(verb.callback)) if verb.callback else {}
        for option in verb.params:
            kind = declared.get(option.name)
            if float in (kind, *get_args(kind)):
                yield name.split(), option.opts[0]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308"])
def test_no_option_takes_a_number_that_is_none(confit: Confit, value: str) -> None:
    found = list(float_options())
    assert {verb[0] for verb, _ in found} >= {"listen", "doctor", "bench", "record", "enroll", "calibrate", "train"}
    for verb, option in found:
        needed = ["x", "y"][: {"listen": 1, "bench": 1, "export": 1, "train": 1, "distill": 1}.get(verb[0], 2)]
        if verb[0] in ("export", "train", "distill", "record", "data"):
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


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "", "-o", "run"], "MANIFEST"),
        (["calibrate", "digits", "--bake", ""], "--bake"),
        (["probe", "run", "--baseline", "other", "--baseline", ""], "--baseline"),
    ],
)
def test_no_path_is_empty(confit: Confit, arguments: list[str], name: str) -> None:
    code, _, err = confit(*arguments)
    assert (code, err) == (
        2,
        f"confit-edge: {name}: is empty (is a variable not set?); use . for the current folder\n",
    )


@pytest.mark.parametrize("arguments", ["demo", "export run -o x.onnx", "train clips -o run", "probe run"])
def test_a_missing_extra_is_one_line(tmp_path: Path, arguments: str) -> None:
    script = HIDING.format(hidden=EXTRAS)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert re.search(r"this verb needs \w+: pip install 'confit-edge\[(train|export)\]'", done.stderr)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("scipy", "demo --out /dev/null/out", "export"),
        ("matplotlib", "demo --out /dev/null/out", "export"),
        ("matplotlib", "train clips -o run", "train"),  # before anything is read
        ("threadpoolctl", "train clips -o run", "train"),  # which scikit-learn needs
    ],
)
def test_any_module_that_is_missing_is_named(tmp_path: Path, module: str, arguments: str, extra: str) -> None:
    script = HIDING.format(hidden=[module])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"confit-edge: this verb needs {module}: pip install 'confit-edge[{extra}]'\n",
    )


def test_a_module_that_no_extra_brings_is_no_matter_of_extras(tmp_path: Path) -> None:
    script = HIDING.format(hidden=["sqlite3"])
    done = subprocess.run(
        [sys.executable, "-c", script, "gallery", "list"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'sqlite3'"
    assert "pip install" not in done.stderr


def test_the_modules_of_each_extra_are_known() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    modules = {"scikit-learn": "sklearn", "pyyaml": "yaml", "optimum-onnx": "optimum"}
    for extra, needs in project["optional-dependencies"].items():
        if extra != "dev":
            names = [re.split(r"[\[<>=]", need)[0] for need in needs]
            assert {modules.get(name, name.replace("-", "_")) for name in names if name != "confit-edge"} == {
                *_MODULES_OF_EXTRA[extra]
            }


def test_a_locale_that_would_garble_names_is_refused(tmp_path: Path) -> None:
    ascii_only = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [*COMMAND, "classify", "digits", "Müller.wav"]
    refused = subprocess.run(command, capture_output=True, cwd=tmp_path, env=ascii_only)
    warning = "the locale's encoding is ascii, which would garble names: set PYTHONUTF8=1"
    assert (refused.returncode, refused.stderr.decode()) == (2, f"confit-edge: {warning}\n")
    mended = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**ascii_only, "PYTHONUTF8": "1"})
    assert mended.stderr.decode() == "confit-edge: Müller.wav: no such file\n"


def test_the_version_is_printed(confit: Confit) -> None:
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


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_help_names_every_option_whole_at_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for verb in ("train", "export", "data split"):  # the longest options, and a verb of a verb
        shown = subprocess.run(
            [sys.executable, "-m", "confit_edge", *verb.split(), "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in VERBS[verb].params:
            assert all(name in shown for name in option.opts if name.startswith("--")), (verb, option.opts)


def test_a_path_that_is_empty_is_not_the_folder_one_is_in(confit: Confit) -> None:
    for arguments in (["data", "check", ""], ["train", "", "-o", "run"], ["inspect", ""]):
        status, _, err = confit(*arguments)
        assert status == 2
        assert "empty" in err or "without a name" in err


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (
            "listen digits --source one.ogg --source two.ogg",
            "--source: is given 2 times, but takes one value; start one",
        ),
        ("doctor --source mic:1 --source mic:2 --source mic:3", "--source: is given 3 times"),
        ("record yes -o clips --source mic:1 --source mic:2", "--source: is given 2 times"),
        ("train clips -o run --out other", "--out: is given 2 times"),
        ("train clips -o run --trim --no-trim", "--trim: is given 2 times"),
        ("gallery list --gallery a.db --gallery b.db", "--gallery: is given 2 times"),
        ("inspect digits --json --json", ""),  # says nothing new
        ("listen digits --source nothing.wav --threshold one=0.3 --threshold two=0.4", "nothing.wav: no such file"),
    ],
)
def test_an_option_of_one_value_is_given_once(confit: Confit, arguments: str, refused: str) -> None:
    code, _, err = confit(*arguments.split())
    assert code == (2 if refused else 0), err
    assert refused in err


def in_a_removed_folder(tmp_path: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "gone").mkdir()
    line = f'rmdir ../gone; {sys.executable} -c "from confit_edge.cli import main; main()" {arguments}'
    return subprocess.run(line, shell=True, cwd=tmp_path / "gone", capture_output=True, text=True)


@pytest.mark.parametrize("arguments", ["--version", "--help", "listen --help", "data cut --help"])
def test_help_and_version_work_in_a_folder_that_was_removed(tmp_path: Path, arguments: str) -> None:
    done = in_a_removed_folder(tmp_path, arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "arguments", ["train /clips -o /run", "enroll speakers ada ada.wav", "listen digits", "data check clips"]
)
def test_a_removed_current_folder_is_reported(tmp_path: Path, arguments: str) -> None:
    done = in_a_removed_folder(tmp_path, arguments)
    expected_error = "confit-edge: the current folder was removed: cd into another one\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected_error)


def test_a_folder_that_cannot_be_written_is_reported_before_the_work(public_folder: Path) -> None:
    public_folder.chmod(0o555)
    imports = "from pathlib import Path; from confit_runtime.files import make_folder"
    program = as_nobody(imports, "make_folder(Path(sys.argv[1]))")
    result = subprocess.run([sys.executable, "-c", program, public_folder], capture_output=True, text=True)
    assert f"{public_folder}: this folder is not writable" in result.stderr


def test_without_a_stdout_verbs_begin(tmp_path: Path) -> None:
    """As a daemon starts them."""
    result = subprocess.run(
        f"{sys.executable} -m confit_edge --version >&-", shell=True, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_is_printed_is_utf8_whatever_the_terminal_speaks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "Zoë 🎵").mkdir()
    soundfile.write(tmp_path / "Zoë 🎵" / "a.wav", np.zeros(16_000, np.float32), 16_000)
    result = subprocess.run(
        [sys.executable, "-m", "confit_edge", "classify", "digits", "Zoë 🎵/a.wav", "keine ♪.wav", "--json"],
        cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    err = result.stderr.decode()
    assert [json.loads(line).get("clip") for line in result.stdout.decode().splitlines()] == [
        "Zoë 🎵/a.wav",
        "keine ♪.wav",
        None,
    ], err
    assert "keine ♪.wav" in err
    assert "Traceback" not in err


def test_a_shipped_model_is_found_next_to_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "tens").mkdir()
    assert DEVICE.run("inspect", "digits", "--no-measure", cwd=tmp_path).returncode == 0
    refused = DEVICE.run("inspect", "tens", cwd=tmp_path)
    assert "tens: is a folder" in refused.stderr


def test_system_errors_are_reported_without_names_of_temporary_files() -> None:
    command = f"{sys.executable} -m confit_edge inspect digits --no-measure --json > /dev/full"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "confit-edge: cannot be written: No space left on device\n")
    error = PermissionError(13, "Permission denied", "run/.x.onnx.0123abcd.partial/x.onnx")
    assert _os_error_text(error) == "run: Permission denied"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps no such limit")
def test_out_of_memory_is_reported_with_what_takes_less(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16_000, 1) as file:
        for _ in range(50):
            file.write(np.ones(60 * 16_000, np.int16))
    classify = f"ulimit -v 600000; exec {sys.executable} -m confit_edge classify digits long.flac"
    result = subprocess.run(["sh", "-c", classify], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "confit-edge: not enough memory: give shorter files, or fewer of them at once\n"


def test_out_of_memory_errors_of_libraries_are_recognised() -> None:
    assert _is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not _is_out_of_memory(RuntimeError("sizes differ"))


def test_an_error_that_was_no_write_is_not_reported_as_one() -> None:
    assert _os_error_text(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert (
        _os_error_text(OSError("cannot connect to the hub,\nto load a file"))
        == "cannot connect to the hub, to load a file"
    )
