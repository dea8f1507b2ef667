"""The programs in the documentation run as they are pasted, with a recording in place of the microphone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.cli import main
from confit_runtime.audio import load_clip
from tests.tiny_model import RATE, silence

ROOT = Path(__file__).parents[2]
DATA = ROOT / "confit_edge" / "demo" / "data"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def programs(of: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page(of), re.DOTALL | re.MULTILINE)


def run(program: str) -> None:
    exec(compile(program, "program", "exec"), {"__name__": "program"})


def test_enrolling_in_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = {"marvin-1": "bm_george", "marvin-2": "bm_lewis", "visitor": "bm_george"}
    for name, voice in said.items():
        word = load_clip(DATA / "words" / "marvin" / f"{voice}.ogg", RATE)
        soundfile.write(f"{name}.wav", word, RATE)
    run(programs("enrollment.md")[1])
    names, answer, *heard = capsys.readouterr().out.splitlines()
    assert names == "{'marvin': 2}"
    assert answer.startswith("marvin marvin ")
    assert [line.split()[0] for line in heard] == ["marvin"]


def test_the_documented_speaker_output_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(programs("enrollment.md")[0])
    printed = re.search(
        r"^\$ confit-edge enroll speakers santa.*?^```$", page("enrollment.md"), re.DOTALL | re.MULTILINE
    )
    assert printed is not None
    shown: list[str] = []
    for line in printed[0].splitlines()[:-1]:
        if line.startswith("$ confit-edge "):
            command = f"'{sys.executable}' -P -m confit_edge{line.removeprefix('$ confit-edge')}"
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        else:
            shown.append(line)
    *lines, summary = shown
    assert done.stderr.strip() == summary
    for told, line in zip(done.stdout.splitlines(), lines, strict=True):
        (at, _, name, score), (shown_at, _, shown_name, shown_score) = told.split(), line.split()
        assert name == shown_name
        assert float(at) == pytest.approx(float(shown_at), abs=0.1)  # on another processor
        assert float(score) == pytest.approx(float(shown_score), abs=0.02)


@pytest.mark.parametrize("at", range(4))
def test_listening_in_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    words = [load_clip(DATA / "digits-real" / f"{word}.ogg", RATE) for word in ("one", "seven")]
    pause = silence(1.5)
    soundfile.write(tmp_path / "scene.wav", np.concatenate([pause, words[0], pause, words[1], pause]), RATE)
    program = programs("microphone.md")[at]
    assert program.count('"mic"') == 1
    run(program.replace('"mic"', repr(str(tmp_path / "scene.wav"))))
    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    if at == 3:  # which is told of ends
        assert told == [[word, what] for word in ("one", "seven") for what in ("on", "off")]
    else:
        assert [word for word, _ in told] == ["one", "seven"]


def test_events_are_json_in_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = load_clip(DATA / "digits-real" / "seven.ogg", RATE)
    soundfile.write(tmp_path / "scene.wav", np.concatenate([silence(1.5), word, silence(1.5)]), RATE)
    program = programs("python.md")[2]
    assert program.count('"mic"') == 1
    run(program.replace('"mic"', repr(str(tmp_path / "scene.wav"))))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["type"], line["label"], line["source"]) for line in lines] == [
        (kind, "seven", str(tmp_path / "scene.wav")) for kind in ("detection", "ended")
    ]


def test_the_automation_understands_what_listen_prints_and_the_script_posts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml, jinja2 = pytest.importorskip("yaml"), pytest.importorskip("jinja2")
    told = page("raspberry-pi.md")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", told, re.DOTALL | re.MULTILINE)
    (automation,) = yaml.safe_load(block)
    (trigger,), (condition,) = automation["triggers"], automation["conditions"]
    assert f"/api/webhook/{trigger['webhook_id']}\n" in told
    assert (trigger["allowed_methods"], trigger["local_only"]) == (["POST"], True)

    three = DATA / "digits-real" / "three.ogg"
    argv = ["confit-edge", "listen", "digits", "--source", str(three), "--json", "--threshold", "three=0.5"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main()
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith('{"type": "detection"')  # what the script looks for
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(condition["value_template"])
    heard = json.loads(line)
    for label, score, fires in (("three", 0.7, True), ("three", 0.69, False), ("two", 0.9, False)):
        assert heard.keys() >= {"label", "score", "speaker"}
        assert template.render(trigger={"json": {**heard, "label": label, "score": score}}) == str(fires)
