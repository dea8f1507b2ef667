"""How fast a model runs on this machine, and how that compares with what the machine can do. Always one thread."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.errors import ConfitError
from confit_runtime.gemm import Rates
from confit_runtime.memory import peak_bytes
from confit_runtime.model import Model, load
from confit_runtime.sources.microphone import BLOCK_S

MICROPHONE_RATE = 48_000
MICROPHONE_BLOCK = round(BLOCK_S * MICROPHONE_RATE)  # samples per block, as `listen` requests them from a microphone
MAX_STREAMS = 2_048  # where the search ends, so that measuring does not use up a device's memory
_WARM_UP = 5
_MIN_CALLS = 20
_LEVEL = np.float32(0.05)


@dataclass(frozen=True)
class Latency:
    """What one call of the graph takes: wall time in milliseconds, and processor time per second of audio.

    A call takes one hop of a streaming model, or one window of a windowed one; both advance the audio by one hop.
    """

    p50_ms: float
    p99_ms: float
    cpu_ms: float
    cpu_rtf: float
    calls: int


@dataclass(frozen=True)
class FreshProcess:
    """A new process that loads a model and listens: seconds until its first score, and its peak memory.

    All audio is available at once, so `first_score_s` is computing time without the wait for a window of sound.
    `peak_mb` is the largest resident set in 2**20 bytes, None if the system does not report it.
    """

    first_score_s: float
    peak_mb: float | None


def call_latency(model: Model, seconds: float = 2.0) -> Latency:
    """Measure consecutive calls that carry state, for `seconds` of processor time (at least 20 calls)."""
    contract = model.contract
    batch = model.batch(1)
    wall, cpu, spent = [], [], 0.0
    for number, pcm in enumerate(_noise(1, contract.hop)):
        start, cpu_start = time.perf_counter(), time.thread_time()
        batch.push(pcm)
        if number >= contract.window // contract.hop + _WARM_UP:
            wall.append(time.perf_counter() - start)
            cpu.append(time.thread_time() - cpu_start)
            spent += cpu[-1]
            if len(cpu) >= _MIN_CALLS and spent >= seconds:
                break
    p50, p99 = np.percentile(wall, [50, 99])
    cpu_s = median(cpu)
    return Latency(
        1e3 * float(p50), 1e3 * float(p99), 1e3 * cpu_s, cpu_s * contract.sample_rate / contract.hop, len(cpu)
    )


def stream_rtf(model: Model, seconds: float = 2.0) -> float:
    """Processor time per second of audio of a whole `Stream`: resampling from a microphone's rate, the model, detection.

    It is fed like a microphone, 80 ms at a time. The result is the median over seconds of audio, for `seconds` of
    processor time (at least 3 of audio).
    """
    stream = model.stream()
    spent: list[float] = []
    for number, second in enumerate(_noise(1, MICROPHONE_RATE)):
        start = time.thread_time()
        for at in range(0, MICROPHONE_RATE, MICROPHONE_BLOCK):
            stream.accept(second[0, at : at + MICROPHONE_BLOCK], MICROPHONE_RATE)
        if number >= math.ceil(model.contract.window / model.contract.sample_rate):
            spent.append(time.thread_time() - start)
            if len(spent) >= 3 and sum(spent) >= seconds:
                break
    return median(spent)


def live_rtf(model: Model, seconds: float = 8.0) -> float:
    """As `stream_rtf`, but at a microphone's pace: one block every 80 ms, with the processor idle in between.

    Then caches are cold and the clock is slow at every block, so a live microphone costs more per second of audio than
    a recording does. It takes `seconds` (at least 1), and as long as the model's window before. Wall time.
    """
    stream = model.stream()
    first = math.ceil(model.contract.window / model.contract.sample_rate / BLOCK_S)
    spent, due = [], time.monotonic()
    blocks = zip(range(first + max(round(seconds / BLOCK_S), 13)), _noise(1, MICROPHONE_BLOCK), strict=False)
    for number, block in blocks:
        due += BLOCK_S
        time.sleep(max(due - time.monotonic(), 0.0))
        start = time.thread_time()
        stream.accept(block[0], MICROPHONE_RATE)
        if number >= first:
            spent.append(time.thread_time() - start)
    return sum(spent) / (len(spent) * BLOCK_S)


def streams_per_core(model: Model, calls: int = 7) -> int:
    """How many streams `model.batch` runs in real time on one core: a call must take less processor time than a hop lasts.

    0 if one stream is too much; at most `MAX_STREAMS`. Found to within 2 %, with each size measured as the median of
    `calls`.
    """
    contract = model.contract
    hop_s = contract.hop / contract.sample_rate
    low, high, guess = 0, MAX_STREAMS + 1, 1
    before = (0, 0.0)
    while high - low > max(1, low // 50):
        took = _call_s(model, guess, calls)
        low, high = (guess, high) if took < hop_s else (low, guess)
        # a call has a fixed cost and one per stream: look slightly beyond where they would fill the hop
        each, before = (took - before[1]) / (guess - before[0]), (guess, took)
        fit, in_proportion = guess + (hop_s - took) / max(each, 1e-12), guess * hop_s / took
        guess = min(int(min(fit, 2 * in_proportion) * (1.01 if took < hop_s else 0.99)), MAX_STREAMS)
        # after too many, go halfway back; otherwise double, because a much larger number might fill the memory
        if not low < guess < high:
            guess = (low + high) // 2 if high <= MAX_STREAMS else min(2 * low, MAX_STREAMS)
    return low


def _call_s(model: Model, streams: int, calls: int) -> float:
    """Processor time of one call for `streams` streams, the median of `calls`."""
    batch, spent = model.batch(streams), []
    before = model.contract.window // model.contract.hop - 1 if not model.contract.streaming else 1
    for number, pcm in zip(range(before + calls), _noise(streams, model.contract.hop), strict=False):
        start = time.thread_time()
        batch.push(pcm)
        if number >= before:  # a windowed model computes nothing before its window is full
            spent.append(time.thread_time() - start)
    return median(spent)


def fresh_process(path: Path, seconds: float = 10.0) -> FreshProcess:
    """What a new process needs to load the model at `path` and to hear `seconds` of audio at 48 kHz.

    Raises ConfitError with the process's message if it fails.
    """
    # -P: do not run files in the current folder, such as a random.py, which numpy would import
    command = [sys.executable, "-P", "-c", _CHILD, str(path), str(seconds)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        first_score_s = time.perf_counter() - start
        peak, stderr = child.stdout.read().strip(), child.stderr.read().strip()
    if child.returncode:
        raise ConfitError(
            f"{path}: a new process could not run it ({stderr.splitlines()[-1] if stderr else 'no message'})"
        )
    return FreshProcess(first_score_s, None if peak == "None" else float(peak))


_CHILD = """
import sys
from confit_runtime.bench import hear
hear(*sys.argv[1:])
"""


def hear(path: str, seconds: str) -> None:
    """What the new process of `fresh_process` runs: prints a line at the first score, then its peak memory."""
    model = load(path)
    batch = model.batch(1)
    for pcm in _noise(1, model.contract.hop):
        if batch.push(pcm)[0].size:
            break
    print("scored", flush=True)
    stream = model.stream()
    for _, block in zip(range(round(float(seconds) / BLOCK_S)), _noise(1, MICROPHONE_BLOCK), strict=False):
        stream.accept(block[0], MICROPHONE_RATE)
    peak = peak_bytes()
    print(None if peak is None else peak / 2**20)


def lowest_rtf(macs_per_second: Mapping[str, float], rates: Rates) -> float:
    """Processor time per second of audio if every multiply-add ran at this machine's own rate: the roofline.

    `macs_per_second` of audio by precision, as in the contract's `cost`. Everything that is not int8 is computed in
    fp32, however it is stored.
    """
    int8 = macs_per_second.get("int8", 0.0)
    return (sum(macs_per_second.values()) - int8) / rates.fp32 + int8 / rates.int8


def _noise(streams: int, samples: int) -> Iterator[Floats]:
    """The same noise `[streams, samples]` for every call, endlessly, at -26 dBFS."""
    rng = np.random.default_rng(0)
    return repeat(_LEVEL * rng.standard_normal((streams, samples), dtype=np.float32))
