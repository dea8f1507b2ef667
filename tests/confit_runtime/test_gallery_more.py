"""What a gallery keeps over the years: old files, negative prints, kept audio, other devices, other models, an index."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import GalleryError, Model, UsageError, load, search
from confit_runtime import prints as prints_module
from confit_runtime.enrollment import to_flac
from confit_runtime.gallery import Gallery
from confit_runtime.gallery_file import BUSY_TIMEOUT_S
from confit_runtime.matcher import MAX_SHIFT, MIN_SHIFT, PRIOR_PRINTS, Levels, Matcher, l2_normalise, mutual_similarity
from confit_runtime.migrations import SCHEMA
from confit_runtime.prints import PrintCounts, to_blobs
from confit_runtime.reloading_matcher import LISTENING_TIMEOUT_S
from confit_runtime.search import ExactSearch, IncrementalSearch, IndexSearch, build_index
from confit_runtime.transfer import export_names, import_names, re_enroll_prints
from tests import tiny_model
from tests.at_once import at_once
from tests.tiny_model import RATE, Floats, chord, silence

DIM = len(tiny_model.BANDS)
OLD = Path(__file__).parents[1] / "data" / "gallery_schema1.db"  # made by the first version; zoë and Ada Lovelace
OLD_2 = OLD.with_name("gallery_schema2.db")  # the same names; one negative print of "low", and zoë's audio
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


# negative prints


def test_a_nearer_negative_print_vetoes_a_match(tmp_path: Path, model: Model) -> None:
    east, north, up = np.eye(DIM, dtype=np.float32)[:3]
    jingle = (0.8 * east + 0.6 * up).astype(np.float32)
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("east", east[None], sources=["e"], voiced_s=1.0)
        gallery.enroll("north", north[None], sources=["n"], voiced_s=1.0)
        assert gallery.match(jingle).name == "east"
        assert gallery.enroll("east", jingle[None], sources=["tv"], voiced_s=1.0, negative=True) == 1
        answer = gallery.match(jingle)
        assert (answer.name, answer.reason, answer.nearest) == (None, "negative", "east")
        assert answer.score == pytest.approx(0.8)
        assert gallery.match(east).name == "east"
        assert gallery.matcher.verify("east", jingle).reason == "negative"
        assert (gallery.names(), gallery.voiced_s("east")) == ({"east": 1, "north": 1}, 1.0)
        gallery.enroll("low", jingle[None], sources=["tv"], voiced_s=1.0, negative=True)  # a label of the model
        assert gallery.matcher.enrolled == ["east", "north"]
        assert gallery.matcher.vetoes("low", jingle)
        assert not gallery.matcher.vetoes("low", north)
        assert not gallery.matcher.vetoes("mid", jingle)


def test_a_true_sound_of_the_cohort_is_not_vetoed() -> None:
    east, up = np.eye(DIM, dtype=np.float32)[:2]
    nothing = np.zeros((0, DIM), np.float32)
    cohort, query = (l2_normalise(east + share * up) for share in (0.75, 1.0))
    unlike, like = (
        Matcher(["yes"], [], nothing, sounds, levels=Levels(), vetoed=[0], vetoes=up[None])
        for sounds in (nothing, cohort[None])
    )
    assert unlike.vetoes("yes", query)  # as near to the negative print as a match must be
    assert not like.vetoes("yes", query)
    assert like.vetoes("yes", up)


def test_one_negative_print_of_several_is_enough() -> None:
    """As near as the nearest of them, though what they have in common is not."""
    east, north, up, down = np.eye(DIM, dtype=np.float32)[:4]
    vetoes = np.stack([east, l2_normalise(east + north), l2_normalise(east + up), l2_normalise(east + down)])
    nothing = np.zeros((0, DIM), np.float32)
    near = l2_normalise(east + 0.1 * np.eye(DIM, dtype=np.float32)[4])
    matcher = Matcher(["low"], [0], near[None], nothing, levels=Levels(), vetoed=[0] * 4, vetoes=vetoes)
    assert matcher.match(east).reason == "negative"


# thresholds and verification


def test_a_query_no_better_than_the_cohort_is_a_stranger() -> None:
    one = np.eye(8, dtype=np.float32)[:1]
    matcher = Matcher(["ada"], [0], one, one.repeat(3, 0), levels=Levels(0.6, 0.0))
    assert matcher.match(one[0]).reason == "stranger"


def test_of_two_that_are_as_near_each_rule_has_its_side() -> None:
    """What reaches a threshold or a margin is enough; a negative print as near as the name's own is too near."""
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    nothing = np.zeros((0, DIM), np.float32)
    both = Matcher(["east", "north"], [0, 1], np.stack([east, north]), nothing, levels=Levels(1.0, 1.0))
    answer = both.match(east)
    assert (answer.name, answer.score, answer.threshold, answer.margin) == ("east", 1.0, 1.0, 1.0)
    vetoed = Matcher(["east"], [0], east[None], nothing, levels=Levels(0.5), vetoed=[0], vetoes=north[None])
    assert vetoed.match(l2_normalise(east + north)).reason == "negative"
    assert vetoed.match(l2_normalise(east + 0.9 * north)).name == "east"


def test_the_newest_prints_say_how_alike_a_names_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_runtime.matcher.NEWEST_PRINTS", 2)
    prints = np.eye(8, dtype=np.float32)[[0, 0, 0, 1]]  # the first two agree, the last two are apart
    levels = Levels(0.6, 0.0, genuine=0.9)
    nobody = np.zeros((0, 8), np.float32)
    whole = Matcher(["ada"], [0] * 4, prints, nobody, levels=levels).match(prints[0])
    newest = Matcher(["ada"], [0] * 2, prints[2:], nobody, levels=levels).match(prints[0])
    assert whole.threshold == newest.threshold < 0.6


def test_prints_that_agree_less_need_less() -> None:
    levels = Levels(threshold=0.7, margin=0.0, genuine=0.9)
    needed = []
    for spread in (0.0, 0.3, 0.6):
        base = np.eye(DIM, dtype=np.float32)[:1] + spread * random_prints(6)
        prints = (base / np.linalg.norm(base, axis=1, keepdims=True)).astype(np.float32)
        match = Matcher(["ada"], [0] * 6, prints, np.zeros((0, DIM), np.float32), levels=levels).match(prints[0])
        naive = 6 / (6 + PRIOR_PRINTS) * (mutual_similarity(prints) - 0.9)
        assert match.threshold == pytest.approx(0.7 + min(max(naive, MIN_SHIFT), MAX_SHIFT))
        needed.append(match.threshold)
    assert needed[0] > needed[1] > needed[2]
    single = Matcher(["ada"], [0], random_prints(1), np.zeros((0, DIM), np.float32), levels=levels)
    assert single.match(random_prints(1)[0]).threshold == 0.7  # one print says nothing of how alike they are


def test_verification_requires_that_no_other_name_is_nearer() -> None:
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    prints = np.stack([east, north])
    matcher = Matcher(["east", "north"], [0, 1], prints, np.zeros((0, DIM), np.float32), levels=Levels(0.5, 0.03))
    query = (0.6 * east + 0.8 * north).astype(np.float32)
    claimed = matcher.verify("east", query)
    assert (claimed.name, claimed.score, claimed.runner_up) == (None, pytest.approx(0.6), "north")
    assert (claimed.reason, claimed.nearest) == ("other", "north")
    confirmed = matcher.verify("north", query)
    assert (confirmed.name, confirmed.reason, confirmed.nearest) == ("north", None, "north")
    with pytest.raises(UsageError, match=r"nobody is enrolled as 'west' .*east, north"):
        matcher.verify("west", query)


def test_two_names_too_close_to_tell_are_unknown_and_the_nearer_is_verified() -> None:
    """As docs/enrollment.md and `verify --help` say: who asks about one name asks no margin."""
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    nobody = np.zeros((0, DIM), np.float32)
    matcher = Matcher(["east", "north"], [0, 1], np.stack([east, north]), nobody, levels=Levels(0.5, 0.03))
    query = l2_normalise((0.70 * east + 0.71 * north).astype(np.float32))
    assert (matcher.match(query).name, matcher.match(query).reason) == (None, "too close")
    assert (matcher.verify("north", query).name, matcher.verify("north", query).reason) == ("north", None)
    assert matcher.verify("east", query).reason == "other"


def test_names_match_in_any_unicode_normalisation() -> None:
    zoe, spelt = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    print_ = np.eye(DIM, dtype=np.float32)[:1]
    nothing = np.zeros((0, DIM), np.float32)
    matcher = Matcher([zoe], [0], print_, nothing, levels=Levels(), vetoed=[0], vetoes=np.roll(print_, 1))
    assert matcher.verify(spelt, print_[0]).name == zoe
    assert matcher.vetoes(spelt, np.roll(print_[0], 1))


@pytest.mark.parametrize("level", [2.0, -1.5, float("nan"), "0.5"])
def test_a_threshold_is_a_similarity(tmp_path: Path, model: Model, level: object) -> None:
    for wrong in ({"threshold": level}, {"thresholds": {"ada": level}}):
        with pytest.raises(UsageError, match="from -1 to 1"):
            Gallery.open(tmp_path / "gallery.db", model, create=True, **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "gallery.db").exists()


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), -0.1, 3.0, "0.1"])
def test_a_margin_is_one_between_similarities(tmp_path: Path, model: Model, margin: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 2"):
        Gallery.open(tmp_path / "gallery.db", model, create=True, margin=margin)
    assert not (tmp_path / "gallery.db").exists()


def test_thresholds_require_an_enrolled_name(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("zoë", random_prints(1), sources=["x"], voiced_s=1.0)
    with Gallery.open(path, model, thresholds={"zoe\u0308": 0.9}) as gallery:  # however it is spelt
        assert gallery.match(random_prints(1)[0]).threshold == 0.9
    with pytest.raises(
        UsageError, match=r"gallery\.db: there is a threshold for 'zoo', which is not enrolled \(enrolled: zoë\)"
    ):
        Gallery.open(path, model, thresholds={"zoo": 0.9})


def test_a_threshold_by_hand_is_not_moved_by_how_alike_prints_are(tmp_path: Path) -> None:
    calibrated = {"enroll": {"kind": "sound", "threshold": 0.7, "margin": 0.03, "genuine": 0.9}}
    model = load(tiny_model.build(tmp_path / "tiny.onnx", calibration=calibrated))
    path, apart = tmp_path / "gallery.db", np.eye(DIM, dtype=np.float32)[:3]
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", apart, sources=["x"] * 3, voiced_s=1.0)
        assert gallery.match(apart[0]).threshold < 0.5
    with Gallery.open(path, model, threshold=0.7) as gallery:
        assert gallery.match(apart[0]).threshold == 0.7


def test_one_names_threshold_is_set_by_hand(tmp_path: Path, model: Model) -> None:
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    with Gallery.open(tmp_path / "gallery.db", model, create=True, thresholds={"east": 0.9}) as gallery:
        for name, row in (("east", east), ("north", north)):
            gallery.enroll(name, row[None], sources=["x"], voiced_s=1.0)
        for row, other, name in ((east, north, None), (north, east, "north")):
            match = gallery.match((0.8 * row + 0.6 * other).astype(np.float32))
            assert (match.name, match.threshold) == (name, 0.9 if name is None else pytest.approx(0.6))


# other devices, other models


def test_names_that_two_processes_export_to_one_file_come_whole(tmp_path: Path) -> None:
    begin = f"""
from contextlib import suppress
from confit_runtime.errors import UsageError
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names
source = Gallery.open(Path({str(shutil.copy(OLD, tmp_path / "old.db"))!r}))
def export():
    path.unlink(missing_ok=True)
    with suppress(UsageError):  # the other one was faster
        assert export_names(source, [], path) == {{"Ada Lovelace": (3, 0), "zoë": (2, 0)}}
"""
    (out := tmp_path / "out").mkdir()
    at_once(begin, "export()", out / "all.db")
    with Gallery.open(out / "all.db") as given:
        assert given.names() == {"Ada Lovelace": 3, "zoë": 2}
    assert [path.name for path in out.iterdir()] == ["all.db"]


def test_a_killed_export_leaves_nothing_that_the_next_does_not_remove(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    killed = f"""
import os, signal, sys
from pathlib import Path
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names
def kill(event, arguments):
    if event == "os.rename":  # all is written, and the file has not its name
        os.kill(os.getpid(), signal.SIGKILL)
with Gallery.open(Path({str(shutil.copy(OLD, tmp_path / "old.db"))!r})) as source:
    sys.addaudithook(kill)
    export_names(source, [], Path({str(out / "all.db")!r}))
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".all.db.")
    with Gallery.open(tmp_path / "old.db") as source:
        export_names(source, [], out / "all.db")
    assert [path.name for path in out.iterdir()] == ["all.db"]


def test_export_and_import_carry_everything_and_add_nothing_twice(tmp_path: Path, model: Model) -> None:
    sound = chord((300.0, 2600.0), 0.4)
    with Gallery.open(tmp_path / "one.db", model, create=True) as one:
        one.enroll("ada", random_prints(2), sources=["a", "b"], voiced_s=3.0, audio=[to_flac(sound, 16_000)] * 2)
        one.enroll("ada", random_prints(1), sources=["tv"], voiced_s=1.0, negative=True)
        one.enroll("bob", random_prints(1), sources=["c"], voiced_s=1.0)
        assert export_names(one, ["ada"], tmp_path / "ada.db") == {"ada": (2, 1)}
        with pytest.raises(UsageError, match="already exists"):
            export_names(one, [], tmp_path / "ada.db")
        for length in (250, 300):
            with pytest.raises(GalleryError, match=r"yyy\.db: cannot be .*\(File name too long\)"):
                export_names(one, [], tmp_path / f"{'y' * length}.db")
        original = one.prints("ada")
    with Gallery.open(tmp_path / "two.db", model, create=True) as two, Gallery.open(tmp_path / "ada.db") as given:
        assert import_names(two, given) == {"ada": (2, 1)}
        assert import_names(two, given) == {"ada": (0, 0)}
        assert (two.names(), two.negatives(), two.voiced_s("ada")) == ({"ada": 2}, {"ada": 1}, 3.0)
        for was, is_ in zip(original, two.prints("ada"), strict=True):
            np.testing.assert_array_equal(was.embedding, is_.embedding)
            assert (was.source, was.negative, was.audio) == (is_.source, is_.negative, is_.audio)
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another"))
    with (
        Gallery.open(tmp_path / "three.db", other, create=True) as three,
        Gallery.open(tmp_path / "ada.db") as given,
        pytest.raises(GalleryError, match="another model"),
    ):
        import_names(three, given)


def test_prints_do_not_come_under_a_second_name(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "one.db", model, create=True) as one:
        one.enroll("ada", random_prints(2), sources=["a", "b"], voiced_s=3.0)
        one.enroll("bob", random_prints(1), sources=["c"], voiced_s=3.0)
        export_names(one, [], tmp_path / "both.db")
        one.rename("bob", "robert")
        with (
            Gallery.open(tmp_path / "both.db") as given,
            pytest.raises(UsageError, match=r"one\.db: .* for 'bob' are already enrolled as 'robert'"),
        ):
            import_names(one, given)
        assert one.names() == {"ada": 2, "robert": 1}


def test_carried_prints_are_not_checked_again(tmp_path: Path, model: Model) -> None:
    """Older versions enrolled one print under two names, and voices with too little: a copy of a gallery keeps all of it."""
    shared, own = random_prints(2)[:, None]
    with Gallery.open(tmp_path / "old.db", model, create=True, kind="speaker") as old:
        for name, prints in (("ada", shared), ("bob", np.concatenate([shared, own]))):
            old.enroll(name, prints, sources=["x"] * len(prints), voiced_s=1.0, carried=True)
        assert export_names(old, [], tmp_path / "copy.db") == {"ada": (1, 0), "bob": (2, 0)}
        export_names(old, ["ada"], tmp_path / "ada.db")
    with (
        Gallery.open(tmp_path / "copy.db") as copy,
        Gallery.open(tmp_path / "new.db", model, create=True, kind="speaker") as new,
        Gallery.open(tmp_path / "ada.db") as ada,
    ):
        assert (copy.names(), copy.voiced_s("bob")) == ({"ada": 1, "bob": 2}, 1.0)
        assert import_names(new, ada) == {"ada": (1, 0)}


def test_voices_are_not_imported_among_sounds(tmp_path: Path, model: Model) -> None:
    with (
        Gallery.open(tmp_path / "voices.db", model, create=True, kind="speaker") as voices,
        Gallery.open(tmp_path / "sounds.db", model, create=True, kind="sound") as sounds,
    ):
        voices.enroll("ada", random_prints(1), sources=["a"], voiced_s=5.0)
        with pytest.raises(UsageError, match=r"voices\.db: holds voices, but .*sounds\.db holds sounds"):
            import_names(sounds, voices)
        assert sounds.names() == {}


def test_an_import_that_cannot_be_written_leaves_nothing_of_it(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "many.db", model, create=True) as many:
        for name in ("ada", "bob", "eve"):
            many.enroll(name, random_prints(200), sources=["x"] * 200, voiced_s=5.0)
    with Gallery.open(tmp_path / "house.db", model, create=True) as house, Gallery.open(tmp_path / "many.db") as given:
        house.enroll("carl", random_prints(1), sources=["y"], voiced_s=5.0)
        with house.change() as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 8}")
        with pytest.raises(GalleryError, match="is the disk full"):
            import_names(house, given)
        assert house.names() == {"carl": 1}
        with house.change() as db:
            db.execute("PRAGMA max_page_count = 100000")
        assert import_names(house, given) == dict.fromkeys(("ada", "bob", "eve"), (200, 0))


def enroll_bell(gallery: Gallery, model: Model) -> Floats:
    """Enroll a bell and keep its audio; its print `[1, dim]`."""
    sound = chord((300.0, 2600.0), 0.4)
    print_: Floats = model.embed(sound, 16_000)[None]
    gallery.enroll("bell", print_, sources=["bell.wav"], voiced_s=0.4, audio=[to_flac(sound, 16_000)])
    return print_


def test_kept_audio_is_enrolled_again_with_another_model(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        print_ = enroll_bell(gallery, model)
    with pytest.raises(GalleryError, match=r"another model .*gallery re-enroll .*other\.onnx"):
        Gallery.open(path, other)
    with Gallery.open(path) as gallery:
        assert re_enroll_prints(gallery, other) == {"bell": (1, 0)}
    with Gallery.open(path, other) as gallery:
        np.testing.assert_allclose(gallery.prints("bell")[0].embedding, print_[0], atol=1e-3)
        gallery.enroll("bell", random_prints(1), sources=["no audio"], voiced_s=0.1)
    with Gallery.open(path) as gallery, pytest.raises(GalleryError, match="audio of 1 of bell's 2 prints was not kept"):
        re_enroll_prints(gallery, model)


@pytest.mark.parametrize("what", ["hours", "channels", "text"])
def test_oversized_kept_audio_is_an_error(tmp_path: Path, model: Model, what: str) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
    samples = np.ones(3_700_000 if what == "hours" else (4000, 2), np.int16)
    soundfile.write(held := io.BytesIO(), samples, 1000, format="FLAC")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE audio SET flac = ?", (b"text" if what == "text" else held.getvalue(),))
    told = "audio kept in it is damaged"
    if what == "hours":
        told = r"audio of bell's print from bell\.wav, .* is longer than 60 minutes, .*\(`confit-edge gallery remove bell --gall"
    with Gallery.open(path) as gallery, pytest.raises(GalleryError, match=told):
        re_enroll_prints(gallery, model)


def test_open_galleries_reject_old_prints_after_a_re_enrollment(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
        export_names(gallery, [], tmp_path / "bell.db")
    with (
        Gallery.open(path, model) as enrolling,
        Gallery.open(path, model) as listening,
        Gallery.open(path) as importing,
        Gallery.open(tmp_path / "bell.db") as given,
        Gallery.open(path) as gallery,
    ):
        gallery.rename("bell", "chime")
        re_enroll_prints(gallery, other)
        with pytest.raises(GalleryError, match="was enrolled with another model"):
            listening.match(random_prints(1)[0])
        for act in (
            lambda: enrolling.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0),
            lambda: listening.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0),
            lambda: import_names(importing, given),
            lambda: import_names(given, importing),
            lambda: export_names(importing, [], tmp_path / "chime.db"),
        ):
            with pytest.raises(GalleryError, match=r"gallery\.db: was bound to another model while it was open"):
                act()
        assert (gallery.names(), given.names()) == ({"chime": 1}, {"bell": 1})
        assert gallery.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0) == 1


def test_to_enroll_again_is_advised_only_where_all_audio_was_kept(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
        gallery.enroll("bell", random_prints(1), sources=["no audio"], voiced_s=0.1)
    with pytest.raises(GalleryError) as refused:
        Gallery.open(path, other)
    assert str(refused.value).endswith("use that model, or another --gallery")


def test_voices_do_not_become_sounds_unasked(tmp_path: Path, model: Model) -> None:
    path, sound = tmp_path / "gallery.db", chord((300.0, 2600.0), 0.4)
    voices = {"embedding_id": "voices", "name": "voices", "calibration": {"enroll": {"kind": "speaker"}}}
    other = load(tiny_model.build(tmp_path / "voices.onnx", **voices))
    with Gallery.open(path, other, create=True) as gallery:
        gallery.enroll(
            "ada", other.embed(sound, 16_000)[None], sources=["a"], voiced_s=5.0, audio=[to_flac(sound, 16_000)]
        )
    with pytest.raises(GalleryError) as refused:
        Gallery.open(path, model)
    assert str(refused.value).endswith("use that model, or another --gallery")  # and not: make it one of sounds
    with Gallery.open(path) as gallery:
        with pytest.raises(UsageError, match="holds voices, but tiny is for sounds: use a model for voices"):
            re_enroll_prints(gallery, model)
        assert gallery.embedding_id == "voices"
        assert re_enroll_prints(gallery, model, "speaker") == {"ada": (1, 0)}
    with Gallery.open(path, model) as gallery:
        assert gallery.kind == "speaker"


def test_nothing_is_left_of_kept_audio(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    flac = to_flac(RNG.uniform(-0.5, 0.5, 8000).astype(np.float32), 16_000)
    with Gallery.open(path, model, create=True) as gallery:
        for name in ("stays", "goes", "stays too"):
            gallery.enroll(name, random_prints(20), sources=["x"] * 20, voiced_s=9.0, audio=[flac] * 20)
        gallery.rename("stays", "stayed")
        print_ = gallery.prints("goes")[3].embedding.tobytes()
        gallery.remove("goes")
        gallery.remove("stayed")
        gallery.remove("stays too")
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(flac[at : at + 16] in left for at in range(200, len(flac) - 16, 16))
    assert print_[:8] not in left
    assert b"goes" not in left


# several programs, a full disk

WRITER = """
import sys
import numpy as np
from confit_runtime.gallery import Gallery

rng = np.random.default_rng()
with Gallery.open(sys.argv[1]) as gallery:
    for _ in range(int(sys.argv[3])):
        prints = rng.standard_normal((2, gallery.dim)).astype(np.float32)
        gallery.enroll(sys.argv[2], prints, sources=["a", "b" * 400], voiced_s=1.0)
        print("done", flush=True)
"""


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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_two_galleries_are_imported_into_each_other_at_once(tmp_path: Path, model: Model) -> None:
    with (
        Gallery.open(tmp_path / "one.db", model, create=True) as one,
        Gallery.open(tmp_path / "two.db", model, create=True) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for gallery, names in ((one, "abcdef"), (two, "uvwxyz")):
            for name in names:
                gallery.enroll(name, random_prints(1), sources=["x"], voiced_s=1.0)
        for work in [pool.submit(import_names, one, two), pool.submit(import_names, two, one)]:
            work.result(timeout=60)
        assert one.names() == two.names() == dict.fromkeys("abcdefuvwxyz", 1)


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


def restore(copy: Path, path: Path) -> None:
    """Write it over the file, as cp does."""
    time.sleep(0.02)  # the clock of a file system may tick that slowly
    shutil.copyfile(copy, path)


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


def test_a_name_of_very_many_prints_does_not_hide_the_next(tmp_path: Path, model: Model) -> None:
    ada, mum = np.zeros((2, model.contract.embedding_dim), np.float32)
    ada[0], mum[0], mum[1] = 1.0, 1.0, 0.1
    many = l2_normalise(ada + 0.01 * random_prints(300))
    with Gallery.open(tmp_path / "house.db", model, create=True) as gallery:
        gallery.enroll("ada", many, sources=["x"] * 300, voiced_s=900.0)
        gallery.enroll("mum", mum[None], sources=["x"], voiced_s=5.0)
        gallery.enroll("far", -ada[None], sources=["x"], voiced_s=5.0)
        match = gallery.match(ada)
        assert (match.name, match.reason, match.runner_up) == (None, "too close", "mum")
        gallery.remove("mum")
        assert gallery.match(ada).name == "ada"
        gallery.remove("far")
        assert gallery.match(ada).runner_up is None


# the index


def test_an_index_finds_what_exact_search_finds_and_is_erased_with_a_name(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "gallery.db", random_prints(3000)
    with Gallery.open(path, model, create=True) as gallery:
        for name, rows in zip([f"name{at}" for at in range(100)], np.split(prints, 100), strict=True):
            gallery.enroll(name, rows, sources=["x"] * len(rows), voiced_s=1.0)
        exact = gallery.matcher
        told: list[tuple[int, int]] = []
        assert gallery.build_index(lambda done, total: told.append((done, total))) == 3000
        assert told[-1] == (3000, 3000)
        assert gallery.index_path.stat().st_mode & 0o777 == 0o600
        later = random_prints(1)
        gallery.enroll("late", later, sources=["x"], voiced_s=1.0)
        queries = random_prints(50)
        agreed = [gallery.match(query).nearest == exact.match(query).nearest for query in queries]
        assert np.mean(agreed) > 0.9
        assert gallery.match(later[0]).nearest == "late"  # enrolled after the index was made
        killed = gallery.index_path.with_name(f".{gallery.index_path.name}.0123abcd.partial")
        killed.mkdir()
        shutil.copy(gallery.index_path, killed)
        gallery.remove("name7")
        assert not gallery.index_path.exists()
        assert not killed.exists()
    path.chmod(0o644)
    with Gallery.open(path, model) as gallery, Gallery.open(tmp_path / "other.db", model, create=True) as other:
        gallery.build_index()
        assert gallery.index_path.stat().st_mode & 0o777 == 0o644  # who may read the one reads the other
        other.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        shutil.copy(gallery.index_path, other.index_path)
        with Gallery.open(other.path, model) as another:
            assert another.match(random_prints(1)[0]).nearest == "ada"  # without it
        assert "other.db.index: is not this gallery's current index" in caplog.text
        assert "comparing with every print instead" in caplog.text


@pytest.mark.parametrize("how", ["made", "exported", "empty"])
def test_an_index_of_a_gallery_that_is_gone_is_erased_by_the_next(tmp_path: Path, model: Model, how: str) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, other, prints = tmp_path / "gallery.db", tmp_path / "other.db", random_prints(30)
    with Gallery.open(path, model, create=True) as gallery, Gallery.open(other, model, create=True) as carried:
        gallery.enroll("ada", prints, sources=["x"] * 30, voiced_s=1.0)
        gallery.build_index()
        carried.enroll("bob", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        listening = Gallery.open(path, model)
        matcher, index = listening.matcher, gallery.index_path.read_bytes()
        path.unlink()
        if how == "exported":
            export_names(carried, [], path)
        else:
            made = Gallery.open(path, model, create=True)
            assert not gallery.index_path.exists()
            if how == "empty":
                gallery.index_path.write_bytes(index)
                with Gallery.open(path, model) as looking:
                    assert looking.match(prints[0]).reason == "nobody"
                assert gallery.index_path.read_bytes() == index  # who only looks erases nothing
            made.enroll("bob", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        assert not gallery.index_path.exists()
        assert all(matcher.match(print_).nearest == "ada" for print_ in prints)  # who listens has its own
        assert listening.matcher.names == ("bob",)
        assert Gallery.open(path, model).matcher.names == ("bob",)


@pytest.mark.parametrize("how", ["symbolic", "hard", "folder"])
def test_the_target_of_a_link_at_the_index_path_is_kept(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path, others = tmp_path / "gallery.db", tmp_path / "others"
    others.mkdir()
    victim, index = others / "gallery.db.index", tmp_path / "gallery.db.index"
    victim.write_text("not an index")
    for _ in range(2):  # of a gallery that is made, and of one that somebody is removed from
        if how == "symbolic":
            index.symlink_to(victim)
        elif how == "hard":
            index.hardlink_to(victim)
        else:
            index = tmp_path / ".gallery.db.index.0123abcd.partial"
            index.symlink_to(others)
        if path.exists():
            with Gallery.open(path) as gallery:
                gallery.remove("ada")
        else:
            with Gallery.open(path, model, create=True) as gallery:
                gallery.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        assert victim.read_text() == "not an index"
        assert how == "folder" or not index.exists()
        told = {"symbolic": str(victim), "hard": f"-inum {victim.stat().st_ino}"}
        assert how == "folder" or [told[how] in line for line in caplog.messages] == [True], caplog.messages
        assert caplog.text.count("may contain prints of the removed name: remove it by hand") == len(caplog.messages)
        caplog.clear()
        index.unlink(missing_ok=True)


def test_enrolled_again_it_matches_at_once_and_without_its_old_index(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, sound = tmp_path / "gallery.db", chord((300.0, 2600.0), 0.4)
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    print_, audio = model.embed(sound, 16_000)[None], [to_flac(sound, 16_000)]
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("bell", print_, sources=["bell.wav"], voiced_s=0.4, audio=audio)
        before = gallery.matcher
        gallery.build_index()
        assert gallery.matcher is not before  # it searches with the index now
    with Gallery.open(path) as gallery:
        assert re_enroll_prints(gallery, other) == {"bell": (1, 0)}
        assert not gallery.index_path.exists()
        assert gallery.match(print_[0]).nearest == "bell"


def test_a_model_is_loaded_after_an_index_was_made(tmp_path: Path, tiny: Path) -> None:
    """In a process that had loaded none before: usearch and onnxruntime get along in one order only."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    script = """
import sys
from confit_runtime import load
from confit_runtime.gallery import Gallery

with Gallery.open(sys.argv[1]) as gallery:
    print(gallery.build_index(), flush=True)
print(load(sys.argv[2]).name)
"""
    command = [sys.executable, "-c", script, shutil.copy(OLD, tmp_path / "old.db"), tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["5", "tiny"]), done.stderr


def test_an_index_that_cannot_be_written_or_erased_is_one_error(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        gallery.index_path.mkdir()  # permissions do not bind root
        with pytest.raises(GalleryError, match=r"gallery\.db\.index: the index cannot be written"):
            gallery.build_index()
        with pytest.raises(GalleryError, match=r"gallery\.db\.index: the index cannot be erased"):
            gallery.remove("ada")
        assert gallery.names() == {"ada": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.db", "gallery.db.index"]


def test_an_index_that_two_processes_make_at_once_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    begin = f"""
import numpy as np
from confit_runtime.search import build_index
prints = np.eye({DIM}, dtype=np.float32)
"""
    path, ids, prints = tmp_path / "small.index", np.arange(DIM), np.eye(DIM, dtype=np.float32)
    at_once(begin, f"build_index(path, np.arange({DIM}), prints)", path)
    digest = sha256(path.read_bytes()).hexdigest()
    assert IndexSearch(path, ids, prints, digest).nearest(prints[2], 1).tolist() == [2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("what", ["replaced", "gone", "removed", "enrolled"])
def test_an_index_belongs_to_the_prints_of_its_gallery(tmp_path: Path, model: Model, what: str, when: str) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    folder, other = tmp_path / "house", tmp_path / "other.db"
    folder.mkdir()
    path = folder / "gallery.db"
    for file, names in ((path, ["ada", "bob"]), (other, ["eve"])):
        with Gallery.open(file, model, create=True) as gallery:
            for name in names:
                gallery.enroll(name, random_prints(3), sources=["x"] * 3, voiced_s=5.0)

    def change(*_: int) -> None:
        if what == "replaced":
            other.replace(path)
        elif what == "gone":
            shutil.rmtree(folder)
        else:
            with Gallery.open(path) as changed:
                if what == "removed":
                    changed.remove("bob")
                changed.enroll("carl", random_prints(3), sources=["x"] * 3, voiced_s=5.0)

    with Gallery.open(path) as gallery:
        if when == "before":
            change()
        progress = change if when == "meanwhile" else None
        if what == "enrolled" or (what, when) == ("removed", "before"):
            assert gallery.build_index(progress) == (9 if (what, when) == ("enrolled", "before") else 6)
            assert Gallery.open(path, model).matcher.names[-1] == "carl"
        else:
            message = "a name was removed" if what == "removed" else "was replaced or removed|the index cannot be"
            with pytest.raises(GalleryError, match=message):
                gallery.build_index(progress)
            assert not gallery.index_path.exists()


def test_matching_survives_an_erased_index(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "gallery.db", random_prints(300)
    with Gallery.open(path, model, create=True) as gallery:
        for at in range(100):
            gallery.enroll(f"name{at}", prints[3 * at : 3 * at + 3], sources=["x"] * 3, voiced_s=1.0)
        exact = [gallery.match(print_).nearest for print_ in prints]
        gallery.build_index()
        with Gallery.open(path, model) as listening:
            matcher = listening.matcher
            agreed = [matcher.match(print_).nearest == name for print_, name in zip(prints, exact, strict=True)]
            assert np.mean(agreed) > 0.9
            gallery.remove("name99")
            assert [matcher.match(print_).nearest for print_ in prints] == exact


def test_matching_survives_an_index_restored_in_place(tmp_path: Path, model: Model) -> None:
    """In a process of its own: one that reads what is cut short is killed."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    script = """
import sys
from pathlib import Path
import numpy as np
from confit_runtime.search import IndexSearch, build_index

path, prints = Path(sys.argv[1]), np.load(sys.argv[2])
digest = build_index(path, np.arange(len(prints)), prints)
search, whole = IndexSearch(path, np.arange(len(prints)), prints, digest), path.read_bytes()
for length in (0, 40, len(whole) // 2):
    path.write_bytes(whole[:length])
    print([int(search.nearest(print_, 1)[0]) for print_ in prints] == list(range(len(prints))))
"""
    np.save(tmp_path / "prints.npy", random_prints(500))
    command = [sys.executable, "-c", script, tmp_path / "many.index", tmp_path / "prints.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 3), done.stderr


def test_a_truncated_index_is_not_used(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "many.index", random_prints(500)
    digest = build_index(path, np.arange(500), prints)
    whole = path.read_bytes()
    for length in (0, 40, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for said in (digest, sha256(whole[:length]).hexdigest()):  # of a file that says it is whole
            with pytest.raises(GalleryError, match=r"many\.index: is not this gallery's current index"):
                IndexSearch(path, np.arange(500), prints, said)


def test_a_damaged_index_is_not_read(tmp_path: Path) -> None:
    """In a process of its own: what is wrong in one took it down."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    script = """
import sys
from pathlib import Path
import numpy as np
from confit_runtime import Gallery, load

path, model = Path(sys.argv[1]), load(sys.argv[2])
with Gallery.open(path, model, create=True) as gallery:
    prints = np.eye(gallery.dim, dtype=np.float32)
    gallery.enroll("ada", prints, sources=["x"] * len(prints), voiced_s=9.0)
    gallery.build_index()
    whole = gallery.index_path.read_bytes()
    for at in range(len(whole)):
        gallery.index_path.write_bytes(whole[:at] + bytes([255 - whole[at]]) + whole[at + 1 :])
        with Gallery.open(path, model) as opened:
            assert opened.match(prints[2]).nearest == "ada"
print("done")
"""
    tiny = tiny_model.build(tmp_path / "tiny.onnx")
    command = [sys.executable, "-c", script, tmp_path / "gallery.db", tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_an_index_of_an_older_version_is_made_again(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Schema 3 did not tell which file it was."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path = tmp_path / "house.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", prints := random_prints(3), sources=["x"] * 3, voiced_s=5.0)
        gallery.build_index()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE index_file; DROP INDEX prints_by_beginning; PRAGMA user_version = 3")
    with Gallery.open(path, model) as gallery:
        assert gallery.match(prints[0]).nearest == "ada"
        assert "make it again with `confit-edge gallery index`; comparing with every print instead" in caplog.text
        caplog.clear()
        gallery.build_index()
        assert gallery.match(prints[0]).nearest == "ada"
    assert not caplog.text


def test_an_index_of_8_bits_ranks_as_all_bits_do(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    # a cloud so dense that the nearest differ by less than 8 bits tell
    prints = random_prints(1)[0] + 0.05 * RNG.standard_normal((12_000, DIM)).astype(np.float32)
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    ids = RNG.permutation(len(prints)) + 7
    path = tmp_path / "dense.index"
    digest = build_index(path, ids[:11_990], prints[:11_990])
    search, exact = IndexSearch(path, ids, prints, digest), ExactSearch(prints)
    found = [(search.nearest(query, 16).tolist(), exact.nearest(query, 16).tolist()) for query in prints[-20:]]
    assert all(len(rows) == len(set(rows)) == 16 for rows, _ in found)
    assert np.mean([len(set(rows) & set(true)) / 16 for rows, true in found]) > 0.97
