"""What the tests of the verbs share: the command, run in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from confit_edge.cli import main
from tests.cli.command import Confit
from tests.cli.json_lines import check


@pytest.fixture
def confit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Confit:
    """The command in this process, which saves importing torch again: its exit code, stdout and stderr.

    What it prints with --json is held against docs/json.md.
    """

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confit-edge", *map(str, arguments)])
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        check(arguments, out)
        return int(stopped.value.code or 0), out, err

    return run
