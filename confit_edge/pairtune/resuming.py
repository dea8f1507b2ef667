"""Whether a training may begin in a folder, or go on there: it must be the one that was begun."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from confit_edge import files, runs
from confit_edge.data.corpus import Corpus
from confit_edge.data.tables import check_utf8
from confit_edge.launched import several
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import is_partial
from confit_runtime.wording import counted

WHERE = ("device", "strict")  # of a recipe: where it is trained and what is refused, not what is learnt


@contextmanager
def alone(out: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only training in `out`, of one process or of several together. Raises UsageError, on each of them."""
    with ExitStack() as held:
        with ranks.together():
            if ranks.main:
                held.enter_context(files.alone(out, "run"))
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


def begun_alike(out: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The same, of several processes. Raises UsageError, on each of them, where they see different ones."""
    with ranks.together():
        before = begun(out)
    if other := ranks.other("what was begun", before):
        raise UsageError(
            f"{out}: process {other} sees another training there than process 0, or only one of them sees any; let all of"
            " them write to and read from one folder"
        )
    return before


def begun_recipe(out: Path, device: str | None) -> Recipe | None:
    """The recipe of the training that was begun, or finished, in `out`; None where none was. Raises ConfitError.

    `device` is the one that it is to go on with, where that is said.
    """
    before = begun(out)
    if several():
        own = before["recipe"].get("device") if before else None
        ranks = join(device or own or Recipe.device)
        ranks.refuse_other_command("train", resume=True)
        before = begun_alike(out, ranks)
    return Recipe.from_dict(before["recipe"], str(out)) if before else None


def digest(recipe: Recipe, fingerprint: str, lr: float, epochs: int) -> str:
    """Of a training, by which its checkpoint is known; what is named in it may have moved, see `refuse_other_training`."""
    free = (*WHERE, "background", "others", "encoder")
    same = {key: value for key, value in recipe.to_dict().items() if key not in free}
    return hashlib.sha256(json.dumps([same, fingerprint, lr, epochs]).encode()).hexdigest()


def refuse_other_training(out: Path, before: dict[str, Any], started: dict[str, Any]) -> None:
    """Raise UsageError naming what differs where `before`, in `out`, is another recipe, data or teacher than `started`."""
    version = " (or it was begun with an earlier version, which took background otherwise)"
    changed = _differences(before, started, "now", version if before["recipe"].get("background") else "")
    if before["processes"] not in (None, started["processes"]):  # each draws its own dropout
        changed.append(f"the number of processes ({before['processes']}, now {started['processes']})")
    if changed:
        raise UsageError(f"{out}: --resume needs the same training, but these differ: {', '.join(changed)}")


def refuse_apart(ranks: Ranks, started: dict[str, Any], corpus: Corpus) -> None:
    """Raise UsageError, on every process, naming the one that is about to train something else than process 0 and what.

    `started` is what each is about to train, of its `corpus`.
    """
    size = sum(map(len, (corpus.train, corpus.val, corpus.test)))
    told_of = f"{counted(size, 'clip')} of {counted(len(corpus.classes), 'class', 'classes')}"
    every = ranks.each("what it is to train", (started, told_of))
    first, clips = every[0]
    for index, (other, other_clips) in enumerate(every):
        told = (
            f" ({clips}, there {other_clips})"
            if clips != other_clips
            else " (as many clips, but other sound or labels)"
        )
        if changed := _differences(first, other, "there", told):
            raise UsageError(
                f"process {index} is about to train something else than process 0, and these differ: {', '.join(changed)};"
                " give all of them one command, and the same data"
            )


def going_on_elsewhere(before: dict[str, Any], started: dict[str, Any]) -> str | None:
    """What a user is told where a training goes on with another kind of device."""
    was, now = before.get("device"), started["device"]
    if was in (None, now):
        return None
    return f"begun on {was}, going on on {now}: no longer bit for bit what {was} alone would give"


def _differences(before: dict[str, Any], started: dict[str, Any], now: str, of_data: str) -> list[str]:
    """What of a training differs from that `before`; `of_data` is said of data that do."""
    recipe, same_data = before["recipe"], before["fingerprint"] == started["fingerprint"]
    moved = {"background", "others"} if same_data else set()
    same_start = before.get("encoder_sha256") == started["encoder_sha256"]
    if same_start:
        moved.add("encoder")
    changed = [
        f"{key} ({_shown(recipe.get(key))}, {now} {_shown(value)})"
        for key, value in started["recipe"].items()
        if recipe.get(key) != value and key not in moved and key not in WHERE
    ]
    if not same_data and all(recipe.get(key) == started["recipe"][key] for key in ("background", "others")):
        changed.append(f"the data{of_data}")
    if before["chosen_by"] != started["chosen_by"]:
        changed.append("what epochs are chosen by")
    if before["distilled"] != started["distilled"]:
        changed.append("the teacher or what it teaches from")
    return changed
