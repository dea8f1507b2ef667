"""`confit-edge distill`: train a small streaming encoder to embed as a trained attention encoder does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from confit_edge.cli._console import Json
from confit_edge.cli._run_options import Background, Others
from confit_edge.cli._training import (
    Device,
    Epochs,
    Precision,
    Rates,
    RecipeFile,
    Resume,
    TensorBoard,
    TrainingBar,
    learning_rates,
    naming_flags,
    option,
    print_trained,
    printed_once,
    resume_hint_when_stopped,
)
from confit_runtime.errors import UsageError

_LESSON = "Distillation"  # a panel of --help


@printed_once()
def distill(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The teacher: a run folder that `confit-edge train` wrote.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The student's run folder to write.")],
    student: Annotated[
        str | None,
        typer.Option(
            help="The encoder to train, named as for --encoder of `confit-edge train` [the recipe's, else speech-embedding].",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Sound like what the device will hear (folder or file), without labels; may be repeated."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="The teacher's own clips, if they have moved since training.")
    ] = None,
    background: Background = None,
    others: Others = None,
    recipe: RecipeFile = None,
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    json_lines: Json = False,
    epochs: Epochs = None,
    lr: Rates = None,
    unlabelled_per_batch: Annotated[
        int | None, option("Windows of unlabelled sound added to the clips of each batch [64].", _LESSON)
    ] = None,
    embedding_weight: Annotated[
        float | None, option("Weight of the distance to the teacher's embedding, through a linear map [1].", _LESSON)
    ] = None,
    similarity_weight: Annotated[
        float | None, option("Weight of the distance to the teacher's similarities within a batch [1].", _LESSON)
    ] = None,
    similarity_temperature: Annotated[
        float | None,
        option("Temperature of those similarities: the lower, the more the nearest neighbours count [0.1].", _LESSON),
    ] = None,
    supervised_weight: Annotated[
        float | None,
        option("Weight of the contrastive loss on labelled clips; 0: learn from the teacher alone [1].", _LESSON),
    ] = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Train a small encoder to imitate a trained one.

    Use it when the encoder that works best is too slow for the device. The student hears the same sound as the teacher: the
    teacher's own training clips and, with --unlabelled, sound without labels. It learns to embed each sound as the teacher
    does (through a linear map), and to find the sounds of a batch as similar to each other as the teacher finds them.

    The teacher's recipe sets what the student learns on: clips, splits, window and augmentation. How it learns starts from
    the defaults, and --recipe changes it. The result is a run folder like that of `train`.

    Examples:

        confit-edge distill runs/whisper -o runs/student
        confit-edge distill runs/whisper -o runs/student --unlabelled recordings/ --epochs 30

    To use several GPUs, start it with `torchrun --nproc-per-node 2 -m confit_edge distill ...` or
    `accelerate launch -m confit_edge distill ...`; docs/training.md explains what they share.

    Next: `confit-edge export`, or `confit-edge probe` to compare the student with its teacher.
    """
    given: dict[str, Any] = {
        "encoder": student,
        "background": background,
        "others": others,
        "epochs": epochs,
        "lr": lr,
        "unlabelled_per_batch": unlabelled_per_batch,
        "embedding_weight": embedding_weight,
        "similarity_weight": similarity_weight,
        "similarity_temperature": similarity_temperature,
        "supervised_weight": supervised_weight,
        "device": device,
        "precision": precision,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    from confit_edge.pairtune.student import distill as run_distillation
    from confit_edge.recipe import Recipe, read_yaml

    if lr is not None:
        flags["lr"] = learning_rates(lr)
    settings = {**read_yaml(recipe), **flags} if recipe else flags
    if unlabelled_per_batch is not None and not unlabelled:
        raise UsageError("--unlabelled-per-batch has no effect without --unlabelled")
    if similarity_temperature is not None and settings.get("similarity_weight") == 0:
        raise UsageError("--similarity-temperature has no effect with a similarity weight of 0")
    source = str(recipe) if recipe else "the command line"
    with resume_hint_when_stopped(out), naming_flags(flags, source), TrainingBar(json_lines) as progress:
        trained = run_distillation(
            run,
            out,
            unlabelled=unlabelled or [],
            settings=settings,
            source=source,
            manifest=manifest,
            resume=resume,
            tensorboard=tensorboard,
            watch=progress,
        )
    print_trained(trained, out, settings.get("device", Recipe.device), json_lines, teacher_run=str(run))
