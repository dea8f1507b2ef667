"""Whether a training may start in a folder, or resume there: it must be the training that was started there."""

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
from confit_edge.launcher import is_multi_process
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import is_partial
from confit_runtime.formatting import format_count

UNLEARNT_KEYS = ("device", "strict")  # recipe keys that do not affect what is learnt
STARTED_KEYS = {"recipe", "fingerprint", "order", "distilled", "chosen_by", "processes", "encoder_sha256"}


@contextmanager
def lock_run(out: Path, ranks: Ranks) -> Iterator[None]:
    """Lock `out` for this training, of one or several processes. Raises UsageError, on each, if another trains there."""
    with ExitStack() as held:
        with ranks.share_errors():
            if ranks.main:
                held.enter_context(files.lock_folder(out, "run"))
        yield


def check_out(out: Path, resume: bool) -> None:
    """Raise UsageError where writing a run to `out` would lose something."""
    files.check_folder(out, "run")
    check_utf8(out)
    unfinished = (out / "started.json").is_file() or (out / runs.CHECKPOINT).is_file()
    if (out / "run.json").is_file() and not resume:
        raise UsageError(f"{out}: contains a finished run; choose another -o, or remove it")
    if unfinished and not resume:
        raise UsageError(f"{out}: contains an unfinished training; add --resume to continue it, or remove it")
    if not unfinished and not (out / "run.json").is_file() and out.is_dir() and not all(map(is_partial, out.iterdir())):
        raise UsageError(f"{out}: is not empty and contains no run; choose another -o")


def _shown(key: str, value: Any) -> str:
    """The value of a recipe key for a message; an empty list of learning rates means the encoder's own."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or ("its own" if key == "lr" else "none")
    return "none" if value is None else str(value)


def started_training(out: Path) -> dict[str, Any] | None:
    """The training that was started or finished in `out`, in the form of `started.json`; None if there is none.

    Raises ConfitError where a file is damaged.
    """
    if (out / "run.json").is_file():
        info = runs.read_info(out)
        return {
            "recipe": info.recipe,
            "fingerprint": info.data["fingerprint"],
            "order": None,  # a finished run is not resumed, so the order of its clips does not matter
            "distilled": info.distilled,
            "chosen_by": merit_name(multi_label=info.multi_label),
            "processes": None,  # nor does their number
            "encoder_sha256": info.encoder_sha256,
        }
    beginning = out / "started.json"
    if not beginning.is_file():
        return None
    try:
        started: dict[str, Any] = json.loads(beginning.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfitError(f"{beginning}: is damaged ({error}); remove {out} and train again") from error
    if missing := STARTED_KEYS - set(started):
        raise ConfitError(f"{beginning}: lacks {', '.join(sorted(missing))}; remove {out} and train again")
    return started


def agreed_started_training(out: Path, ranks: Ranks) -> dict[str, Any] | None:
    """As `started_training`, for several processes. Raises UsageError, on each of them, where they see different trainings."""
    with ranks.share_errors():
        before = started_training(out)
    if other := ranks.first_different("the training to resume", before):
        raise UsageError(
            f"{out}: process {other} and process 0 see different trainings there, or only one of them sees any; give all"
            " processes the same folder"
        )
    return before


def started_recipe(out: Path, device: str | None) -> Recipe | None:
    """The recipe of the training that was started or finished in `out`; None if there is none. Raises ConfitError.

    `device` is the device to resume on, if the user named one.
    """
    before = started_training(out)
    if is_multi_process():
        own = before["recipe"].get("device") if before else None
        ranks = join(device or own or Recipe.device)
        ranks.check_same_command("train", resume=True)
        before = agreed_started_training(out, ranks)
    return Recipe.from_dict(before["recipe"], str(out)) if before else None


def digest(recipe: Recipe, corpus: Corpus, lr: float, epochs: int) -> str:
    """A digest that identifies a training's checkpoint; it leaves out paths, which may change (`check_same_training`)."""
    free = (*UNLEARNT_KEYS, "background", "others", "encoder")
    same = {key: value for key, value in recipe.to_dict().items() if key not in free}
    return hashlib.sha256(json.dumps([same, corpus.fingerprint, corpus.order, lr, epochs]).encode()).hexdigest()


def check_same_training(out: Path, before: dict[str, Any], started: dict[str, Any]) -> None:
    """Raise UsageError naming what differs where `before`, in `out`, has another recipe, data or teacher than `started`."""
    changed = _differences(before, started, "now", "")
    if before["processes"] not in (None, started["processes"]):  # each draws its own dropout
        changed.append(f"the number of processes ({before['processes']}, now {started['processes']})")
    if changed:
        raise UsageError(f"{out}: --resume needs the same training, but these differ: {', '.join(changed)}")


def check_same_on_all_processes(ranks: Ranks, started: dict[str, Any], corpus: Corpus) -> None:
    """Raise UsageError, on every process, where one would train something different from process 0; names what differs.

    `started` describes the training that each is about to start on its `corpus`.
    """
    size = sum(map(len, (corpus.train, corpus.val, corpus.test)))
    corpus_size = f"{format_count(size, 'clip')} of {format_count(len(corpus.classes), 'class', 'classes')}"
    every = ranks.gather_plain("its training", (started, corpus_size))
    first, clips = every[0]
    for index, (other, other_clips) in enumerate(every):
        data_difference = (
            f" ({clips}, there {other_clips})"
            if clips != other_clips
            else " (the same number of clips, but different sound or labels)"
        )
        if changed := _differences(first, other, "there", data_difference):
            raise UsageError(
                f"process {index} would train something different from process 0; these differ: {', '.join(changed)};"
                " give all processes the same command and the same data"
            )


def device_change_note(before: dict[str, Any], started: dict[str, Any]) -> str | None:
    """A note for the user where a training resumes on another kind of device; None where it does not."""
    was, now = before.get("device"), started["device"]
    if was in (None, now):
        return None
    return f"started on {was}, resuming on {now}: the result will not be bit for bit what {was} alone would give"


def _differences(before: dict[str, Any], started: dict[str, Any], now: str, of_data: str) -> list[str]:
    """What differs between the training `before` and the one `started`; `of_data` follows "the data" where they do."""
    recipe, same_data = before["recipe"], before["fingerprint"] == started["fingerprint"]
    moved = {"background", "others"} if same_data else set()
    same_start = before["encoder_sha256"] == started["encoder_sha256"]
    if same_start:
        moved.add("encoder")
    changed = [
        f"{key} ({_shown(key, recipe.get(key))}, {now} {_shown(key, value)})"
        for key, value in started["recipe"].items()
        if recipe.get(key) != value and key not in moved and key not in UNLEARNT_KEYS
    ]
    if not same_data and all(recipe.get(key) == started["recipe"][key] for key in ("background", "others")):
        changed.append(f"the data{of_data}")
    if same_data and before["order"] not in (None, started["order"]):
        changed.append("the order of the clips (in the manifest, or of --others)")
    if before["chosen_by"] != started["chosen_by"]:
        changed.append("the measure that epochs are chosen by")
    if before["distilled"] != started["distilled"]:
        changed.append("the teacher, the lesson or the unlabelled sound")
    return changed
