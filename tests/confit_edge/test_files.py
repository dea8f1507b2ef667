"""Files written whole or not at all, by processes that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from confit_edge.cli import _os_error_text
from confit_edge.files import remove, write_tensors, write_text
from confit_edge.probes.tables import escaped_sentence, write_csv
from confit_runtime.errors import ConfitError
from confit_runtime.files import partial_folders
from tests.full_disk import limited_file_size

WRITER = """
import sys
from itertools import cycle
from pathlib import Path
import torch
from confit_edge.files import write_tensors
for value in cycle((1.0, 2.0)):
    write_tensors(Path(sys.argv[1]), {"x": torch.full((1_000_000,), value)}, {"value": str(value)})
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose writer has been killed while it wrote: its folder holds what it left."""
    path = tmp_path_factory.mktemp("killed") / "x.safetensors"
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.01)
        while not partial_folders(path):
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        if partial_folders(path):
            return path
    raise AssertionError("never killed while it wrote")


def test_killed_while_it_writes_the_file_is_the_former_or_the_new_and_the_next_writer_clears_up(killed: Path) -> None:
    tensor = load_file(killed)["x"]
    assert tensor[0] in (1.0, 2.0)
    assert torch.equal(tensor, torch.full((1_000_000,), tensor[0].item()))
    write_tensors(killed, {"x": torch.zeros(3)})
    assert torch.equal(load_file(killed)["x"], torch.zeros(3))
    assert list(killed.parent.iterdir()) == [killed]


def test_others_may_read_what_they_may_read_of_other_files(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(3)})
        write_text(tmp_path / "x.json", "{}")
    finally:
        os.umask(umask)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o644"}


def test_tensors_that_share_memory_or_are_views_are_written_each_by_itself(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "turned": base.T,
        "row": base[1],
        "learnt": torch.nn.Parameter(base),
        "one": torch.tensor(7),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_text_that_cannot_be_written_leaves_the_former(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "former")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "new" * 10_000 + "\ud800")
    assert (tmp_path / "x").read_text() == "former"
    write_text(tmp_path / "x", "später")
    assert (tmp_path / "x").read_bytes() == "später".encode()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_nothing_is_written_through_a_link_that_others_laid_next_to_a_file(tmp_path: Path) -> None:
    target, folder = tmp_path / "mine", tmp_path / "shared"
    target.write_text("mine")
    folder.mkdir()
    (folder / ".x.md.0123abcd.partial").symlink_to(target)
    write_text(folder / "x.md", "new")
    assert ((folder / "x.md").read_text(), (folder / "x.md").is_symlink()) == ("new", False)
    assert target.read_text() == "mine"


def test_a_file_is_removed_with_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    remove(path)
    write_tensors(path, {"x": torch.zeros(3)})
    (tmp_path / f".{path.name}.0a1b2c3d.partial").mkdir()
    (tmp_path / f".{path.name}.0a1b2c3d.partial" / ".tmpA1b2").write_text("left")
    remove(path)
    assert list(tmp_path.iterdir()) == []


def test_where_a_disk_is_full_the_file_is_named_and_the_former_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3)})
    with (
        limited_file_size(100_000),
        pytest.raises(ConfitError, match=r"x\.safetensors: cannot be written"),
    ):
        write_tensors(path, {"x": torch.ones(1_000_000)})
    assert load_file(path)["x"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]
    with limited_file_size(100_000), pytest.raises(OSError, match="File too large") as refused:
        write_text(tmp_path / "card.md", "x" * 200_000)
    assert _os_error_text(refused.value) == f"{tmp_path / 'card.md'}: File too large"


def test_a_table_takes_the_place_of_the_former_one_when_it_is_whole(tmp_path: Path) -> None:
    path, former = tmp_path / "history.csv", tmp_path / "former.csv"
    write_csv(path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "val": 0.9}])
    assert path.read_bytes() == b"epoch,loss,val\n1,0.5,\n2,,0.9\n"
    os.link(path, former)
    write_csv(path, [{"epoch": 3}])
    assert path.read_text().split() == ["epoch", "3"]
    assert former.read_text().split()[0] == "epoch,loss,val"  # the file that was there was not written into
    assert sorted(tmp_path.iterdir()) == [former, path]


def test_a_sentence_is_escaped_for_markdown_but_its_code_stays_code() -> None:
    assert escaped_sentence("give `--only a|b` to *x*  [y](z) ` lone") == (
        "give `--only a\\|b` to \\*x\\* [y\\](z) \\` lone"
    )
