"""Galleries of older schemas are migrated, or read as they are where they cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import GalleryError, Model, UsageError
from confit_runtime.gallery import Gallery
from confit_runtime.migrations import SCHEMA
from confit_runtime.prints import PrintCounts, to_blobs
from confit_runtime.transfer import import_names, re_enroll_prints
from tests import tiny_model
from tests.confit_runtime.galleries import OLD, OLD_2, restore
from tests.tiny_model import Floats

DIM = len(tiny_model.BANDS)
RNG = np.random.default_rng(5)


def random_prints(count: int) -> Floats:
    rows = RNG.standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# older schemas


def test_a_gallery_of_the_first_schema_is_migrated_and_keeps_everything(tmp_path: Path, model: Model) -> None:
    path = shutil.copy(OLD, tmp_path / "gallery.db")
    for _ in range(2):  # the second time it is of this schema
        with Gallery.open(path, model) as gallery:
            assert gallery.names() == {"Ada Lovelace": 3, "zoë": 2}
            assert gallery.voiced_s("zoë") == 1.25
            assert [one.source for one in gallery.prints("zoë")] == ["zoe-1.wav", "zoe-2.wav"]
            assert gallery.match(gallery.prints("zoë")[1].embedding).runner_up is not None
    with Gallery.open(path, model) as gallery:
        gallery.enroll("zoë", random_prints(1), sources=["not"], voiced_s=0.0, negative=True)
        assert gallery.negatives() == {"zoë": 1}


@pytest.mark.parametrize("old", [None, OLD, OLD_2])
def test_owner_lookups_use_an_index_in_every_schema(tmp_path: Path, model: Model, old: Path | None) -> None:
    path = tmp_path / "gallery.db"
    if old is not None:
        shutil.copy(old, path)
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("new", prints := random_prints(3), sources=["x"] * 3, voiced_s=5.0)
        assert gallery.owners(to_blobs(prints)) == {"new"}
        with gallery.moment() as db:
            asked: list[str] = []
            db.set_trace_callback(asked.append)
            gallery.owners(to_blobs(prints))
            db.set_trace_callback(None)
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {asked[-1]}")]
    assert any("USING INDEX prints_by_beginning" in step for step in plan), plan


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prints=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.booleans()), max_size=12))
def test_holders_of_prints_are_found_among_those_that_begin_alike(
    tmp_path: Path, model: Model, prints: list[tuple[str, int, bool]]
) -> None:
    rows, angle = np.zeros((6, DIM), np.float32), np.arange(6.0)
    rows[:, 0], rows[:, 1] = 0.5, np.where(angle < 3, 0.5, -0.5)  # three begin in one way, three in another
    rows[:, 2], rows[:, 3] = np.sqrt(0.5) * np.cos(angle), np.sqrt(0.5) * np.sin(angle)
    blobs = to_blobs(rows)
    assert len({blob[:8] for blob in blobs}) == 2
    path = tmp_path / "begin.db"
    path.unlink(missing_ok=True)
    with Gallery.open(path, model, create=True) as gallery:
        with gallery.change() as db:
            db.executemany("INSERT INTO names (id, name, voiced_s) VALUES (?, ?, 1)", [(1, "a"), (2, "b")])
            db.executemany(
                "INSERT INTO prints (name_id, embedding, source, negative) VALUES (?, ?, '', ?)",
                [(1 + (name == "b"), blobs[at], int(negative)) for name, at, negative in prints],
            )
        asked = blobs[:4]
        expected = {
            blob: {name for name, at, negative in prints if blobs[at] == blob and not negative} for blob in asked
        }
        assert gallery.holders(asked) == expected
        for name in "ab":
            assert gallery.counts_of(name) == gallery.counts().get(name, PrintCounts())


def steps(gallery: Gallery, act: Callable[[], object]) -> int:
    """What SQLite does in an act, in hundreds of its steps."""
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1

    with gallery.moment() as db:
        db.set_progress_handler(step, 100)
    act()
    with gallery.moment() as db:
        db.set_progress_handler(None, 0)
    return taken


def test_enrolling_and_importing_cost_no_more_where_many_are_enrolled(tmp_path: Path, model: Model) -> None:
    cost: dict[int, tuple[int, int]] = {}
    told: list[tuple[int, int]] = []
    for names in (20, 1000):
        with (
            Gallery.open(tmp_path / f"{names}.db", model, create=True) as gallery,
            Gallery.open(tmp_path / f"other-{names}.db", model, create=True) as other,
        ):
            with gallery.change() as db:
                db.executemany("INSERT INTO names (name, voiced_s) VALUES (?, 1)", [(f"n{at}",) for at in range(names)])
                db.executemany(
                    "INSERT INTO prints (name_id, embedding, source) VALUES (?, ?, '')",
                    list(enumerate(to_blobs(random_prints(names)), start=1)),
                )
            prints = random_prints(8)
            for at in range(8):
                other.enroll(f"guest {at}", prints[at : at + 1], sources=["x"], voiced_s=5.0)
            one = steps(gallery, lambda: gallery.enroll("ada", random_prints(2), sources=["x"] * 2, voiced_s=5.0))
            many = steps(gallery, lambda: import_names(gallery, other, lambda *of: told.append(of)))
            assert gallery.names().keys() >= {"ada", "guest 7"}
            cost[names] = one, many - 2 * steps(gallery, gallery.counts)  # before and after, to tell what came
    assert told == 2 * [(done, 8) for done in range(8)]
    assert cost[1000][0] <= cost[20][0] + 5
    assert cost[1000][1] <= cost[20][1] + 60


def test_a_gallery_of_the_second_schema_keeps_everything_and_learns_its_kind(tmp_path: Path, model: Model) -> None:
    path = shutil.copy(OLD_2, tmp_path / "gallery.db")
    with (
        Gallery.open(path) as gallery,
        pytest.raises(UsageError, match="did not record whether it holds voices or sounds: say which with --kind"),
    ):
        re_enroll_prints(gallery, model)
    with Gallery.open(path, model) as gallery:
        assert (gallery.names(), gallery.negatives()) == ({"Ada Lovelace": 3, "zoë": 2}, {"low": 1})
        assert [one.audio is not None for one in gallery.prints("zoë")] == [True, True]
        assert gallery.kind == "sound"  # as its model says
        for name in ("Ada Lovelace", "low"):
            gallery.remove(name)
        assert re_enroll_prints(gallery, model, "speaker") == {"zoë": (2, 0)}
    with Gallery.open(path) as gallery:
        assert gallery.kind == "speaker"


def test_an_old_gallery_that_cannot_be_written_is_read_and_not_changed(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(OLD, tmp_path / "gallery.db"))
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind root
    with Gallery.open(path, model) as gallery:
        assert gallery.names() == {"Ada Lovelace": 3, "zoë": 2}
        with pytest.raises(GalleryError, match="read-only"):
            gallery.remove("zoë")
    assert path.read_bytes() == OLD.read_bytes()


@pytest.mark.parametrize("version", ["older", "this"])
def test_of_an_old_gallery_that_cannot_be_written_each_change_is_seen(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """What is used is a copy in memory, which SQLite does not bring up to date."""
    path = Path(shutil.copy(OLD, tmp_path / "gallery.db"))
    access = os.access
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind root
    with Gallery.open(path, model) as gallery, Gallery.open(path) as listing:
        assert set(gallery.matcher.names) == set(listing.names()) == {"Ada Lovelace", "zoë"}
        assert gallery.matcher is gallery.matcher
        time.sleep(0.02)  # the clock of a file system may tick that slowly
        if version == "older":
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE names SET name = 'eve' WHERE name = 'zoë'")
        else:
            monkeypatch.setattr("os.access", access)
            with Gallery.open(path) as other:
                other.rename("zoë", "eve")
            monkeypatch.setattr("os.access", lambda *_: False)
        assert set(gallery.matcher.names) == set(listing.names()) == {"Ada Lovelace", "eve"}
        with pytest.raises(GalleryError, match="read-only"):
            listing.remove("eve")


def test_a_copy_in_memory_is_consistent_while_it_is_read(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(OLD, tmp_path / "gallery.db"))
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind root
    with Gallery.open(path, model) as gallery:
        with gallery._file.reading_with_timeout(1.0) as db:
            os.utime(path)
            with gallery._file.moment() as within:
                assert within is db
        with gallery._file.reading() as after:
            assert after is not db
        assert set(gallery.matcher.names) == {"Ada Lovelace", "zoë"}
    assert "closed database" not in caplog.text


def test_an_old_gallery_on_a_full_disk_is_read_and_migrated_once_there_is_room(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(OLD, tmp_path / "gallery.db"))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, former[1]))
    try:
        with Gallery.open(path, model) as gallery:
            zoe = gallery.prints("zoë")[0].embedding
            assert gallery.match(zoe).nearest == "zoë"
            time.sleep(0.02)  # the clock of a file system may tick that slowly
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE names SET name = 'eve' WHERE name = 'zoë'")
            assert gallery.match(zoe).nearest == "eve"
            with pytest.raises(GalleryError, match="is the disk full"):
                gallery.rename("eve", "zoë")
            assert list(gallery.names()) == ["Ada Lovelace", "eve"]
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
            gallery.rename("eve", "zoë")
            assert gallery.match(zoe).nearest == "zoë"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert [record.message.split(": ", 1)[1][:24] for record in caplog.records] == ["is from an older version"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        assert db.execute("SELECT name FROM names ORDER BY name").fetchall() == [("Ada Lovelace",), ("zoë",)]


def test_a_copy_of_an_older_version_that_is_restored_in_place_is_migrated(tmp_path: Path, model: Model) -> None:
    path = Path(shutil.copy(OLD, tmp_path / "house.db"))
    with Gallery.open(path, model) as gallery:
        gallery.remove("zoë")
        assert gallery.matcher.names == ("Ada Lovelace",)
        restore(OLD, path)
        for _ in range(2):  # at the first look it is found to be another, at the second it is read
            matcher = gallery.matcher
        assert set(matcher.names) == {"Ada Lovelace", "zoë"}


def test_a_name_that_an_older_version_allowed_is_listed_and_can_be_removed(tmp_path: Path, model: Model) -> None:
    path, name = tmp_path / "house.db", "\u2068ada\u2069"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", random_prints(1), sources=["x"], voiced_s=5.0)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE names SET name = ?", (name,))
    with pytest.raises(GalleryError, match=r"cannot be used as an answer .*gallery rename`, or remove it"):
        Gallery.open(path, model)
    with Gallery.open(path) as gallery:
        assert gallery.names() == {name: 1}
        assert gallery.remove(name) == (1, 0)
