"""How labels and names are compared and printed, and which names can be enrolled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from confit_runtime.errors import UsageError
from confit_runtime.formatting import MAX_NAMES, format_list

MAX_LENGTH = 100
SIMILARITY_CUTOFF = 0.75  # similarity of two names above which one may be a misspelling of the other
UNKNOWN = "unknown"  # how an answer of nobody is printed
_BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they also affect the rest of the line

# matches what ends a line, controls a terminal or changes the text direction; not joiners, which emojis use
_CONTROLS = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI_CONTROLS}]")


def escape_controls(text: str) -> str:
    """Text from an untrusted source, made safe to print on one line.

    Line breaks, terminal control characters and direction marks are escaped.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def escape_controls_in_json(line: str) -> str:
    """Like `escape_controls`, for a line of JSON, with JSON's own escapes."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def is_safe_in_filename(character: str) -> bool:
    """Whether every file system accepts this character in a file name."""
    return character not in '/\\|:*?"<>' and character.isprintable()


def normalise(text: str) -> str:
    """A label or name, NFC-normalised and stripped, so that different spellings of its accents compare equal."""
    return unicodedata.normalize("NFC", text).strip()


def closest_name(label: str, known: Sequence[str]) -> str | None:
    """The known name that `label` may be a misspelling of, if any."""
    return next(iter(_close_matches(label, known, 1)), None)


def format_known_names(label: str, known: Sequence[str]) -> str:
    """A few of the known names, for an error about the unknown `label`: likely corrections come first."""
    if len(known) > MAX_NAMES:
        near = _close_matches(label, known, MAX_NAMES)
        known = [*near, *(name for name in known if name not in near)]
    return format_list(known)


def _close_matches(label: str, known: Sequence[str], maximum: int) -> list[str]:
    from difflib import get_close_matches

    written: dict[str, list[str]] = {}  # by lower-case spelling: the known names, which may differ only in case
    for name in known:
        written.setdefault(name.lower(), []).append(name)
    near = get_close_matches(label.lower(), written, maximum, SIMILARITY_CUTOFF)
    return [name for lower in near for name in written[lower]][:maximum]


def clean_name(name: str) -> str:
    """The name as it is stored: NFC-normalised and stripped.

    Raises UsageError unless it has 1 to 100 printable characters.
    """
    if not isinstance(name, str):
        raise UsageError(f"a name must be text, got {name!r}")
    clean = normalise(name)
    if not 1 <= len(clean) <= MAX_LENGTH:
        raise UsageError(f"a name must have 1 to {MAX_LENGTH} characters, got {len(clean)}")
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in clean):
        raise UsageError(f"a name must not contain control characters or line breaks, got {clean!r}")
    return clean


def check_new_name(name: str) -> str:
    """Check a name that is to be enrolled and return it as it is stored.

    Raises UsageError for whatever `clean_name` refuses, for marks that change the text direction, and for "unknown" in
    any spelling.
    """
    clean = clean_name(name)
    if any(one in _BIDI_CONTROLS for one in clean):
        raise UsageError(f"a name must not contain marks that change the text direction, got {clean!r}")
    looks = "".join(one for one in unicodedata.normalize("NFKC", clean) if unicodedata.category(one) != "Cf")
    if looks.strip().casefold() in (UNKNOWN, ""):
        raise UsageError(
            f"{clean!r} cannot be a name: it is the answer when nobody matches closely enough; choose another name"
        )
    return clean
