"""The demo's report: one HTML file with its plots embedded."""

from __future__ import annotations

import base64
import csv
import html
from pathlib import Path
from typing import Any

from confit_edge.files import write_text
from confit_runtime.formatting import format_interval

ROW_S, SECOND_PX = 30.0, 30.0  # of the timeline: seconds per row, pixels per second

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #26323f; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem } img { max-width: 100% } audio { width: 100% }
table { border-collapse: collapse } td, th { padding: .3rem .9rem; border-bottom: 1px solid #d9dfe5; text-align: right }
td:first-child, th:first-child { text-align: left } .small { color: #66727e; font-size: 90% }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem }
.tile { border: 1px solid #d9dfe5; border-radius: .6rem; padding: .7rem 1.1rem }
.tile b { display: block; font-size: 1.5rem; color: #0b7a75 }
svg text { font: 9px system-ui, sans-serif; fill: #26323f }
"""


def write_report(out: Path, summary: dict[str, Any]) -> None:
    """Write `report.html` from the summary, the plots and the timeline in `out`."""
    stream, model, word, voices = (summary[key] for key in ("stream", "model", "enroll_word", "identify"))
    digits, shipped = summary["real_digits"], voices["speaker_model"]
    tiles = {
        f"{100 * summary['accuracy']['pairtune']['linear']:.1f} %": "of words by unseen voices are right",
        f"{stream['detected']} / {stream['expected']}": f"words found in noise, with {stream['false_accepts']} false accepts",
        f"{model['bytes'] / 1e6:.2f} MB": f"{model['precision']} model, one file",
        f"{digits['correct']} / {digits['n']}": "digits by a real person recognised",
        f"{word['correct']} / {word['n']}": f"clips of '{word['word']}' recognised, enrolled from three",
    }
    chance = "better than chance" if voices["better_than_chance"] else "no better than chance"
    body = [
        "<h1>confit-edge demo</h1>",
        f"<p class=small>seed {summary['seed']}, {time_and_memory(summary)}</p>",
        "<div class=tiles>",
        *(f"<div class=tile><b>{big}</b>{html.escape(small)}</div>" for big, small in tiles.items()),
        "</div>",
        "<h2>The two probes</h2>",
        _accuracy_table(summary["accuracy"]),
        "<h2>Training</h2>",
        _image(out / "plots" / "learning.png", "validation accuracy by epoch"),
        "<h2>The embedding, before and after</h2>",
        _image(out / "plots" / "map.png", "two maps of test clips"),
        "<h2>Listening</h2>",
        f"<p>{stream['expected']} words by unseen voices, {stream['snr_db']:g} dB above music and foreign speech:"
        f" {stream['detected']} found, {stream['false_accepts']} false accepts. Words above the line were spoken (red:"
        " missed); words below it were detected.</p>",
        "<audio controls src=stream.flac></audio>",
        _timeline(out / "stream.csv"),
        "<h2>Confusion</h2>",
        _image(out / "plots" / "confusion.png", "confusion of test clips"),
        "<h2>Enrollment</h2>",
        f"<p>The word '{word['word']}', enrolled from three clips: {word['correct']} of {word['n']} clips by other voices"
        f" recognised; {word['others_unknown']} of {word['others_n']} clips of other words answered 'unknown', as they should"
        " be.</p>",
        f"<p>Two voices are enrolled: {' and '.join(voices['voices'])}.</p>",
        "<ul>",
        f"<li>With the encoder PairTuned on voices, one word at a time: {voices['correct']} of their {voices['n']} clips named"
        f" correctly, {voices['mistaken']} mistaken for the other; {voices['unknown_correct']} of {voices['unknown_n']} clips by"
        f" strangers answered 'unknown'. Asked only which of the two is nearer: {voices['nearer_correct']} of {voices['n']}"
        f" right, {chance}.</li>",
        f"<li>With the speaker model that ships, three words at a time: {shipped['correct']} of their {shipped['n']} sentences"
        f" named correctly, {shipped['mistaken']} mistaken for the other; {shipped['unknown_correct']} of {shipped['unknown_n']}"
        " by strangers answered 'unknown'.</li>",
        "</ul>",
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>confit-edge demo</title><style>{_STYLE}</style>"
    write_text(out / "report.html", f"{head}{''.join(body)}</html>\n")


def time_and_memory(summary: dict[str, Any]) -> str:
    """Return the time the demo took, and its peak memory where the system reports it."""
    memory = summary["peak_rss_mb"]
    return f"{summary['seconds']:.0f} s" + ("" if memory is None else f", {memory} MB of memory at most")


def _accuracy_table(table: dict[str, Any]) -> str:
    names = {"frozen": "frozen encoder", "finetune": "vanilla fine-tuning", "pairtune": "PairTune"}
    rows = []
    for key, name in names.items():
        cells = []
        for probe in ("head", "linear", "knn"):
            if probe in table[key]:
                low, high = table[key]["intervals"][probe]
                cells.append(
                    f"<td>{100 * table[key][probe]:.1f} <span class=small>{format_interval(100 * low, 100 * high)}</span></td>"
                )
            else:
                cells.append("<td>-</td>")
        rows.append(f"<tr><th scope=row>{name}</th>{''.join(cells)}</tr>")
    gain = table["pairtune_linear_minus_finetune_head"]
    return (
        "<table><caption>Accuracy on unseen voices</caption><tr><th scope=col>accuracy in %</th><th scope=col>own head</th>"
        "<th scope=col>linear probe</th><th scope=col>kNN probe</th></tr>"
        + "".join(rows)
        + f"</table><p class=small>{table['n']} clips of {table['voices']} unseen voices; the 95 % intervals are"
        " over voices, because clips of one voice are alike. PairTune's linear probe minus vanilla's own head:"
        f" {100 * gain['difference']:+.1f} points {format_interval(100 * gain['low'], 100 * gain['high'], '+.1f')}.</p>"
    )


def _image(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _timeline(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    last = max(float(row["end_s"]) for row in rows)
    width, height = ROW_S * SECOND_PX, 46
    lines = []
    for line in range(int(last // ROW_S) + 1):
        first = line * ROW_S
        marks = [f'<line x1=0 x2={width:.0f} y1=23 y2=23 stroke="#d9dfe5"/><text x=0 y=44>{first:.0f} s</text>']
        for row in rows:
            x = (float(row["start_s"]) - first) * SECOND_PX
            if not 0 <= x < width:
                continue
            said = row["kind"] == "said"
            colour = "#c8553d" if row["found"] == "false" else "#0b7a75" if said else "#26323f"
            marks.append(
                f'<text x={x:.0f} y={16 if said else 35} style="fill:{colour}">{html.escape(row["label"])}</text>'
            )
        lines.append(f'<svg viewBox="0 0 {width:.0f} {height}" width="100%">{"".join(marks)}</svg>')
    return "".join(lines)
