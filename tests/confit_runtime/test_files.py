"""Files that are whole or not there, and the folder of what can be made again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from confit_runtime.errors import UsageError
from confit_runtime.files import default_cache, partial_folder, remove_leftovers, write_atomic, write_new_private
from tests.full_disk import limited_file_size
from tests.nobody import as_nobody


def test_a_file_that_cannot_be_written_leaves_the_former_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.npy"
    write_atomic(path, b"former")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_atomic, write_new_private])
def test_where_a_disk_is_full_the_file_that_was_asked_for_is_named(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    with limited_file_size(1_000), pytest.raises(OSError, match="File too large") as refused:
        write(tmp_path / "x.onnx", bytes(2_000))
    assert refused.value.filename == str(tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_where_only_the_hidden_name_is_too_long_the_file_that_was_asked_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"{120 * 'ä'}.onnx"
    with pytest.raises(OSError, match="File name too long") as refused:
        write_atomic(path, b"new")
    assert refused.value.filename == str(path)


@pytest.mark.parametrize("ends_with", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_new_file_is_not_seen_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_with: BaseException
) -> None:
    path, seen = tmp_path / "low.flac", []

    def stop(handle: int) -> None:
        seen.append(path.exists())
        raise ends_with

    with monkeypatch.context() as stopped:
        stopped.setattr(os, "fsync", stop)
        with pytest.raises(type(ends_with)):
            write_new_private(path, b"new")
    assert (seen, list(tmp_path.iterdir())) == ([False], [])
    write_new_private(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_a_new_file_replaces_none_and_takes_no_name_that_another_is_being_written_to(tmp_path: Path) -> None:
    path, writing = tmp_path / "low.flac", tmp_path / ".mid.flac.partial"
    path.write_bytes(b"former")
    writing.touch()
    for taken in (path, tmp_path / "mid.flac"):
        with pytest.raises(FileExistsError):
            write_new_private(taken, b"new")
    assert path.read_bytes() == b"former"
    assert sorted(tmp_path.iterdir()) == [writing, path]


def test_leftovers_are_removed_and_files_in_progress_stay(tmp_path: Path) -> None:
    path = tmp_path / "a+.db"
    writing = f"""import time; from pathlib import Path; from confit_runtime.files import partial_folder
with partial_folder(Path({str(path)!r})) as folder:
    (folder / "a+.db-journal").touch()
    print(folder, flush=True)
    time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", writing], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        others = [tmp_path / f".{name}.0123abcd.partial" for name in ("aa.db", "a+.db.7")]
        for folder in others:
            folder.mkdir()
        with partial_folder(path) as ours:
            remove_leftovers(path)
            assert set(tmp_path.iterdir()) == {ours, theirs, *others}
            other.kill()
            other.wait()
            remove_leftovers(path)
            assert set(tmp_path.iterdir()) == {ours, *others}
        assert set(tmp_path.iterdir()) == set(others)


def test_writing_a_file_removes_its_leftovers(tmp_path: Path) -> None:
    """As of a clip with somebody's voice, which is recorded again."""
    path, other = tmp_path / "0001.wav", tmp_path / ".0002.wav.0123abcd.partial"
    other.mkdir()
    killed = f"""import os; from pathlib import Path; from confit_runtime import files
os.fsync = lambda handle: os.kill(os.getpid(), 9)
files.write_atomic(Path({str(path)!r}), b"voice")"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    (left,) = set(tmp_path.iterdir()) - {other}
    assert (left / path.name).read_bytes() == b"voice"
    with partial_folder(path) as writing:
        write_atomic(path, b"again")
        assert set(tmp_path.iterdir()) == {path, other, writing}
    assert path.read_bytes() == b"again"


def test_a_folder_that_may_be_written_but_not_read_is_written_to(public_folder: Path) -> None:
    public_folder.chmod(0o333)
    imports = "from pathlib import Path; from confit_runtime.files import write_atomic"
    program = as_nobody(imports, "write_atomic(Path(sys.argv[1], 'a'), b'a')")
    subprocess.run([sys.executable, "-c", program, public_folder], check=True)
    public_folder.chmod(0o700)
    assert (public_folder / "a").read_bytes() == b"a"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "manifest.csv"
    write_atomic(path, b"former")
    path.chmod(mode)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode


def test_concurrent_writers_of_one_file_do_not_interfere(tmp_path: Path) -> None:
    """As in two containers, where both have one process number."""
    with partial_folder(tmp_path / "a") as one, partial_folder(tmp_path / "a") as two:
        (one / "a").write_text("one")
        (two / "a").write_text("two")
        assert (one / "a").read_text() == "one"


def test_the_cache_is_in_the_configured_home_or_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIT_EDGE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("CONFIT_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert default_cache() == tmp_path / "shared" / "confit-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == tmp_path / "me" / ".cache" / "confit-edge"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user without a home
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert default_cache() == tmp_path / f"confit-edge-{os.getuid()}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_the_cache_is_private_to_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(folder: Path) -> str:
        return oct(folder.stat().st_mode & 0o777)

    monkeypatch.delenv("CONFIT_EDGE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mode(default_cache()) == "0o700"
    default_cache().chmod(0o755)  # as earlier versions made it
    assert mode(default_cache()) == "0o700"
    shared, new = tmp_path / "shared", tmp_path / "above" / "new"
    shared.mkdir()
    shared.chmod(0o775)
    for chosen, expected in ((shared, "0o775"), (new, "0o700")):
        monkeypatch.setenv("CONFIT_EDGE_CACHE", str(chosen))
        assert mode(default_cache()) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows has no folder for all")
def test_a_temporary_cache_of_another_user_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONFIT_EDGE_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs, folder = tmp_path / "theirs", tmp_path / f"confit-edge-{os.getuid()}"
    theirs.mkdir(0o755)
    folder.symlink_to(theirs)
    with pytest.raises(UsageError, match="but not yours; set CONFIT_EDGE_CACHE"):
        default_cache()
    assert theirs.stat().st_mode & 0o777 == 0o755
    folder.unlink()
    assert default_cache() == folder
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    (tmp_path / "confit-edge-4321").mkdir()
    with pytest.raises(UsageError, match="but not yours"):
        default_cache()
