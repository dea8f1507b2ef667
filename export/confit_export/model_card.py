"""The model card: `MODEL.md` next to the model file, in the Hugging Face format, with its facts, accuracy and speed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from confit_edge.files import write_text
from confit_edge.probes.tables import escaped, escaped_sentence
from confit_export.export import Exported
from confit_runtime.bench import Latency, call_latency, fresh_process
from confit_runtime.contract import NO_LICENSE, Contract
from confit_runtime.data_warnings import has_enough_clips
from confit_runtime.describe import better_than_int8, facts
from confit_runtime.enrollment import model_kind
from confit_runtime.errors import UsageError
from confit_runtime.model import load

ROUNDS = 3
ROUND_SECONDS = 0.15
LIBRARY = "confit-edge"
SLOWER_RATIO = 0.95  # of fp32's speed: any closer and the difference is chance


@dataclass(frozen=True)
class Timing:
    """A model compared with its own fp32 graph on this machine; the two are measured in turn on one thread.

    `speedup` is fp32's processor time divided by the model's: below 1, fp32 is faster here. `peak_mb` is None where
    the system does not report it.
    """

    latency: Latency
    fp32: Latency
    peak_mb: float | None

    @property
    def speedup(self) -> float:
        return self.fp32.cpu_ms / self.latency.cpu_ms

    def to_dict(self) -> dict[str, Any]:
        return {
            "p50_ms": self.latency.p50_ms,
            "p99_ms": self.latency.p99_ms,
            "cpu_rtf": self.latency.cpu_rtf,
            "fp32_p50_ms": self.fp32.p50_ms,
            "fp32_cpu_rtf": self.fp32.cpu_rtf,
            "speedup": self.speedup,
            "peak_mb": self.peak_mb,
        }


def time_model(exported: Exported) -> Timing:
    """Time a model that was just exported; this takes about two seconds."""
    shipped = load(exported.path)
    rounds: list[tuple[Latency, Latency]] = [
        (call_latency(shipped, ROUND_SECONDS), call_latency(exported.fp32_model, ROUND_SECONDS)) for _ in range(ROUNDS)
    ]
    shipped_latency, fp32_latency = (_median_round([latencies[side] for latencies in rounds]) for side in (0, 1))
    return Timing(shipped_latency, fp32_latency, fresh_process(exported.path).peak_mb)


def _median_round(rounds: list[Latency]) -> Latency:
    cpu = median(latency.cpu_ms for latency in rounds)
    return min(rounds, key=lambda latency: abs(latency.cpu_ms - cpu))


def recommendation(contract: Contract, timing: Timing) -> str | None:
    """Return advice where int8 gains little: most of it runs in fp32, or fp32 is clearly faster here. Otherwise None."""
    if contract.precision != "int8":
        return None
    if better := better_than_int8(contract):
        return (
            "int8 gains little here, because most of this model's multiply-adds run in fp32: in layers that have no static"
            f" int8 form (LSTM), or that lose too much in int8. Export with {better}."
        )
    if timing.speedup >= SLOWER_RATIO:
        return None
    return (
        f"On this machine ({platform.machine()}) fp32 is faster: {timing.fp32.cpu_ms:.3f} ms of processor time per call,"
        f" compared with {timing.latency.cpu_ms:.3f} ms in int8. If speed matters more than size, export with"
        " --no-quantize."
    )


def check_card_path(model: Path) -> None:
    """Raise UsageError if the card of `model` would overwrite a file that is not a card of ours."""
    path = model.with_suffix(".md")
    if path.is_file() and f"library_name: {LIBRARY}" not in path.read_text(encoding="utf-8", errors="replace")[:500]:
        raise UsageError(
            f"{path}: is not a card that confit-edge wrote, and the model's card would overwrite it; rename the model"
        )


def write_card(exported: Exported, timing: Timing) -> Path:
    """Write `MODEL.md` next to the model: the whole card, or nothing."""
    path = exported.path.with_suffix(".md")
    write_text(path, model_card(exported, timing))
    return path


def model_card(exported: Exported, timing: Timing) -> str:
    """Return the card of a model that was just exported."""
    fp32_note = f"In fp32 the file would be {exported.fp32_bytes / 1e6:.2f} MB."
    advice = recommendation(exported.contract, timing)
    sections = [*_speed(exported.contract, timing), *([advice, ""] if advice else [])]
    return render_card(exported.contract, exported.bytes, exported.path.name, note=fp32_note, sections=sections)


def render_card(contract: Contract, size: int, model: str, *, note: str = "", sections: Sequence[str] = ()) -> str:
    """Return a card: Markdown with a YAML head.

    `size` is the file's size in bytes, and `model` the name or path that the card's commands use. `note` is a sentence for
    the remarks below the table. `sections` are lines to put before the section `Use`.
    """
    test_note = "The test split was used once, after every choice was made." if "test" in contract.metrics else ""
    interval_note = (
        "Intervals (95 %) are over groups (speakers, recordings), since clips of one group resemble each other."
    )
    intervals = interval_note if contract.metrics else ""
    macs_note = "Multiply-adds are those of convolutions, matrix products and recurrent layers."
    lines = [
        "---",
        front_matter(contract).rstrip(),
        "---",
        f"# {escaped(contract.name)}",
        "",
        "An audio classifier for CPU devices in one ONNX file. It takes PCM and returns scores and an embedding; its contract is"
        " stored inside the file.",
        "",
        *table(facts(contract, size)),
        "",
        " ".join(filter(None, (test_note, note, intervals, macs_note))),
        "",
        *sections,
        "## Use",
        "",
        "```",
        *_commands(contract, model),
        "```",
        "",
    ]
    return "\n".join(lines)


def _speed(contract: Contract, timing: Timing) -> list[str]:
    latency, fp32, unit = timing.latency, timing.fp32, "hop" if contract.streaming else "window"
    cpu = f"{latency.cpu_rtf:.4f} s"
    rows = [("latency per call, p50 / p99", f"{latency.p50_ms:.2f} / {latency.p99_ms:.2f} ms")]
    if contract.precision != "fp32":
        rows.append(("latency per call in fp32, p50 / p99", f"{fp32.p50_ms:.2f} / {fp32.p99_ms:.2f} ms"))
        cpu += f" (fp32 {fp32.cpu_rtf:.4f} s)"
    peak = "unknown" if timing.peak_mb is None else f"{timing.peak_mb:.0f} MB"
    rows += [("processor time per second of audio", cpu), ("peak memory of a listening process", peak)]
    return [
        "## On the machine that exported it",
        "",
        f"Measured on {platform.machine()} with one thread; other machines differ. One call processes one {unit}.",
        "",
        *table(rows),
        "",
    ]


def _commands(contract: Contract, model: str) -> list[str]:
    """Return the commands that use the model: those for voices, or those for any other kind."""
    voices = [f"confit-edge enroll {model} NAME CLIP...", f"confit-edge identify {model} CLIP"]
    use = voices if model_kind(contract) == "speaker" else [f"confit-edge listen {model}"]
    return [*use, f"confit-edge inspect {model}"]


def front_matter(contract: Contract) -> str:
    """Return the YAML of a card. It publishes an accuracy only if enough clips and groups support it."""
    import yaml

    metrics = {"map": "mAP"} if contract.multi_label else {"accuracy": "accuracy"}
    measured = [
        {"type": metric, "name": f"{split} {name}", "value": round(contract.metrics[split][metric], 4)}
        for split in ("val", "test")
        if split in contract.metrics and has_enough_clips(contract.data, split)
        for metric, name in metrics.items()
    ]
    head: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": "audio-classification",
        # the hub's names are SPDX identifiers in lower case
        **({} if contract.license == NO_LICENSE else {"license": contract.license.lower()}),
        "tags": ["onnx", "audio-classification", contract.precision.replace(" ", "-")],
        "metrics": list(metrics),
    }
    if measured:  # an accuracy on a few clips is in the table, with its caution, but not published as a result
        result = {
            "task": {"type": "audio-classification"},
            "dataset": {"name": contract.data["fingerprint"][:12], "type": "audio"},
            "metrics": measured,
        }
        head["model-index"] = [{"name": contract.name, "results": [result]}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| property | value |", "|---|---|", *(f"| {name} | {escaped_sentence(value)} |" for name, value in rows)]
