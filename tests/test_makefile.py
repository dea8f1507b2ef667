"""What `make` would run, as it says with `-n`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def recipe(*arguments: str) -> str:
    outside = {"PATH": os.environ["PATH"]}  # without what a `make test` around it hands on
    told = subprocess.run(["make", "-n", *arguments], cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    return told.stdout


@pytest.mark.parametrize("out", ["my out", "demo-out two", "/home"])
def test_the_demo_removes_no_folder_but_its_own(out: str) -> None:
    assert "rm " not in (told := recipe("demo", f"OUT={out}"))
    assert f'demo --out "{out}"' in told
    assert "rm -rf demo-out\n" in recipe("demo")
    assert recipe("clean", f"OUT={out}", f"VENV={out}").splitlines() == ["rm -rf .venv demo-out dist build"]


def test_an_environment_whose_path_has_a_space_is_made_once(tmp_path: Path) -> None:
    venv = tmp_path / "a b" / "venv"
    assert f'-m venv "{venv}"\n' in (told := recipe("lint", f"VENV={venv}"))
    assert f'touch "{venv}/.installed"\n' in told
    venv.mkdir(parents=True)
    (venv / ".installed").touch()
    lines = recipe("lint", f"VENV={venv}").splitlines()
    assert lines[0] == f'"{venv}/bin/ruff" check .'
