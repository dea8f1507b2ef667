"""Names of classes that may be one name, written in two ways, or several, joined in one: each would be learnt apart."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from itertools import combinations, product

from confit_runtime.wording import counted, some

LONG = 5  # letters of a name that a slip of the keyboard may have come from: `tree` is no slip for `three`
ALIKE = 0.8  # of a name's letters that another has in the same order: hapy and happy, not seven and eleven
RARE = 3  # times as many clips has the class that is spelt right


def misspelt(clips: Mapping[str, int]) -> list[str]:
    """Of classes and their clips: a sentence for each that may be another one misspelt.

    That is where names differ by case, spaces, what is not seen and the like, or where a class of few clips lacks or has
    one letter more than one of many. The one of few clips is to be renamed, unless only the other holds what is not seen.
    """
    found = []
    for pair in _pairs(clips):
        rare, common = sorted(pair, key=lambda label: clips[label])
        same = _plain(rare) == _plain(common)
        if same and _is_odd(common) and not _is_odd(rare):  # however many clips have what nobody types
            rare, common = common, rare
        if same or RARE * clips[rare] <= clips[common]:
            found.append(
                f"{rare!r} ({counted(clips[rare], 'clip')}): is it {common!r} ({clips[common]})? If so, rename it"
            )
    return found


def joined(labels: Collection[str]) -> str | None:
    """What to say of classes whose names may be several joined by commas or semicolons; None where there are none.

    Of such a name two parts at least are names of their own, or parts of another; or one is a name of its own, and they are
    joined as a table is, not a sentence: `dog,cat` beside `dog`, not `Speech, male` beside `Speech` and `Speech, female`.
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
    is_one = f"class {some(found)} is" if len(found) == 1 else f"classes {some(found)} are"
    return (
        f"{is_one} learnt apart, though part of the name is found in other labels: are several labels joined? If so, call the"
        " column `labels`, and join them by a vertical bar"
    )


def alike(label: str, name: str) -> bool:
    """Whether one of two names may be the other: a letter or two off, or one of its words (`happy`, `hey_happy_1`)."""
    label, name = label.casefold(), name.casefold()
    words = re.split(r"[\W\d_]+", name)
    return label in words or (len(label) > 3 and SequenceMatcher(None, label, name).ratio() > ALIKE)


def _as_a_table(label: str) -> bool:
    """Whether a name holds semicolons, or commas without a space: in words there is one."""
    return re.search(r";|,(?=\S)", label) is not None


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", "", _seen(label).casefold())


def _seen(label: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFKC", label) if unicodedata.category(one) != "Cf")


def _is_odd(label: str) -> bool:
    """Whether a name holds what is not seen, or looks like another character; some scripts and emoji have joiners."""
    seen = _seen(label)
    return seen != (label if seen.isascii() else re.sub("[\u200c\u200d]", "", label))


def _pairs(labels: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of names that are one but for case, spaces and the like, or for a letter that one has and the other lacks.

    Names are looked up, and not held against each other: of thousands there are millions of pairs.
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
