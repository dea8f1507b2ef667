"""Is it the balance of an embedding's dimensions that makes it accurate?

Three interventions answer it. The dimensions that contribute most are dropped, or kept alone, and compared with as many
random ones. The embedding is rotated at random, which evens out the contributions and changes no cosine. And a penalty makes
vanilla fine-tuning as balanced as PairTune: if balance were the cause, it would then be as accurate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.embedding import embed_clips
from confit_edge.geometry.measures import contribution, describe, label_sets, top_share
from confit_edge.pairtune.lr_search import choose_lr
from confit_edge.pairtune.objectives import FineTune, MakeObjective, make_objective
from confit_edge.pairtune.trainer import fit
from confit_edge.probes.knn import NEIGHBOURS, KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import merit
from confit_edge.recipe import Recipe
from confit_edge.studies import chart
from confit_edge.studies.bench import Bench, merit_tally, rivals
from confit_edge.studies.phrases import plain, points, versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Arm, Point, Trial
from confit_runtime.arrays import Floats

WEIGHTS = (0.1, 1.0, 10.0)  # of the penalty; the one whose balance comes nearest to PairTune's is compared with it
OBJECTIVES = ("frozen", "finetune", "pairtune")
COUNTS = (1, 2, 5, 10, 20, 50)
OWN, ROTATED = "own", "rotated"
DROP, KEEP, RANDOM = "drop top", "keep top", "drop random"
BALANCED = "finetune, balanced"
WHOLE: Arm = {"what": DROP, "dimensions": 0}  # the embedding as it is


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan the three objectives, and vanilla fine-tuning under each weight of the penalty."""
    frozen, finetune, pairtune = rivals(Trial({}, recipe))
    return [
        frozen,
        finetune,
        pairtune,
        *(
            replace(finetune, arm={"objective": BALANCED, "penalty": weight}, options={"penalty": weight})
            for weight in WEIGHTS
        ),
    ]


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """Measure the probes on every choice of dimensions. They learn from clean clips; contributions are of training clips."""
    corpus, device, seed = bench.data(trial), bench.device, trial.recipe.seed
    encoder = bench.encoder(trial.recipe).to(device)
    if trial.train:
        lr = choose_lr(encoder, corpus, trial.recipe, bench.notify)
        make = balanced(float(trial.options["penalty"])) if "penalty" in trial.options else make_objective
        fit(encoder, corpus, trial.recipe, lr=lr, epochs=trial.recipe.epochs, watch=bench.notify, make=make)
    splits = (corpus.train, corpus.val, corpus.test)
    on_embedded = bench.count_embedded(sum(map(len, splits)))
    embedded = [embed_clips(encoder, clips.pcm, device, on_embedded=on_embedded) for clips in splits]
    turn = random_rotation(encoder.dim, seed)
    found = []
    for basis in (OWN, ROTATED):
        train, val, test = embedded if basis == OWN else [rows @ turn for rows in embedded]
        shares = contribution(train)
        order = np.argsort(-shares, kind="stable")
        chance = np.random.default_rng([seed, 31]).permutation(encoder.dim)
        geometry = describe(test, label_sets(corpus.test.targets), seed) | {
            "balance": float(1 / (len(shares) * np.square(shares).sum())),
            "top1_train": top_share(shares, 1),
        }
        kept = {(DROP, 0): order}
        for count in COUNTS:
            if count < encoder.dim:
                kept |= {(DROP, count): order[count:], (KEEP, count): order[:count], (RANDOM, count): chance[count:]}
        for (what, count), dimensions in kept.items():
            arm: Arm = {"basis": basis, "what": what, "dimensions": count}
            point = probe(only(train, dimensions), only(val, dimensions), only(test, dimensions), corpus)
            found.append(replace(point, arm=arm, numbers=point.numbers | ({} if count else geometry)))
    return found


def probe(train: Floats, val: Floats, test: Floats, corpus: Corpus) -> Point:
    """A linear and a kNN probe (by the cosine, which a rotation leaves as it is) on embeddings `[clips, dim]`."""
    targets, truth = corpus.train.targets, corpus.val.targets
    several = corpus.multi_label
    known = [at for at in corpus.answers if targets[:, at].any()]  # the background's class is not probed here
    targets, truth, asked = targets[:, known], truth[:, known], corpus.test.targets[:, known]
    linear = LinearProbe.fit(train, targets, val, truth, multi_label=several, strengths=(0.1,))
    near = [KnnProbe(train, targets, k) for k in NEIGHBOURS]
    knn = near[int(np.argmax([merit(one.scores(val), truth, multi_label=several) for one in near]))]
    return Point(
        {
            name: merit_tally(judge.scores(test), asked, corpus.test.groups, multi_label=several)
            for name, judge in (("linear", linear), ("knn", knn))
        },
        {"val_linear": merit(linear.scores(val), truth, multi_label=several)},
    )


def only(embeddings: Floats, dimensions: npt.NDArray[np.int64]) -> Floats:
    """Return only these dimensions, `[clips, kept]`, scaled to length 1."""
    part = embeddings[:, np.sort(dimensions)]
    return (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def random_rotation(dim: int, seed: int) -> Floats:
    """Return a uniformly distributed orthogonal matrix `[dim, dim]` (Mezzadri 2007, math-ph/0609050)."""
    from scipy.stats import ortho_group

    return ortho_group.rvs(dim, random_state=np.random.default_rng([seed, 30])).astype(np.float32)


class Balanced(FineTune):
    """Vanilla fine-tuning that also minimises `weight` times the imbalance of a batch's embeddings."""

    def __init__(self, weight: float, dim: int, classes: int, multi_label: bool) -> None:
        super().__init__(dim, classes, multi_label)
        self.weight = weight

    def forward(self, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, statistics = super().forward(embeddings, targets)
        return loss + self.weight * imbalance(embeddings.float()), statistics


def balanced(weight: float) -> MakeObjective:
    """Return a factory of vanilla fine-tuning under a penalty of this `weight`."""
    return lambda recipe, dim, classes, multi_label: Balanced(weight, dim, classes, multi_label)


def imbalance(embeddings: Tensor) -> Tensor:
    """Return dim * sum of s_i^2 - 1, with s the contribution shares of a batch `[n, dim]` (`geometry.measures.contribution`).

    It is 0 if all dimensions contribute alike, and dim - 1 if only one contributes.
    """
    size = nn.functional.normalize(embeddings, dim=1).abs()
    means = size.sum(dim=0).square() - size.square().sum(dim=0)
    shares = means / means.sum().clamp(min=1e-12)
    return embeddings.shape[1] * shares.square().sum() - 1


def conclude(results: Results) -> list[str]:
    """State what each intervention shows about whether balance is a cause."""
    lines = []
    counts = [count for count in results.values("dimensions") if count]
    comparisons = len(counts) * sum(bool(results.select({"objective": objective})) for objective in OBJECTIVES)
    for objective in OBJECTIVES:
        if not results.select({"objective": objective}):
            lines.append(f"{objective} was not measured.")
            continue
        own, turned = ({"objective": objective, "basis": basis, **WHOLE} for basis in (OWN, ROTATED))
        moved = results.difference(Side("knn", turned), Side("knn", own))
        lines.append(
            f"{objective}: the top dimension contributes {plain(results.number('top1_train', **own))}; after a random rotation"
            f" {plain(results.number('top1_train', **turned))}, which moves kNN by {100 * moved.value:+.1f} points."
        )
        claims = []
        for count in counts:
            arm: Arm = {"objective": objective, "basis": OWN, "dimensions": count}
            top, chance = (Side("linear", {**arm, "what": what}) for what in (DROP, RANDOM))
            gap = results.difference(top, chance, comparisons)
            claims += [f"{count} ({points(gap)})"] if gap.significant else []
        claim = f"differs from dropping as many at random for {', '.join(claims)}" if claims else None
        not_significant = "does not differ significantly from dropping as many at random"
        lines.append(f"{objective}: dropping the top dimensions {claim or not_significant}.")
    return lines + widened(comparisons) + _balanced(results)


def _balanced(results: Results) -> list[str]:
    """Compare vanilla under the penalty that brings its balance nearest to PairTune's with plain vanilla and with PairTune."""
    vanilla, pairtune = ({"objective": name, "basis": OWN, **WHOLE} for name in ("finetune", "pairtune"))
    before, target = (results.number("balance", **arm).value for arm in (vanilla, pairtune))
    arms = [{**arm, "basis": OWN, **WHOLE} for arm in results.arms(objective=BALANCED, basis=OWN, **WHOLE)]
    if not arms or np.isnan(before) or np.isnan(target):
        return [
            "Vanilla, PairTune and vanilla under the penalty were not all measured, so nothing is concluded about the cause."
        ]
    nearest = min(arms, key=lambda arm: abs(results.number("balance", **arm).value - target))
    reached = results.number("balance", **nearest).value
    lines = [
        f"Balance (1: all dimensions contribute alike) is {before:.3f} in vanilla, {target:.3f} in PairTune, and"
        f" {reached:.3f} in vanilla under a penalty of {nearest['penalty']}, the nearest to PairTune's."
    ]
    gap = results.number_difference([(1.0, "balance", pairtune), (-1.0, "balance", vanilla)])
    if gap.high < 0:
        return [
            *lines,
            f"PairTune is less balanced than vanilla here ({plain(gap)}), so balance cannot be the reason if PairTune is more"
            " accurate.",
        ]
    if not gap.significant:
        return [
            *lines,
            f"No significant difference in balance between PairTune and vanilla ({plain(gap)}), so nothing is concluded about"
            " the cause.",
        ]
    # half of the way from vanilla's balance to PairTune's, and as far beyond PairTune's
    half, beyond = (
        results.number_difference(
            [(1.0, "balance", nearest), (-share, "balance", pairtune), (share - 1, "balance", vanilla)]
        )
        for share in (0.5, 1.5)
    )
    if not (half.low > 0 and beyond.high < 0):
        return [
            *lines,
            "The penalty did not bring balance significantly closer to PairTune's than half of the gap, so nothing is concluded"
            " about the cause.",
        ]
    sides = {name: Side("linear", arm) for name, arm in (("even", nearest), ("vanilla", vanilla), ("ours", pairtune))}
    gain = results.difference(sides["even"], sides["vanilla"])
    rest = results.difference(sides["ours"], sides["even"])
    verdict = f"raised {results.figure}" if gain.low > 0 else f"did not significantly raise {results.figure}"
    return [
        *lines,
        versus("Vanilla made balanced", "vanilla", gain),
        versus("PairTune", "vanilla made balanced", rest),
        f"So balance by itself {verdict}.",
    ]


def draw(results: Results, path: Path) -> None:
    """Draw the linear probe's accuracy as dimensions are dropped, in the embedding's own basis."""
    some = results.where(lambda row: row.arm["basis"] == OWN and row.arm["what"] != KEEP and "penalty" not in row.arm)
    chart.draw(some, STUDY.chart, STUDY.question, path)


STUDY = Study(
    name="dimensions",
    question="Is it the balance of an embedding's dimensions that makes it accurate?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("dimensions", by=("objective", "what"), metrics=("linear",)),
    draw=draw,
    probes_background=False,
)
