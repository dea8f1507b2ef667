"""docs/format.md, followed to the letter in numpy and onnxruntime, answers as the runtime does, and changes with the schema."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import soundfile

from confit_runtime import (
    Detection,
    Gallery,
    Model,
    chunk_scorer,
    device_file,
    enrollment,
    gallery_tables,
    listen,
    load,
    matcher,
    speaker,
    voice_activity,
)
from confit_runtime.contract import SCHEMA, Contract
from confit_runtime.enrollment import embed_query, extract_prints

DEMO = Path(__file__).parents[2] / "confit_edge" / "demo" / "data"
MODELS = Path(__file__).parents[2] / "models"
RATE = 16_000

Floats = npt.NDArray[np.float32]
Event = tuple[str, float, int, int]
Answer = dict[str, Any]


class File:
    """A model file as the page tells of it."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.contract = json.loads(self.session.get_modelmeta().custom_metadata_map["confit_edge"])
        kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
        self.kinds = {one.name: kinds[one.type] for one in self.session.get_inputs()}
        self.cohort, self.quiet = (
            self.ask([name], np.zeros(self.samples, np.float32))[0] for name in ("cohort", "quiet")
        )

    def __getattr__(self, key: str) -> Any:
        return self.contract[key]

    @property
    def samples(self) -> int:
        """Of a call, at the least."""
        return int(self.hop if self.state else self.window)

    def start(self) -> dict[str, npt.NDArray[Any]]:
        return {name: np.zeros((1, *shape), self.kinds[name]) for name, shape in self.state.items()}

    def ask(self, outputs: list[str], pcm: Floats, state: dict[str, npt.NDArray[Any]] | None = None) -> list[Any]:
        return list(self.session.run(outputs, {"pcm": pcm[None], **(state or self.start())}))

    def rows(self, pcm: Floats) -> Iterator[tuple[int, Floats, Floats]]:
        """Each row with the hops so far."""
        state = self.start()
        for hops in range(1, len(pcm) // self.hop + 1):
            end = hops * self.hop
            if state:
                outputs = ["scores", "embedding", *(f"{name}_out" for name in state)]
                scores, embedding, *after = self.ask(outputs, pcm[end - self.hop : end], state)
                state = dict(zip(state, after, strict=True))
            elif end >= self.window:
                scores, embedding = self.ask(["scores", "embedding"], pcm[end - self.window : end])
            if end >= self.window:
                yield hops, scores[0, 0], embedding[0, 0]

    def mean(self, pcm: Floats, output: str) -> Floats:
        """Of a clip's rows."""
        lacking = max(0, self.window - len(pcm))
        pcm = np.pad(pcm, (lacking // 2, lacking - lacking // 2))
        pcm = np.pad(pcm, (0, -(len(pcm) - self.window) % self.hop))
        if self.state:  # whole, as the last digits of an int8 model are of a call
            rows = self.ask([output], pcm)[0][0, self.warmup_hops :]
        else:
            rows = np.array([(scores, embedding)[output == "embedding"] for _, scores, embedding in self.rows(pcm)])
        mean: Floats = rows.mean(axis=0)
        return mean

    def embed(self, pcm: Floats) -> Floats:
        mean = self.mean(pcm, "embedding")
        return mean / np.linalg.norm(mean)


def heard(file: File, pcm: Floats, names: Names | None = None) -> list[Event]:
    """What a recording at the model's own rate holds."""
    silence = file.latency_samples + file.smoothing_hops * file.hop
    silence += -(file.window + len(pcm) + silence) % file.hop
    whole = np.concatenate([np.zeros(file.window, np.float32), pcm, np.zeros(silence, np.float32)])
    labels = file.labels
    on, off = (np.array([file.thresholds[label][key] for label in labels], np.float32) for key in ("on", "off"))
    quiet_hops = [
        math.ceil(file.thresholds[label].get("refractory_s", file.refractory_s) * RATE / file.hop) for label in labels
    ]
    last: list[Floats] = []
    above, began, until = [0] * len(labels), [-1] * len(labels), [0] * len(labels)
    armed, events = [True] * len(labels), []

    def event(label: str, score: float, first: int, hops: int) -> Event:
        speaks = (n * file.hop - file.latency_samples for n in (first, hops))
        start, end = next(speaks) - file.hop // 2, min(next(speaks) + file.hop // 2, hops * file.hop)
        return label, score, *(min(max(0, at - file.window), len(pcm)) for at in (start, end))

    for row, (hops, scores, embedding) in enumerate(file.rows(whole)):
        last = [*last, scores][-file.smoothing_hops :]
        smooth = np.zeros(len(labels), np.float32)
        for one in last:
            smooth = smooth + one
        smooth = smooth / np.float32(len(last))
        for at, label in enumerate(labels):
            if smooth[at] < off[at]:
                armed[at], began[at] = True, -1
            elif began[at] < 0:
                began[at] = hops
            above[at] = above[at] + 1 if smooth[at] >= on[at] else 0
            leads = file.multi_label or smooth[at] >= smooth.max()
            if armed[at] and above[at] >= file.min_hops and label != file.unknown_label and row >= until[at] and leads:
                events.append(event(label, float(smooth[at]), began[at], hops))
                armed[at], until[at] = False, row + quiet_hops[at]
        if names is not None:
            events += [event(*hit, hops) for hit in names.hear(row, hops, embedding)]
    return events


class Names:
    """The names of a gallery, row by row."""

    def __init__(self, file: File, gallery: Path) -> None:
        self.file, self.prints = file, read_gallery(gallery)
        with sqlite3.connect(gallery) as db:
            read = "SELECT name, threshold FROM calibrated JOIN names ON name_id = names.id"
            self.calibrated = dict(db.execute(read).fetchall())
        self.rows, self.first, self.armed, self.until = (
            dict[str, int](),
            dict[str, int](),
            dict[str, bool](),
            dict[str, int](),
        )

    def hear(self, row: int, hops: int, embedding: Floats) -> Iterator[tuple[str, float, int]]:
        answer = match(self.file, self.prints, embedding, self.calibrated)
        for name in self.prints:
            if name != answer["name"]:
                self.rows[name], self.armed[name] = 0, True
                continue
            self.rows[name] = self.rows.get(name, 0) + 1
            self.first[name] = hops if self.rows[name] == 1 else self.first[name]
            enough = self.rows[name] >= max(2, self.file.min_hops)
            if enough and self.armed.get(name, True) and row >= self.until.get(name, 0):
                self.armed[name] = False
                self.until[name] = row + math.ceil(self.file.refractory_s * self.file.sample_rate / self.file.hop)
                yield name, answer["score"], self.first[name]


Prints = dict[str, tuple[Floats, Floats]]  # of each name its own and the negative ones


def read_gallery(path: Path) -> Prints:
    with sqlite3.connect(path) as db:
        found: Prints = {}
        for key, name in db.execute("SELECT id, name FROM names ORDER BY id").fetchall():
            read = "SELECT embedding FROM prints WHERE name_id = ? AND negative = ? ORDER BY id"
            own, negative = (
                [np.frombuffer(blob, "<f4") for (blob,) in db.execute(read, (key, sign))] for sign in (0, 1)
            )
            found[name] = np.array(own), np.array(negative)
    return found


def unit(vector: Floats) -> Floats:
    length = np.linalg.norm(vector)
    return vector if abs(length - 1.0) < 1e-6 else vector / max(length, 1e-12)


def name_score(prints: Floats, query: Floats) -> float:
    cosines = prints @ query
    nearest = np.argsort(-cosines)[:3]
    weights = np.maximum(cosines[nearest], 0.0)
    mean = (weights if weights.any() else np.ones(len(nearest))) @ prints[nearest]
    return float(mean @ query / np.linalg.norm(mean))


def negative_value(prints: Floats, query: Floats) -> float:
    cosines = sorted(prints @ query, reverse=True)
    again = max(cosines[0], name_score(prints, query))
    return float(again if again >= 0.99 else np.mean(cosines[: math.ceil(math.sqrt(len(cosines)))]))


def match(file: File, prints: Prints, embedding: Floats, calibrated: dict[str, float] | None = None) -> Answer:
    """The answer about a clip or, with the `calibrated` names of the gallery, about a row of a stream."""
    query, levels = unit(embedding), file.calibration["enroll"]
    strangers = np.concatenate([file.cohort, file.quiet]) if levels["kind"] == "sound" else file.cohort
    of_strangers = np.sort([unit(one) @ query for one in strangers])[-3:].mean()
    ranking = sorted(((name_score(own, query), name) for name, (own, _) in prints.items()), reverse=True)
    (score, name), (next_score, next_name) = ranking[:2]
    own, negative = prints[name]
    newest, threshold = own[-64:], levels["threshold"]
    if len(newest) > 1:
        others = [name_score(np.delete(newest, at, axis=0), newest[at]) for at in range(len(newest))]
        shift = len(newest) / (len(newest) + 4.5) * (np.mean(others) - levels["genuine"])
        room = min(1, (1 - levels["threshold"]) / 0.2)
        threshold += min(max(shift, -0.25 * room), 0.05 * room)
    if calibrated is not None:
        of_three = levels.get("stream_threshold", (1 + levels["threshold"]) / 2)
        in_stream = 1 - (1 - of_three) * (min(max(len(own), 3), 64) / 3) ** -0.25
        threshold = calibrated.get(name, max(threshold, in_stream))
    reason = None
    if score < threshold:
        reason = "too low"
    elif len(negative) and negative_value(negative, query) >= score - 1e-6:
        reason = "negative"
    elif of_strangers >= score:
        reason = "stranger"
    elif score - next_score < levels["margin"]:
        reason = "too close"
    return {
        "name": None if reason else name, "reason": reason, "nearest": name, "score": score, "threshold": threshold,
        "runner_up": next_name, "runner_up_score": next_score, "margin": score - next_score,
    }  # fmt: skip


def decibel(frames: Floats) -> npt.NDArray[np.float64]:
    return np.maximum(10 * np.log10(np.square(frames.astype(np.float64)).mean(axis=1) + 1e-30), -120.0)


def sounding(pcm: Floats) -> list[list[int]]:
    """The runs of frames that sound; none where the clip is one part."""
    frame = round(0.02 * RATE)
    centred = pcm - pcm.mean()
    levels = decibel(centred[: len(pcm) // frame * frame].reshape(-1, frame))
    loud, noise = sorted(levels)[-3], np.percentile(levels, 10)
    runs: list[list[int]] = []
    if loud - noise < 10:
        return runs
    for at in np.flatnonzero(levels >= max(noise + 10, loud - 30)).tolist():
        if runs and (at * frame - runs[-1][1]) < 0.6 * RATE:
            runs[-1][1] = (at + 1) * frame
        else:
            runs.append([at * frame, (at + 1) * frame])
    return runs


def sound_parts(file: File, pcm: Floats) -> list[Floats]:
    if len(pcm) <= file.window or not (runs := sounding(pcm)):
        return [pcm]
    long = [run for run in runs if run[1] - run[0] >= 0.1 * RATE] or runs
    parts, edge = [], round(0.15 * RATE)
    for start, end in long:
        first, last = max(0, start - edge), min(len(pcm), end + edge)
        more = min(max(0, file.window - (last - first)) // 2, first, len(pcm) - last)
        parts.append(pcm[first - more : last + more])
    return parts


def spoken(pcm: Floats) -> Floats:
    frame, step = round(0.032 * RATE), round(0.01 * RATE)
    window, bins = np.hanning(frame), np.fft.rfftfreq(frame, 1 / RATE)
    band = (bins >= 100) & (bins <= 4000)
    levels, flatness = [], []
    for at in range(0, len(pcm) - frame + 1, step):
        power = np.abs(np.fft.rfft(pcm[at : at + frame] * window)[band]) ** 2 + 1e-12
        levels.append(10 * np.log10(2 * power.sum() / np.square(window).sum() / frame))
        flatness.append(np.exp(np.log(power).mean()) / power.mean())
    loud, floor = np.percentile(levels, 95), np.percentile(levels, 10)
    least = max(loud - 35, min(floor + 8, loud - 15), -65)
    speaks = [level >= least and flat <= 0.42 for level, flat in zip(levels, flatness, strict=True)]
    for value, frames in ((False, 15), (True, 6)):
        at = 0
        while at < len(speaks):
            end = next((n for n in range(at, len(speaks)) if speaks[n] != speaks[at]), len(speaks))
            if speaks[at] == value and end - at < frames and (value or (at > 0 and end < len(speaks))):
                speaks[at:end] = [not value] * (end - at)
                end = at = next((n for n in range(at, -1, -1) if n == 0 or speaks[n - 1] != speaks[at]), 0)
                end = next((n for n in range(at, len(speaks)) if speaks[n] != speaks[at]), len(speaks))
            at = end
    kept = np.zeros(len(pcm), bool)
    for at in np.flatnonzero(speaks).tolist():
        reach = round(0.03 * RATE) + round(0.3 * RATE)
        kept[max(0, at * step - reach) : at * step + frame + reach] = True
    return pcm[kept]


def ask(file: File, pcm: Floats) -> Floats:
    """The embedding of a clip that is asked about."""
    if file.calibration["enroll"]["kind"] == "speaker":
        return file.embed(spoken(pcm))
    return unit(np.mean([file.embed(part) for part in sound_parts(file, pcm)], axis=0))


def clip(path: Path) -> Floats:
    pcm, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return pcm


def words(label: str, voices: slice) -> list[Floats]:
    return [clip(path) for path in sorted((DEMO / "words" / label).glob("*.ogg"))[voices]]


def scene(sounds: list[Floats], seed: int = 0) -> Floats:
    """Sounds with pauses of half a second to two, in a quiet room."""
    rng = np.random.default_rng(seed)
    parts = [part for sound in sounds for part in (np.zeros(rng.integers(RATE // 2, 2 * RATE), np.float32), sound)]
    joined = np.concatenate(parts)
    return joined + (1e-3 * rng.standard_normal(len(joined))).astype(np.float32)


def heard_here(model: Model, gallery: Gallery | None, pcm: Floats, path: Path) -> list[Event]:
    soundfile.write(path, pcm, RATE, subtype="FLOAT")
    found: list[Detection] = list(listen(model.stream(gallery, lead_in=True), str(path)))
    return [(one.label, one.score, one.start_sample, one.end_sample) for one in found]


@pytest.fixture(scope="module")
def digits() -> File:
    return File(MODELS / "digits.onnx")


def enrolled(model: Model, path: Path) -> Gallery:
    """Three names of a few words or sentences each, and one negative print."""
    gallery = Gallery.open(path, model, create=True)
    for name in ("bed", "cat", "marvin"):
        sounds = words(name, slice(8))
        given = [np.concatenate(sounds)] if gallery.kind == "speaker" else sounds
        taken = [extract_prints(model, pcm, gallery.kind, name) for pcm in given]
        prints = np.concatenate([one.embeddings for one in taken])
        gallery.enroll(name, prints, sources=[name] * len(prints), voiced_s=sum(one.seconds for one in taken))
    negative = extract_prints(model, np.concatenate(words("cat", slice(8, 12))), gallery.kind, "no").embeddings
    gallery.enroll("cat", negative, sources=["no"] * len(negative), voiced_s=0.0, negative=True)
    return gallery


def test_words_are_heard_as_the_page_tells(digits: File, tmp_path: Path) -> None:
    real = [clip(path) for path in sorted((DEMO / "digits-real").glob("*.ogg"))]
    said = [word for label in ("three", "seven", "zero", "cat") for word in words(label, slice(6))]
    model = load("digits")
    for pcm in (scene(real), scene(said), said[0], real[0][: RATE // 2]):
        found = heard(digits, pcm)
        assert found == heard_here(model, None, pcm, tmp_path / "scene.wav")
    assert len(heard(digits, scene(said))) > 6


def test_names_are_heard_as_the_page_tells(digits: File, tmp_path: Path) -> None:
    model, pcm = load("digits"), scene([*words("marvin", slice(4, 16)), *words("bed", slice(4, 16))])
    counts = []
    with enrolled(model, tmp_path / "words.db") as gallery:
        for calibrated in ({}, {"bed": 0.96}):
            gallery.calibrate(calibrated, 0.5, "2026-01-31")
            there = heard_here(model, gallery, pcm, tmp_path / "scene.wav")
            found = heard(digits, pcm, Names(digits, tmp_path / "words.db"))
            assert {label for label, *_ in found} >= {"marvin", "bed"}
            assert [(label, *times) for label, _, *times in found] == [(label, *times) for label, _, *times in there]
            assert [score for _, score, *_ in found] == pytest.approx([score for _, score, *_ in there], abs=1e-6)
            counts.append([sum(label == name for label, *_ in found) for name in ("marvin", "bed")])
    assert counts[1][0] == counts[0][0]
    assert counts[1][1] < counts[0][1]


@pytest.mark.parametrize("shipped", ["digits", "speakers"])
def test_questions_are_answered_as_the_page_tells(shipped: str, tmp_path: Path) -> None:
    model, file = load(shipped), File(MODELS / f"{shipped}.onnx")
    asked = [pcm for label in ("bed", "cat", "marvin", "five") for pcm in words(label, slice(6, 18))]
    asked = [np.concatenate(asked[at : at + 3]) for at in range(0, len(asked), 3)] if shipped == "speakers" else asked
    asked += [scene(asked[at : at + 3], at) for at in (0, 3, 6)]
    with enrolled(model, tmp_path / "gallery.db") as gallery:
        there = [gallery.match(embed_query(model, pcm, gallery.kind, "asked")) for pcm in asked]
    prints = read_gallery(tmp_path / "gallery.db")
    for pcm, answer in zip(asked, there, strict=True):
        for key, value in match(file, prints, ask(file, pcm)).items():
            there_too = getattr(answer, key)
            assert value == (pytest.approx(there_too, abs=1e-6) if isinstance(there_too, float) else there_too), key
    reasons = {answer.reason for answer in there}
    assert reasons >= ({None, "too low", "stranger"} if shipped == "digits" else {None, "too low"})


def test_clips_are_classified_as_the_page_tells(digits: File) -> None:
    model, edge = load("digits"), round(0.15 * RATE)
    said = [word for label in ("three", "seven", "cat") for word in words(label, slice(3))]
    quiet = np.zeros(2 * RATE, np.float32)
    asked = [*said, *(np.concatenate([quiet, word, quiet]) for word in said), scene(said), said[0][: RATE // 4]]
    for pcm in asked:
        runs = sounding(pcm) if len(pcm) > digits.window else []
        cut = pcm[max(0, runs[0][0] - edge) : runs[-1][1] + edge] if runs else pcm
        scores, found = digits.mean(cut, "scores"), model.classify(pcm, RATE)
        assert scores == pytest.approx(list(found.scores.values()), abs=1e-6)
        assert (found.label, found.labels) == (digits.labels[scores.argmax()], (found.label,))
    assert "three" in model.classify(asked[len(said)], RATE).labels


def test_the_digests_are_where_the_page_says() -> None:
    model, data = load("digits"), (MODELS / "digits.onnx").read_bytes()
    contract = data.index(model.contract.to_json().encode())
    at = data.rindex(b"confit_edge", 0, contract)
    begin = next(start for start in range(at, 0, -1) if hashlib.sha256(data[:start]).hexdigest() == model.digest)
    assert at - begin < 16
    end = contract + len(model.contract.to_json().encode())
    assert hashlib.sha256(data[:end]).hexdigest().encode() in data[end:]


def test_the_page_is_of_these_schemas_and_tells_of_every_key() -> None:
    page = (DEMO.parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    assert f"## The contract, schema {SCHEMA}\n" in page
    assert f"`MODEL.device.json` next to a model (schema {device_file.SCHEMA})" in page
    assert f"`application_id` {gallery_tables.APPLICATION_ID:#x}, `user_version` {gallery_tables.SCHEMA}." in page
    assert [field.name for field in dataclasses.fields(Contract) if f"`{field.name}`" not in page] == []


# What answers hang on and no file holds: as long as this is read by a schema, it is as it was when its files were made.
CONSTANTS = {
    2: {
        "matcher": {
            "NEAREST_PRINTS": 3, "NEIGHBOUR_PRINTS": 64, "DEFAULT_THRESHOLD": 0.6, "DEFAULT_MARGIN": 0.03, "PRIOR_PRINTS": 4.5,
            "MIN_SHIFT": -0.25, "MAX_SHIFT": 0.05, "SHIFT_ROOM": 0.2, "UNIT_TOLERANCE": 1e-6, "ROUNDING_TOLERANCE": 1e-6,
            "NEWEST_PRINTS": 64, "SAME_SOUND": 0.99,
        },
        "voice_activity": {
            "FRAME_S": 0.032, "STEP_S": 0.01, "LOW_HZ": 100.0, "HIGH_HZ": 4000.0, "BELOW_PEAK_DB": 35.0, "ABOVE_FLOOR_DB": 8.0,
            "MIN_RANGE_DB": 15.0, "MIN_VOICE_DB": -65.0, "MAX_FLATNESS": 0.42, "MAX_GAP_S": 0.15, "MIN_VOICE_S": 0.06,
            "EDGE_S": 0.03, "PAUSE_S": 0.6, "SILENCE_DB": -70.0, "MAX_BELOW_PEAK_DB": 40.0, "MIN_ABOVE_NOISE_DB": 10.0,
            "SOUND_BELOW_PEAK_DB": 30.0, "LOUDEST_FRAMES": 3, "QUIET_S": 0.15, "LEVEL_FRAME_S": 0.02,
        },
        "chunk_scorer": {"HOPS_PER_CALL": 256, "WINDOWS_PER_CALL": 16},
        "enrollment": {"MIN_SOUND_S": 0.1, "MIN_CLIP_VOICE_S": 0.5, "MIN_VOICE_S": 4.0, "PRINT_S": 3.0},
        "speaker": {
            "RECENT_S": 6.0, "SLACK_S": 1.0, "VOICE_BEFORE_S": 3.0, "MIN_VOICE_S": 0.2, "WORD_S": (0.6, 0.3),
            "MIN_WORD_VOICE_S": 0.1, "WORD_SLACK": 0.1,
        },
    }
}  # fmt: skip


@pytest.mark.parametrize(
    "module", [matcher, voice_activity, enrollment, chunk_scorer, speaker], ids=lambda module: str(module.__name__)
)
def test_constants_that_affect_answers_change_only_with_the_schema(module: Any) -> None:
    known = CONSTANTS[SCHEMA][module.__name__.rsplit(".", 1)[1]]
    assert {name: getattr(module, name) for name in known} == known, (
        "these change what every model and gallery answers: let the contract's SCHEMA go up with them, and docs/format.md"
    )
