"""How labels and names are compared and told, and what a name may be that somebody is enrolled under."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from confit_runtime.errors import UsageError
from confit_runtime.wording import MOST, listed

LONGEST = 100
LIKE = 0.75  # of two names: so alike one may be the other misspelt
NOBODY = "unknown"  # how an answer that is nobody is told
_REVERSING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what follows in a line, too

# what ends a line, steers a terminal or turns a line around; a joiner, as of an emoji, is none of it
_STEERING = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_REVERSING}]")


def shown(text: str) -> str:
    """A text of anybody as it may stand in a line: what would end the line, steer a terminal or turn it around is escaped."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def shown_in_json(line: str) -> str:
    """The same of a line of JSON, in JSON's own escapes."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def fits_a_file_name(character: str) -> bool:
    """Whether any file system takes a character in a name."""
    return character not in '/\\|:*?"<>' and character.isprintable()


def plain(text: str) -> str:
    """A label or a name, however its accents are spelt: NFC-normalised and stripped."""
    return unicodedata.normalize("NFC", text).strip()


def nearest(label: str, known: Sequence[str]) -> str | None:
    """The name of those known that `label` may be misspelt for."""
    return next(iter(_near(label, known, 1)), None)


def known_names(label: str, known: Sequence[str]) -> str:
    """A few of those known, as an error tells them to who asked for `label`: those that it may be misspelt for come first."""
    if len(known) > MOST:
        near = _near(label, known, MOST)
        known = [*near, *(name for name in known if name not in near)]
    return listed(known)


def _near(label: str, known: Sequence[str], most: int) -> list[str]:
    from difflib import get_close_matches

    written: dict[str, list[str]] = {}  # in upper and lower case, whatever of both is known
    for name in known:
        written.setdefault(name.lower(), []).append(name)
    near = get_close_matches(label.lower(), written, most, LIKE)
    return [name for lower in near for name in written[lower]][:most]


def clean_name(name: str) -> str:
    """A name as it is kept: NFC-normalised and stripped. Raises UsageError unless it is 1..100 printable characters."""
    if not isinstance(name, str):
        raise UsageError(f"a name is text, got {name!r}")
    clean = plain(name)
    if not 1 <= len(clean) <= LONGEST:
        raise UsageError(f"a name has 1 to {LONGEST} characters, got {len(clean)}")
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in clean):
        raise UsageError(f"a name holds no control characters or line breaks, got {clean!r}")
    return clean


def new_name(name: str) -> str:
    """A name to be enrolled, as it is kept.

    Raises UsageError on what `clean_name` refuses, on what would turn a line around, and on "unknown", however it is spelt.
    """
    clean = clean_name(name)
    if any(one in _REVERSING for one in clean):
        raise UsageError(f"a name holds no marks that turn the direction of a line, got {clean!r}")
    looks = "".join(one for one in unicodedata.normalize("NFKC", clean) if unicodedata.category(one) != "Cf")
    if looks.strip().casefold() in (NOBODY, ""):
        raise UsageError(
            f"nobody can be called {clean!r}: it is the answer where nobody is near enough; choose another name"
        )
    return clean
