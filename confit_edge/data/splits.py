"""Splits that no group crosses: a model must not be judged on a speaker or a recording that it was trained on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from confit_edge.data.manifest import SPLITS, UNKNOWN, Clip, Manifest
from confit_edge.data.tables import ManifestError
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_count, format_quoted_list

Fractions = tuple[float, float, float]  # of train, val and test; they sum to 1
DEFAULT: Fractions = (0.7, 0.15, 0.15)  # val is as large as test, because thresholds and the gate depend on it

RESTARTS, MANY_GROUPS = 20, 500
FEW_GROUPS = 8  # of a class with up to this many groups, pairs of groups are also tried in exchanged splits
PASSES = 100  # an upper limit: a climb ends by itself after a few
VAL_SHARE = 0.125  # of the clips outside test, where a published split has no validation set that can be kept


def with_splits(manifest: Manifest, *, seed: int, fractions: Fractions = DEFAULT) -> Manifest:
    """The manifest with every clip in train, val or test.

    If the manifest has splits, they are checked and kept. Otherwise whole groups are assigned to splits so that each
    class is divided by `fractions` as closely as its groups allow; the result depends on the seed, not on the order of
    the rows. Either way no group is in two splits and every class is in train and in val. A class may be missing from
    test, because it has only two groups or because the manifest leaves it out: see `missing_classes`.

    Raises ManifestError, naming the group or the class, where this is impossible, and UsageError for unusable fractions.
    """
    _check_fractions(fractions)
    if not manifest.clips:
        raise ManifestError(f"{manifest.source}: there are no clips to split")
    given = sum(clip.split is not None for clip in manifest.clips)
    if 0 < given < len(manifest):
        without = next(clip for clip in manifest.clips if clip.split is None)
        raise ManifestError(
            f"{manifest.source}: only {given} of {len(manifest)} clips have a split ({without.path}, for example, has none); fill"
            " in the split column for every clip or leave it out"
        )
    if not given:
        manifest = _make_splits(manifest, seed, fractions)
    torn = groups_across_splits(manifest)
    if torn:
        group, splits = next(iter(torn.items()))
        raise ManifestError(
            f"{manifest.source}: group {group!r} is in {' and '.join(splits)}; keep all its clips in one split, or"
            " leave the split column out to have splits made"
        )
    missing = missing_classes(manifest)
    for split in ("train", "val"):
        if missing[split]:
            raise ManifestError(_explain_missing(manifest, split, missing[split]))
    return manifest


def without_leaks(manifest: Manifest) -> tuple[Manifest, list[str]]:
    """A published split adjusted so that it can be trained on, and one sentence for each change made to it.

    Published splits sometimes share a speaker or a recording, or have no validation set. Test stays as published: clips
    of its groups in train and val are left out. A group in both train and val goes to train; where that leaves a class
    without validation clips, train and val are made again, by group. Where test contains every group that a class has in
    train, the published split separates clips, not groups, so all splits are made again. Raises ManifestError as
    `with_splits` does.
    """
    changed = []
    test = manifest.select("test").clips
    tested = {clip.group for clip in test}
    rest = [clip for clip in manifest.clips if clip.group not in tested]
    train = manifest.select("train").classes
    if lost := set(train) - {label for clip in rest if clip.split == "train" for label in clip.labels}:
        of = "" if len(lost) == len(train) else f" of class {format_quoted_list(sorted(lost))}"
        undealt = replace(manifest, clips=tuple(replace(clip, split=None) for clip in manifest.clips))
        return with_splits(undealt, seed=0), [
            f"every group{of} in train is also in test, so the published split was not kept: new splits were made, by group"
        ]
    if left_out := len(manifest) - len(test) - len(rest):
        clips_are = format_count(left_out, "clip is", "clips are")
        changed.append(f"{clips_are} left out of train and val, because test has clips of the same group")
    trained = {clip.group for clip in rest if clip.split == "train"}
    moved = sum(clip.split == "val" and clip.group in trained for clip in rest)
    fitted = replace(
        manifest, clips=tuple(replace(clip, split="train" if clip.group in trained else "val") for clip in rest)
    )
    if missing_classes(fitted)["val"]:
        undealt = replace(fitted, clips=tuple(replace(clip, split=None) for clip in rest))
        fitted = with_splits(undealt, seed=0, fractions=(1 - VAL_SHARE, VAL_SHARE, 0.0))
        changed.append(
            "not every class has groups of its own in the published val: train and val were made again, by group"
        )
    elif moved:
        clips_moved = format_count(moved, "clip was", "clips were")
        changed.append(f"{clips_moved} moved from val to train, because train has clips of the same group")
    return with_splits(replace(manifest, clips=fitted.clips + test), seed=0), changed


def groups_across_splits(manifest: Manifest) -> dict[str, list[str]]:
    """The groups that are in more than one split, with those splits: each leaks training data into evaluation."""
    splits: dict[str, set[str]] = {}
    for clip in manifest.clips:
        if clip.split is not None:
            splits.setdefault(clip.group, set()).add(clip.split)
    return {group: sorted(found, key=SPLITS.index) for group, found in sorted(splits.items()) if len(found) > 1}


def missing_classes(manifest: Manifest) -> dict[str, list[str]]:
    """For each of train, val and test: the classes with no clip in it."""
    return {split: sorted(set(manifest.classes) - set(manifest.select(split).classes)) for split in SPLITS}


def _check_fractions(fractions: Fractions) -> None:
    train, val, test = fractions
    if not (train > 0 and val > 0 and test >= 0 and math.isclose(train + val + test, 1, abs_tol=1e-6)):
        raise UsageError(f"fractions {fractions} must sum to 1, with train and val above 0")


def _explain_missing(manifest: Manifest, split: str, classes: list[str]) -> str:
    if not manifest.select(split).clips:
        return f"{manifest.source}: no clip is in {split}; put some clips in {split}, or leave the split column out"
    return (
        f"{manifest.source}: {classes_have(classes)} no clip in {split}; every class needs one in train and one in val"
    )


def untested_warning(manifest: Manifest) -> str | None:
    """A sentence about the classes with no clip in test, for a manifest that has splits; None if there are none."""
    without = missing_classes(manifest)["test"]
    if not without:
        return None
    them, needs = ("it", "it needs") if len(without) == 1 else ("them", "each needs")
    return (
        f"{classes_have(without)} no clip in test, so no test result is reported for {them}: {needs} at least 3 groups,"
        " or, if the manifest has splits, clips in test"
    )


def single_label_warning(manifest: Manifest) -> str | None:
    """A warning if all training clips of a manifest that has splits share a label, else None.

    If the manifest has a single label, it warns only where some clips are without it: those are then all outside train.
    """
    clips = manifest.select("train").clips
    common = set(manifest.classes).intersection(*(clip.labels for clip in clips))
    if not clips or not common or all(len(clip.labels) == len(manifest.classes) == 1 for clip in manifest.clips):
        return None
    it, fires = ("it", "it fires") if len(common) == 1 else ("them", "they fire")
    return (
        f"every training clip is {format_quoted_list(sorted(common))}: the model learns nothing to distinguish"
        f" {it} from, and {fires} on"
        f" anything similar. Add clips without {it}, of other sounds the device hears, or train with --background"
    )


def ungrouped_warning(manifest: Manifest) -> str | None:
    """A sentence about a manifest that does not say which clips belong together; None if it does."""
    without = manifest.ungrouped
    if not without:
        return None
    fire = [clip for clip in manifest.clips if clip.labels not in ((), (UNKNOWN,))]
    if len({clip.group for clip in fire}) == len(fire) and {*without, UNKNOWN} >= set(manifest.classes):
        return "every clip is its own group"
    of = f"class {format_quoted_list(without)}" if len(without) == 1 else f"classes {format_quoted_list(without)}"
    return f"most clips of {of} are each their own group"


def classes_have(classes: Sequence[str]) -> str:
    """The beginning of a sentence about what some classes have: `class 'a' has`, `classes 'a', 'b' have`."""
    return (
        f"class {format_quoted_list(classes)} has"
        if len(classes) == 1
        else f"classes {format_quoted_list(classes)} have"
    )


def members(classes: Iterable[str], manifest: Manifest) -> dict[str, list[Clip]]:
    """The clips of each class; `classes` may name some that the manifest has no clip of."""
    found: dict[str, list[Clip]] = {label: [] for label in classes}
    for clip in manifest.clips:
        for label in clip.labels:
            found[label].append(clip)
    return found


def _make_splits(manifest: Manifest, seed: int, fractions: Fractions) -> Manifest:
    groups: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        groups.setdefault(clip.group, []).append(clip)
    for label, clips in members(manifest.classes, manifest).items():
        if len({clip.group for clip in clips}) < 2:
            raise ManifestError(
                f"{manifest.source}: class {label!r} has {format_count(len(clips), 'clip')} in one group"
                f" ({clips[0].group!r}); at least 2 clips in 2 different groups are needed, one for train and one"
                " for val (3 for all three splits)"
            )
    names = sorted(groups)
    columns = {label: index for index, label in enumerate(manifest.classes)}
    if len({clip.group for clip in manifest.clips if not clip.labels}) > 1:
        columns[""] = len(columns)  # share out unlabelled clips like a class, or all may be in train
    counts = [
        Counter(columns[label] for clip in groups[name] for label in clip.labels or ("",) if label in columns)
        for name in names
    ]
    dealer = _Dealer(counts, [len(groups[name]) for name in names], len(columns), fractions)
    split_of = dict(zip(names, dealer.deal(np.random.default_rng(seed)), strict=True))
    made = replace(manifest, clips=tuple(replace(clip, split=SPLITS[split_of[clip.group]]) for clip in manifest.clips))
    missing = missing_classes(made)
    lost = sorted({*missing["train"], *missing["val"]})
    if lost:
        raise ManifestError(
            f"{manifest.source}: found no way to put class {', '.join(map(repr, lost))} in both train and val without"
            " splitting a group: its groups also contain other classes; add clips of it in new groups"
        )
    return made


class _Dealer:
    """Assigns groups to splits by hill climbing, from one greedy start and from random ones.

    For classes with few groups it also tries exchanging the splits of two groups: where three groups are in one split
    each, no single group can move. The cost of a deal consists of, in order of weight: how often a class is missing from
    train or val, how often one is missing from test, and how far the share of each class (and of all clips, one more
    column) is from its fraction, squared and relative to its size.
    scikit-learn's StratifiedGroupKFold makes equal folds only and does not keep a small class in each of them.
    """

    def __init__(self, counts: list[Counter[int]], sizes: list[int], classes: int, fractions: Fractions) -> None:
        self.columns = [np.array([*sorted(count), classes]) for count in counts]
        self.values = [
            np.array([*(count[c] for c in sorted(count)), size], float)
            for count, size in zip(counts, sizes, strict=True)
        ]
        self.totals = np.zeros(classes + 1)
        for columns, values in zip(self.columns, self.values, strict=True):
            self.totals[columns] += values
        self.choices = 3 if fractions[2] > 0 else 2
        self.fractions = np.array(fractions)[:, None]
        groups_of = np.bincount(np.concatenate(self.columns), minlength=classes + 1)
        worst = 4 * self.totals.sum() + 1  # more than any distance from the fractions
        self.penalty = np.array([worst * 2 * (classes + 1)] * 2 + [worst if fractions[2] > 0 else 0.0])[:, None]
        self.penalised = np.arange(classes + 1) < classes
        holders: dict[int, list[int]] = defaultdict(list)  # class -> the groups that contain it
        for group, columns in enumerate(self.columns):
            for column in columns[:-1]:
                holders[int(column)].append(group)
        self.pairs = sorted({pair for of in holders.values() if len(of) <= FEW_GROUPS for pair in combinations(of, 2)})
        self.unavoidable = worst * float((groups_of[:classes] < 3).sum()) if fractions[2] > 0 else 0.0
        self.worst = worst

    def deal(self, rng: np.random.Generator) -> list[int]:
        """The split (0, 1, 2) of each group."""
        best: tuple[float, list[int]] = (math.inf, [])
        for attempt in range(RESTARTS):
            order = rng.permutation(len(self.columns))
            state = np.zeros((3, len(self.totals)))
            if attempt == 0:
                split = self._greedy(order, state)
            else:
                chances = self.fractions[:, 0] / self.fractions.sum()
                split = [int(where) for where in rng.choice(3, size=len(self.columns), p=chances)]
                for group, where in enumerate(split):
                    state[where, self.columns[group]] += self.values[group]
            self._climb(order, split, state)
            cost = float(self._cost(state, np.arange(len(self.totals))).sum())
            best = min(best, (cost, split), key=lambda deal: deal[0])
            if len(order) > MANY_GROUPS and best[0] < self.unavoidable + self.worst:
                break  # no avoidable gap is left, and with many groups the first deal is balanced well
        return best[1]

    def _cost(self, state: npt.NDArray[np.float64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The cost of each of the `columns`, given the numbers of clips `state [splits, columns]`."""
        total = self.totals[columns]
        distance = ((state - self.fractions * total) ** 2 / total).sum(axis=0)
        absent = ((state < 0.5) * self.penalty).sum(axis=0) * self.penalised[columns]
        return np.asarray(distance + absent)

    def _best(self, group: int, state: npt.NDArray[np.float64], now: int | None) -> int:
        """The best split for a group that has been taken out of `state`: its previous one (`now`) unless another is better."""
        columns, values = self.columns[group], self.values[group]
        costs = np.empty(self.choices)
        for where in range(self.choices):
            trial = state[:, columns]
            trial[where] += values
            costs[where] = self._cost(trial, columns).sum()
        best = int(costs.argmin())
        return now if now is not None and costs[now] <= costs[best] + 1e-9 else best

    def _greedy(self, order: npt.NDArray[np.int64], state: npt.NDArray[np.float64]) -> list[int]:
        split = [0] * len(order)
        for group in sorted(order, key=lambda group: -self.values[group][-1]):
            split[group] = self._best(group, state, None)
            state[split[group], self.columns[group]] += self.values[group]
        return split

    def _climb(self, order: npt.NDArray[np.int64], split: list[int], state: npt.NDArray[np.float64]) -> None:
        for _ in range(PASSES):
            moved = False
            for group in order:
                columns, values = self.columns[group], self.values[group]
                state[split[group], columns] -= values
                best = self._best(group, state, split[group])
                moved = moved or best != split[group]
                split[group] = best
                state[best, columns] += values
            if not moved and not self._exchange(split, state):
                return

    def _exchange(self, split: list[int], state: npt.NDArray[np.float64]) -> bool:
        """Exchange the splits of two groups of a class with few groups wherever that lowers the cost; True if any were."""
        exchanged = False
        for one, other in self.pairs:
            first, second = split[one], split[other]
            if first == second:
                continue
            columns = np.union1d(self.columns[one], self.columns[other])
            trial = state[:, columns]
            for group, source, target in ((one, first, second), (other, second, first)):
                at = np.searchsorted(columns, self.columns[group])
                trial[source, at] -= self.values[group]
                trial[target, at] += self.values[group]
            if self._cost(trial, columns).sum() < self._cost(state[:, columns], columns).sum() - 1e-9:
                state[:, columns] = trial
                split[one], split[other] = second, first
                exchanged = True
        return exchanged
