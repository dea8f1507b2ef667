"""A gallery that several programs and threads read and change at the same time."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import GalleryError, Model, search
from confit_runtime import prints as prints_module
from confit_runtime.gallery import Gallery
from confit_runtime.gallery_file import BUSY_TIMEOUT_S
from confit_runtime.matcher import l2_normalise
from confit_runtime.prints import to_blobs
from confit_runtime.reloading_matcher import LISTENING_TIMEOUT_S
from confit_runtime.search import IncrementalSearch
from tests import tiny_model
from tests.confit_runtime.galleries import WRITER, unit_prints
from tests.tiny_model import RATE, Floats, silence

DIM = len(tiny_model.BANDS)
random_prints = partial(unit_prints, np.random.default_rng(5))


def test_two_programs_write_and_a_third_sees_it(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        assert gallery.match(random_prints(1)[0]).name is None
        children = [subprocess.Popen([sys.executable, "-c", WRITER, path, name, "15"]) for name in ("ben", "eve")]
        assert [child.wait(timeout=120) for child in children] == [0, 0]
        assert gallery.names() == {"ben": 30, "eve": 30}
        assert set(gallery.matcher.names) == {"ben", "eve"}  # read anew: another program changed it


CHANGES = ("enroll", "enroll", "more", "remove", "rename", "negative", "keep", "restore", "write over", "same again")


def change_by(other: Gallery, path: Path, what: str, rng: np.random.Generator) -> None:
    """One change of a gallery by another program; some are of those that SQLite knows nothing of."""
    names = list(other.counts())
    name = names[rng.integers(len(names))] if names else "first"
    rows = rng.standard_normal((2, DIM)).astype(np.float32)
    if what == "enroll" or not names:
        other.enroll(f"n{rng.integers(30)}", rows, sources=["x"] * 2, voiced_s=5.0)
    elif what in ("more", "negative"):
        other.enroll(name, rows, sources=["x"] * 2, voiced_s=5.0, negative=what == "negative")
    elif what == "remove":
        other.remove(name)
    elif what == "rename":
        other.rename(name, f"{name[:5]}{rng.integers(1000)}")
    elif what == "same again":  # the last of all: its ids are given anew
        other.remove(names[-1])
        other.enroll(names[-1], rows, sources=["x"] * 2, voiced_s=5.0)
    elif what == "keep":
        shutil.copy(path, path.with_suffix(".kept"))
    elif what == "restore" and path.with_suffix(".kept").exists():
        path.write_bytes(path.with_suffix(".kept").read_bytes())
    elif what == "write over":
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE prints SET embedding = ? WHERE id = (SELECT MAX(id) FROM prints)", (to_blobs(rows)[0],))
            db.commit()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3), max_size=8),
    seed=st.integers(0, 99),
    later=st.sampled_from([0, 3, 1000]),
)
def test_after_any_change_the_matcher_is_that_of_the_whole_file(
    model: Model, changes: list[list[str]], seed: int, later: int
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_PENDING_CHANGES", later)
        path = Path(folder) / "house.db"
        with Gallery.open(path, model, create=True) as gallery:
            for some in changes:
                for what in some:
                    with Gallery.open(path) as other:
                        change_by(other, path, what, rng)
                found = gallery.matcher
                with Gallery.open(path, model) as fresh:
                    whole = fresh.matcher
                assert (found.names, found.enrolled) == (whole.names, whole.enrolled)
                np.testing.assert_array_equal(found._owners, whole._owners)
                np.testing.assert_array_equal(found._prints, whole._prints)
                np.testing.assert_array_equal(found._vetoes, whole._vetoes)
                for query in rng.standard_normal((3, DIM)).astype(np.float32):
                    assert found.match(query).nearest == whole.match(query).nearest
                    near, all_near = (one.search.nearest(l2_normalise(query), 3) for one in (found, whole))
                    assert sorted(near) == sorted(all_near)


def test_only_new_prints_are_read_again(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "house.db"
    with Gallery.open(path, model, create=True) as gallery, Gallery.open(path) as other:
        for at in range(6):
            other.enroll(f"n{at}", random_prints(300), sources=["x"] * 300, voiced_s=5.0)
        before = gallery.matcher
        read: list[int] = []
        from_file = prints_module.from_blobs

        def counted(path: Path, blobs: Sequence[object], dim: int) -> Floats:
            read.append(len(blobs))
            return from_file(path, blobs, dim)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prints_module, "from_blobs", counted)
            other.enroll("eve", random_prints(3), sources=["x"] * 3, voiced_s=5.0)
            assert "eve" in gallery.matcher.names
            other.remove("n3")
            other.rename("n4", "n5 too")
            assert "n3" not in gallery.matcher.names
        assert sum(read) == 3
        assert isinstance(gallery.matcher.search, IncrementalSearch)
        assert gallery.matcher.search._before is before.search  # no other copy of all


def test_names_and_prints_are_read_at_one_moment(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery, Gallery.open(path) as other:
        other._file._db.execute("PRAGMA busy_timeout = 0")
        other.enroll("ada", random_prints(1), sources=["a"], voiced_s=1.0)
        tried = 0

        def enroll_meanwhile(statement: str) -> None:
            nonlocal tried
            if "group_concat" in statement:  # the names were read already
                tried += 1
                with suppress(GalleryError):  # it is locked, as it should be
                    other.enroll("eve", random_prints(1), sources=["e"], voiced_s=1.0)

        gallery._file._db.set_trace_callback(enroll_meanwhile)
        assert gallery.matcher.names == ("ada",)
        gallery._file._db.set_trace_callback(None)
        assert tried == 1


def test_changes_after_listening_wait_for_the_full_timeout(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        assert gallery.matcher is gallery.matcher
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        done = threading.Timer(5 * LISTENING_TIMEOUT_S, other.execute, ["ROLLBACK"])
        done.start()
        assert gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0) == 1
        done.join()
        other.close()


def test_listening_does_not_wait_after_its_own_change(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with (
        Gallery.open(path, model, create=True) as gallery,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        stream = model.stream(gallery)
        gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        stream.accept(silence(3.0), RATE)
        assert gallery.matcher.names == ()
        assert time.monotonic() - began < BUSY_TIMEOUT_S / 2
        other.execute("ROLLBACK")
        assert gallery.matcher.names == ("eve",)


def test_threads_share_a_gallery_while_another_program_enrolls(tmp_path: Path, model: Model) -> None:
    """Nobody hears of damage, and nothing that was enrolled is lost."""
    path, over = tmp_path / "gallery.db", threading.Event()

    def look(gallery: Gallery) -> set[str]:
        seen: set[str] = set()
        while not over.is_set():
            seen |= set(gallery.matcher.names)
            assert gallery.match(gallery.prints("ada")[0].embedding).nearest is not None
        return seen | set(gallery.matcher.names)  # who was slow may have looked last before the last name came

    def enroll(gallery: Gallery, name: str) -> None:
        for one in np.random.default_rng(list(name.encode())).standard_normal((15, 1, DIM)).astype(np.float32):
            gallery.enroll(name, one, sources=["x"], voiced_s=1.0)

    with Gallery.open(path, model, create=True) as shared, Gallery.open(path) as other, ThreadPoolExecutor(6) as pool:
        shared.enroll("ada", random_prints(1), sources=["a"], voiced_s=1.0)
        looking = [pool.submit(look, shared) for _ in range(4)]
        enrolling = [pool.submit(enroll, shared, name) for name in ("bob", "carl")]
        try:
            enroll(other, "eve")
            for one in enrolling:
                one.result()
        finally:
            over.set()
        assert all(one.result() == {"ada", "bob", "carl", "eve"} for one in looking)
    with Gallery.open(path) as gallery:
        assert gallery.names() == {"ada": 1, "bob": 15, "carl": 15, "eve": 15}


def test_listening_does_not_wait_for_another_thread(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery, ThreadPoolExecutor(1) as pool:
        before = gallery.matcher
        with gallery.change():
            gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0)
            assert pool.submit(lambda: gallery.matcher).result(timeout=BUSY_TIMEOUT_S / 2) is before
            names = pool.submit(gallery.names)  # but who asks for what is in the file does
        assert names.result() == {"eve": 1}
        assert gallery.matcher.names == ("eve",)


def test_a_failed_change_leaves_nobody_in_the_matcher(tmp_path: Path, model: Model) -> None:
    ada, bob = np.eye(DIM, dtype=np.float32)[:2]
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("ada", ada[None], sources=["x"], voiced_s=5.0)
        with suppress(InterruptedError), gallery.change():
            gallery.enroll("bob", bob[None], sources=["x"], voiced_s=5.0)
            assert gallery.match(bob).name == "bob"
            gallery.remove("ada")
            assert gallery.match(ada).nearest == "bob"
            raise InterruptedError
        assert gallery.names() == {"ada": 1}
        assert gallery.matcher.names == ("ada",)
        assert gallery.match(bob).name is None


def test_removing_a_name_shrinks_the_file(tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        for name in ("ada", "bob"):
            gallery.enroll(name, random_prints(300), sources=["x"] * 300, voiced_s=5.0)
        before = path.stat().st_size
        with gallery.change():
            gallery.remove("ada")
            gallery.remove("bob")
        assert path.stat().st_size < before / 2
    assert not caplog.records
