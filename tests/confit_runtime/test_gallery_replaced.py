"""Gallery files that are closed, full, replaced, restored from a copy or being written."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from confit_runtime import GalleryError, Model, UsageError
from confit_runtime.gallery import Gallery
from tests import tiny_model
from tests.confit_runtime.galleries import WRITER, restore, unit_prints

DIM = len(tiny_model.BANDS)
random_prints = partial(unit_prints, np.random.default_rng(5))


def test_a_closed_gallery_says_that_it_is_closed(tmp_path: Path, model: Model) -> None:
    gallery = Gallery.open(tmp_path / "gallery.db", model, create=True)
    gallery.path.unlink()
    assert gallery.match(random_prints(1)[0]).reason == "nobody"
    gallery.close()
    gallery.close()
    for act in (
        lambda: gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0),
        lambda: gallery.match(random_prints(1)[0]),
        lambda: gallery.remove("eve"),
        gallery.names,
    ):
        with pytest.raises(GalleryError, match=r"gallery\.db: was closed: open the gallery again"):
            act()


@pytest.mark.parametrize(
    "name",
    [
        "\u2068ada\u2069",
        "Unknown",
        "un\u200bknown",
        "unknown\u200e",
        "\uff55nknown",
        "UNKNOWN ",
        "\u200b",
        "ad\u202ea",
        "a\u2066b",
    ],
)
def test_unknown_is_not_a_valid_name_in_any_spelling(tmp_path: Path, model: Model, name: str) -> None:
    with Gallery.open(tmp_path / "house.db", model, create=True) as gallery:
        with pytest.raises(UsageError):
            gallery.enroll(name, random_prints(1), sources=["x"], voiced_s=5.0)
        family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
        assert gallery.enroll(family, random_prints(1), sources=["x"], voiced_s=5.0) == 1  # joined by Cf
        assert list(gallery.names()) == [family]


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", random_prints(3), sources=["a"] * 3, voiced_s=5.0)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-c", WRITER, path, "eve", "1000"]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False, timeout=120)
    assert "GalleryError" in done.stderr.splitlines()[-1]
    assert "is the disk full?" in done.stderr.splitlines()[-1]
    with Gallery.open(path, model) as gallery:
        assert gallery.names() == {"ada": 3, "eve": 2 * done.stdout.count("done")}


def test_removed_names_are_erased_even_if_the_file_cannot_shrink(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The index of beginnings holds 8 bytes of each print, and SQLite does not overwrite all that it moves."""
    path, rng = tmp_path / "gallery.db", np.random.default_rng(0)
    with Gallery.open(path, model, create=True) as gallery:
        with gallery.change():
            for at in range(300):
                gallery.enroll(f"n{at}", rng.standard_normal((30, DIM)), sources=["x"] * 30, voiced_s=9.0)
        removed = [f"n{at}" for at in range(0, 300, 7)]
        prints = [blob for name in removed for blob in gallery.blobs(name, negative=False)]
        gallery._file._db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # so VACUUM fails, as on a full disk
        for name in removed:
            gallery.remove(name)
    assert "could not be made smaller" in caplog.text
    data = path.read_bytes()
    assert not [blob for blob in prints if blob[:8] in data]


def test_a_replaced_file_is_reloaded_and_a_missing_one_matches_nobody(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "house.db", tmp_path / "backup.db"
    ada, eve = random_prints(2)
    for file, name, print_ in ((path, "ada", ada), (other, "eve", eve)):
        with Gallery.open(file, model, create=True) as gallery:
            gallery.enroll(name, print_[None], sources=["x"], voiced_s=5.0)
    with Gallery.open(path, model) as gallery:
        assert gallery.match(ada).name == "ada"
        shutil.copy(other, tmp_path / "copy.db")
        (tmp_path / "copy.db").replace(path)
        with pytest.raises(GalleryError, match="was replaced or removed while it was open"):
            gallery.enroll("bob", random_prints(1), sources=["x"], voiced_s=5.0)
        assert (gallery.match(ada).name, gallery.match(eve).name) == (None, "eve")
        assert list(gallery.names()) == ["eve"]
        gallery.enroll("bob", random_prints(1), sources=["x"], voiced_s=5.0)
        path.unlink()
        assert gallery.match(eve).reason == gallery.match(ada).reason == "nobody"
        with pytest.raises(GalleryError, match="was replaced or removed while it was open"):
            gallery.enroll("carl", random_prints(1), sources=["x"], voiced_s=5.0)
        other.replace(path)
        assert gallery.match(eve).name == "eve"
    assert [record.message.split(": ", 1)[1][:16] for record in caplog.records] == [
        "was replaced; us", "no longer exists", "was replaced; us",
    ]  # fmt: skip


def test_a_file_that_was_away_is_changed_to_the_end_where_it_is_matched_within(tmp_path: Path, model: Model) -> None:
    path, away = tmp_path / "house.db", tmp_path / "away.db"
    ada, bob = random_prints(2)
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", ada[None], sources=["x"], voiced_s=5.0)
        path.rename(away)
        assert gallery.matcher.names == ()
        away.rename(path)  # as a program does that keeps folders alike
        with gallery.change():
            gallery.enroll("bob", bob[None], sources=["x"], voiced_s=5.0)
            assert (gallery.match(bob).nearest, gallery.match(ada).nearest) == ("bob", "ada")
        assert gallery.matcher.names == ("ada", "bob")


def test_a_copy_that_is_restored_in_place_is_the_gallery(tmp_path: Path, model: Model) -> None:
    """Though both were changed as many times, which is what SQLite looks at."""
    path, copy = tmp_path / "house.db", tmp_path / "copy.db"
    ada, eve = np.eye(DIM, dtype=np.float32)[:2]
    for file, name, print_ in ((path, "ada", ada), (copy, "eve", eve)):
        with Gallery.open(file, model, create=True) as gallery:
            gallery.enroll(name, print_[None], sources=["x"], voiced_s=5.0)
    first = path.read_bytes()
    assert first[24:28] == copy.read_bytes()[24:28]
    with Gallery.open(path, model) as gallery, Gallery.open(path) as listing, Gallery.open(path) as changing:
        assert (gallery.match(ada).name, list(listing.names()), list(changing.names())) == ("ada", ["ada"], ["ada"])
        restore(copy, path)
        assert (gallery.match(ada).name, gallery.match(eve).name, list(listing.names())) == (None, "eve", ["eve"])
        changing.enroll("bob", random_prints(1), sources=["x"], voiced_s=5.0)
        assert gallery.matcher.names == ("eve", "bob")
    with Gallery.open(path, model) as gallery:
        assert gallery.names() == {"bob": 1, "eve": 1}


def test_a_copy_that_is_written_slowly_in_place_is_waited_for(tmp_path: Path, model: Model) -> None:
    path, copy = tmp_path / "house.db", tmp_path / "copy.db"
    ada, eve = random_prints(2)
    for file, name, print_, more in ((path, "ada", ada, 0), (copy, "eve", eve, 300)):
        with Gallery.open(file, model, create=True) as gallery:
            gallery.enroll(name, [print_, *random_prints(more)], sources=["x"] * (1 + more), voiced_s=5.0)
    with Gallery.open(path, model) as gallery:
        assert gallery.match(ada).name == "ada"
        whole = copy.read_bytes()
        with path.open("wb", 0) as file:
            for at in range(0, len(whole), 3000):
                assert gallery.match(ada).name == "ada"
                file.write(whole[at : at + 3000])
        assert gallery.match(eve).name == "eve"


def test_a_file_that_is_being_written_leaves_the_names_as_they_were(tmp_path: Path, model: Model) -> None:
    path, ada = tmp_path / "house.db", random_prints(1)[0]
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", ada[None], sources=["x"], voiced_s=5.0)
        assert gallery.match(ada).name == "ada"
        whole = path.read_bytes()
        path.unlink()
        path.touch()
        assert gallery.match(ada).name == "ada"
        path.write_bytes(whole)
        assert gallery.match(ada).name == "ada"
        gallery.rename("ada", "eve")
        assert gallery.match(ada).name == "eve"
