"""The documentation holds: its programs run as they are pasted (a recording in place of the microphone), its commands parse."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.cli import main
from confit_runtime import Model, listen, load
from confit_runtime.audio import load_clip
from tests.cli.verbs import PROGRAM, VERBS
from tests.tiny_model import RATE, silence

ROOT = Path(__file__).parents[2]
DATA = ROOT / "confit_edge" / "demo" / "data"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.*")), *sorted((ROOT / "models").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES if path.suffix in (".md", ".service")}


def programs(of: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", TEXTS[of], re.DOTALL | re.MULTILINE)


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
        r"^\$ confit-edge enroll speakers santa.*?^```$", TEXTS["enrollment.md"], re.DOTALL | re.MULTILINE
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


def test_the_shortest_programs_run(capsys: pytest.CaptureFixture[str]) -> None:
    (readme,) = programs("README.md")
    word = np.concatenate([silence(1.5), load_clip(DATA / "digits-real" / "seven.ogg", RATE), silence(1.5)])
    names: dict[str, Any] = {"pcm": word, "sample_rate": RATE}
    exec(readme.replace("words.onnx", "digits"), names)
    assert capsys.readouterr().out.startswith("seven 0.")
    exec(programs("python.md")[3].replace("words.onnx", "digits").replace("marvin", "seven"), names)
    assert [event.label for event in names["stream"].accept(word, RATE)] == ["seven"]
    (muted,) = programs("detection.md")
    names |= {"stream": names["model"].stream(), "answer": word}
    names["speaker"] = SimpleNamespace(play=lambda answer: names["stream"].accept(answer, RATE))
    exec(muted, names)
    assert not names["stream"].finish()


def test_the_shipped_digits_hear_what_the_readme_says() -> None:
    _, _, told = " ".join(TEXTS["README.md"].split()).partition("it detects eight at its own thresholds")
    lowered = {word: float(value) for word, value in re.findall(r"--threshold (\w+)=([\d.]+)", told)}
    clips = {path.stem: path for path in (DATA / "digits-real").glob("*.ogg")}

    def missed(model: Model) -> set[str]:
        return {word for word, path in clips.items() if [event.label for event in listen(model, path)] != [word]}

    model = load("digits")
    assert len(clips) == 10
    assert missed(model) == lowered.keys() == {"three", "zero"}
    assert not missed(model.with_thresholds(lowered))


def test_the_automation_understands_what_listen_prints_and_the_script_posts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml, jinja2 = pytest.importorskip("yaml"), pytest.importorskip("jinja2")
    told = TEXTS["raspberry-pi.md"]
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


BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# where a shell takes the word for a command; a quoted argument may hold what else would end it
COMMAND = re.compile(r"(?:^|\| |&& |\$ |bin/)confit-edge ((?:[^|&;#'\n]|'[^']*')+)", re.MULTILINE)


def options(verb: Any) -> set[str]:
    return {"--help", "--debug", *(name for option in verb.params for name in (*option.opts, *option.secondary_opts))}


def split_verb(arguments: list[str]) -> tuple[Any, list[str]]:
    """The verb that the arguments begin with (a group's own if they name one), and the rest."""
    count = 2 if " ".join(arguments[:2]) in VERBS else 1
    return VERBS[" ".join(arguments[:count])], arguments[count:]


def check_command(arguments: list[str]) -> None:
    """Parse as the command line does, short of looking for the files."""
    verb, rest = split_verb(arguments)
    context = verb.context_class(verb)
    try:
        given, left, _ = verb.make_parser(context).parse_args(rest)
        assert not left, f"takes no {left}"
        for option in verb.params:
            value = given.get(option.name)
            assert value not in (None, ()) or not option.required, f"needs {option.name}"
            if value not in (None, ()) and "path" not in option.type.name:
                option.type_cast_value(context, value)
    except Exception as error:
        error.add_note(f"in: {shlex.join(arguments)}")
        raise


@pytest.mark.parametrize("name", TEXTS)
def test_the_commands_of_a_page_parse(name: str) -> None:
    blocks = [block[3] for block in BLOCK.finditer(TEXTS[name])] if name.endswith(".md") else [TEXTS[name]]
    indented = re.findall(r"^    (confit-edge .*)$", TEXTS[name], re.MULTILINE)
    for line in "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines():
        for found in COMMAND.finditer(line.strip().replace("ExecStart=/bin/sh -c '", "")):
            check_command(shlex.split(found[1]))


@pytest.mark.parametrize("name", VERBS)
def test_the_examples_of_a_help_parse(name: str) -> None:
    for found in re.findall(r"^ +confit-edge (.*)$", VERBS[name].help, re.MULTILINE):
        check_command(shlex.split(found.partition(" | ")[0], comments=True))


@pytest.mark.parametrize("name", TEXTS)
def test_the_options_that_a_page_speaks_of_exist(name: str) -> None:
    """In code spans: those of the verb that a span begins with, else those of any verb."""
    every = set[str]().union(*map(options, [PROGRAM, *VERBS.values()]))
    for span in re.findall(r"`([^`]+)`", BLOCK.sub("", TEXTS[name])):
        words = span.removeprefix("confit-edge ").split()
        named = [option for word in words for option in re.findall(r"^\[?(--?[a-z][a-z0-9-]*)", word)]
        if words[0] in VERBS:
            verb, _ = split_verb(words)
            assert not set(named) - options(verb), span
        elif words[0].startswith("--"):
            assert not set(named) - every, span


def headings(page: str) -> set[str]:
    """The anchors of a page, as a browser of the repository makes them."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [path for path in PAGES if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere_and_files_that_are_named_exist(path: Path) -> None:
    text = BLOCK.sub("", TEXTS[path.name])
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked.read_text(encoding="utf-8")), f"{target}#{anchor}"
    named = re.findall(r"`((?:docs|benchmarks|models|confit_\w+|export|runtime|tests|\.ci)/[\w./-]+)`", text)
    named += [f"benchmarks/{module}.py" for module in re.findall(r"python -m benchmarks\.(\w+)", TEXTS[path.name])]
    folders = [ROOT, ROOT / "export", ROOT / "runtime"]
    assert not [
        name for name in named if "NAME" not in name and not any((folder / name).exists() for folder in folders)
    ]
