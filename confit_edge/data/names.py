"""Suspicious class names: one name spelt in two ways, or several names joined in one. Each would become its own class."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from itertools import combinations, product

from confit_runtime.formatting import format_count, format_quoted_list

LONG = 5  # names longer than this may be typing errors of each other: `tree` is not one for `three`
ALIKE = 0.8  # similarity of names that count as alike: hapy and happy, but not seven and eleven
RARE = 3  # the correctly spelt class has at least this many times the clips


def misspelt_warnings(clips: Mapping[str, int]) -> list[str]:
    """A sentence for each class that may be a misspelling of another; `clips` is the number of clips per class.

    Names are suspicious if they differ only by case, spaces, invisible characters and the like, or if a class with few
    clips has one letter more or fewer than a class with many. The sentence suggests renaming the class with fewer clips,
    unless only the other name contains invisible characters.
    """
    found = []
    for pair in _pairs(clips):
        rare, common = sorted(pair, key=lambda label: clips[label])
        same = _plain(rare) == _plain(common)
        if (
            same and _has_hidden_characters(common) and not _has_hidden_characters(rare)
        ):  # nobody types invisible characters, however many clips have them
            rare, common = common, rare
        if same or RARE * clips[rare] <= clips[common]:
            found.append(
                f"{rare!r} ({format_count(clips[rare], 'clip')}): is it {common!r} ({clips[common]})? If so, rename it"
            )
    return found


def joined_labels_warning(labels: Collection[str]) -> str | None:
    """A warning about classes whose names may be several labels joined by commas or semicolons; None if there are none.

    In such a name at least two parts are also classes, or parts of other names; or one part is a class, and the name is
    joined as in a table rather than a sentence: `dog,cat` next to `dog`, but not `Speech, male` next to `Speech` and
    `Speech, female`.
    """
    parts = {label: {plain for part in re.split("[,;]", label) if (plain := _plain(part))} for label in labels}
    found_in = Counter(part for of in parts.values() for part in of)
    alone = {part for of in parts.values() if len(of) == 1 for part in of}
    found = [
        label
        for label in sorted(parts)
        if len(parts[label]) > 1
        and (
            sum(found_in[p] > 1 for p in parts[label]) > 1
            or (_as_a_table(label) and not alone.isdisjoint(parts[label]))
        )
    ]
    if not found:
        return None
    is_one = f"class {format_quoted_list(found)} is" if len(found) == 1 else f"classes {format_quoted_list(found)} are"
    return (
        f"{is_one} learnt separately, but parts of the name also occur in other labels: are several labels joined? If so, call"
        " the column `labels`, and join them by a vertical bar"
    )


def alike(label: str, name: str) -> bool:
    """Whether two names may mean the same: they differ by a letter or two, or `label` is a word in `name` (`hey_happy_1`)."""
    label, name = label.casefold(), name.casefold()
    words = re.split(r"[\W\d_]+", name)
    return label in words or (len(label) > 3 and SequenceMatcher(None, label, name).ratio() > ALIKE)


def _as_a_table(label: str) -> bool:
    """Whether a name has semicolons, or commas without a space after them: in prose a space follows."""
    return re.search(r";|,(?=\S)", label) is not None


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", "", _visible(label).casefold())


def _visible(label: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFKC", label) if unicodedata.category(one) != "Cf")


def _has_hidden_characters(label: str) -> bool:
    """Whether a name has invisible or look-alike characters; joiners are allowed, as some scripts and emoji need them."""
    seen = _visible(label)
    return seen != (label if seen.isascii() else re.sub("[\u200c\u200d]", "", label))


def _pairs(labels: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only by case, spaces and the like, or by one letter that one of them lacks.

    Names are looked up rather than compared with each other, because thousands of names have millions of pairs.
    """
    written: dict[str, list[str]] = {}
    for label in sorted(labels):
        written.setdefault(_plain(label), []).append(label)
    found = [pair for same in written.values() for pair in combinations(same, 2)]
    for plain, same in written.items():
        slips = {plain[:at] + plain[at + 1 :] for at, letter in enumerate(plain) if letter.isalpha()}
        for other in slips & written.keys() if len(plain) > LONG else ():
            found += [(min(pair), max(pair)) for pair in product(same, written[other])]
    return sorted(found)
