"""`distill`: from a teacher's run to the run of a student, which is another encoder on the same clips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from confit_edge import runs
from confit_edge.data.clips import ClipStore, load_recordings
from confit_edge.data.manifest import sound_files
from confit_edge.data.tables import check_utf8
from confit_edge.encoders import pretrained
from confit_edge.pairtune.distill import KEYS, Lesson, TeachingRun
from confit_edge.pairtune.distributed import join
from confit_edge.pairtune.remarks import report_left_out
from confit_edge.pairtune.resuming import check_out, lock_run
from confit_edge.pairtune.session import Trained, absolute, resolved_recipe, train
from confit_edge.progress import Watcher, ignore_event
from confit_edge.recipe import Recipe, check_keys
from confit_runtime.errors import UsageError

# What a student's recipe takes over from its teacher's: the clips, the splits and the augmentation of windows. How an
# encoder learns best depends on the encoder, so those keys start from the defaults.
INHERITED = (
    "seed", "label_column", "group_column", "split_by", "others", "background", "strict", "window", "trim", "shift", "gain",
    "speed", "noise_probability", "snr_low", "snr_high", "rooms", "room_probability", "equaliser", "band_probability",
    "codec_probability", "probe_views",
)  # fmt: skip


def distill(
    run: str | Path,
    out: str | Path,
    *,
    unlabelled: Sequence[str | Path],
    settings: dict[str, Any],
    source: str,
    manifest: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    watch: Watcher | None = None,
) -> Trained | None:
    """Teach a smaller encoder what the encoder of `run` knows, and write the student's run `out`.

    `settings` are recipe keys of training and of `Lesson`; their `encoder` is the student. Errors name their `source`.
    Keys that they leave open are the teacher's for the data (see `INHERITED`), else the default. `unlabelled` are folders
    or files of any sound. `manifest` is the current path of the run's manifest, if it has moved. `resume` and
    `tensorboard` work as in `train`. Returns None when `out` is already finished.
    """
    run, out, sounds = Path(run), Path(out), list(map(Path, unlabelled))
    teacher = runs.read_run(run)
    recipe, lesson = student_recipe(teacher.recipe, settings, source)
    ranks = join(recipe.device)
    ranks.check_same_command("distill", resume)
    recipe = resolved_recipe(recipe, ranks.device)
    teachers_place, folders = absolute(run), list(map(absolute, sounds))
    notify = watch if watch and ranks.main else ignore_event
    # `train` checks this again; here it fails before anything is decoded
    with lock_run(out, ranks), ranks.share_errors():
        check_out(out, resume)
    with ranks.share_errors():
        data = Path(manifest or teacher.info.data["manifest"])
        if not data.exists():
            raise UsageError(f"{data}: the manifest of {run} is missing; give its current path (--manifest)")
        check_utf8(data.resolve())
        encoder = pretrained(recipe.encoder, recipe.window, **recipe.encoder_options())
        if json.loads(json.dumps(encoder.spec())) == teacher.info.encoder:
            raise UsageError(
                f"--student {recipe.encoder}: {run} has that encoder itself; choose another, smaller one as the student"
            )
        rate = encoder.sample_rate
        files = list(dict.fromkeys(path for folder in sounds for path in sound_files(folder, "--unlabelled")))
        heard, problems = load_recordings(
            files,
            ClipStore(rate),
            f"--unlabelled {' '.join(map(str, sounds))}",
            strict=recipe.strict,
            progress=lambda done, total: notify({"stage": "decode", "done": done, "total": total}),
        )
    report_left_out(problems, ranks, notify)
    digest = hashlib.sha256()
    for pcm in heard.values():
        digest.update(pcm.data)
    about = {
        "teacher": teachers_place,
        "teacher_encoder": teacher.info.encoder,
        "teacher_weights_sha256": runs.weights_sha256(teacher.encoder),
        **asdict(lesson),
        "unlabelled": {
            "folders": folders,
            "recordings": len(heard),
            "seconds": round(sum(map(len, heard.values())) / rate, 1),
            "fingerprint": digest.hexdigest(),
        },
    }
    if not heard:
        notify({"stage": "note", "text": "no --unlabelled sound: the teacher teaches with the training clips only"})
    teaching = TeachingRun(
        teacher=teacher.encoder,
        name=str(run),
        classes=teacher.info.classes,
        fingerprint=teacher.info.data["fingerprint"],
        metrics=teacher.metrics["probes"],
        unlabelled=list(heard.values()),
        paths=list(heard),
        student_rate=rate,
        lesson=lesson,
        about=about,
    )
    return train(data, out, recipe, resume=resume, tensorboard=tensorboard, watch=watch, teaching=teaching)


def student_recipe(teacher: Recipe, settings: dict[str, Any], source: str) -> tuple[Recipe, Lesson]:
    """A student's recipe and lesson, from its teacher's recipe and the `settings` that `source` gives for it.

    Raises UsageError naming a key that is unknown, has the wrong type or is out of range.
    """
    check_keys(settings, {field.name for field in fields(Recipe)} | set(KEYS), source)
    if settings.get("objective", "pairtune") != "pairtune":
        raise UsageError(f"{source}: recipe key 'objective' must be pairtune, the supervised part of distillation")
    try:
        lesson = Lesson(**{key: value for key, value in settings.items() if key in KEYS})
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    rest = {key: value for key, value in settings.items() if key not in KEYS}
    return Recipe.from_dict({key: getattr(teacher, key) for key in INHERITED} | rest, source), lesson
