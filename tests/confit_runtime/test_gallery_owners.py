"""Who has a print is looked up without reading all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import Model
from confit_runtime.gallery import Gallery
from confit_runtime.prints import PrintCounts, to_blobs
from confit_runtime.transfer import import_names
from tests import tiny_model
from tests.confit_runtime.galleries import unit_prints

DIM = len(tiny_model.BANDS)
random_prints = partial(unit_prints, np.random.default_rng(5))


def test_owner_lookups_use_an_index(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("new", prints := random_prints(3), sources=["x"] * 3, voiced_s=5.0)
        assert gallery.owners(to_blobs(prints)) == {"new"}
        with gallery.moment() as db:
            asked: list[str] = []
            db.set_trace_callback(asked.append)
            gallery.owners(to_blobs(prints))
            db.set_trace_callback(None)
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {asked[-1]}")]
    assert any("USING INDEX prints_by_beginning" in step for step in plan), plan


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
