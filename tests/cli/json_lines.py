"""What docs/json.md says of the lines that verbs print with --json, and whether what they print is that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
ROW = re.compile(r"^\| (`.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)
JSON = {"text": (str,), "number": (int, float), "true, false": (bool,), "list": (list,), "object": (dict,)}


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _read() -> tuple[dict[tuple[str, str], dict[str, bool]], dict[str, tuple[type, ...]]]:
    first, second = PAGE.read_text(encoding="utf-8").split("\n## Keys\n")
    lines = {
        (verb, _quoted(kind)[0]): {key: not may for key, may in re.findall(r"`(\w+)`(\??)", keys)}
        for verbs, kind, keys in ROW.findall(first)
        for verb in _quoted(verbs)
    }
    keys = {
        key: JSON[forms] if forms in JSON else tuple(one for form in forms.split(", ") for one in JSON[form])
        for names, forms, _ in ROW.findall(second)
        for key in _quoted(names)
    }
    return lines, keys


LINES, KEYS = _read()  # of each verb's type its keys, and whether each is always there; of each key what it is in JSON


def verb_of(arguments: Iterable[object]) -> str:
    words = [str(one) for one in arguments if not str(one).startswith("-")]
    return " ".join(words[: 2 if words[0] in ("data", "gallery") else 1])


def check_line(verb: str, line: dict[str, Any]) -> None:
    """Fail where a line is not as the page says."""
    kind, keys = line["type"], line.keys() - {"type"}
    assert (verb, kind) in LINES, f"docs/json.md has no {kind!r} of {verb}"
    known = LINES[verb, kind]
    assert keys <= known.keys(), f"docs/json.md: {verb} {kind} lacks {sorted(keys - known.keys())}"
    needed = {key for key, always in known.items() if always}
    assert needed <= keys, f"{verb} {kind} lacks {sorted(needed - keys)}, which docs/json.md has"
    for key in keys:
        value = line[key]
        fits = value is None or (isinstance(value, KEYS[key]) and (not isinstance(value, bool) or bool in KEYS[key]))
        assert fits, f"docs/json.md says what {key} is in JSON, and {verb} {kind} has {value!r:.80}"


def check(arguments: Iterable[object], out: str) -> None:
    """Fail where a verb that was run with --json has printed what the page does not tell."""
    arguments = list(arguments)
    if "--json" in arguments:
        for line in out.splitlines():
            check_line(verb_of(arguments), json.loads(line))
