"""Run by .ci/run in an environment with the base install only: what a device does, with torch absent."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

started = time.perf_counter()
import confit_runtime  # noqa: E402 - timed

took = time.perf_counter() - started
heavy = {"torch", "sklearn", "transformers", "onnx", "safetensors", "matplotlib"}
assert not heavy & set(sys.modules), "importing confit_runtime loaded training libraries"
assert not any(find_spec(name) for name in heavy), "the base install brought training libraries"
assert took < 0.4, f"import confit_runtime took {took:.2f} s"

import soundfile  # noqa: E402

from confit_edge.demo import DATA  # noqa: E402
from confit_runtime.shipped import MODELS  # noqa: E402

shipped = {path.suffix for path in MODELS.rglob("*") if path.is_file()}
assert shipped == {".md", ".onnx", ".safetensors", ".yaml", ""}, f"the wheel ships {sorted(shipped)}"
assert all(path.with_suffix(".md").is_file() for path in MODELS.glob("*.onnx")), "a model ships without its card"

model = confit_runtime.load("digits")
clips = {path.stem: path for path in (DATA / "digits-real").glob("*.ogg")}
assert {word: model.classify(path).label for word, path in clips.items()}["seven"] == "seven"

stream, heard = model.stream(lead_in=True), []
for word in ("seven", "two", "nine"):
    pcm, rate = soundfile.read(clips[word], dtype="float32")
    for start in range(0, len(pcm), 1000):
        heard += stream.accept(pcm[start : start + 1000], rate)
    heard += stream.accept([0.0] * rate, rate)
heard += stream.finish()
assert [event.label for event in heard] == ["seven", "two", "nine"], heard


PROGRAM = str(Path(sys.executable).parent / "confit-edge")


def command(*arguments: str) -> list[dict]:
    done = subprocess.run([PROGRAM, *arguments, "--json"], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


voices = sorted((DATA / "words" / "marvin").glob("*.ogg"))
command("enroll", "digits", "marvin", *map(str, voices[:3]), "--gallery", "device.db")
matches = [
    line
    for line in command("identify", "digits", *map(str, voices[3:9]), "--gallery", "device.db")
    if line["type"] == "match"
]
assert sum(match["name"] == "marvin" for match in matches) >= 4, matches
found = [
    line["label"] for line in command("listen", "digits", "--source", str(clips["four"])) if line["type"] == "detection"
]
assert found == ["four"], found

subprocess.run([PROGRAM, "--help"], capture_output=True, check=True)  # of all verbs, which an old typer cannot tell
missing = subprocess.run([PROGRAM, "train", "x", "-o", "y"], capture_output=True, text=True)
assert missing.returncode == 2, missing
assert "pip install" in missing.stderr, missing.stderr
print(f"device check: import {took:.3f} s; streamed, enrolled and identified without torch")
