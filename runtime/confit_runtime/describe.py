"""A model in words: its contract, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confit_runtime.contract import Contract
from confit_runtime.data_warnings import data_warnings
from confit_runtime.errors import ModelError
from confit_runtime.formatting import format_count, format_interval, format_list, format_percent

ORIGINS = {
    "speech-embedding": "speech_embedding, copyright Google LLC, Apache-2.0",
    "ge2e": "the voice encoder of Resemblyzer, copyright Resemble AI, Apache-2.0",
}


def facts(contract: Contract, size: int) -> list[tuple[str, str]]:
    """Names and values for a table; `size` is the file's size in bytes. Raises ModelError if a report is malformed."""
    try:
        return _facts(contract, size)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{contract.name}: one of its reports (cost, metrics, parity, data or calibration) is malformed"
            f" ({type(error).__name__}: {error}): export it again, or calibrate it again"
        ) from error


def _facts(contract: Contract, size: int) -> list[tuple[str, str]]:
    rate, parity, metrics = contract.sample_rate, contract.parity, contract.metrics
    every = f"scores every {1e3 * contract.hop / rate:g} ms over a window of {contract.window / rate:g} s"
    rows = [
        ("kind", f"{'streaming' if contract.streaming else 'windowed'}: {every} at {rate} Hz"),
        ("labels", f"{len(contract.labels)}: {format_list(contract.labels)}"),
        ("encoder", f"{contract.encoder.get('name', '')}, {contract.embedding_dim} dimensions"),
        ("size", f"{size / 1e6:.2f} MB"),
        ("precision", _precision(contract)),
    ]
    if contract.cost:
        rows += _cost_rows(contract.cost)
    if fused := parity.get("fused_activations"):
        rows.append(("activations", f"replaced by fused ones; cosine {fused['cosine']:.4f} to the run's"))
    if "scheme" in parity:
        rows += _quantisation_rows(parity)
    rows += _measurement_rows(contract)
    if "lost" in parity:
        low, high = (100 * parity["lost"][end] for end in ("low", "high"))
        points, clips = 100 * parity["lost"]["difference"], f"{parity['clips_lost']} of {parity['clips']} clips"
        interval = f" {format_interval(low, high, '+.2f')}" if low < high else ""
        of_map = f"; mAP {100 * parity['map_lost']:+.2f} points" if "map_lost" in parity else ""
        rows.append(("lost on validation", f"{points:+.2f} points{interval}, paired; {clips}{of_map}"))
        rows.append(("cosine to fp32", f"{parity['cosine']:.4f} (mean over validation clips)"))
    if "stream_max_abs_diff" in parity:
        rows.append(("streamed against whole", f"differs by at most {parity['stream_max_abs_diff']:.1e}, in fp32"))
    if "gate" in metrics:
        failed = "; ".join(metrics["gate"]["failures"])
        rows.append(("gate", "passed" if metrics["gate"]["passed"] else f"FAILED, written with --force: {failed}"))
    rows += [("thresholds", _thresholds(contract)), ("thresholds from", _threshold_source(contract))]
    if enroll := _enrollment_threshold(contract.calibration.get("enroll", {})):
        rows.append(("enrolled names start at", enroll))
    rows += [("warning", caution) for caution in data_warnings(contract.data)]
    rows += [("licence", contract.license), ("derived from", _origin(contract.encoder["name"]))]
    rows.append(("embedding id", contract.embedding_id))
    return rows


def _origin(encoder: str) -> str:
    """Whose weights an export of `encoder` contains, in a changed form, and whose licence therefore applies to it too."""
    return ORIGINS.get(encoder, f"the encoder {encoder}; what its licence asks of copies holds for this file too")


def _quantisation_rows(parity: dict[str, Any]) -> list[tuple[str, str]]:
    """How a model was quantised, and which layers that spared or would have hurt most."""
    calibration = f", ranges by {parity['calibration']}" if "calibration" in parity else ""
    epochs = f", {parity['qat_epochs']} quantisation-aware epochs" if parity.get("qat_epochs") else ""
    kept = format_list(parity["kept_fp32"]) or f"none of those that {parity['scheme']} can quantise"
    rows = [
        ("quantised", f"{parity['scheme']} for {parity['target']}{calibration}{epochs}"),
        ("layers kept in fp32", kept),
    ]
    if sweep := parity.get("sweep"):
        hurt = sorted(sweep["errors"].items(), key=lambda item: -item[1])[:3]
        worst = ", ".join(f"{layer} {error:.2g}" for layer, error in hurt)
        known = f"{worst} (1 - cosine when quantised alone)" if worst else ""
        unmeasured = format_count(sweep["unmeasured"], "layer")
        late = f"{unmeasured} not measured for lack of time" if sweep["unmeasured"] else ""
        rows.append(("layers that hurt most", "; ".join(filter(None, (known, late)))))
    return rows


def _measurement_rows(contract: Contract) -> list[tuple[str, str]]:
    """Measured results: on clips by split, on clips heard alone, and at the calibrated thresholds."""
    parity, metrics = contract.parity, contract.metrics
    rows = []
    before = parity.get("fp32", {})
    for split, name in (("val", "validation"), ("test", "test")):
        if split not in metrics:
            continue
        has_fp32 = split in before and "scheme" in parity
        if contract.multi_label:
            fp32 = f"; fp32 {format_map(before[split])}" if has_fp32 else ""
            rows.append((f"mAP, {name}", format_map(metrics[split]) + fp32))
        what = "best label is right" if contract.multi_label else "accuracy"
        fp32 = f"; fp32 {format_accuracy(before[split])}" if has_fp32 else ""
        rows.append((f"{what}, {name}", f"{format_accuracy(metrics[split])} of {metrics[split]['n']} clips{fp32}"))
    if fired := metrics.get("fired"):
        text = f"{format_accuracy(fired)} of {fired['n']} {clip_noun(contract)}, each played alone between silences"
        rows.append((f"fires at the export's thresholds, {'test' if 'test' in metrics else 'validation'}", text))
    if softer := metrics.get("softer"):
        text = (
            f"{softer['fired']} of {softer['n']} {clip_noun(contract)}; at the recorded level {softer['as_recorded']}"
        )
        rows.append((f"fires {softer['db']:g} dB softer, validation", text))
    if "frr" in (device := contract.calibration.get("device", {})):
        missed = format_percent(device["frr"], *device["frr_interval"])
        rows.append(("missed at the calibrated thresholds", f"{missed} of {device['clips']} {clip_noun(contract)}"))
    return rows


def better_than_int8(contract: Contract) -> str | None:
    """What to export with instead if most multiply-adds of an int8 model are in fp32; otherwise None."""
    macs = contract.cost.get("macs_per_second", {})
    if contract.precision != "int8" or 2 * macs.get("int8", 0) >= sum(macs.values()):
        return None
    fp16 = "--scheme fp16 (all weights in 16 bits)"
    fp32_lstm = "fp32" in contract.cost.get("nodes", {}).get("LSTM", {}) and contract.parity.get("scheme") == "static"
    return f"--scheme dynamic (LSTMs in int8 too) or {fp16}" if fp32_lstm and not contract.streaming else fp16


def _precision(contract: Contract) -> str:
    better = better_than_int8(contract)
    return contract.precision + (f", but most multiply-adds are in fp32: export with {better}" if better else "")


def format_accuracy(measured: dict[str, Any]) -> str:
    """An accuracy with its interval, in per cent."""
    return format_percent(measured["accuracy"], measured["low"], measured["high"])


def format_map(measured: dict[str, Any]) -> str:
    """The mean average precision of a multi-label model, in per cent."""
    return format_percent(measured["map"], measured["map_low"], measured["map_high"])


def clip_noun(contract: Contract) -> str:
    """What the share that fires counts: a clip with several labels counts once for each."""
    return "sounds" if contract.multi_label else "clips"


def _thresholds(contract: Contract) -> str:
    """One level for all labels, or the lowest and the highest; then the labels that never fire."""
    by_level = sorted((contract.thresholds[label]["on"], label) for label in contract.can_fire)
    if not by_level:
        return "nothing fires: this model is for enrolled names"
    (low, lowest), (high, highest) = by_level[0], by_level[-1]
    shown = f"{low:.4g} for all labels" if low == high else f"{low:.4g} ({lowest}) to {high:.4g} ({highest})"
    return shown + (f"; never: {format_list(contract.silenced)}" if contract.silenced else "")


def _threshold_source(contract: Contract) -> str:
    if "device" not in contract.calibration:
        return "export, not calibrated since" if contract.can_fire else "-"
    report = contract.calibration["device"]
    source = f"{report['file']} of {report['made']}: " if "file" in report else ""
    by_hand = format_by_hand(report)
    if "hours" not in report:
        return f"{source}{by_hand or 'no calibration report'}"
    return (
        f"{source}calibration on {report['hours']:.2f} hours: at most {report['fa_per_hour_bound']:.2g} false accepts per hour"
        f" ({100 * report['confidence']:g} % confidence), target {report['target_fa_per_hour']:g}"
        + (f"; {by_hand}" if by_hand else "")
    )


def format_by_hand(report: Mapping[str, Any]) -> str:
    """Which thresholds of a calibration a person chose, and which calibration the others are of; empty if none was chosen.

    For example `set by hand: marvin=0.3; the others are of an earlier calibration, for 0.5 false accepts per hour`.
    """
    if "by_hand" not in report:
        return ""
    chosen = format_list([f"{label}={on:g}" for label, on in report["by_hand"].items()])
    if "calibrated" not in report:
        return f"set by hand: {chosen}"
    target = report["calibrated"]["target_fa_per_hour"]
    return f"set by hand: {chosen}; the others are of an earlier calibration, for {target:g} false accepts per hour"


def _enrollment_threshold(enroll: Mapping[str, Any]) -> str:
    """The similarity that names need by default and the trials it rests on; empty if it was not measured."""
    if not {"threshold", "trials"} <= enroll.keys():
        return ""
    trials = format_count(enroll["trials"], "trial")
    if "classes" in enroll:
        trials += f" with {format_count(enroll['classes'], 'class', 'classes')}"
    if "false_accept_rate" in enroll:
        trials = f"passed by {100 * enroll['false_accept_rate']:g} % of strangers in {trials}"
    else:
        trials = f"a guess, because {trials} are too few to say how many strangers pass"
    return f"{enroll['threshold']:.2f}: {trials}"


def _cost_rows(cost: dict[str, Any]) -> list[tuple[str, str]]:
    macs = cost["macs_per_second"]
    parts = ", ".join(f"{count / 1e6:.1f} M in {precision}" for precision, count in macs.items())
    layers = "; ".join(
        f"{kind} " + ", ".join(f"{count} {precision}" for precision, count in counts.items())
        for kind, counts in cost["nodes"].items()
    )
    return [
        ("parameters", f"{cost['parameters'] / 1e6:.2f} M"),
        ("multiply-adds per second of audio", f"{sum(macs.values()) / 1e6:.1f} M ({parts})"),
        ("layers by precision", layers),
    ]
