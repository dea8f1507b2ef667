"""Files that are whole or not there, and the folder of what can be made again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from confit_runtime.files import default_cache, write_whole


def test_a_file_that_cannot_be_written_leaves_the_former_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.npy"
    write_whole(path, b"former")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_it_is_said_to_be_or_in_the_home_or_of_no_home_in_what_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIT_EDGE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("CONFIT_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert default_cache() == tmp_path / "me" / ".cache" / "confit-edge"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user without a home
    assert default_cache() == Path(tempfile.gettempdir(), ".cache", "confit-edge")
