"""Verification: do two clips have the same class (speaker)? Decided by the cosine of their embeddings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import shlex

import numpy as np

from confit_edge.data.corpus import Clips
from confit_edge.probes.judge import Bootstrapped
from confit_edge.probes.metrics import RANK_DRAWS, Resamples, equal_error_rate, equal_error_rates
from confit_runtime.arrays import MAX_TABLE_SIZE, Bools, Doubles, Floats, Indices
from confit_runtime.errors import UsageError

CLIPS = 1000  # clips of a split, at most, whose pairs are all trials if no list is given


@dataclass(frozen=True)
class Trials:
    """Pairs of clips of a split, as rows `[trials]`, and whether each pair has the same class.

    `left_out` is the number of pairs of two unlabelled clips, which are not trials.
    """

    one: Indices
    other: Indices
    same: Bools
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.same)


def all_pairs(clips: Clips, seed: int = 0) -> Trials:
    """Every pair of different clips (among 1000 drawn with `seed`, if there are more).

    A pair has the same class if the clips share a label. Pairs of two unlabelled clips are left out, because they
    share no class, and yet may be alike.
    """
    rows = np.arange(len(clips))
    if len(clips) > CLIPS:
        rows = np.sort(np.random.default_rng([seed, 14]).choice(rows, CLIPS, replace=False))
    first, second = np.triu_indices(len(rows), 1)
    common = clips.targets[rows].astype(np.int64) @ clips.targets[rows].T.astype(np.int64)
    labelled = np.asarray(clips.targets[rows].any(axis=1))
    kept = labelled[first] | labelled[second]
    same = common[first, second] > 0
    return Trials(rows[first][kept], rows[second][kept], same[kept], left_out=int(np.sum(~kept)))


def read_trials(path: Path, clips: Clips, root: Path) -> Trials:
    """A list of trials, one per line: `1 CLIP CLIP` for one class, `0 CLIP CLIP` for two (the format of VoxCeleb).

    Clip names are relative to `root`; a name with a space must be in double quotes, or the line separated by tabs. Raises
    UsageError naming a line that is not a trial, or whose clip is not in the split.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    row_of = {clip.resolve(): row for row, clip in enumerate(clips.paths)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read as a list of trials ({why})") from error
    found: list[tuple[int, int, bool]] = []
    for number, line in enumerate(lines, 1):
        kind, *names = _parts(line) or [""]
        if not kind:
            continue
        if kind not in ("0", "1") or len(names) != 2:
            raise UsageError(
                f"{path}, line {number}: a trial is `1 CLIP CLIP` or `0 CLIP CLIP` (put a name with a space in double quotes);"
                f" this is {line!r}"
            )
        if strange := [name for name in names if (root / name).resolve() not in row_of]:
            raise UsageError(f"{path}, line {number}: {strange[0]} is not a clip of the split being judged")
        one, other = (row_of[(root / name).resolve()] for name in names)
        found.append((one, other, kind == "1"))
    if len({same for *_, same in found}) < 2:
        raise UsageError(f"{path}: needs trials of both kinds, 1 (one class) and 0 (two)")
    ones, others, same = (np.array(column) for column in zip(*found, strict=True))
    return Trials(ones, others, same)


def _parts(line: str) -> list[str]:
    """The parts of a line: separated by tabs if that gives three, else by spaces outside double quotes."""
    tabbed = [part.strip() for part in line.strip().split("\t")]
    if len(tabbed) == 3 and all(tabbed):
        return tabbed
    parts = shlex(line, posix=True)
    parts.whitespace_split, parts.commenters, parts.quotes, parts.escape = True, "", '"', ""
    try:
        return list(parts)
    except ValueError:  # an unclosed quote
        return [line]


def verify(embeddings: Floats, trials: Trials, groups: list[str], seed: int = 0) -> Bootstrapped | None:
    """The equal error rate of `trials` by `embeddings [clips, dim]`, with an interval; None unless both kinds occur."""
    if trials.same.all() or not trials.same.any():
        return None
    return error_rate(np.einsum("nd,nd->n", embeddings[trials.one], embeddings[trials.other]), trials, groups, seed)


def error_rate(scores: Floats | Doubles, trials: Trials, groups: list[str], seed: int = 0) -> Bootstrapped:
    """The equal error rate of `trials` with `scores [trials]` among clips of `groups [clips]`, with an interval.

    Groups are resampled: a trial between two groups counts as often as both are drawn (the product), and one within a
    group as often as that group is drawn. Clips in no trial do not count. The rate is worth no more clips than there are
    in trials of the rarer kind, and no more than there are such trials.
    """
    used, place = np.unique(np.concatenate([trials.one, trials.other]), return_inverse=True)
    resamples = Resamples.of([groups[clip] for clip in used], seed, RANK_DRAWS)
    one, other = resamples.unit[place].reshape(2, -1)
    worth = min(
        min(int(kind.sum()), len(np.unique([trials.one[kind], trials.other[kind]])))
        for kind in (trials.same, ~trials.same)
    )

    def weights(counts: Doubles) -> Doubles:
        return np.where(one == other, counts[:, one], counts[:, one] * counts[:, other])

    most = max(1, MAX_TABLE_SIZE // len(trials))
    spread = [
        equal_error_rates(scores, trials.same, weights(part))
        for counts in resamples.counts()
        for part in np.array_split(counts, -(-len(counts) // most))
    ]
    return Bootstrapped.of(equal_error_rate(scores, trials.same), np.concatenate(spread), resamples.sizes, worth)
