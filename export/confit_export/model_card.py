"""The card of a model, `MODEL.md` beside it, in the Hugging Face format: what it is, how it measured, how fast it was."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from confit_edge.files import write_text
from confit_edge.probes.tables import escaped
from confit_export.export import Exported
from confit_runtime.bench import Latency, call_latency, fresh_process
from confit_runtime.cautions import enough
from confit_runtime.contract import Contract
from confit_runtime.describe import better_than_int8, facts
from confit_runtime.enrollment import kind_of
from confit_runtime.errors import UsageError
from confit_runtime.model import load

ROUNDS = 3
ROUND_SECONDS = 0.15
LIBRARY = "confit-edge"
CLEARLY_SLOWER = 0.95  # of fp32's speed: nearer to it chance decides


@dataclass(frozen=True)
class Timing:
    """A model beside its own fp32 graph on this machine, measured in turn on one thread.

    `speedup` is fp32's processor time over the model's: below 1, fp32 is faster here. `peak_mb` is None where the
    system does not tell.
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


def time_model(made: Exported) -> Timing:
    """Measure a model that was just exported; takes about two seconds."""
    shipped = load(made.path)
    rounds: list[tuple[Latency, Latency]] = [
        (call_latency(shipped, ROUND_SECONDS), call_latency(made.fp32_model, ROUND_SECONDS)) for _ in range(ROUNDS)
    ]
    ours, theirs = (_middle([pair[side] for pair in rounds]) for side in (0, 1))
    return Timing(ours, theirs, fresh_process(made.path).peak_mb)


def _middle(rounds: list[Latency]) -> Latency:
    cpu = median(one.cpu_ms for one in rounds)
    return min(rounds, key=lambda one: abs(one.cpu_ms - cpu))


def recommendation(contract: Contract, timing: Timing) -> str | None:
    """What to do where int8 gains little: most of it is computed in fp32, or fp32 is clearly faster here; else None."""
    if contract.precision != "int8":
        return None
    if better := better_than_int8(contract):
        return (
            "Most multiply-adds of this model are in fp32, in layers that have no static int8 (LSTM) or lose by it, so int8"
            f" gains little: export with {better}."
        )
    if timing.speedup >= CLEARLY_SLOWER:
        return None
    return (
        f"On this machine ({platform.machine()}) fp32 is faster: {timing.fp32.cpu_ms:.3f} ms of processor time a call"
        f" against {timing.latency.cpu_ms:.3f} ms in int8. Where speed matters more than size, export with"
        " --no-quantize."
    )


def refuse_other_card(model: Path) -> None:
    """Raise UsageError where a file that is no card stands where `model`'s would be written."""
    path = model.with_suffix(".md")
    if path.is_file() and f"library_name: {LIBRARY}" not in path.read_text(encoding="utf-8", errors="replace")[:500]:
        raise UsageError(
            f"{path}: is no card that confit-edge wrote, and would be replaced by one; name the model otherwise"
        )


def write_card(made: Exported, timing: Timing) -> Path:
    """Write `MODEL.md` beside the model, whole or not at all."""
    path = made.path.with_suffix(".md")
    write_text(path, card(made, timing))
    return path


def card(made: Exported, timing: Timing) -> str:
    """The card of a model that was just exported."""
    in_fp32 = f"In fp32 the file would be {made.fp32_bytes / 1e6:.2f} MB."
    advice = recommendation(made.contract, timing)
    measured = [*_speed(made.contract, timing), *([advice, ""] if advice else [])]
    return card_of(made.contract, made.bytes, made.path.name, note=in_fp32, sections=measured)


def card_of(contract: Contract, size: int, model: str, *, note: str = "", sections: Sequence[str] = ()) -> str:
    """Markdown with a YAML head. `size` is the file's in bytes, `model` what commands call it.

    `note` is said of the whole; `sections` are lines that stand before how it is used.
    """
    tested = "Test was looked at once, after everything was chosen." if "test" in contract.metrics else ""
    of_groups = "Intervals are of groups (speakers, recordings): clips of one group count as alike."
    intervals = of_groups if contract.metrics else ""
    counted = "Multiply-adds are those of convolutions, matrix products and recurrent layers."
    lines = [
        "---",
        front_matter(contract).rstrip(),
        "---",
        f"# {escaped(contract.name)}",
        "",
        "An audio classifier for CPU devices, in one ONNX file: PCM in, scores and embedding out, with its contract inside.",
        "",
        *table(facts(contract, size)),
        "",
        " ".join(filter(None, (tested, note, intervals, counted))),
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
    return [
        "## On the machine that exported it",
        "",
        f"{platform.machine()}, one thread; other machines differ. A call takes one {unit}.",
        "",
        *table(
            [
                ("latency of a call, p50 / p99", f"{latency.p50_ms:.2f} / {latency.p99_ms:.2f} ms"),
                ("the same in fp32", f"{fp32.p50_ms:.2f} / {fp32.p99_ms:.2f} ms"),
                ("processor time per second of audio", f"{latency.cpu_rtf:.4f} s (fp32 {fp32.cpu_rtf:.4f} s)"),
                (
                    "peak memory of a process that listens",
                    "unknown" if timing.peak_mb is None else f"{timing.peak_mb:.0f} MB",
                ),
            ]
        ),
        "",
    ]


def _commands(contract: Contract, model: str) -> list[str]:
    """What a model for voices is used by, and what any other."""
    voices = [f"confit-edge enroll {model} NAME CLIP...", f"confit-edge identify {model} CLIP"]
    use = voices if kind_of(contract) == "speaker" else [f"confit-edge listen {model}"]
    return [*use, f"confit-edge inspect {model}"]


def front_matter(contract: Contract) -> str:
    """The YAML of a card; what was measured is published in it where enough clips and groups stand behind it."""
    import yaml

    metrics = {"map": "mAP"} if contract.multi_label else {"accuracy": "accuracy"}
    measured = [
        {"type": metric, "name": f"{split} {name}", "value": round(contract.metrics[split][metric], 4)}
        for split in ("val", "test")
        if split in contract.metrics and enough(contract.data, split)
        for metric, name in metrics.items()
    ]
    head: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": "audio-classification",
        "license": contract.license,
        "tags": ["onnx", "audio-classification", contract.precision.replace(" ", "-")],
        "metrics": list(metrics),
    }
    if measured:  # an accuracy of a few clips is told below, with what to beware of, and not published as a result
        result = {
            "task": {"type": "audio-classification"},
            "dataset": {"name": contract.data["fingerprint"][:12], "type": "audio"},
            "metrics": measured,
        }
        head["model-index"] = [{"name": contract.name, "results": [result]}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| what | value |", "|---|---|", *(f"| {name} | {escaped(value)} |" for name, value in rows)]
