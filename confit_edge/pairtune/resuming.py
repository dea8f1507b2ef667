"""Whether a training may begin in a folder, or go on there: it must be the one that was begun."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from confit_edge import files, runs
from confit_edge.data.tables import check_utf8
from confit_edge.pairtune.distributed import Ranks
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import is_partial


@contextmanager
def alone(out: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only training in `out`, of one process or of several together. Raises UsageError, on each of them."""
    with ExitStack() as held:
        refused = ""
        if ranks.main:
            try:
                held.enter_context(files.alone(out, "run"))
            except UsageError as error:
                refused = str(error)
        if refused := ranks.agree(refused):
            raise UsageError(refused)
        yield


def check_out(out: Path, resume: bool) -> None:
    """Raise UsageError where writing a run to `out` would lose something."""
    files.check_folder(out, "run")
    check_utf8(out)
    begun = (out / "started.json").is_file() or (out / runs.CHECKPOINT).is_file()
    if (out / "run.json").is_file() and not resume:
        raise UsageError(f"{out}: holds a finished run; choose another -o, or remove it")
    if begun and not resume:
        raise UsageError(f"{out}: holds a training that has not finished; add --resume to go on with it, or remove it")
    if not begun and not (out / "run.json").is_file() and out.is_dir() and not all(map(is_partial, out.iterdir())):
        raise UsageError(f"{out}: is not empty and holds no run; choose another -o")


def _shown(value: Any) -> str:
    """A value of a recipe, for a person; no learning rate is the encoder's own."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "its own"
    return "none" if value is None else str(value)


def begun(out: Path) -> dict[str, Any] | None:
    """The training that was begun, or finished, in `out`, as `started.json` tells it; None where none was. Raises ConfitError."""
    if (out / "run.json").is_file():
        info = runs.read_info(out)
        return {
            "recipe": info.recipe,
            "fingerprint": info.data["fingerprint"],
            "distilled": info.distilled,
            "chosen_by": merit_name(multi_label=info.multi_label),
            "processes": None,  # what is finished is not gone on with, by however many
            "encoder_sha256": info.encoder_sha256,
        }
    beginning = out / "started.json"
    if not beginning.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(beginning.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfitError(f"{beginning}: is damaged ({error}); remove {out} and train anew") from error
    if missing := {"recipe", "fingerprint", "distilled", "chosen_by", "processes"} - set(told):
        raise ConfitError(f"{beginning}: lacks {', '.join(sorted(missing))}; remove {out} and train anew")
    return told


def begun_recipe(out: Path) -> Recipe | None:
    """The recipe of the training that was begun, or finished, in `out`; None where none was. Raises ConfitError."""
    before = begun(out)
    return Recipe.from_dict(before["recipe"], str(out)) if before else None


def digest(recipe: Recipe, fingerprint: str, lr: float, epochs: int) -> str:
    """Of a training, by which its checkpoint is known; what is named in it may have moved, see `refuse_other_training`."""
    same = {key: value for key, value in recipe.to_dict().items() if key not in ("background", "others", "encoder")}
    return hashlib.sha256(json.dumps([same, fingerprint, lr, epochs]).encode()).hexdigest()


def refuse_other_training(out: Path, before: dict[str, Any], started: dict[str, Any]) -> None:
    """Raise UsageError naming what differs where `before`, in `out`, is another recipe, data or teacher than `started`."""
    recipe, same_data = before["recipe"], before["fingerprint"] == started["fingerprint"]
    moved = {"background", "others"} if same_data else set()
    if before.get("encoder_sha256") == started["encoder_sha256"]:
        moved.add("encoder")
    changed = [
        f"{key} ({_shown(recipe.get(key))}, now {_shown(value)})"
        for key, value in started["recipe"].items()
        if recipe.get(key) != value and key not in moved
    ]
    if not same_data and all(recipe.get(key) == started["recipe"][key] for key in ("background", "others")):
        version = " (or it was begun with an earlier version, which took background otherwise)"
        changed.append("the data" + (version if recipe.get("background") else ""))
    if before["chosen_by"] != started["chosen_by"]:
        changed.append("what epochs are chosen by")
    if before["processes"] not in (None, started["processes"]):  # each draws its own dropout
        changed.append(f"the number of processes ({before['processes']}, now {started['processes']})")
    if before["distilled"] != started["distilled"]:
        changed.append("the teacher or what it teaches from")
    if changed:
        raise UsageError(f"{out}: --resume needs the same training, but these differ: {', '.join(changed)}")
