"""Compares rows and events of the same model files on aarch64, under qemu-user, with those on this machine.

    python -m benchmarks.aarch64

Writes benchmarks/results/aarch64.json. It needs qemu-user, apt-get and dpkg (Debian 12), and installs nothing: Debian's arm64
libc and Python, and PyPI's aarch64 wheels in the versions installed here, go into the cache. The models are the shipped ones and
a run of a few words, trained here and exported with three recipes. All hear the same twenty seconds of real and synthetic speech
over music. The 8-bit weights of `arm64` are computed correctly on an x86 machine only with VNNI (`vnni` in the results).

qemu 7 shows programs the /proc/cpuinfo of the host, which makes onnxruntime's aarch64 wheel crash with a segmentation fault on
import. So the root folder holds the /proc/cpuinfo of a Cortex-A72.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile

from benchmarks.command import run_main, say
from benchmarks.environments import DEVICE, ROOT
from benchmarks.fetch import CACHE, whole
from benchmarks.report import RESULTS, machine, write_json
from confit_edge.data.manifest import read_manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_export.quantisation import Quantisation
from confit_runtime.audio import load_clip, resample
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.shipped import MODELS

PROCESSORS = ("cortex-a72", "max")  # that of a Raspberry Pi 4, without int8 products; and every feature qemu knows
PACKAGES = (
    "libc6", "libexpat1", "libffi8", "libgcc-s1", "libpython3.11-minimal", "libpython3.11-stdlib", "libsqlite3-0", "libssl3",
    "libstdc++6", "python3.11-minimal", "zlib1g",
)  # fmt: skip
CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
WORDS = ("one", "two", "seven", "nine", "stop", "yes")
VOICE = "bm_george"  # from the test split
RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {"quantize": False},
    "static, portable": {},
    "static, arm64": {"quantisation": Quantisation(target="arm64")},
}
RATE, SOURCE_RATE, GAP_S, MUSIC = 16_000, 48_000, 0.6, 0.2
ROWS = """
import platform, sys
import numpy as np
from confit_runtime import load
scores, embeddings = load(sys.argv[1]).rows(sys.argv[2])
np.savez(sys.argv[3], scores=scores, embeddings=embeddings)
print(platform.machine())
"""


def root(cache: Path) -> Path:
    """Return a folder with Debian's arm64 libc and Python, and their versions in `packages.json`."""
    folder = cache / "aarch64" / "root"
    if not folder.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise UsageError("the arm64 packages need apt-get and dpkg; run this on Debian 12, or in a container of it")
        say("fetching Debian's arm64 packages")
        whole(folder, unpack)
    return folder


def unpack(target: Path) -> None:
    """Download and unpack Debian's packages with a separate apt state, so that the machine's own stays as it is."""
    debs = target.parent / "debs"
    (debs / "lists" / "partial").mkdir(parents=True)
    options = [f"Dir::State={debs}", "Dir::State::status=/dev/null", f"Dir::Cache={debs}", "APT::Sandbox::User=root"]
    options += ["APT::Architecture=arm64", "APT::Architectures=arm64"]
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    run([*apt, "update"])
    run([*apt, "download", *PACKAGES], cwd=debs)
    for deb in debs.glob("*.deb"):
        run(["dpkg", "-x", str(deb), str(target)])
    found = {deb.name.split("_")[0]: deb.name.split("_")[1].replace("%3a", ":") for deb in sorted(debs.glob("*.deb"))}
    (target / "packages.json").write_text(json.dumps(found))
    (target / "proc").mkdir()
    (target / "proc" / "cpuinfo").write_text(CPUINFO)


def wheels(cache: Path) -> Path:
    """Return a folder with PyPI's aarch64 wheels of a device install, in the versions that are installed here."""
    pins = [f"{name}=={version(name)}" for name in DEVICE]
    folder = cache / "aarch64" / "_".join(pins)
    if not folder.is_dir():
        say("fetching aarch64 wheels")
        platforms = [f"--platform=manylinux_2_{libc}_aarch64" for libc in (36, 28, 27, 26, 17)]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--python-version=3.11"]
        whole(folder, lambda target: run([*pip, *platforms, "--only-binary=:all:", f"--target={target}", *pins]))
    return folder


def scene(folder: Path) -> float:
    """Write a scene, ten digits by a person and then words by a synthetic voice, over music; return its seconds.

    `rows.wav` has the models' own rate, so its samples are the same on both sides. `listen.wav` is resampled on each side.
    """
    clips = sorted((DATA / "digits-real").glob("*.ogg"))
    clips += [DATA / "words" / word / f"{VOICE}.ogg" for word in WORDS]
    gap = np.zeros(round(GAP_S * RATE), np.float32)
    speech = np.concatenate([gap, *(part for clip in clips for part in (load_clip(clip, RATE), gap))])
    music = np.resize(load_clip(DATA / "background" / "test" / "music-system.ogg", RATE), len(speech))
    sound = speech + MUSIC * music
    soundfile.write(folder / "rows.wav", sound, RATE, subtype="PCM_16")
    soundfile.write(folder / "listen.wav", resample(sound, RATE, SOURCE_RATE), SOURCE_RATE, subtype="PCM_16")
    return len(sound) / RATE


def exports(folder: Path, epochs: int) -> dict[str, Path]:
    """Return the shipped models, and a run of a few words exported with each of `RECIPES`."""
    words = read_manifest(DATA / "words" / "manifest.csv")
    word_clips = tuple(clip for clip in words.clips if clip.label in WORDS)
    write_manifest(replace(words, clips=word_clips, source=folder / "words.csv"), folder / "words.csv")
    recipe = Recipe(
        epochs=epochs,
        soup=1,
        probe_views=1,
        frozen_baseline=False,
        background=(str(DATA / "background"),),
        device="cpu",
    )
    train(folder / "words.csv", folder / "run", recipe)
    trained = read_run(folder / "run")
    models = {name: MODELS / f"{name}.onnx" for name in ("digits", "speakers")}
    for name, options in RECIPES.items():
        models[f"words, {name}"] = folder / f"words-{name.replace(', ', '-')}.onnx"
        export_run(trained, run_corpus(trained), models[f"words, {name}"], force=True, say=print, **options)
    return models


def run_model(python: list[str], environment: dict[str, str], model: Path, work: Path) -> dict[str, Any]:
    """Run a model on the scene with the interpreter `python`; return its rows, and the detections of `listen`."""
    out = work / "rows.npz"
    machine_ = run([*python, "-c", ROWS, str(model), str(work / "rows.wav"), str(out)], environment, work).strip()
    gallery = ["--gallery", "voices.db"] if model.stem == "speakers" else []
    listen = [*python, "-m", "confit_edge", "listen", str(model), *gallery, "--json", "--source", "listen.wav"]
    lines = [json.loads(line) for line in run(listen, environment, work).splitlines()]
    with np.load(out) as rows:
        return {"machine": machine_, **rows, "events": [line for line in lines if line["type"] == "detection"]}


def compare_outputs(native: dict[str, Any], emulated: dict[str, Any]) -> dict[str, Any]:
    """Return the largest differences, and whether both sides reported the same events at the same samples."""
    if emulated["machine"] != "aarch64":
        raise ConfitError(f"qemu-aarch64 ran a program of {emulated['machine']}")
    positions = [
        [(event["label"], event["start_sample"], event["end_sample"]) for event in outputs["events"]]
        for outputs in (native, emulated)
    ]
    scores = [[event["score"] for event in outputs["events"]] for outputs in (native, emulated)]
    return {
        "rows": len(native["scores"]),
        "scores_max_abs_diff": max_abs_diff(native["scores"], emulated["scores"]),
        "embeddings_max_abs_diff": max_abs_diff(native["embeddings"], emulated["embeddings"]),
        "events": len(positions[0]),
        "events_equal": positions[0] == positions[1],
        "event_scores_max_abs_diff": max_abs_diff(*scores) if positions[0] == positions[1] else None,
    }


def max_abs_diff(a: Any, b: Any) -> float:
    return float(np.abs(np.subtract(a, b)).max(initial=0.0))


def run(command: list[str], environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return its output. Raises ConfitError with the end of its stderr if it fails."""
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise ConfitError(f"{' '.join(command)[:200]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def measure(cache: Path, epochs: int) -> dict[str, Any]:
    """Compare each model on each processor with this machine."""
    debian, site = root(cache), wheels(cache)
    sources = [str(ROOT), str(ROOT / "runtime")]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    native = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(sources)}
    foreign = {**native, "PYTHONPATH": os.pathsep.join([str(site), *sources])}
    found = []
    with TemporaryDirectory() as folder:
        work = Path(folder)
        seconds = scene(work)
        python, prints = [sys.executable, "-P"], map(str, sorted((DATA / "digits-real").glob("*.ogg")))
        run(
            [*python, "-m", "confit_edge", "enroll", "speakers", "allison", *prints, "--gallery", "voices.db"],
            native,
            work,
        )
        for name, model in exports(work, epochs).items():
            native_outputs = run_model(python, native, model, work)
            for processor in PROCESSORS:
                emulated = [
                    "qemu-aarch64",
                    "-cpu",
                    processor,
                    "-L",
                    str(debian),
                    str(debian / "usr/bin/python3.11"),
                    "-P",
                ]
                emulated_outputs = run_model(emulated, foreign, model, work)
                found.append(
                    {"model": name, "processor": processor, **compare_outputs(native_outputs, emulated_outputs)}
                )
                print(found[-1], flush=True)
    return {
        "sound_s": round(seconds, 2),
        "emulator": run(["qemu-aarch64", "--version"]).splitlines()[0],
        "debian": json.loads((debian / "packages.json").read_text()),
        "onnxruntime": version("onnxruntime"),
        "found": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of training on the words")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS / "aarch64.json")
    args = parser.parse_args()
    if shutil.which("qemu-aarch64") is None:
        raise UsageError("qemu-aarch64 is not installed; run apt install qemu-user")
    found = measure(args.cache.absolute(), args.epochs)
    write_json(args.out, {"command": f"python -m benchmarks.aarch64 --epochs {args.epochs}", **found, **machine()})


if __name__ == "__main__":
    run_main(main)
