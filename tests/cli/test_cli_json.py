"""What verbs print with --json is what docs/json.md says: what every other test here prints is held against it, too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import tiny_model
from tests.cli.command import Confit
from tests.cli.json_lines import KEYS, LINES, check_line
from tests.tiny_model import chord, silence, tone

ROOT = Path(__file__).parents[2]
BELL = (300.0, 2600.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, clips one of which is no sound, a labelled recording, and a name that is enrolled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFIT_EDGE_CACHE", str(tmp_path / "cache"))
    tiny_model.build(tmp_path / "tiny.onnx")
    tiny_model.build(tmp_path / "other.onnx", name="other", embedding_id="another-embedding")
    for label, pitch in (("low", 500.0), ("mid", 1200.0)):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for at in range(3):
            soundfile.write(tmp_path / "clips" / label / f"{at}.wav", tone(pitch + 5 * at, 0.5), 16_000)
    soundfile.write(tmp_path / "bell.wav", chord(BELL, 0.5), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "scenes").mkdir()
    scene = np.concatenate([silence(1.0), tone(500, 0.3), silence(1.0), chord(BELL, 0.5), silence(1.0)])
    soundfile.write(tmp_path / "scenes" / "a.wav", scene, 16_000)
    (tmp_path / "scenes" / "a.txt").write_text("1.0\t1.3\tlow\n")
    (tmp_path / "scenes" / "b.wav").write_text("no sound")
    return tmp_path


RUNS = """
enroll tiny.onnx bell bell.wav --keep-audio
enroll tiny.onnx bell text.wav
listen tiny.onnx other.onnx --source scenes --ends --gallery gallery.db
classify tiny.onnx bell.wav text.wav
identify tiny.onnx bell.wav text.wav
verify tiny.onnx bell bell.wav
verify tiny.onnx bell text.wav
gallery list
gallery show bell
calibrate tiny.onnx --gallery gallery.db --negatives scenes/a.wav --target-fa-per-hour 100000
gallery uncalibrate
evaluate tiny.onnx scenes/a.wav --gallery gallery.db
gallery export -o out.db
gallery import out.db
gallery re-enroll other.onnx
gallery rename bell gong
gallery remove gong
doctor --source scenes/a.wav
inspect tiny.onnx --no-measure
evaluate tiny.onnx scenes/a.wav
calibrate tiny.onnx --negatives bell.wav --positives clips --target-fa-per-hour 100000
calibrate tiny.onnx --threshold 0.5
data check clips
data split clips -o split.csv
data cut scenes/a.wav -o cut
data fetch --list
"""


def test_verbs_print_what_the_page_says(home: Path, confit: Confit) -> None:
    """Every type of these verbs and every key: none of the page is made up, and none is missing there."""
    seen: dict[tuple[str, str], set[str]] = {}
    for command_line in RUNS.strip().splitlines():
        words = command_line.split()
        verb = " ".join(words[: 2 if words[0] in ("data", "gallery") else 1])
        _, out, err = confit(*words, "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        assert lines, (command_line, err)
        for line in lines:
            seen.setdefault((verb, line["type"]), set()).update(line.keys() - {"type"})
        last = [line["type"] for line in lines][-1]
        assert "summary" not in [line["type"] for line in lines[:-1]], command_line
        assert last == "summary" or {line["type"] for line in lines[:-1]} <= {"failed"}, command_line
    # of live sound, of damaged recordings, and of what is fetched other tests hold it
    covered_elsewhere = {
        ("listen", "gap"),
        ("listen", "notice"),
        ("evaluate", "failed"),
        ("calibrate", "failed"),
        ("data cut", "failed"),
        ("data fetch", "fetch"),
    }
    verbs = {verb for verb, _ in seen}
    assert {one for one in LINES if one[0] in verbs} - covered_elsewhere == seen.keys()
    for one, keys in seen.items():
        assert LINES[one].keys() - keys <= {"at"}, one


def test_the_page_has_every_type_and_says_what_every_key_is() -> None:
    arguments_by_type = {
        kind
        for file in (ROOT / "confit_edge" / "cli").glob("*.py")
        for kind in re.findall(r'\b_?emit(?:_counts)?\(\s*"([\w-]+)"', file.read_text(encoding="utf-8"))
    }
    assert arguments_by_type <= {kind for _, kind in LINES}
    assert {key for keys in LINES.values() for key in keys} == KEYS.keys()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"type": "finding", "level": "good"}, "lacks .'text'."),
        ({"type": "finding", "level": "good", "text": "", "more": 1}, "lacks .'more'."),
        ({"type": "finding", "level": 1, "text": ""}, "says what level is"),
        ({"type": "found"}, "has no 'found'"),
    ],
)
def test_another_line_than_the_page_has_is_noticed(line: dict[str, object], fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_line("doctor", line)
