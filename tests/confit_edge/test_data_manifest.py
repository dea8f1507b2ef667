"""Reading and writing manifests: what is accepted, what is refused and how, and what a fingerprint sees."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_edge.data.manifest import Clip, Manifest, read_manifest, sound_files, write_manifest
from confit_edge.data.tables import ManifestError
from confit_runtime.errors import ConfitError, UsageError

WORDS = Path(__file__).parents[2] / "confit_edge" / "demo" / "data" / "words" / "manifest.csv"
SHARED_FOLDER = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def rows(manifest: Manifest) -> list[tuple[str, tuple[str, ...], str, str | None]]:
    return [(clip.path.name, clip.labels, clip.group, clip.split) for clip in manifest.clips]


def test_csv_paths_start_at_the_manifest_and_extra_columns_are_ignored(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.wav"
    manifest = read_manifest(
        write(
            tmp_path / "m" / "m.csv",
            f"path,label,group,split,speed\nx/a.wav,yes,ann,train,1\n../b.wav,no,bob,,2\n{outside},no,,test,3\n",
        )
    )
    assert [clip.path for clip in manifest.clips] == [tmp_path / "m/x/a.wav", tmp_path / "b.wav", outside]
    assert [clip.label for clip in manifest.clips] == ["yes", "no", "no"]
    assert [clip.group for clip in manifest.clips] == ["ann", "bob", "../elsewhere.wav"]
    assert [clip.split for clip in manifest.clips] == ["train", None, "test"]
    assert manifest.classes == ["no", "yes"]
    assert not manifest.multi_label
    assert len(manifest.select("train")) == 1
    with pytest.raises(UsageError, match="'dev' is not one of train, val, test"):
        manifest.select("dev")


def test_bom_crlf_blank_lines_and_padded_cells_are_tolerated(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv", "\ufeff\r\npath, label ,group\r\na.wav, yes ,g\r\n\r\n  \r\n,,\r\nb.wav,no,h\r\n\r\n"
    )
    assert rows(read_manifest(path)) == [("a.wav", ("yes",), "g", None), ("b.wav", ("no",), "h", None)]


def test_jsonl_and_parquet_read_as_the_same_csv_does(tmp_path: Path) -> None:
    table = [
        {"path": "a.wav", "label": "1", "group": "g", "split": "train"},
        {"path": "b.wav", "label": "2", "group": "h", "split": None},
    ]
    csv = write(tmp_path / "m.csv", "path,label,group,split\na.wav,1,g,train\nb.wav,2,h,\n")
    numbers = [{**row, "label": int(str(row["label"])), "bytes": "\u2028"} for row in table]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in numbers)
    jsonl = write(tmp_path / "m.jsonl", f"\ufeff{lines}\r\n\r\n")
    pq.write_table(pa.Table.from_pylist(numbers), tmp_path / "m.parquet")
    expected = read_manifest(csv).clips
    assert read_manifest(jsonl).clips == expected
    assert read_manifest(tmp_path / "m.parquet").clips == expected


def test_labels_joined_by_a_bar_make_it_multi_label(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,labels\na.wav,dog| cat |dog\nb.wav,\nc.wav,cat\n")
    manifest = read_manifest(path)
    assert manifest.multi_label
    assert [clip.labels for clip in manifest.clips] == [("dog", "cat"), (), ("cat",)]
    assert [clip.label for clip in manifest.clips] == ["dog", "", "cat"]
    assert manifest.classes == ["cat", "dog"]
    lists = write(tmp_path / "m.jsonl", '{"path": "a", "labels": ["dog", "cat"]}\n{"path": "b", "labels": []}\n')
    assert [clip.labels for clip in read_manifest(lists).clips] == [("dog", "cat"), ()]
    both = write(tmp_path / "both.csv", "path,label,labels\na.wav,x,dog|cat\nb.wav,y,\n")
    assert [clip.labels for clip in read_manifest(both).clips] == [("x",), ("y",)]
    assert read_manifest(both, label_column="labels").multi_label


def test_the_same_letters_typed_two_ways_are_one_class(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,label\na.wav,caf\u00e9\nb.wav,cafe\u0301\nc.wav,tea\n")
    assert read_manifest(path).classes == ["caf\u00e9", "tea"]


@pytest.mark.parametrize("spelt", ["unknown", "Unknown", "UNKNOWN", "_unknown_"])
def test_the_reserved_label_is_one_however_it_is_spelt(tmp_path: Path, spelt: str) -> None:
    path = write(tmp_path / "m.csv", f"path,label\na.wav,{spelt}\nb.wav,unknown\nc.wav,tea\n")
    assert read_manifest(path).classes == ["tea", "unknown"]
    several = write(tmp_path / "n.csv", f"path,labels\na.wav,{spelt}\nb.wav,tea\n")
    assert [clip.labels for clip in read_manifest(several).clips] == [(), ("tea",)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep names as Unicode")
def test_names_that_are_not_utf8_are_all_reported_at_once(tmp_path: Path) -> None:
    for name in (b"caf\xe9.wav", b"th\xe9.wav"):
        folder = os.path.join(os.fsencode(tmp_path), b"drink")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb"):
            pass
    with pytest.raises(ManifestError, match=r"caf\\xe9\.wav', b'drink/th\\xe9\.wav'; rename them"):
        read_manifest(tmp_path)


def test_a_folder_per_class(tmp_path: Path) -> None:
    sounds = ["no/b.wav", "no/a.FLAC", "yes/ann/1.ogg", "yes/ann/deeper/2.ogg", "no/ann/3.wav", "yes/phone.m4a"]
    others = ["README.md", "manifest.txt", "top.wav", "yes/notes.txt", "yes/.hidden.wav", ".git/x.wav", "docs/a.md"]
    for name in [*sounds, *others, "no/._b.wav", "no/.cache/x.wav"]:
        write(tmp_path / "set" / name, "")
    manifest = read_manifest(tmp_path / "set")
    assert [
        (clip.path.relative_to(tmp_path / "set").as_posix(), clip.label, clip.group) for clip in manifest.clips
    ] == [
        ("no/a.FLAC", "no", "no/a.FLAC"),
        ("no/ann/3.wav", "no", "ann"),
        ("no/b.wav", "no", "no/b.wav"),
        ("yes/ann/1.ogg", "yes", "ann"),
        ("yes/ann/deeper/2.ogg", "yes", "ann"),
        ("yes/phone.m4a", "yes", "yes/phone.m4a"),
    ]
    assert {clip.split for clip in manifest.clips} == {None}
    (tmp_path / "set" / "manifest.txt").unlink()
    with pytest.raises(UsageError, match="no column 'speaker'"):
        read_manifest(tmp_path / "set", group_column="speaker")


def test_folders_that_are_links_are_read_as_others_and_a_loop_once(tmp_path: Path) -> None:
    for name in ["far/ann/1.wav", "far/bob/2.wav", "set/no/cyd/3.wav"]:
        write(tmp_path / name, "")
    (tmp_path / "set" / "yes").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "no" / "dan").symlink_to(tmp_path / "far" / "ann")  # two links to one folder are no loop
    (tmp_path / "far" / "bob" / "up").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "no" / "cyd" / "up").symlink_to(tmp_path / "set")
    manifest = read_manifest(tmp_path / "set")
    assert [
        (clip.path.relative_to(tmp_path / "set").as_posix(), clip.label, clip.group) for clip in manifest.clips
    ] == [
        ("no/cyd/3.wav", "no", "cyd"),
        ("no/dan/1.wav", "no", "dan"),
        ("yes/ann/1.wav", "yes", "ann"),
        ("yes/bob/2.wav", "yes", "bob"),
    ]
    assert [path.name for path in sound_files(tmp_path / "far", "--background")] == ["1.wav", "2.wav"]


def test_a_folder_can_be_read_by_group(tmp_path: Path) -> None:
    for name in ["on/ann/1.wav", "off/ann/1.wav", "on/bob/1.wav", "off/bob/1.wav"]:
        write(tmp_path / name, "")
    manifest = read_manifest(tmp_path, label_column="group", split_by="label")
    assert sorted((clip.label, clip.group) for clip in manifest.clips) == [
        ("ann", "off"),
        ("ann", "on"),
        ("bob", "off"),
        ("bob", "on"),
    ]


def test_a_group_may_turn_the_direction_of_a_line_and_a_label_may_not(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,group\na,x,\u202bg\nb,y,h\n", encoding="utf-8")
    assert [clip.group for clip in read_manifest(tmp_path / "m.csv").clips] == ["\u202bg", "h"]


def test_folders_that_hold_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no sub-folder with sound files"):
        read_manifest(tmp_path)
    write(tmp_path / "train" / "yes" / "a.wav", "")
    write(tmp_path / "test" / "yes" / "a.wav", "")
    with pytest.raises(ManifestError, match=r"sub-folders are splits \(test, train\)"):
        read_manifest(tmp_path)


def test_sounds_next_to_the_class_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "loose.wav", "")
    with pytest.raises(
        ManifestError, match=r"per class; its sound files \(1, such as loose.wav\) are not in a sub-folder"
    ):
        read_manifest(tmp_path)
    for name in ("yes/a.wav", "no/b.wav", "notes.txt"):
        write(tmp_path / name, "")
    assert read_manifest(tmp_path).classes == ["no", "yes"]
    assert "left out sound files outside the class folders, which have no class (1, such as loose.wav)" in caplog.text


def test_columns_that_are_exchanged_or_have_no_names_are_reported(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, "")
    write(tmp_path / "m.csv", "path,label\nyes,a.wav\nyes,b.wav\n")
    with pytest.raises(ManifestError, match="are the columns path and label swapped"):
        read_manifest(tmp_path / "m.csv")
    write(tmp_path / "m.csv", "a.wav,yes\nb.wav,no\n")
    with pytest.raises(UsageError, match="its first line is a clip: add a header line above it"):
        read_manifest(tmp_path / "m.csv")


def test_voices_of_the_demo_words_are_split_by_word() -> None:
    by_word = read_manifest(WORDS)
    assert (len(by_word), len(by_word.classes), len({clip.group for clip in by_word.clips})) == (1620, 30, 54)
    assert {clip.split for clip in by_word.clips} == {"train", "val", "test"}
    by_voice = read_manifest(WORDS, label_column="group", split_by="label")
    assert (len(by_voice), len(by_voice.classes), len({clip.group for clip in by_voice.clips})) == (1620, 54, 30)
    assert {clip.split for clip in by_voice.clips} == {None}
    assert {(a.label, a.group) for a in by_voice.clips} == {(b.group, b.label) for b in by_word.clips}


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("path,word,group\na,x,g\n", {}, r"no column 'label' \(or 'labels'\) \(columns: path, word, group\)"),
        ("path;label\na;x\n", {}, r"no column 'path' \(columns: path;label\)"),
        ("path,label\na,x\n", {"label_column": "word"}, "no column 'word'"),
        ("path,label\na,x\n", {"label_column": "group", "split_by": "label"}, "no column 'group'"),
        ("path,label\na,x\n", {"group_column": "speaker"}, "no column 'speaker'"),
        ("path,label\na,x\n", {"split_by": "day"}, "no column 'day'"),
        ("path,label,group\na,x,g\n", {"label_column": "group"}, "both label and group.*--split-by"),
        ("path,label,group\na,x,g\n", {"split_by": "label"}, "'label' is the label"),
    ],
)
def test_a_missing_column_is_wrong_usage(tmp_path: Path, text: str, options: dict[str, str], says: str) -> None:
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(UsageError, match=says) as raised:
        read_manifest(path, **options)
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("name", ["calls of May.csv", "calls.jsonl", "calls.parquet"])
def test_a_table_of_times_is_no_manifest(tmp_path: Path, name: str) -> None:
    """Each row would teach a whole recording as the one call in it."""
    row = {"path": "night.wav", "start_s": "0.5", "end_s": "1.2", "label": "owl"}
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write(path, json.dumps(row) if path.suffix == ".jsonl" else f"{','.join(row)}\n{','.join(row.values())}\n")
    with pytest.raises(UsageError, match=r"has the column start_s.*`confit-edge data cut \S.*-o FOLDER`") as raised:
        read_manifest(path, min_classes=1)
    assert shlex.quote(str(path.with_suffix(".csv"))) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.csv", "", "is empty"),
        ("m.csv", "path,label\n", "lists no clips"),
        ("m.csv", "path,label\na,x\nb,x\n", r"only one class \(x\)"),
        ("m.csv", "path,labels\na,\nb,\n", r"only one class \(none\)"),
        ("m.csv", "path,label\na,x\n\nb,\n", "line 4: label is empty"),
        ("m.csv", "path,label\na,x\n ,y\n", "line 3: path is"),
        ("m.csv", "path,label,split\na,x,train\nb,y,dev\n", "line 3: split 'dev' is not one of train, val, test"),
        ("m.csv", "path,label\na,x\nb,y,z\n", "line 3: has 3 cells, but the header has 2"),
        ("m.csv", "path,label,group\na,x,g\nb,y\n", "line 3: has 2 cells, but the header has 3"),
        ("m.csv", 'path,label\na,x\nb,"y\n', "line 3: is not CSV"),
        ("m.csv", "path,label,label\na,x,y\n", "more than one column is called 'label'"),
        ("m.csv", "path,label\na,x\nb,y\nd/../a,y\n", "line 4: a is listed as 'x' and as 'y' .first at line 2"),
        ("m.csv", "path,label\na,x\nb,y\na,x\n", "line 4: a is listed twice .first at line 2"),
        ("m.csv", "path,label\na,x\nb,y\x07\n", "line 3: label 'y.x07' contains a control character"),
        (
            "m.csv",
            "path,label\na,x\nb,y\u202ez\n",
            "line 3: label 'y.u202ez' contains invisible .* change its direction",
        ),
        ("m.csv", "path,labels\na,x\nb,y|z\u2069\n", "line 3: labels 'z.u2069' contains invisible marks .*; rename it"),
        (
            "m.csv",
            "path,label\na,x\nb,x|y\n",
            "line 3: label 'x.y' contains a vertical bar, .*call the column `labels`",
        ),
        (
            "m.csv",
            "path,labels\na,x\nb,y|Unknown\n",
            "line 3: labels 'y.unknown' combines unknown, .* with another label",
        ),
        ("m.csv", 'path,labels\na,x\nb,y\nc,"x, y"\n', r"line 4: labels 'x, y' is read as one class, .* bar \(x.y\)"),
        (
            "m.csv",
            "path,labels\na,y;x;z\nb,y\nc,x\nd,z\n",
            r"line 2: labels 'y;x;z' is read as one class, .* bar \(y.x.z\)",
        ),
        ("m.jsonl", '{"path": "a", "label": "x"}\n{"path": "b"}\n', "line 2: label is empty"),
        ("m.jsonl", '{"path": "a", "label": "x"}\n{"label": "y"}\n', "line 2: path is empty"),
        ("m.jsonl", '{"path": "a", "label": 0.5}\n', "line 1: label must be text, got 0.5"),
        ("m.jsonl", '{"path": "a", "label": true}\n', "line 1: label must be text, got True"),
        ("m.jsonl", '{"path": "a", "labels": ["x|y"]}\n', "line 1: a label contains a vertical bar"),
        ("m.jsonl", '{"path": 3, "label": "x"}\n', "line 1: path is 3"),
        ("m.jsonl", '{"path": "\\ud800", "label": "x"}\n', "line 1: path .* not Unicode"),
        ("m.jsonl", '{"path": "a"\n', "line 1: is not JSON"),
        ("m.jsonl", "[" * 100_000, "line 1: is not JSON"),
        ("m.jsonl", "3\n", "line 1: expected one JSON object per line"),
        ("m.parquet", "PAR1PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_faulty_table_names_its_row(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ManifestError, match=says) as raised:
        read_manifest(path)
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "rows",
    [
        'a,Speech\nb,"Speech, male"\nc,"Speech, female"\n',  # a part is no label of its own
        'a,x\nb,y\nc,"x,y"\nd,x|y\n',  # how labels are joined is known here
        'a,x\nb,"x,"\n',
    ],
)
def test_a_comma_may_stand_in_a_label(tmp_path: Path, rows: str) -> None:
    assert any("," in label for label in read_manifest(write(tmp_path / "m.csv", f"path,labels\n{rows}")).classes)


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b"], "label": ["x", ""]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="row 2: label is empty"):
        read_manifest(tmp_path / "m.parquet")


def test_what_is_no_manifest_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such manifest"):
        read_manifest(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match=r"expected a \.csv, \.jsonl or \.parquet"):
        read_manifest(write(tmp_path / "m.xlsx", "x"))
    (tmp_path / "m.csv").write_bytes("path,label\na,é\n".encode("utf-16"))
    with pytest.raises(ManifestError, match="is not UTF-8"):
        read_manifest(tmp_path / "m.csv")


@SHARED_FOLDER
@given(st.sampled_from(["m.csv", "m.jsonl", "m.parquet"]), st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_confit_errors(tmp_path: Path, name: str, data: bytes) -> None:
    for content in (data, b"path,label\n" + data, b"PAR1" + data + b"PAR1"):
        (tmp_path / name).write_bytes(content)
        try:
            read_manifest(tmp_path / name)
        except ConfitError as error:
            assert str(tmp_path / name) in str(error)  # noqa: PT017


cells = st.text(st.sampled_from('ab,"|\n\r\t \ufeff\0é\u0301'), max_size=6)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | cells, st.lists, max_leaves=4)
names = st.sampled_from(["path", "label", "labels", "group", "split"])


@SHARED_FOLDER
@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=5))
def test_arbitrary_csv_text_raises_nothing_but_confit_errors(tmp_path: Path, table: list[list[str]]) -> None:
    path = write(tmp_path / "m.csv", "path,label,group\n" + "\n".join(",".join(row) for row in table))
    try:
        manifest = read_manifest(path)
    except ConfitError:
        return
    assert all(clip.label and clip.group for clip in manifest.clips)


@SHARED_FOLDER
@given(st.lists(st.dictionaries(names, values), max_size=4))
def test_arbitrary_json_objects_raise_nothing_but_confit_errors(tmp_path: Path, table: list[dict[str, object]]) -> None:
    path = write(tmp_path / "m.jsonl", "\n".join(json.dumps(row) for row in table))
    try:
        manifest = read_manifest(path)
    except ConfitError:
        return
    assert len({clip.path for clip in manifest.clips}) == len(manifest)


word = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8).filter(lambda s: s.strip() == s)


@SHARED_FOLDER
@given(
    st.lists(st.tuples(word, st.lists(word, max_size=3), word, st.sampled_from([None, "train", "val"])), max_size=6),
    st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path: Path, table: list[tuple[str, list[str], str, str]], multi: bool
) -> None:
    lines = [
        {"path": f"sounds/{path}", "labels" if multi else "label": labels if multi else "+".join(labels)}
        | {"group": group, "split": split}
        for path, labels, group, split in table
    ]
    source = write(tmp_path / "in" / "m.jsonl", "\n".join(map(json.dumps, lines)))
    try:
        manifest = read_manifest(source)
    except ConfitError:
        return  # two rows of one path, one class only, ...: refused, as tested above
    out = tmp_path / "out" / "made" / "m.csv"
    write_manifest(manifest, out)
    assert read_manifest(out) == replace(manifest, source=out)


def test_writing_leaves_the_old_file_alone_when_it_fails(tmp_path: Path) -> None:
    out = write(tmp_path / "m.csv", "old")
    clip = Clip(tmp_path / "\udce9.wav", ("x",), "g", None)  # a file name that is not Unicode
    with pytest.raises(UsageError, match=r"the name b'\\xe9.wav' in it is not UTF-8; rename it"):
        write_manifest(Manifest((clip,), out, multi_label=False), out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]
    with pytest.raises(ManifestError, match="cannot be written"):
        write_manifest(Manifest((), out, multi_label=False), out / "below-a-file.csv")


def test_the_fingerprint_sees_content_and_labels_but_not_place_name_or_order(tmp_path: Path) -> None:
    lines = [f"{i}.wav,{'xy'[i % 2]},g{i},{'train' if i < 3 else 'val'}" for i in range(6)]
    for i in range(6):
        write(tmp_path / "a" / f"{i}.wav", f"sound {i}")
    path = write(tmp_path / "a" / "m.csv", "\n".join(["path,label,group,split", *lines]))
    first = read_manifest(path).fingerprint()
    assert first == read_manifest(path).fingerprint()

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read_manifest(tmp_path / "b" / "m.csv").fingerprint() == first
    random.Random(0).shuffle(lines)
    write(path, "\n".join(["path,label,group,split", *lines]))
    assert read_manifest(path).fingerprint() == first
    write_manifest(read_manifest(path), tmp_path / "c" / "other.csv")
    assert read_manifest(tmp_path / "c" / "other.csv").fingerprint() == first

    for old, new in (("0.wav,x", "0.wav,y"), ("g0", "g9"), ("g0,train", "g0,test")):
        write(path, "\n".join(["path,label,group,split", *lines]).replace(old, new))
        assert read_manifest(path).fingerprint() != first
    write(path, "\n".join(["path,label,group,split", *lines]))
    write(tmp_path / "a" / "0.wav", "sound X")  # of the same size
    assert read_manifest(path).fingerprint() != first


def test_the_fingerprint_of_a_folder_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    for name in ("x/1.wav", "x/2.wav", "y/1.wav"):
        write(tmp_path / "here" / name, name)
    shutil.copytree(tmp_path / "here", tmp_path / "far" / "away")
    assert read_manifest(tmp_path / "here").fingerprint() == read_manifest(tmp_path / "far" / "away").fingerprint()


def test_a_folder_above_that_of_the_classes_is_answered_with_the_one_to_give(tmp_path: Path) -> None:
    for word in ("no", "yes"):
        write(tmp_path / "dataset" / word / "1.wav", "")
    with pytest.raises(
        ManifestError, match=rf"if no, yes are the classes, give {re.escape(str(tmp_path / 'dataset'))}; "
    ):
        read_manifest(tmp_path)
    shutil.rmtree(tmp_path / "dataset" / "no")  # what is left looks like a class of one speaker
    with pytest.raises(ManifestError, match="needs at least two: add clips"):
        read_manifest(tmp_path)
