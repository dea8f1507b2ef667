"""The figures that README.md and docs/ quote are those in benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.report import RESULTS

ROOT = Path(__file__).parents[2]
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?"
FIGURE = re.compile(rf"(?<![\d.e-])({NUMBER})(?: %| points)? \[({NUMBER}), ({NUMBER})\]")
Quote = tuple[str, list[float]]  # a text with {} for each number, and the numbers
POINTS = ("mean", "difference", "share", "accuracy")  # what an interval in a result is of


def page(name: str) -> str:
    """The page as one line, without what makes words bold."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").replace("**", "").split())


def results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured(result: Any) -> Iterator[tuple[float, float, float]]:
    """Every figure with its interval that a result holds, at any depth."""
    if isinstance(result, dict):
        low, high = result.get("interval", (result.get("low"), result.get("high")))
        if low is not None and high is not None:
            yield from ((result[key], low, high) for key in POINTS if key in result)
        if isinstance(intervals := result.get("intervals"), dict):
            yield from ((result[key], *pair) for key, pair in intervals.items() if isinstance(result.get(key), float))
        for key in result:  # as the rows of a study have them
            if isinstance(result.get(f"{key}_low"), float) and isinstance(result[key], float):
                yield result[key], result[f"{key}_low"], result[f"{key}_high"]
        yield from (found for value in result.values() for found in measured(value))
    elif isinstance(result, list):
        yield from (found for value in result for found in measured(value))


def concluded(result: Any) -> set[tuple[float, ...]]:
    """The figures in the sentences of a study."""
    said = FIGURE.finditer(" ".join(result.get("conclusions", [])))
    return {tuple(map(float, found.groups())) for found in said}


def is_rounded(text: str, value: float) -> bool:
    """Whether the text is the value, rounded. Some results are rounded themselves, so a half may have gone either way."""
    quoted = Decimal(text)
    place = 10.0 ** int(quoted.as_tuple().exponent)
    return abs(float(quoted) - value) < 0.51 * place


def agree(quoted: tuple[str, ...], figure: tuple[float, ...]) -> bool:
    """Whether the figure, as it is or in percent, is what is quoted."""
    return any(
        all(is_rounded(text, factor * value) for text, value in zip(quoted, figure, strict=True)) for factor in (1, 100)
    )


def missing(text: str, names: list[str]) -> list[str]:
    figures = {figure for name in names for figure in measured(results(name))}
    said = {figure for name in names for figure in concluded(results(name))}
    return [
        found.group()
        for found in FIGURE.finditer(text)
        if tuple(map(float, quoted := found.groups())) not in said
        and not any(agree(quoted, figure) for figure in figures)
    ]


PAGES = {
    "docs/results.md": ["pairtune.json", "defaults.json", "studies/batch.json"],
    "docs/distill.md": ["distill.json"],
    "docs/detection.md": ["wakeword.json", "fewclips.json", "detection.json"],
    "docs/enrollment.md": ["enrollment.json", "speakers.json"],
}


def test_figures_with_an_interval_are_in_the_results() -> None:
    assert {name: absent for name, files in PAGES.items() if (absent := missing(page(name), files))} == {}


def test_figures_of_the_studies_are_in_the_results() -> None:
    text = page("docs/studies.md").partition("## Results")[2].partition("## Add a study")[0]
    _, *sections = re.split(r"### (\w+):", text)
    told = dict(zip(sections[::2], sections[1::2], strict=True))
    assert told.keys() == {path.stem for path in (RESULTS / "studies").glob("*.json")}
    assert {name: absent for name, part in told.items() if (absent := missing(part, [f"studies/{name}.json"]))} == {}


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def percent(*values: float) -> list[float]:
    return [100 * value for value in values]


def demo() -> Iterator[Quote]:
    found = results("words.json")

    def spread(*keys: str) -> list[float]:
        return percent(*(found[side][key] for key in keys for side in ("mean", "least", "most")))

    cell = "{} ({}–{})"
    yield row("frozen encoder", "", cell, cell), spread("frozen_linear", "frozen_knn")
    yield row("vanilla fine-tuning", cell, cell, cell), spread("finetune_head", "finetune_linear", "finetune_knn")
    yield row("PairTune", "", cell, cell), spread("pairtune_linear", "pairtune_knn")
    yield "The int8 file ({} MB) reaches {} %.", [found["mean"]["model_bytes"] / 1e6, 100 * found["mean"]["int8"]]
    accepts = [found[side]["stream_false_accepts"] for side in ("mean", "least", "most")]
    yield "finds {} % of the words ({}–{}) with {} false accepts ({}–{})", [*spread("stream_found"), *accepts]


def single_word() -> Iterator[Quote]:
    word, few = results("wakeword.json")["methods"]["confit-edge"], results("fewclips.json")["methods"]

    def found(method: dict[str, Any]) -> list[float]:
        return percent(*(method[key]["share"] for key in ("found_clean", "found_10db")))

    yield "| {} % | {} % | in 6.5 hours: none for three models, one for the fourth, four for the fifth |", found(word)
    assert sorted(model["false_accepts"] for model in word["rows"]) == [0, 0, 0, 1, 4]
    rates = few["four"]["fa_per_hour"]
    together = [*found(few["four"]), rates["rate"], min(rates["by_model"]), max(rates["by_model"])]
    yield "| {} % | {} % | {} per hour for the three together ({} to {},", together
    yield "| {} % | {} % | {} per hour |", [*found(few["hour"]), few["hour"]["fa_per_hour"]["rate"]]


TASKS = {
    "speakers": "speakers", "actors": "actors", "drums": "drums", "instruments": "instruments", "letters": "letters",
    "words": "words (4 voices)", "noisy-words": "noisy words (0 dB)", "tracks": "tracks",
}  # fmt: skip
METHODS = (
    "frozen_linear", "finetune_head", "finetune_head_converged", "finetune_linear_converged", "lpft_head",
    "pairtune_linear", "pairtune_linear_converged",
)  # fmt: skip


def eight_tasks() -> Iterator[Quote]:
    found = results("pairtune.json")

    def of(encoder: str, task: str) -> list[float]:
        rows = [one for one in found["rows"] if (one["encoder"], one["task"]) == (encoder, task)]
        return [100 * mean(one[key] for one in rows) for key in METHODS]

    cells = ["{}"] * len(METHODS)
    every = {task: of("speech-embedding", task) for task in TASKS}
    yield from ((row(TASKS[task], *cells), values) for task, values in every.items())
    yield row("mean", *cells), [mean(column) for column in zip(*every.values(), strict=True)]
    yield from ((row(TASKS[task], *cells), of("whisper-tiny.en-encoder", task)) for task in ("actors", "words"))
    claims = found["summary"]["speech-embedding"]
    head, linear = (claims["epochs_to_95"][f"median_ratio_{probe}"] for probe in ("head", "linear"))
    yield "| {} of the epochs of vanilla's own head to 95 % of its best |", [head]
    yield (
        "{} of the epochs of vanilla with a linear probe on both, and {} of those of vanilla's own head",
        [linear, head],
    )
    yield "A training step costs {} of vanilla's.", [claims["step_ratio"]["median"]]
    (timed,) = results("training.json")["rows"]
    yield "An epoch over 1,000 one-second clips takes {} s", [timed["epoch_seconds"]["with_validation"]]


def against_audiosetfit() -> Iterator[Quote]:
    ways = ("audiosetfit", "confit_edge", "confit_edge_third")
    for task, found in results("audiosetfit.json")["summary"].items():
        accuracies = percent(*(found[f"{way}_accuracy"] for way in ways))
        yield row(TASKS[task], *["{}"] * 6), accuracies + [found[f"{way}_processor_seconds"] for way in ways]


def minings() -> Iterator[Quote]:
    summary = results("defaults.json")["summary"]
    for name in ("hardness", "multi-similarity", "semi-hard", "hardest-negatives", "hardest-positives"):
        told = "hardness (default)" if name == "hardness" else name.replace("hardest-", "hardest ")
        values = [
            value
            for key in ("val_linear", "val_knn", "linear", "knn")
            for gain in [summary[name]["against"]["none"][key]]
            for value in (summary[name][key], gain["mean"], gain["low"], gain["high"])
        ]
        yield row(told, *["{}", "{} [{}, {}]"] * 4), percent(*values)


def missed_words() -> Iterator[Quote]:
    missed = results("detection.json")["missed"]
    columns = [
        next(key for key in missed if key.startswith(name)) for name in ("confit", "without t", "without P", "logistic")
    ]
    for told, key in {
        "0.5, all 30 words": "0.5", "1": "1", "2": "2", "5": "5", "0.5, three words": "0.5, 3 words",
        "0.5, one word (the best heard by the validation voices)": "0.5, 1 words", "0.5, ten words": "0.5, 10 words",
    }.items():  # fmt: skip
        values = [value for name in columns for value in (missed[name]["clean"][key][0], *missed[name]["10db"][key])]
        yield row(told, *["{}, {} ({} to {})"] * 4), percent(*values)


def false_accepts() -> Iterator[Quote]:
    one, three = results("wakeword.json")["methods"], results("fewclips.json")["methods"]
    rates = [method["fa_per_hour"] for method in one.values()]
    values = [value for of in rates for value in (of["rate"], min(of["by_model"]), max(of["by_model"]))]
    yield row("false accepts an hour, each word alone: mean (least to most)", *["{} ({} to {})"] * 3), values
    counts = [model["false_accepts"] for method in one.values() for model in method["rows"]]
    yield row("false accepts in the 6.5 hours, by word", *["{}, {}, {}, {}, {}"] * 3), counts
    missed = [method[f"calibrated_frr_{how}"] for method in one.values() for how in ("clean", "10db")]
    told = "calibrated for 0.5 an hour: missed, as recorded and at 10 dB"
    yield row(told, *["{} %, {} %"] * 3), percent(*missed)

    columns = [three[name] for name in ("four", "hour", "one", "frozen")]
    values = [
        value
        for of in columns
        for value in (of["fa_per_hour"]["rate"], of["median_fa_per_hour"], of["most_fa_per_hour"])
    ]
    yield row("false accepts an hour, three words together: all draws (middle, worst)", *["{} ({}, {})"] * 4), values
    missed = [of[f"calibrated_frr_{how}"] for of in columns for how in ("clean", "10db")]
    yield "missed, as recorded and at 10 dB " + row("", *["{} %, {} %"] * 4)[2:], percent(*missed)


def voices() -> Iterator[Quote]:
    for asked in results("enrollment.json")["flaws"]:
        flaw = (asked["flaw"] or "nothing else").replace("DC offset", "a DC offset of").replace("hum", "a hum")
        yield row(f"{asked['asked_dbfs']:.0f} dBFS", flaw, "{}", "{}"), [asked["hits"], asked["as_another"]]
    ours, peer = (results("speakers.json")[name] for name in ("confit-edge", "resemblyzer"))
    for told, key in {
        "nearest to their own name": "closed_accuracy",
        "equal error rate": "eer",
        "half of the voices enrolled: owners' utterances refused": "open_missed",
        "half of the voices enrolled: strangers' utterances given a name": "open_taken",
    }.items():
        yield row(told, "{} % [{}, {}]", "{} %"), percent(ours[key], *ours["intervals"][key], peer[key])
    times = [found["p99_ms"] for found in results("gallery.json")["rows"]]
    yield "{} ms at the 99th percentile among 100 000 prints, and {} ms among a million", times


def new_words() -> Iterator[Quote]:
    found = results("enrollment.json")
    columns = [found["streams"]["all_words"][name] for name in ("clip", "default", "default_of_nine", "calibrated")]
    shares = percent(*(of["found"] for of in columns))
    yield row("words found, on average", *["{} %"] * 4), shares
    yield row("false accepts per hour and word, on average", *["{}"] * 4), [of["fa_per_hour"] for of in columns]
    yield row("the worst word", *["{}"] * 4), [of["most_fa_per_hour"] for of in columns]
    for told, few in zip(
        ("`down`, `up`", "`no`, `yes`", "`go`, `on`, `stop`", "five words"), found["few"][:4], strict=True
    ):
        sides = [
            few[key][what]["share"] for key in few if key != "trained" for what in ("own_found", "strangers_named")
        ]
        yield row(told, "{} %, {} %", "{} %, {} %"), percent(*sides)
    for told, words in zip(
        (
            "sentences only",
            "sentences, and words as well (five other digits)",
            "sentences, with the name's own level, `--threshold ada=0.5`",
        ),
        found["words"],
        strict=True,
    ):
        yield row(told, "{}", "{}"), [words["own_words"]["hits"], words["strangers_words_named"]["hits"]]


def negative_prints() -> Iterator[Quote]:
    found = results("negative_prints.json")
    for told, key in {
        "the default threshold (0.91)": "default",
        "with 10 negative prints": "default, negative prints: 10",
        "`--threshold NAME=0.8`": "threshold: 0.8",
        **{f"with {count}": f"threshold: 0.8, negative prints: {count}" for count in (10, 30, 100)},
        "with all that fired (up to two thousand)": "threshold: 0.8, negative prints: all",
        **{f"`--threshold NAME={level}`": f"threshold: {level}" for level in ("0.86", "0.9", "0.93")},
    }.items():
        one = found["names"][key]
        an_hour = one["other"] / found["hours"]["other"] / found["draws"]
        yield row(told, "{}", "{}", "{}, {}"), [one["found"], one["taught"], one["other"], an_hour]


def fused() -> Iterator[Quote]:
    rows, times, ways = results("fused.json")["rows"], results("streaming.json"), ("exact", "fused")
    for told, key in (
        ("time of a step, relative to recomputing the window, fp32", "fp32"),
        ("the same in int8", "int8"),
    ):
        yield row(told, "{}", "{}"), [times[f"step_ratio_{key}"], times[f"step_ratio_{key}_fused"]]
    accuracies = [mean(one[way]["test"]["accuracy"] for one in rows) for way in ways]
    yield row("test accuracy in int8, % of 540 clips", "{}", "{}"), percent(*accuracies)
    yield (
        row("mean cosine to the run's embeddings", "{}", "{}"),
        [mean(one[way]["cosine"] for one in rows) for way in ways],
    )
    streams = [[one[way]["streams"] for one in rows] for way in ways]
    shares = [sum(one["detected"] for one in of) / sum(one["expected"] for one in of) for of in streams]
    yield row("words found, %", "{}", "{}"), percent(*shares)
    told = row("false accepts in 30 minutes of composed stream, each of three seeds", "{}, {}, {}", "{}, {}, {}")
    yield told, [one["false_accepts"] for of in streams for one in of]


def speed() -> Iterator[Quote]:
    found = results("streaming.json")
    for kind in ("fp32", "int8"):
        yield "| {}; {} with `--fuse-activations` |", [found[f"step_ratio_{kind}"], found[f"step_ratio_{kind}_fused"]]
    yield row("the whole of `listen` on 48 kHz, share of a core", "0.004", "{}"), [found["listen_cpu_rtf"]]
    for peer, aim in (("pyopen-wakeword 1.1.0", "0.06"), ("pymicro-wakeword 2.5.0", "2")):
        share = found["listen_16k_cpu_rtf"] / found[f"{peer.partition('-')[0]}_cpu_rtf"]
        yield row(f"`listen` compared with {peer} on the same 16 kHz", aim, "{}"), [share]
    yield "| 65 MB | {} MB |", [found["peak_rss_mb"]]
    yield row("streams in real time on one core", "600", "{}"), [found["streams_per_core"]]
    yield row("start of the process to the first score", "0.5 s", "{} s"), [found["first_score_s"]]


def soak() -> Iterator[Quote]:
    both = [results("soak.json")[key] for key in ("at_16000_hz", "at_44100_hz")]
    memory = [one["memory_mb_after_the_first_pass"] for one in both]
    yield row("memory of the process", "{} MB, after the first pass and after all of them", "{} MB"), memory
    yield row("CPU time, as a share of real time", "{}", "{}"), [one["real_time_factor"] for one in both]


def other_processor() -> Iterator[Quote]:
    found = results("aarch64.json")["found"]
    for told, model in {
        "six words, fp32": "words, fp32",
        "six words, int8 `portable`": "words, static, portable",
        "six words, int8 `arm64`": "words, static, arm64",
        "`digits`": "digits",
    }.items():
        of = [one for one in found if one["model"] == model]
        moved = [max(one[f"{what}_max_abs_diff"] for one in of) for what in ("scores", "embeddings")]
        yield row(told, "{}", "{}"), moved


@pytest.mark.parametrize(
    ("name", "quotes"),
    [
        ("README.md", demo), ("README.md", single_word), ("docs/results.md", eight_tasks), ("docs/results.md", minings),
        ("docs/results.md", against_audiosetfit), ("docs/detection.md", missed_words), ("docs/enrollment.md", voices),
        ("docs/detection.md", false_accepts), ("docs/enrollment.md", new_words),
        ("docs/enrollment.md", negative_prints), ("docs/export.md", fused), ("docs/export.md", other_processor),
        ("docs/bench.md", speed), ("docs/raspberry-pi.md", soak),
    ],
)  # fmt: skip
def test_the_page_says_what_was_measured(name: str, quotes: Callable[[], Iterator[Quote]]) -> None:
    text = page(name)
    for quote, values in quotes():
        assert quote.count("{}") == len(values)
        found = re.findall(re.escape(quote).replace(r"\{\}", f"({NUMBER})"), text)
        assert found, f"{name} has no {quote}"
        told = [numbers if isinstance(numbers, tuple) else (numbers,) for numbers in found]
        agreeing = [numbers for numbers in told if all(map(is_rounded, numbers, values))]
        assert agreeing, f"{name} has {quote} as {told}; measured: {values}"
