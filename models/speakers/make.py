"""Makes models/speakers.onnx, the shipped speaker model: GE2E's published weights, stored in int8, behind our front end.

    python models/speakers/make.py [--precision fp16]
    python models/speakers/make.py --card

The cohort that normalises scores is synthetic: the demo's training voices, each saying its words one after another. The
threshold levels are set on the demo's other voices, which are not in the cohort. With --card, the script writes only
models/speakers.md: the card of the existing model, with the results of `benchmarks.speakers` on it.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from confit_edge import __version__
from confit_edge.demo import DATA
from confit_edge.encoders.ge2e import GE2E
from confit_edge.files import write_text
from confit_edge.probes.linear import LinearProbe
from confit_edge.runs import weights_sha256
from confit_export.cost import count_cost
from confit_export.enrollment import ENROLLMENT_CLIPS, impostor_score, prior_of
from confit_export.graph import assemble, to_onnx
from confit_export.model_card import render_card, table
from confit_export.model_file import embedding_id, load_provisional, model_bytes, replace_embeddings
from confit_export.quantize import PRECISION, Quantizer, Scheme
from confit_export.rooms import embed_rooms
from confit_runtime import load
from confit_runtime.audio import load_clip
from confit_runtime.contract import SCHEMA, Contract
from confit_runtime.enrollment import embed_query
from confit_runtime.errors import ConfitError
from confit_runtime.files import write_atomic
from confit_runtime.formatting import format_percent
from confit_runtime.matcher import mutual_similarity

UTTERANCE_S, UTTERANCES, IN_COHORT = 3.0, 6, 3  # of each voice
OUT = Path(__file__).parents[1] / "speakers.onnx"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "speakers.json"
SCOPES = ("/front_end/", "/head/")  # these stay in fp32
TOLERANCE = 0.998  # the least cosine between the file's embeddings and torch's


def main(precision: str) -> None:
    torch.set_num_threads(1)
    encoder = GE2E.pretrained().eval()
    encoder.hop *= 2  # half as many rows, in half the time, for the same voice
    probe = LinearProbe(np.zeros((1, encoder.dim), np.float32), np.zeros(1, np.float32), False)
    model = assemble(encoder, probe, None)
    utterances = {split: spoken(split) for split in ("train", "val", "test")}
    graph = to_onnx(model, encoder, np.zeros((IN_COHORT * len(utterances["train"]), encoder.dim), np.float32))
    fp32 = graph
    layers: dict[str, str] = {}
    for scheme, names in [] if precision == "fp32" else plan(precision, fp32):
        graph = Quantizer.calibrate(graph, scheme, "portable", SCOPES, [], "minmax")(names)
        layers |= dict.fromkeys(names, PRECISION[scheme])
    contract = Contract(
        schema=SCHEMA,
        name="speakers",
        labels=("voice",),  # it distinguishes voices by their prints, and detects nothing by itself
        multi_label=False,
        unknown_label="voice",
        sample_rate=encoder.sample_rate,
        highest_hz=encoder.sample_rate / 2,
        hop=encoder.hop,
        window=encoder.window,
        warmup_hops=0,
        latency_samples=encoder.window // 2,
        state={},
        thresholds={"voice": {"on": 1.0, "off": 1.0}},
        smoothing_hops=1,
        min_hops=2,
        refractory_s=1.0,
        encoder={"name": "ge2e", "weights_sha256": weights_sha256(encoder)},
        embedding_id=embedding_id(graph),
        embedding_dim=encoder.dim,
        precision=precision if precision == "fp32" else f"{precision} weights",
        cost=count_cost(model, encoder, fp32, layers),
        data={},
        metrics={},
        parity={},
        calibration={"enroll": {"kind": "speaker"}},
        license="Apache-2.0",
        version=__version__,
    )
    embedder = load_provisional(OUT, graph, contract)
    clip = next(iter(utterances["test"].values()))[0]
    torch_rows = encoder.rows(torch.from_numpy(clip)).numpy()
    cosines = np.sum(embedder.rows(clip, encoder.sample_rate)[1] * torch_rows, axis=1)
    if cosines.min() < TOLERANCE:
        raise ConfitError(f"{OUT}: not written: its embeddings differ from torch's (cosine {cosines.min():.4f})")
    embedded = {
        split: {
            voice: np.stack([embed_query(embedder, one, "speaker", voice) for one in clips])
            for voice, clips in of.items()
        }
        for split, of in utterances.items()
    }
    cohort = np.concatenate([rows[:IN_COHORT] for rows in embedded["train"].values()])
    replace_embeddings(graph, "cohort", cohort)
    replace_embeddings(graph, "quiet", embed_rooms(embedder))
    others = embedded["val"] | embedded["test"]
    levels = speaker_prior(others, cohort)
    made_of, set_on = _sizes(embedded["train"], IN_COHORT), _sizes(others, UTTERANCES)
    contract = replace(
        contract,
        parity={"least_cosine_to_torch": float(cosines.min())},
        calibration={"enroll": {"kind": "speaker", **levels}},
        data={
            "fingerprint": "",
            **{key: {"train": made_of[key], "val": set_on[key], "test": 0} for key in ("clips", "groups")},
            "own": {"train": made_of, "val": set_on, "test": {"clips": 0, "groups": 0}},
            "grouped": True,
            "repeated": {"val": 0, "test": 0},
            "multi_label": False,
        },
    )
    data = model_bytes(graph, contract)
    write_atomic(OUT, data)
    print(f"wrote {OUT}: {len(data) / 1e6:.2f} MB, least cosine to torch {cosines.min():.5f}, {levels}")
    print("next: python -m benchmarks.speakers, then this script with --card")


def speaker_prior(voices: dict[str, np.ndarray], cohort: np.ndarray) -> dict[str, float]:
    """The prior of `voices`: the utterances `[n, dim]` of each name, by people who are not in the cohort.

    Each voice in turn is enrolled from its first three utterances, and everybody else's later ones try to pass for it.
    """
    impostor_scores = [
        impostor_score(utterances[:ENROLLMENT_CLIPS], cohort, row)
        for name, utterances in voices.items()
        for other, rows in voices.items()
        if other != name
        for row in rows[ENROLLMENT_CLIPS:]
    ]
    enrolled = [mutual_similarity(utterances[:ENROLLMENT_CLIPS]) for utterances in voices.values()]
    return prior_of(impostor_scores, enrolled, len(voices))


def _sizes(voices: dict[str, np.ndarray], most: int) -> dict[str, int]:
    """The number of utterances and of voices."""
    return {"clips": sum(len(rows[:most]) for rows in voices.values()), "groups": len(voices)}


def plan(precision: str, graph: onnx.ModelProto) -> list[tuple[Scheme, list[str]]]:
    """Choose how each layer is stored. The first takes mel power, whose range int8 cannot span, so it is always in fp16."""
    layers = Quantizer.calibrate(graph, "fp16", "portable", SCOPES, [], "minmax").layers
    if precision == "fp16":
        return [("fp16", list(layers))]
    first = [name for name in layers if name.startswith("/layers.0/")]
    return [("weight-only", [name for name in layers if name not in first]), ("fp16", first)]


def spoken(split: str) -> dict[str, list[np.ndarray]]:
    """Return utterances of every demo voice of a split: its words in random order, one after another."""
    with (DATA / "words" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    rng, found = np.random.default_rng(0), {}
    for voice in sorted({row["group"] for row in rows}):
        words = [load_clip(DATA / "words" / row["path"], 16_000) for row in rows if row["group"] == voice]
        whole = np.concatenate([words[at] for _ in range(2) for at in rng.permutation(len(words))])
        size = round(UTTERANCE_S * 16_000)
        found[voice] = [whole[at * size : (at + 1) * size] for at in range(min(UTTERANCES, len(whole) // size))]
    return found


def card() -> str:
    """Return the text of speakers.md, from the file's contract and from the results of `benchmarks.speakers`."""
    contract, size = load(OUT).contract, OUT.stat().st_size
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    if measured["model"]["bytes"] != size:
        raise ConfitError(
            f"{RESULTS}: holds the results of a different file, not {OUT}; run python -m benchmarks.speakers first"
        )
    stored, cosine = contract.precision.removesuffix(" weights"), contract.parity["least_cosine_to_torch"]
    cohort, enroll, found = contract.data, contract.calibration["enroll"], measured["confit-edge"]
    sections = [
        "## Training data",
        "",
        "The model is not trained in this project. Its weights are those of the voice encoder GE2E of Resemblyzer 0.1.4 as"
        " published (Apache-2.0, `models/ge2e/NOTICE`). Its front end differs: it also removes a DC offset and mains hum, and"
        " brings soft and loud windows to one level (`docs/enrollment.md`). `models/speakers/make.py` stores the weights in"
        f" {stored} and doubles the hop, which halves the rows; the lowest cosine to the embeddings of torch is {cosine:.4f}.",
        "",
        f"The file holds {cohort['clips']['train']} utterances of strangers, {cohort['groups']['train']} synthetic voices of the"
        f" demo, which every voice is compared with. A name needs a similarity of {enroll['threshold']}, set in"
        f" {enroll['trials']} trials with the demo's other voices; the name's own voiceprints then adjust that.",
        "",
        "## Accuracy on voices that nobody trained on",
        "",
        f"Measured by `{measured['command']}` (`benchmarks/results/speakers.json`) on {len(measured['voices'])} voices and"
        f" {found['n']['utterances']} utterances. Each voice is enrolled with {measured['enrolled']}. Intervals (95 %) are over"
        " voices, since utterances of one voice resemble each other.",
        "",
        *table(measures(found)),
        "",
        "Voiceprints are personal data: `docs/enrollment.md` covers consent, erasure, and how far to trust an answer.",
        "",
    ]
    return render_card(contract, size, "speakers", sections=sections)


def measures(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "closed_accuracy": "all voices enrolled: utterances closest to the right name",
        "eer": "equal error rate",
        "open_missed": "half of the voices enrolled: utterances of these voices not given the right name",
        "open_taken": "half of the voices enrolled: utterances of the other voices given a name",
    }
    return [(name, format_percent(found[key], *found["intervals"][key])) for key, name in names.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--precision", default="int8", choices=("int8", "fp16", "fp32"))
    what.add_argument("--card", action="store_true", help="write only the card")
    given = parser.parse_args()
    if given.card:
        write_text(OUT.with_suffix(".md"), card())
    else:
        main(given.precision)
