"""How labels and names are compared and printed, and which names can be enrolled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from confit_runtime.errors import UsageError
from confit_runtime.wording import MOST, listed

LONGEST = 100
LIKE = 0.75  # similarity of two names above which one may be a misspelling of the other
NOBODY = "unknown"  # how an answer of nobody is printed
_REVERSING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they also affect the rest of the line

# matches what ends a line, controls a terminal or changes the text direction; not joiners, which emojis use
_STEERING = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_REVERSING}]")


def shown(text: str) -> str:
    """Text from an untrusted source, made safe to print on one line.

    Line breaks, terminal control characters and direction marks are escaped.
    """
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def shown_in_json(line: str) -> str:
    """Like `shown`, for a line of JSON, with JSON's own escapes."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def fits_a_file_name(character: str) -> bool:
    """Whether every file system accepts this character in a file name."""
    return character not in '/\\|:*?"<>' and character.isprintable()


def plain(text: str) -> str:
    """A label or name, NFC-normalised and stripped, so that different spellings of its accents compare equal."""
    return unicodedata.normalize("NFC", text).strip()


def nearest(label: str, known: Sequence[str]) -> str | None:
    """The known name that `label` may be a misspelling of, if any."""
    return next(iter(_near(label, known, 1)), None)


def known_names(label: str, known: Sequence[str]) -> str:
    """A few of the known names, for an error about the unknown `label`: likely corrections come first."""
    if len(known) > MOST:
        near = _near(label, known, MOST)
        known = [*near, *(name for name in known if name not in near)]
    return listed(known)


def _near(label: str, known: Sequence[str], most: int) -> list[str]:
    from difflib import get_close_matches

    written: dict[str, list[str]] = {}  # by lower-case spelling: the known names, which may differ only in case
    for name in known:
        written.setdefault(name.lower(), []).append(name)
    near = get_close_matches(label.lower(), written, most, LIKE)
    return [name for lower in near for name in written[lower]][:most]


def clean_name(name: str) -> str:
    """The name as it is stored: NFC-normalised and stripped.

    Raises UsageError unless it has 1 to 100 printable characters.
    """
    if not isinstance(name, str):
        raise UsageError(f"a name must be text, got {name!r}")
    clean = plain(name)
    if not 1 <= len(clean) <= LONGEST:
        raise UsageError(f"a name must have 1 to {LONGEST} characters, got {len(clean)}")
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in clean):
        raise UsageError(f"a name must not contain control characters or line breaks, got {clean!r}")
    return clean


def new_name(name: str) -> str:
    """Check a name that is to be enrolled and return it as it is stored.

    Raises UsageError for whatever `clean_name` refuses, for marks that change the text direction, and for "unknown" in
    any spelling.
    """
    clean = clean_name(name)
    if any(one in _REVERSING for one in clean):
        raise UsageError(f"a name must not contain marks that change the text direction, got {clean!r}")
    looks = "".join(one for one in unicodedata.normalize("NFKC", clean) if unicodedata.category(one) != "Cf")
    if looks.strip().casefold() in (NOBODY, ""):
        raise UsageError(
            f"{clean!r} cannot be a name: it is the answer when nobody matches closely enough; choose another name"
        )
    return clean
