"""The gallery: exact matching, nothing lost by a crash, nothing left of what was removed, one line for the rest."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
import unicodedata
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confit_runtime import AudioError, GalleryError, Model, UsageError, load
from confit_runtime.detect import NameDetector
from confit_runtime.gallery import Gallery
from confit_runtime.gallery_file import BUSY_TIMEOUT_S, make_file
from confit_runtime.gallery_tables import SCHEMA, Binding
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.names import clean_name
from confit_runtime.prints import NameCalibration
from confit_runtime.transfer import export_names, import_names
from tests import tiny_model
from tests.nobody import as_nobody
from tests.tiny_model import RATE, Floats, silence, tone

DIM = len(tiny_model.BANDS)
RNG = np.random.default_rng(3)


def random_prints(count: int) -> Floats:
    return RNG.standard_normal((count, DIM)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path, model: Model) -> Path:
    """A gallery of ada (3 prints) and bob (2)."""
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        assert gallery.enroll("ada", random_prints(3), sources=["a1", "a2", "a3"], voiced_s=2.5) == 3
        assert gallery.enroll("bob", random_prints(2), sources=["b1", "b2"], voiced_s=1.0) == 2
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_gallery_is_opened_again_in_a_process_that_was_forked(path: Path, model: Model) -> None:
    """Also where another thread, which is not in the child, was changing it."""
    script = """
import os, sys, threading
from confit_runtime import Gallery, GalleryError, load

path, model = sys.argv[1], load(sys.argv[2])
gallery, begun, ended = Gallery.open(path, model), threading.Event(), threading.Event()

def change():
    with gallery.change():
        begun.set()
        ended.wait()

threading.Thread(target=change).start()
begun.wait()
if os.fork():
    print(os.wait()[1], flush=True)
    ended.set()
else:
    for ask in (gallery.names, lambda: gallery.matcher):
        try:
            ask()
        except GalleryError as error:
            print(error)
    gallery.close()
    print(*Gallery.open(path, model).names(), flush=True)
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path, model.path], capture_output=True, text=True, timeout=60, check=False
    )
    refused = f"{path}: was opened before this process was forked: open the gallery again in this process\n"
    assert (done.stdout, done.stderr) == (f"{refused}{refused}ada bob\n0\n", "")


# keeping


def test_enrolled_names_persist(tmp_path: Path, model: Model) -> None:
    path, prints = tmp_path / "a gallery? #1 100%.db", random_prints(3)
    with Gallery.open(path, model, create=True) as gallery:
        assert gallery.names() == {}
        assert gallery.enroll(" zoë ", prints[:2], sources=["one.wav", "two.wav"], voiced_s=1.5) == 2
        assert gallery.enroll("zoë", prints[2:], sources=["three.wav"], voiced_s=0.5) == 3
        assert gallery.enroll("Ben", random_prints(1), sources=["four.wav"], voiced_s=0.5) == 1
    with Gallery.open(path, model) as gallery:
        assert list(gallery.names().items()) == [("Ben", 1), ("zoë", 3)]
        assert gallery.voiced_s("zoë") == 2.0
        kept = gallery.prints("zoë")
        assert [one.source for one in kept] == ["one.wav", "two.wav", "three.wav"]
        units = prints / np.linalg.norm(prints, axis=1, keepdims=True)
        np.testing.assert_allclose([one.embedding for one in kept], units, atol=1e-6)
    assert path.exists()
    assert list(tmp_path.iterdir()) == [path]  # no journal is left


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell which files are open")
def test_files_that_cannot_become_galleries_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(GalleryError) as caught:
        make_file(path, Binding("x", 8, "tiny", "sound"))
    assert path not in [Path(os.readlink(entry)) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert caught.value.__traceback__ is not None  # which holds the connection


def test_rename_and_remove(path: Path) -> None:
    with Gallery.open(path) as gallery:
        before = gallery.prints("ada")
        gallery.rename("ada", "Ada Lovelace")
        assert gallery.names() == {"Ada Lovelace": 3, "bob": 2}
        np.testing.assert_array_equal(gallery.prints("Ada Lovelace")[0].embedding, before[0].embedding)
        gallery.rename("bob", "bob")
        with pytest.raises(UsageError, match="already enrolled"):
            gallery.rename("bob", "Ada Lovelace")
        assert gallery.remove("bob") == (2, 0)
        for act in (gallery.remove, gallery.prints, gallery.voiced_s, lambda name: gallery.rename(name, "x")):
            with pytest.raises(UsageError, match=r"nobody is enrolled as 'bob' .*Ada Lovelace"):
                act("bob")
        assert gallery.names() == {"Ada Lovelace": 3}


def test_of_many_names_an_error_tells_those_that_may_be_meant_and_how_many_more(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        with gallery.change() as db:
            db.executemany("INSERT INTO names (name, voiced_s) VALUES (?, 1)", [(f"guest {at}",) for at in range(3000)])
            db.execute(
                "INSERT INTO prints (name_id, embedding, source) SELECT names.id, embedding, ''"
                " FROM names, (SELECT embedding FROM prints LIMIT 1) WHERE name LIKE 'guest %'"
            )
        errors = []
        for act in (
            lambda: gallery.remove("gest 2999"),
            lambda: gallery.matcher.verify("gest 2999", random_prints(1)[0]),
            lambda: Gallery.open(path, model, thresholds={"gest 2999": 0.5}),
        ):
            with pytest.raises(UsageError) as caught:
                act()
            errors.append(str(caught.value))
    for error in errors:
        assert "(enrolled: guest 2999, " in error
        assert error.endswith(", and 2990 more)")
        assert len(error) < 500


@pytest.mark.parametrize("change", ["remove", "rename"])
def test_removed_names_leave_nothing_in_the_file(tmp_path: Path, model: Model, change: str) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        for name in ("kept-one", "Rumpelstiltskin", "kept-two"):
            gallery.enroll(
                name, random_prints(40), sources=[f"/home/{name}/{at}.wav" for at in range(40)], voiced_s=9.0
            )
        gone = [one.embedding.astype("<f4").tobytes() for one in gallery.prints("Rumpelstiltskin")]
        assert gone[7] in path.read_bytes()
        if change == "remove":
            gallery.remove("Rumpelstiltskin")
        else:
            gallery.rename("Rumpelstiltskin", "kept-three")
        data = path.read_bytes()
        if change == "remove":
            assert b"Rumpelstiltskin" not in data
            assert not any(print_[at : at + 8] in data for print_ in gone for at in range(0, len(print_), 8))
        else:
            assert data.count(b"Rumpelstiltskin") == 40  # the sources of its prints; the name itself is gone
        assert sum(gallery.names().values()) == (80 if change == "remove" else 120)


def test_enrolling_is_all_or_nothing(path: Path, model: Model) -> None:
    for embeddings, sources in [
        (random_prints(2), ["one"]),
        (random_prints(0), []),
        (random_prints(2)[:, :-1], ["one", "two"]),
        (random_prints(1)[0], ["one"]),
        (np.float32([[np.nan] * DIM]), ["one"]),
        (np.zeros((1, DIM), np.float32), ["one"]),
        ([["loud"] * DIM], ["one"]),
    ]:
        with Gallery.open(path, model) as gallery:
            with pytest.raises(UsageError):
                gallery.enroll("eve", embeddings, sources=sources, voiced_s=1.0)
            for voiced_s in (float("nan"), float("inf"), -5.0, "5", None):
                with pytest.raises(UsageError, match=r"voiced_s, .* must be a number of seconds, 0 or more"):
                    gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=voiced_s)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="a name must be text, got 5"):
                gallery.enroll(5, random_prints(1), sources=["one"], voiced_s=1.0)  # type: ignore[arg-type]
            assert gallery.names() == {"ada": 3, "bob": 2}
            assert gallery.matcher.names == ("ada", "bob")


@pytest.mark.parametrize(
    "name", ["", "   ", "x" * 101, "a\nb", "a\x00b", "tab\tbed", "\x7f", "\ud800", "line\u2028break"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="a name"):
        clean_name(name)


def test_a_name_may_have_100_characters() -> None:
    assert clean_name("x" * 100) == "x" * 100


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=30))
def test_names_are_kept_in_one_form(name: str) -> None:
    clean = clean_name(f"  {unicodedata.normalize('NFD', name)}\t")
    assert clean == clean_name(clean) == unicodedata.normalize("NFC", name)


def test_existing_prints_are_left_out_with_their_seconds(path: Path, model: Model) -> None:
    prints = random_prints(3)
    with Gallery.open(path, model) as gallery:
        assert gallery.enroll("eve", prints[[0, 1, 0, 0]], sources=list("abcd"), voiced_s=4.0) == 2
        assert gallery.voiced_s("eve") == 2.0
        assert gallery.enroll("eve", prints, sources=list("efg"), voiced_s=3.0) == 3
        assert (gallery.voiced_s("eve"), [one.source for one in gallery.prints("eve")]) == (3.0, ["a", "b", "g"])


def test_a_sound_is_no_print_of_a_name_and_a_negative_one(path: Path, tmp_path: Path, model: Model) -> None:
    tv, yes = random_prints(2)[:, None]
    with Gallery.open(path, model) as gallery:
        gallery.enroll("ada", tv, sources=["tv.wav"], voiced_s=0.0, negative=True)
        gallery.enroll("ada", yes, sources=["yes.wav"], voiced_s=1.0)
        with pytest.raises(
            UsageError,
            match=r"gallery\.db: a sound of tv2\.wav is already a negative print of 'ada', .*gallery remove ada --gallery ",
        ):
            gallery.enroll("ada", [*random_prints(1), tv[0]], sources=["new.wav", "tv2.wav"], voiced_s=2.0)
        with pytest.raises(UsageError, match=r"a sound of yes2\.wav is already enrolled as 'ada'"):
            gallery.enroll("ada", yes, sources=["yes2.wav"], voiced_s=0.0, negative=True)
        with Gallery.open(tmp_path / "other.db", model, create=True) as other:
            other.enroll("ada", tv, sources=["tv3.wav"], voiced_s=1.0)
            for target, source, told in (
                (gallery, other, "tv3.wav is already a negative print of 'ada'"),
                (other, gallery, "tv.wav is already enrolled as 'ada'"),
            ):
                with pytest.raises(UsageError, match=told):
                    import_names(target, source)
            assert (other.names(), other.negatives()) == ({"ada": 1}, {})
        assert (gallery.names(), gallery.negatives()) == ({"ada": 4, "bob": 2}, {"ada": 1})
        assert gallery.match(yes[0]).name == "ada"


def test_a_print_is_enrolled_under_one_name(path: Path, model: Model) -> None:
    prints = random_prints(3)
    with Gallery.open(path, model) as gallery:
        ada = gallery.prints("ada")[0].embedding
        with pytest.raises(
            UsageError, match=r"gallery\.db: .* for 'eve' are already enrolled as 'ada', .* ada --gallery .*gallery\.db"
        ):
            gallery.enroll("eve", np.stack([prints[0], ada]), sources=["a", "b"], voiced_s=5.0)
        # the last of more than are asked for at once
        with pytest.raises(UsageError, match="for 'eve' are already enrolled as 'ada'"):
            gallery.enroll("eve", [*random_prints(700), ada], sources=["a"] * 701, voiced_s=5.0)
        assert gallery.names() == {"ada": 3, "bob": 2}
        assert gallery.enroll("ada", np.stack([prints[0], ada]), sources=["a", "b"], voiced_s=5.0) == 4
        assert gallery.enroll("bob", ada[None], sources=["tv"], voiced_s=5.0, negative=True) == 1
        assert gallery.match(ada).name == "ada"


def test_a_voice_is_enrolled_with_four_seconds_of_it(tmp_path: Path, model: Model) -> None:
    first, second, third, tv = random_prints(4)[:, None]
    with Gallery.open(tmp_path / "voices.db", model, create=True, kind="speaker") as gallery:
        with pytest.raises(AudioError, match=r"ada: these clips hold 3\.9 s of voice but 4 s are needed: 0\.1 s more"):
            gallery.enroll("ada", first, sources=["a"], voiced_s=3.99)
        assert gallery.names() == {}
        assert gallery.enroll("ada", tv, sources=["tv"], voiced_s=0.5, negative=True) == 1
        assert gallery.enroll("ada", first, sources=["a"], voiced_s=4.0) == 1
        assert gallery.enroll("ada", second, sources=["b"], voiced_s=0.5) == 2  # with what is there
        with pytest.raises(AudioError, match=r"hold 2\.0 s of voice but"):  # the seconds of a copy count once
            gallery.enroll("eve", np.concatenate([third] * 4), sources=list("cdef"), voiced_s=8.0)
        assert gallery.enroll("bell", third, sources=["c"], voiced_s=0.5, kind="sound") == 1  # no voice


@pytest.mark.parametrize("name", ["unknown", "Unknown", " UNKNOWN "])
def test_unknown_is_not_a_valid_name(path: Path, tmp_path: Path, model: Model, name: str) -> None:
    with Gallery.open(path, model) as gallery:
        with pytest.raises(UsageError, match="cannot be a name"):
            gallery.enroll(name, random_prints(1), sources=["one"], voiced_s=1.0)
        with pytest.raises(UsageError, match="cannot be a name"):
            gallery.rename("ada", name)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE names SET name = ? WHERE name = 'bob'", (name.strip(),))
    db.close()
    with pytest.raises(
        GalleryError, match=r"cannot be used as an answer \(.* cannot be a name: .* `confit-edge gallery rename`"
    ):
        Gallery.open(path, model)
    with Gallery.open(path) as old, Gallery.open(tmp_path / "new.db", model, create=True) as new:
        with pytest.raises(UsageError, match="cannot be a name"):
            import_names(new, old)
        assert new.names() == {}
        old.rename(name, "ben")
        assert import_names(new, old) == {"ada": (3, 0), "ben": (2, 0)}


def test_a_name_that_cannot_be_an_answer_is_listed_and_can_be_removed(tmp_path: Path, model: Model) -> None:
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


def test_file_names_that_are_not_text_are_kept_readably(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        gallery.enroll("eve", random_prints(1), sources=[os.fsdecode(b"caf\xe9.wav")], voiced_s=1.0)
        assert gallery.prints("eve")[0].source == "caf?.wav"
        gallery.enroll("eve", random_prints(1), sources=[Path("clips", "one.wav")], voiced_s=1.0)
        assert gallery.prints("eve")[1].source == str(Path("clips", "one.wav"))


# matching


def naive_match(
    prints: dict[str, Floats], cohort: Floats, query: Floats, threshold: float, margin: float
) -> tuple[str | None, list[tuple[float, str]]]:
    """Why the answer is unknown, if it is, and the names by score."""

    def cosine(u: Floats, v: Floats) -> float:
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    ranking = []
    for name, rows in prints.items():
        nearest = sorted(rows, key=lambda row: cosine(row, query), reverse=True)[:3]
        weights = [max(cosine(row, query), 0.0) for row in nearest]
        if not any(weights):
            weights = [1.0] * len(nearest)
        parts = [weight * row / np.linalg.norm(row) for weight, row in zip(weights, nearest, strict=True)]
        ranking.append((cosine(np.sum(parts, axis=0), query), name))
    ranking.sort(reverse=True)
    if ranking[0][0] < threshold:
        return "too low", ranking
    strangers = sorted((cosine(row, query) for row in cohort), reverse=True)[:3]
    if strangers and sum(strangers) / len(strangers) >= ranking[0][0]:
        return "stranger", ranking
    if len(ranking) > 1 and ranking[0][0] - ranking[1][0] < margin:
        return "too close", ranking
    return None, ranking


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    strangers=st.integers(0, 5),
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([-1.0, 0.2, 0.5]),
    margin=st.sampled_from([0.0, 0.1]),
)
def test_matching_is_the_naive_loops(
    counts: list[int], strangers: int, seed: int, threshold: float, margin: float
) -> None:
    rng = np.random.default_rng(seed)
    prints = {f"name{at}": rng.standard_normal((count, 4)).astype(np.float32) for at, count in enumerate(counts)}
    cohort = rng.standard_normal((strangers, 4)).astype(np.float32)
    query = rng.standard_normal(4).astype(np.float32)
    rows = np.concatenate([rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in prints.values()])
    owners = np.repeat(np.arange(len(counts)), counts)
    match = Matcher(list(prints), owners, rows, cohort, levels=Levels(threshold, margin)).match(query)
    reason, ranking = naive_match(prints, cohort, query, threshold, margin)
    assert (match.reason, match.nearest) == (reason, ranking[0][1])
    assert match.name == (ranking[0][1] if reason is None else None)
    assert match.score == pytest.approx(ranking[0][0], abs=1e-5)
    if len(ranking) > 1:
        assert match.runner_up == ranking[1][1]
        assert match.runner_up_score == pytest.approx(ranking[1][0], abs=1e-5)
        assert match.margin == pytest.approx(ranking[0][0] - ranking[1][0], abs=1e-5)
    else:
        assert (match.runner_up, match.runner_up_score, match.margin) == (None, None, None)


def test_levels_come_from_the_model_and_can_be_overridden(tmp_path: Path) -> None:
    model = load(
        tiny_model.build(
            tmp_path / "tiny.onnx", calibration={"enroll": {"kind": "sound", "threshold": 0.9, "margin": 0.15}}
        )
    )
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    query = (0.85 * east + np.sqrt(1 - 0.85**2) * np.eye(DIM, dtype=np.float32)[2]).astype(np.float32)
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("east", east[None], sources=["e"], voiced_s=1.0)
        gallery.enroll("north", (0.8 * east + 0.6 * north)[None], sources=["n"], voiced_s=1.0)
        assert gallery.match(east).name == "east"
        assert gallery.match(query).name is None
        assert gallery.match(query).score == pytest.approx(0.85)
    with Gallery.open(path, model, threshold=0.8, margin=0.1) as gallery:
        assert gallery.match(query).name == "east"
    with Gallery.open(path, model, threshold=0.8, margin=0.5) as gallery:
        assert gallery.match(query).name is None


def test_the_cohort_competes_as_the_unknown(tmp_path: Path) -> None:
    model = load(tiny_model.build(tmp_path / "tiny.onnx", cohort=np.eye(DIM, dtype=np.float32)[:1] * 5))
    query = np.float32([1.0, 0.9] + [0.0] * (DIM - 2))
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("north", np.eye(DIM, dtype=np.float32)[1:2], sources=["n"], voiced_s=1.0)
        assert gallery.match(query).name is None
        assert gallery.match(query[[1, 0, *range(2, DIM)]]).name == "north"


def test_lists_are_valid_embeddings_and_nonfinite_values_are_not(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        ada = gallery.prints("ada")[0].embedding
        assert gallery.match(ada.tolist()) == gallery.match(ada)
        assert gallery.enroll("eve", random_prints(1).tolist(), sources=["one"], voiced_s=1.0) == 1
        for bad in (np.nan, np.inf, -np.inf):
            query = [bad, *ada[1:].tolist()]
            for ask in (
                gallery.match,
                lambda query: gallery.matcher.verify("ada", query),
                lambda query: gallery.matcher.vetoes("low", query),
            ):
                with pytest.raises(UsageError, match="NaN or infinite"):
                    ask(query)
        with pytest.raises(UsageError, match=rf"an embedding \[{DIM}\]: must be numbers"):
            gallery.match("ada")


def test_nonfinite_embeddings_match_nobody(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        rows = np.repeat(gallery.prints("ada")[:1][0].embedding[None], 4, axis=0)
        assert [hit.row for hit in NameDetector(model.contract, gallery.matcher).push(rows)] == [1]
        rows[1] = np.nan
        assert [hit.row for hit in NameDetector(model.contract, gallery.matcher).push(rows)] == [3]


def test_an_empty_gallery_matches_nobody(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        match = gallery.match(random_prints(1)[0])
        assert (match.name, match.reason, match.nearest) == (None, "nobody", None)
        assert (match.score, match.runner_up) == (0.0, None)
        with pytest.raises(UsageError):
            gallery.match(random_prints(1))


def test_a_gallery_without_its_model_cannot_match(path: Path, model: Model) -> None:
    with Gallery.open(path) as gallery:
        assert gallery.embedding_id == model.contract.embedding_id
        with pytest.raises(UsageError, match="without its model"):
            gallery.match(random_prints(1)[0])
        assert gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0) == 1


def test_a_stream_keeps_the_names_it_was_made_with(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        matcher = gallery.matcher
        gallery.remove("ada")
        assert matcher.names == ("ada", "bob")
        assert gallery.matcher.names == ("bob",)


# what is not a gallery of ours


def test_a_missing_gallery_is_a_usage_error(tmp_path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match=r"gallery\.db: no such gallery.*enroll"):
        Gallery.open(tmp_path / "gallery.db", model)
    with pytest.raises(UsageError, match="is not a file"):
        Gallery.open(tmp_path, model, create=True)
    with pytest.raises(GalleryError, match=r"xxx\.db: cannot be looked up \(File name too long\)"):
        Gallery.open(tmp_path / f"{'x' * 300}.db", model)
    with pytest.raises(UsageError, match="no such folder"):
        Gallery.open(tmp_path / "nowhere" / "gallery.db", model, create=True)
    with pytest.raises(UsageError, match="needs the model"):
        Gallery.open(tmp_path / "gallery.db", create=True)
    with pytest.raises(UsageError, match=r"got 'digits': load\('digits'\) returns one"):
        Gallery.open(tmp_path / "gallery.db", "digits", create=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind must be speaker or sound, not 'voices'"):
        Gallery.open(tmp_path / "gallery.db", model, create=True, kind="voices")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    "content", [b"x", b"not a database\n", b"SQLite format 3\x00", bytes(5000), bytes(range(256)) * 40]
)
def test_a_file_that_is_not_sqlite(tmp_path: Path, model: Model, content: bytes, create: bool) -> None:
    path = tmp_path / "gallery.db"
    path.write_bytes(content)
    with pytest.raises(GalleryError, match=r"gallery\.db"):
        Gallery.open(path, model, create=create)
    assert path.read_bytes() == content


def test_another_programs_database(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photos (id)")
    db.close()
    with pytest.raises(GalleryError, match="not a confit-edge gallery"):
        Gallery.open(path, model, create=True)


def test_an_empty_file_becomes_a_gallery_only_when_asked(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    path.touch()
    with pytest.raises(GalleryError, match="is empty"):
        Gallery.open(path, model)
    with Gallery.open(path, model, create=True) as gallery:
        assert gallery.names() == {}


def test_a_gallery_of_another_model(path: Path, tmp_path: Path) -> None:
    for changes in ({"embedding_id": "another"}, {"name": "same embedding, other name"}):
        other = load(tiny_model.build(tmp_path / "other.onnx", **changes))
        if "embedding_id" in changes:
            with pytest.raises(GalleryError, match="another model"):
                Gallery.open(path, other)
        else:
            Gallery.open(path, other).close()


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (SCHEMA + 1, rf"newer confit-edge \(schema {SCHEMA + 1}; this version reads {SCHEMA}\): update confit-edge"),
        (SCHEMA - 1, rf"older confit-edge \(schema {SCHEMA - 1}; .*: enroll again into another --gallery"),
    ],
)
def test_a_gallery_of_another_schema_is_refused(path: Path, model: Model, schema: int, said: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {schema}")
    before = path.read_bytes()
    for opener in (model, None):
        with pytest.raises(GalleryError, match=said):
            Gallery.open(path, opener)
    assert path.read_bytes() == before


def test_a_gallery_that_is_of_a_newer_schema_while_it_is_open(
    path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with Gallery.open(path, model) as gallery:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(f"CREATE TABLE later (x); PRAGMA user_version = {SCHEMA + 1}")
        with pytest.raises(GalleryError, match=rf"newer confit-edge \(schema {SCHEMA + 1}.*restart this program"):
            gallery.remove("ada")
        assert gallery.matcher.enrolled == ["ada", "bob"]
        assert "newer confit-edge" in caplog.text


def test_a_gallery_in_use(path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_runtime.gallery_file.BUSY_TIMEOUT_S", 0.1)
    with Gallery.open(path, model) as gallery:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(GalleryError, match="in use by another program"):
            gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0)
        other.execute("ROLLBACK")
        other.close()
        assert gallery.enroll("eve", random_prints(1), sources=["one"], voiced_s=1.0) == 1


def test_while_another_program_holds_it_the_names_are_as_they_were(
    path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Who listens goes on, and hears of the change when it is done."""
    with Gallery.open(path, model) as gallery:
        before, other = gallery.matcher, sqlite3.connect(path, isolation_level=None)
        assert gallery.matcher is before
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE names SET name = 'eve' WHERE name = 'ada'")
        began = time.monotonic()
        assert gallery.matcher is before
        assert time.monotonic() - began < BUSY_TIMEOUT_S / 2  # sound does not wait
        assert all(gallery.matcher is before for _ in range(2))  # asked once per second, it does not fill the log
        (told,) = [record.message for record in caplog.records]
        assert "gallery.db: is in use by another program" in told
        other.execute("COMMIT")
        assert gallery.matcher.names == ("eve", "bob")
        other.execute("BEGIN EXCLUSIVE")
        assert gallery.matcher.names == ("eve", "bob")
        assert [record.message for record in caplog.records] == [told, told]  # it is another time
        other.close()


def replace_all(gallery: Gallery, model: Model) -> None:
    """Bind it to another model, with prints that say nothing."""
    held = {name: np.stack([one.embedding for one in gallery.prints(name)]) for name in gallery.names()}
    gallery.replace_prints(model, "sound", {name: (old, random_prints(len(old))) for name, old in held.items()})


def test_a_gallery_that_was_bound_to_another_model_meanwhile_is_refused(
    path: Path, tmp_path: Path, model: Model
) -> None:
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another"))
    with Gallery.open(path, model) as gallery, Gallery.open(path) as changed:
        assert gallery.matcher.names == ("ada", "bob")
        replace_all(changed, other)
        with pytest.raises(GalleryError, match="was enrolled with another model"):
            gallery.match(random_prints(1)[0])


def test_prints_are_replaced_atomically(path: Path, tmp_path: Path, model: Model) -> None:
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another"))
    new = random_prints(3)
    with Gallery.open(path, model) as gallery, Gallery.open(path) as meanwhile:
        ada, bob = (np.stack([one.embedding for one in gallery.prints(name)]) for name in ("ada", "bob"))
        for names in (
            {"ada": (ada, new)},  # and bob's stay of the old model
            {"ada": (ada, new), "bob": (bob[::-1], new[:2])},
            {"ada": (ada, new), "bob": (bob, new[:2]), "eve": (bob, new[:2])},
        ):
            with pytest.raises(GalleryError, match=r"gallery\.db: was changed meanwhile"):
                gallery.replace_prints(other, "sound", names)
        for bad in (new[:1], new[:2, :-1], new[:2] * np.nan):
            with pytest.raises(UsageError):
                gallery.replace_prints(other, "sound", {"ada": (ada, new), "bob": (bob, bad)})
        meanwhile.enroll("bob", random_prints(1), sources=["x"], voiced_s=1.0)
        with pytest.raises(GalleryError, match="was changed meanwhile"):
            gallery.replace_prints(other, "sound", {"ada": (ada, new), "bob": (bob, new[:2])})
        assert (gallery.embedding_id, gallery.match(ada[0]).name) == (model.contract.embedding_id, "ada")
        replace_all(gallery, other)
        assert gallery.embedding_id == "another"


def test_a_stream_follows_changes_of_its_gallery(tmp_path: Path, model: Model) -> None:
    """And nobody fires anew for it who is still in the refractory time."""
    path, bell = tmp_path / "gallery.db", tone(2600, 0.5)
    print_ = model.embed(bell, RATE)[None]
    said = np.concatenate([silence(1.5), bell, silence(1.0)])
    with Gallery.open(path, model, create=True) as gallery, Gallery.open(path) as other:
        stream = model.stream(gallery)

        def heard() -> list[str]:
            return [event.label for event in stream.accept(said, RATE)]

        assert heard() == []
        other.enroll("bell", print_, sources=["x"], voiced_s=0.5)
        assert heard() == ["bell"]
        other.rename("bell", "chime")
        assert heard() == ["chime"]
        other.remove("chime")
        assert heard() == []


def test_truncated_anywhere_is_a_gallery_error(path: Path, model: Model) -> None:
    data = path.read_bytes()
    for length in [*range(1, 200, 7), *range(200, len(data), 400), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(GalleryError, match=r"gallery\.db"):
            Gallery.open(path, model)


def test_damage_is_a_gallery_error_or_harmless(path: Path, model: Model) -> None:
    data, random_ = path.read_bytes(), random.Random(0)
    refusals = []
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(random_.randint(1, 8)):
            damaged[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(damaged)
        try:
            with Gallery.open(path, model) as gallery:
                for name in gallery.names():
                    gallery.prints(name)
                gallery.match(random_prints(1)[0])
        except GalleryError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(refusal.startswith(f"{path}: ") for refusal in refusals)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE prints SET embedding = zeroblob(8)",
        "UPDATE prints SET embedding = 'a text'",
        "UPDATE prints SET embedding = x'" + "ff" * 4 * DIM + "'",
        "UPDATE prints SET embedding = CAST(zeroblob(4) || substr(embedding, 5) AS BLOB)",  # a number of each is lost
        "DELETE FROM binding",
        "DROP TABLE names",
        "UPDATE binding SET dim = 'many'",
        "UPDATE names SET name = x'00ff' WHERE name = 'ada'",
        "UPDATE names SET name = 'ada' || char(27) || '[2J' WHERE name = 'ada'",
    ],
)
def test_contents_that_make_no_sense_are_a_gallery_error(path: Path, model: Model, damage: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with pytest.raises(GalleryError, match=r"gallery\.db"):
        Gallery.open(path, model)


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE TRIGGER t BEFORE DELETE ON prints BEGIN SELECT RAISE(IGNORE); END",  # who is removed stays
        "CREATE TRIGGER t AFTER INSERT ON names BEGIN UPDATE prints SET name_id = new.id; END",  # a print for any name
        "CREATE TABLE stash (embedding)",
        "CREATE INDEX longest ON prints (length(embedding))",
        "ALTER TABLE prints ADD COLUMN more TEXT",
        "DROP TABLE binding; CREATE VIEW binding AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)"
        " SELECT 'x' AS embedding_id, 1 AS dim, 'x' AS model, 'sound' AS kind FROM c WHERE n < 0",  # without an end
    ],
)
def test_foreign_schema_objects_are_rejected_and_not_run(path: Path, model: Model, planted: str) -> None:
    with Gallery.open(path, model) as listening:
        assert listening.names() == {"ada": 3, "bob": 2}
        with closing(sqlite3.connect(path)) as db:
            db.executescript(planted)
        for given in (model, None):
            with pytest.raises(GalleryError, match=r"gallery\.db: has '.*', which does not belong in a gallery"):
                Gallery.open(path, given)
        assert listening.matcher.names == ("ada", "bob")  # as they were
        with pytest.raises(GalleryError, match="does not belong in a gallery"):
            listening.remove("ada")


def test_a_file_with_the_statistics_of_sqlite_is_a_gallery_all_the_same(path: Path, model: Model) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("ANALYZE; PRAGMA optimize")
        assert ("sqlite_stat1",) in db.execute("SELECT name FROM sqlite_master").fetchall()
    with Gallery.open(path, model) as gallery:
        gallery.remove("ada")
        assert gallery.names() == {"bob": 2}
    assert b"ada" not in path.read_bytes()


# crashes and folders

ENROLLER = """
import sys
import numpy as np
from confit_runtime.detect import NameDetector
from confit_runtime.gallery import Gallery

with Gallery.open(sys.argv[1]) as gallery:
    rng, done = np.random.default_rng(), 0
    print("ready", flush=True)
    while True:
        prints = rng.standard_normal((2, gallery.dim)).astype(np.float32)
        gallery.enroll("ada", prints, sources=["a", "b"], voiced_s=1.0)
        done += 1
        print(done, flush=True)
"""


def test_killing_it_loses_nothing_that_was_enrolled(path: Path, model: Model) -> None:
    random_ = random.Random(1)
    for _ in range(20):
        with Gallery.open(path, model) as gallery:
            before = gallery.names()["ada"]
        with subprocess.Popen([sys.executable, "-c", ENROLLER, str(path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(random_.uniform(0.0, 0.1))
            child.kill()
            acknowledged = sum(line.endswith("\n") for line in child.stdout)
        with Gallery.open(path, model) as gallery:
            added = gallery.names()["ada"] - before
            assert added in (2 * acknowledged, 2 * acknowledged + 2)
            assert len(gallery.prints("ada")) == before + added
            assert gallery.names()["bob"] == 2


IMPORTS = """
import numpy as np
import numpy.ma  # numpy loads it late, when a user of no rights may not be able to
import urllib.parse  # and so does pathlib
from pathlib import Path
from confit_runtime import GalleryError, load
from confit_runtime.detect import NameDetector
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names

path, model = sys.argv[1], load(sys.argv[2])
"""
WRITER = as_nobody(
    IMPORTS,
    """
for make in (
    lambda at: Gallery.open(at, model, create=True),
    lambda at: export_names(Gallery.open(path), [], at),
):
    try:
        make(Path(path).with_name("new.db"))
    except GalleryError as error:
        print(error)
""",
)
READER = as_nobody(
    IMPORTS,
    """
with Gallery.open(path, model) as gallery:
    print(gallery.names(), flush=True)
    sys.stdin.readline()
    print(gallery.matcher.enrolled, gallery.names(), gallery.match(gallery.prints("ada")[0].embedding).name)
    try:
        gallery.enroll("eve", np.ones((1, gallery.dim), np.float32), sources=["one"], voiced_s=1.0)
    except GalleryError as error:
        print(error)
""",
)


@pytest.mark.parametrize(("of_folder", "of_file"), [(0o555, 0o644), (0o555, 0o666), (0o777, 0o644)])
def test_a_read_only_file_or_folder_is_opened_for_reading(
    path: Path, tiny: Path, public_folder: Path, of_folder: int, of_file: int
) -> None:
    gallery, model = public_folder / "gallery.db", public_folder / "tiny.onnx"
    shutil.copyfile(path, gallery)
    shutil.copyfile(tiny, model)
    gallery.chmod(of_file)
    public_folder.chmod(of_folder)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, gallery, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "{'ada': 3, 'bob': 2}\n"
    public_folder.chmod(0o755)
    with Gallery.open(gallery) as other:
        other.remove("bob")
    public_folder.chmod(of_folder)
    said, _ = reader.communicate("go on\n", timeout=60)
    assert said.splitlines() == [
        "['ada'] {'ada': 3} ada",
        f"{gallery}: cannot be changed: the file or its folder is read-only",
    ]
    assert sorted(public_folder.iterdir()) == [gallery, model]


def test_voices_are_for_their_keepers_eyes(tmp_path: Path, model: Model) -> None:
    """Whatever the umask; what others were let read by hand they may read on."""
    path, carried, linked = tmp_path / "gallery.db", tmp_path / "ada.db", tmp_path / "linked.db"
    linked.symlink_to(tmp_path / "elsewhere.db")
    former = os.umask(0)
    try:
        for at in (path, linked):
            with Gallery.open(at, model, create=True) as gallery:
                with gallery.change():
                    gallery.enroll("ada", random_prints(2), sources=["a1", "a2"], voiced_s=2.5)
                    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir() if file.exists()}
                assert set(modes.values()) == {0o600}, modes
                assert at.resolve().with_name(at.resolve().name + "-journal").name in modes
        with Gallery.open(path) as gallery:
            export_names(gallery, [], carried)
        assert carried.stat().st_mode & 0o777 == 0o600
        path.chmod(0o640)
        with Gallery.open(path, model, create=True) as gallery:
            gallery.enroll("bob", random_prints(1), sources=["b1"], voiced_s=1.0)
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(former)


def test_the_file_is_opened_as_one_that_must_survive_and_may_be_hostile(path: Path) -> None:
    expected = {
        "synchronous": 2,  # FULL: what was acknowledged is on the disk
        "secure_delete": 1,  # whoever is forgotten is overwritten
        "foreign_keys": 1,
        "temp_store": 2,  # MEMORY: no print in a file elsewhere
        "trusted_schema": 0,
        "cell_size_check": 1,
    }
    with Gallery.open(path) as gallery, gallery._file.reading() as db:
        assert {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in expected} == expected


def test_a_gallery_is_not_made_where_nothing_can_be_written(path: Path, tiny: Path, public_folder: Path) -> None:
    made, model = public_folder / "made.db", public_folder / "tiny.onnx"
    shutil.copyfile(path, made)
    shutil.copyfile(tiny, model)
    public_folder.chmod(0o555)
    command = [sys.executable, "-c", WRITER, made, model]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith(f"{public_folder}: the folder is not writable")
    assert sorted(public_folder.iterdir()) == [made, model]


def test_a_read_only_folder_with_a_change_cut_short_is_refused(path: Path, tiny: Path, public_folder: Path) -> None:
    """Half a change must be rolled back before it may be read, and here it cannot be."""
    gallery, model = public_folder / "gallery.db", public_folder / "tiny.onnx"
    shutil.copyfile(path, gallery)
    shutil.copyfile(tiny, model)
    (public_folder / "gallery.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    public_folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", READER, gallery, model],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "GalleryError" in done.stderr
    assert "open it once with write permission" in done.stderr


def test_prints_of_a_name_that_was_enrolled_in_several_sittings_stay_its_own(tmp_path: Path, model: Model) -> None:
    axes = np.eye(DIM, dtype=np.float32)
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        for sitting, (name, axis) in enumerate([("ada", 0), ("bob", 1)] * 3):
            for sign in (1, -1):  # negative prints too
                print_ = sign * (axes[axis] + 0.1 * axes[2 + sitting])[None]
                gallery.enroll(name, print_, sources=["x"], voiced_s=1.0, negative=sign < 0)
        for name in ("ada", "bob"):
            for one in gallery.prints(name):
                if one.negative:
                    assert gallery.matcher.vetoes(name, one.embedding)
                else:
                    assert gallery.match(one.embedding).nearest == name


def test_a_change_is_waited_for_before_anything_is_read(path: Path) -> None:
    """For what is read in a change must still hold when it is written."""
    with Gallery.open(path) as gallery, gallery.change():
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_a_name_of_negative_prints_only_is_taken(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        gallery.enroll("low", random_prints(1), sources=["tv"], voiced_s=0.0, negative=True)
        with pytest.raises(UsageError, match="'low' is already enrolled"):
            gallery.rename("ada", "low")
        assert gallery.names() == {"ada": 3, "bob": 2}


def test_negative_prints_have_no_owner(path: Path, model: Model) -> None:
    with Gallery.open(path, model) as gallery:
        gallery.enroll("low", random_prints(1), sources=["tv"], voiced_s=0.0, negative=True)
        (negative,) = gallery.blobs("low", negative=True)
        assert gallery.owners([negative, *gallery.blobs("ada", negative=False)]) == {"ada"}


# calibrated thresholds in streams


def test_a_calibrated_threshold_holds_in_streams_until_the_prints_change(tmp_path: Path, model: Model) -> None:
    east, north, up = np.eye(DIM, dtype=np.float32)[:3]
    near = (0.9 * east + np.sqrt(0.19) * up).astype(np.float32)
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("east", east[None], sources=["e"], voiced_s=1.0)
        gallery.enroll("north", north[None], sources=["n"], voiced_s=1.0)
        assert gallery.matcher.match(near, in_stream=True).name == "east"
        assert gallery.matcher.stream_threshold("east") == pytest.approx(0.8)  # halfway from the model's 0.6 to 1
        gallery.calibrate({"east": 0.95}, 0.5, "2026-01-31")
        answer = gallery.matcher.match(near, in_stream=True)
        assert (answer.name, answer.reason, answer.threshold) == (None, "too low", 0.95)
        assert gallery.match(near).name == "east"  # of a clip
        assert gallery.calibrated() == {"east": NameCalibration(0.95, 0.5, "2026-01-31")}
        assert gallery.matcher.stream_threshold("north") == pytest.approx(0.8)

        gallery.rename("east", "orient")
        gallery.enroll("orient", up[None], sources=["tv"], voiced_s=1.0, negative=True)
        assert list(gallery.calibrated()) == ["orient"]
        with Gallery.open(path, model, thresholds={"orient": 0.7}) as by_hand:
            assert by_hand.matcher.stream_threshold("orient") == 0.7
        with Gallery.open(path, model, threshold=0.65) as by_hand:
            assert by_hand.matcher.stream_threshold("orient") == 0.65
        export_names(gallery, [], tmp_path / "out.db")
        with Gallery.open(tmp_path / "out.db") as other:
            assert other.calibrated() == {}
        gallery.enroll("orient", near[None], sources=["more"], voiced_s=1.0)
        assert gallery.calibrated() == {}

        gallery.calibrate({"orient": 0.9, "north": 0.9}, 1.0, "2026-01-31")
        assert gallery.uncalibrate(["north"]) == ["north"]
        gallery.remove("orient")
        assert gallery.uncalibrate() == []
        with pytest.raises(UsageError, match="nobody is enrolled as 'orient'"):
            gallery.calibrate({"orient": 0.9}, 1.0, "2026-01-31")
        with pytest.raises(UsageError, match="similarity from -1 to 1"):
            gallery.calibrate({"north": 1.5}, 1.0, "2026-01-31")
        with pytest.raises(UsageError, match=r"from -1 to 1, not '0\.5'"):
            gallery.calibrate({"north": "0.5"}, 1.0, "2026-01-31")  # type: ignore[dict-item]


def test_a_damaged_calibration_is_reported(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("east", np.eye(DIM, dtype=np.float32)[:1], sources=["e"], voiced_s=1.0)
        gallery.calibrate({"east": 0.95}, 0.5, "2026-01-31")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE calibrated SET threshold = 'high'")
    with pytest.raises(GalleryError, match="is damaged"):
        Gallery.open(path, model)


def test_the_level_of_streams_is_that_of_sounds_only(tmp_path: Path, tiny: Path) -> None:
    changed = {"kind": "sound", "threshold": 0.6, "stream_threshold": 0.9}
    for kind, enroll, expected in (
        ("sound", changed, 0.9),
        ("speaker", changed, 0.6),  # a gallery of voices with this model
        ("sound", {"kind": "sound", "threshold": 0.6, "stream_threshold": 0.5}, 0.6),  # no lower than for a clip
        ("speaker", {"kind": "speaker", "threshold": 0.6}, 0.6),
    ):
        model = load(tiny_model.build(tmp_path / "tiny.onnx", calibration={"enroll": enroll}))
        path = tmp_path / f"{kind}-{expected}-{len(enroll)}.db"
        with Gallery.open(path, model, create=True, kind=kind) as gallery:
            gallery.enroll("east", np.eye(DIM, dtype=np.float32)[:1], sources=["e"], voiced_s=5.0)
            assert gallery.matcher.stream_threshold("east") == pytest.approx(expected)
            if expected == 0.9:  # sixteen times as many prints as three: half as far from 1
                more = np.eye(DIM, dtype=np.float32)[:1] + np.linspace(0.01, 0.1, 47)[:, None] * np.ones(DIM)
                gallery.enroll("east", more.astype(np.float32), sources=["e"] * 47, voiced_s=5.0)
                assert gallery.matcher.stream_threshold("east") == pytest.approx(0.95)
