"""How well does a trained embedding work on unseen classes, and on noisy or telephone sound?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.embedding import embed_clips
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.metrics import correct
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, rivals, tally, trained
from confit_edge.studies.phrases import versus, widened
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.subset import DOMAINS, check_all_tested, clips_per_class, cut, shifted, with_classes
from confit_edge.studies.trial import Arm, Point, Subset, Tally, Trial
from confit_runtime.arrays import Floats
from confit_runtime.errors import UsageError

WAYS = (5, 20)
SHOTS = (1, 5)
EPISODES = 100
CLEAN = "as recorded"
RIVALS = {"frozen": "the frozen encoder", "finetune": "vanilla"}


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan the three objectives on half of the classes. Raises UsageError if classes are too few or clips have several."""
    there = len(clips_per_class(corpus))
    if there < 4 or corpus.multi_label:
        raise UsageError(
            "study unseen needs clips with one label each, and at least 4 classes, for it never trains half of them"
        )
    check_all_tested(corpus)
    return rivals(Trial({}, recipe, Subset(classes=there - there // 2)))


def measure(bench: Bench, trial: Trial) -> list[Point]:
    """Measure, in each domain, the probes on trained classes and N-way K-shot episodes on unseen classes.

    The prints (reference embeddings) of an episode come from clips of training groups as recorded; the queries are the test
    clips of its classes, in the domain.
    """
    corpus = bench.data(trial)
    encoder, _ = trained(bench, trial, corpus)
    seed, rate = trial.recipe.seed, encoder.sample_rate
    probes = dual_probe(encoder, corpus, trial.recipe, bench.device, progress=bench.report_embedded)
    novel = held_back(bench, trial, corpus)
    embed = partial(
        embed_clips, encoder, device=bench.device, on_embedded=bench.count_embedded(extra_clips(bench, trial))
    )
    prints = embed(novel.train.pcm)
    points = []
    for domain in (CLEAN, *DOMAINS):
        known, asked = (
            clips if domain == CLEAN else shifted(clips, domain, rate, seed) for clips in (corpus.test, novel.test)
        )
        embedded = embed(known.pcm)
        shares = {
            name: tally(correct(probe.scores(embedded), known.targets), known.groups)
            for name, probe in (("linear", probes.linear), ("knn", probes.knn))
        }
        points.append(Point(shares, arm={"classes": "trained", "domain": domain}))
        embedded = embed(asked.pcm)
        there = len(clips_per_class(novel))
        for way in sorted({min(way, there) for way in WAYS}):
            for shots in SHOTS:
                rng = np.random.default_rng([seed, way, shots])  # the same episodes for every objective and domain
                arm: Arm = {"classes": "unseen", "domain": domain, "way": way, "shots": shots}
                points.append(Point(episodes(prints, novel.train, embedded, asked, way, shots, rng), arm=arm))
    return points


def held_back(bench: Bench, trial: Trial, corpus: Corpus) -> Corpus:
    """Return the classes that are not in the trial's `corpus`, from the groups it trains on."""
    whole = cut(bench.corpus(), Subset(groups=trial.subset.groups), trial.recipe.seed)
    strange = [name for name in clips_per_class(whole) if name not in corpus.classes]
    return with_classes(replace(whole, unknown=None), strange)


def extra_clips(bench: Bench, trial: Trial) -> int:
    """Count the prints, and the test clips of all classes in each domain."""
    corpus = bench.data(trial)
    novel = held_back(bench, trial, corpus)
    return len(novel.train) + (1 + len(DOMAINS)) * (len(corpus.test) + len(novel.test))


def episodes(
    prints: Floats, given: Clips, embedded: Floats, asked: Clips, way: int, shots: int, rng: np.random.Generator
) -> dict[str, Tally]:
    """Run `EPISODES` episodes: draw `way` classes and `shots` prints of each, then classify every test clip of them.

    `prints [n, dim]` are the embeddings of `given`, `embedded` those of `asked`. `prototype` picks the class whose mean print
    is most similar (Snell et al. 2017, arXiv 1703.05175, with the cosine). `knn` lets as many neighbours vote as there are
    shots.
    """
    found: dict[str, Tally] = {"prototype": {}, "knn": {}}
    present = np.flatnonzero(given.targets.any(axis=0) & asked.targets.any(axis=0))
    for _ in range(EPISODES):
        classes = rng.permutation(present)[:way]
        rows = np.concatenate([rng.permutation(np.flatnonzero(given.targets[:, column]))[:shots] for column in classes])
        targets = given.targets[rows][:, classes]
        queries = np.flatnonzero(asked.targets[:, classes].any(axis=1))
        truth = asked.targets[queries][:, classes]
        groups = [asked.groups[query] for query in queries]
        means = targets.T.astype(np.float32) @ prints[rows]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        scores = {
            "prototype": embedded[queries] @ means.T,
            "knn": KnnProbe(prints[rows], targets, shots).scores(embedded[queries]),
        }
        for name, values in scores.items():
            for group, (right, clips) in tally(correct(values, truth), groups).items():
                before = found[name].get(group, (0.0, 0.0))
                found[name][group] = (before[0] + right, before[1] + clips)
    return found


def conclude(results: Results) -> list[str]:
    """State whether training on some classes helps or harms others, and whether it carries over to other domains."""
    lines = []
    settings = list({tuple(arm.items())[1:]: dict(tuple(arm.items())[1:]) for arm in results.arms()}.values())
    comparisons = len(settings) * len(RIVALS)
    for setting in settings:
        metric = "prototype" if setting["classes"] == "unseen" else "linear"
        where = f"{setting['classes']} classes, {setting['domain']}".capitalize()
        if "way" in setting:
            where += f" ({setting['way']}-way {setting['shots']}-shot)"
        ours = Side(metric, {"objective": "pairtune", **setting})
        for rival, name in RIVALS.items():
            gap = results.difference(ours, Side(metric, {"objective": rival, **setting}), comparisons)
            lines.append(versus("PairTune", name, gap, where))
    return lines + widened(comparisons)


STUDY = Study(
    name="unseen",
    question="How well does a trained embedding work on unseen classes, and on noisy or telephone sound?",
    plan=plan,
    measure=measure,
    conclude=conclude,
    chart=Chart("domain", by=("objective", "classes", "way", "shots"), metrics=("prototype", "linear")),
    extra_clips=extra_clips,
)
