"""Makes microphones fail while somebody speaks, and measures which words are still heard and how exact the clock stays.

    python -m benchmarks.faults_microphone

Writes its rows under `microphone` into benchmarks/results/faults.json. The shipped model listens, through `Microphone` and
`Listener`, to ten digits by a person; the digits that it hears without a fault are the reference. PortAudio is the stand-in
that the tests use, at 48 kHz. A fault strikes at a block drawn by the seed: in a pause, where every word must still be heard,
once and in its place; or in one of the words that are heard without a fault, which then has a hole (`struck_heard` counts these
words). In a pause nothing but silence is lost. In a word, an overflow and NaN take sound out of it, and a microphone that
vanishes cuts it in two.

The clock error is the distance, in samples at 48 kHz, between where a word is heard with the fault and where it is heard
without, moved by the reported gaps; the struck word is left out. The sound after a gap meets the grid of 80 ms hops elsewhere,
so up to one hop (3,840 samples) is not an error of the clock. The gap error is the difference, in milliseconds, between the
reported gaps and the time in which the stand-in delivered nothing; when the microphone is back, its first block comes up to two
seconds late.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import RESULTS, machine, write_json
from confit_edge.demo import DATA
from confit_runtime import Detection, Listener, Model, load
from confit_runtime.audio import Pcm, load_clip, resample
from confit_runtime.sources import Gap, Microphone
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio

RATE, BLOCK = 48_000, 3_840
TRIALS, SEED = 25, 0
LATE_S = 2.0  # at most, from reopening a microphone that is back to its first block
PAUSE_S = 3.0  # a window and two hops on either side of the gap, so that a gap does not affect any word
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FAULTS = ("overflows", "NaN", "vanishes", "stalls", "changes rate", "overflows briefly")
STRUCK = {"pause": FAULTS[:5], "word": ("overflows briefly", "overflows", "NaN", "vanishes")}
LONGEST_LOST = {"overflows": BLOCK * 5, "overflows briefly": RATE // 100}  # samples


def scene() -> tuple[Pcm, list[int], dict[str, range]]:
    """Return the words with pauses between them, the block at the middle of each pause except the last, and the words' blocks."""
    pause = round(PAUSE_S * RATE)
    parts, middles, blocks = [np.zeros(pause, np.float32)], [], {}
    for word in WORDS:
        start = sum(map(len, parts))
        parts += [load_clip(DATA / "digits-real" / f"{word}.ogg", RATE), np.zeros(pause, np.float32)]
        end = sum(map(len, parts)) - pause
        blocks[word] = range(-(-start // BLOCK), end // BLOCK)
        middles.append((end + pause // 2) // BLOCK)
    return np.concatenate(parts), middles[:-1], blocks


def failing_portaudio(fault: str, hit_during: str, pcm: Pcm, block: int, rng: np.random.Generator) -> FakePortAudio:
    """Return a PortAudio whose microphone hears `pcm` and fails at `block`, in a pause or in a word."""
    if fault in LONGEST_LOST:
        lost = int(rng.integers(1, LONGEST_LOST[fault]))
        if hit_during == "pause":  # the pause is longer by what the stand-in loses
            pcm = np.insert(pcm, block * BLOCK, np.zeros(lost, np.float32))
        return FakePortAudio(pcm, RATE, overflows={block: lost})
    if fault == "NaN":
        return FakePortAudio(pcm, RATE, faulty=tuple(range(block, block + int(rng.integers(1, 3)))))
    before, after = pcm[: block * BLOCK], pcm[block * BLOCK :]
    rate = 44_100 if fault == "changes rate" else RATE
    then = "stalls" if fault == "stalls" else "unplugged"
    name = f"USB Mic: Audio (hw:{rng.integers(1, 5)},0)"
    back = Back(resample(after, RATE, rate), rate, name, late_s=float(rng.uniform(0.0, LATE_S)))
    return FakePortAudio(before, RATE, then=then, back=back)


def listen(model: Model, portaudio: FakePortAudio, samples: int) -> tuple[list[Detection], list[tuple[int, int]]]:
    """Return what is heard in the first `samples`, not counting gaps; and the gaps, as (samples heard before, length)."""
    microphone = Microphone(portaudio=portaudio, queue_s=120.0, stall_s=LATE_S + 0.5)
    listener = Listener([model.stream(lead_in=True)], microphone.name, RATE)
    detections, gaps = [], []
    with microphone:
        for item in microphone:
            if isinstance(item, Gap):
                gaps.append((listener.samples, item.samples))
            detections += [event for event in listener.take(item) if isinstance(event, Detection)]
            if listener.samples - listener.dropped_samples >= samples:
                break
    return detections + [event for event in listener.finish() if isinstance(event, Detection)], gaps


def row(model: Model, hit_during: str, fault: str) -> dict[str, Any]:
    """Run `TRIALS` faults of one kind, each in a pause or in a word."""
    rng = np.random.default_rng([SEED, FAULTS.index(fault)])
    pcm, middles, blocks = scene()
    clean, _ = listen(model, FakePortAudio(pcm, RATE), len(pcm) - BLOCK)
    found_count = missed = extra = hit_found = 0
    errors, gap_errors = [], []
    for _ in range(TRIALS):
        word = str(rng.choice([event.label for event in clean])) if hit_during == "word" else None
        block = int(rng.choice(middles if word is None else blocks[word]))
        portaudio = failing_portaudio(fault, hit_during, pcm, block, rng)
        detections, gaps = listen(
            model, portaudio, len(pcm) - 8 * BLOCK
        )  # gaps of NaN and the resampler keep some back
        gap_start, length = gaps[0][0], sum(samples for _, samples in gaps)
        if absence_s := portaudio.away_s:
            gap_errors.append(1000 * abs(length / RATE - absence_s))
        unmatched = list(detections)
        for event in clean:
            # what is NaN, or overflows in a word, replaces sound; all other gaps add to it
            adds_sound = fault != "NaN" and not (hit_during == "word" and fault in LONGEST_LOST)
            shift = length if adds_sound and event.start_sample > gap_start else 0
            match = next((one for one in unmatched if one.label == event.label), None)
            if match is None:
                missed += 1
                continue
            unmatched.remove(match)
            found_count += 1
            if event.label == word:
                hit_found += 1
                continue
            errors.append(abs(match.start_sample - event.start_sample - shift))
        extra += len(unmatched)
    return {
        "fault": fault,
        "in_a": hit_during,
        "trials": TRIALS,
        "words": TRIALS * len(clean),
        "heard": found_count,
        "missed": missed,
        **({"struck_heard": hit_found} if hit_during == "word" else {}),
        "heard_that_were_not_said": extra,
        "clock_error_samples_median": float(np.median(errors)),
        "clock_error_samples_largest": int(np.max(errors)),
        **({"gap_error_ms_largest": round(max(gap_errors), 1)} if gap_errors else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    args = parser.parse_args()
    model = load("digits")
    rows = []
    for struck, faults in STRUCK.items():
        for fault in faults:
            rows.append(row(model, struck, fault))
            print(rows[-1], flush=True)
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    result["microphone"] = {
        "command": "python -m benchmarks.faults_microphone",
        "model": "digits",
        "seed": SEED,
        "hop_samples": model.contract.hop * RATE // model.contract.sample_rate,
        "rows": rows,
        **machine(),
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
