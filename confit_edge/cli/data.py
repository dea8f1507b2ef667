"""`confit-edge data`: check labelled clips before training, split them, cut them out of recordings, or fetch a corpus."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Bar, Json, Verb, Verbs, emit, failed_clip_reported, say
from confit_runtime.errors import UsageError
from confit_runtime.files import check_suffix

if TYPE_CHECKING:
    from confit_edge.data.splits import Fractions

RATE = 16_000  # Hz, at which clips are compared
WHOLES, ROUNDED = (1, 10, 100), 0.015  # sums that shares may have, and the tolerance: half a per cent for each of three
UNEVEN = 0.1  # share of all clips: a split this far from its intended share is reported

app = typer.Typer(
    cls=Verbs,
    help="Check, split, cut or fetch labelled clips for training.",
    no_args_is_help=True,
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="CSV, JSONL or Parquet with the columns path and label, and optionally group and split; or a folder with one"
        " sub-folder per class: CLASS/clip.wav or CLASS/GROUP/clip.wav.",
    ),
]
LabelColumn = Annotated[
    str, typer.Option(help="Column that holds the label. A column `labels` holds several, joined by a vertical bar.")
]
GroupColumn = Annotated[
    str, typer.Option(help="Column that holds the group, which must stay in one split: speaker, recording or kit.")
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        help="Keep splits apart by this column instead, if the label itself is the group. To tell voices apart, for instance,"
        " `--label-column group --split-by label` keeps each spoken word in one split. This makes new splits."
    ),
]


@app.command(cls=Verb)
def check(
    source: Source,
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail if a clip cannot be used.")] = False,
    json: Json = False,
) -> None:
    """Decode every clip and report problems before training.

    The report covers classes, durations, damaged clips, duplicates and leaks between splits. The exit status is 1 if the
    clips cannot be trained on, or if training would mislead: a group in two splits, or the same sound in two splits or under
    two labels. Clips that cannot be used are reported, and training leaves them out; with --strict they fail the check too.

    Examples:

        confit-edge data check clips
        confit-edge data check words.csv --strict --json

    Next: `confit-edge train`.
    """
    from confit_edge.data.check import check as check_manifest
    from confit_edge.data.clips import ClipStore
    from confit_edge.data.manifest import read_manifest

    manifest = read_manifest(
        source, label_column=label_column, group_column=group_column, split_by=split_by, min_classes=1
    )
    with Bar(json, before="clips") as bar:
        report = check_manifest(manifest, ClipStore(RATE), progress=_decoding(bar))
    if json:
        emit("check", **report.to_dict())
    else:
        print(report.text())
    if report.leaks or not report.trainable or (strict and report.problems):
        raise typer.Exit(1)


@app.command(cls=Verb)
def split(
    source: Source,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.csv",
            help="The manifest to write, with the columns path, label, group and split.",
        ),
    ],
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the splits; another seed deals the groups out differently.")
    ] = 0,
    fractions: Annotated[
        str,
        typer.Option(
            metavar="TRAIN/VAL/TEST",
            help="Shares of train, val and test, which sum to 100, 10 or 1: 70/10/20, 8/2/0, 0.7/0.1/0.2. Rounded shares"
            " such as 33/33/33 are scaled to that sum, and `split` reports the result.",
        ),
    ] = "70/15/15",
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Make new splits even if the manifest has some, which are otherwise kept.")
    ] = False,
    json: Json = False,
) -> None:
    """Split clips into train, val and test by group.

    All clips of a group go to the same split, and every class is in each split where possible. Training learns from train,
    chooses by val (epoch, thresholds) and reports on test once. Clips that cannot be used are left out, as in training.

    `train` makes the same splits by itself. Write them to a manifest to keep them while the data grows, or to share them. A
    file that holds another split is not replaced.

    Examples:

        confit-edge data split clips -o words.csv
        confit-edge data split clips -o words.csv --fractions 70/10/20 --seed 1

    Next: `confit-edge train words.csv -o run`.
    """
    from dataclasses import replace

    from confit_edge.data.clips import ClipStore, count_kinds, usable_clips
    from confit_edge.data.manifest import SPLITS, read_manifest, write_manifest
    from confit_edge.data.splits import missing_classes, with_splits
    from confit_edge.data.tables import ManifestError

    shares = parse_fractions(fractions)
    check_suffix(out, ".csv", "the manifest is written as CSV, so its name", "-o")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(
            f"-o {out}: is the manifest that is read, and its other columns would be lost; name another file"
        )
    manifest = read_manifest(
        source, label_column=label_column, group_column=group_column, split_by=split_by, min_classes=1
    )
    if anew:
        manifest = replace(manifest, clips=tuple(replace(clip, split=None) for clip in manifest.clips))
    classes = set(manifest.classes)
    with Bar(json, before="clips") as bar:
        manifest, problems = usable_clips(manifest, ClipStore(RATE), progress=_decoding(bar))
    kinds = count_kinds(problems)
    left_out = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    if lost := classes - set(manifest.classes):
        raise ManifestError(
            f"{source}: no clip of class {', '.join(map(repr, sorted(lost)))} can be used ({left_out}); see `confit-edge"
            f" data check {quote(str(source))}`"
        )
    kept = any(clip.split for clip in manifest.clips)
    manifest = with_splits(manifest, seed=seed, fractions=shares)
    write_manifest(manifest, out, overwrite=False)

    sizes = {name: len(manifest.select(name)) for name in SPLITS}
    missing = missing_classes(manifest)
    if json:
        emit("split", out=str(out), made=not kept, sizes=sizes, missing=missing, unusable=kinds)
        return
    print(f"{out}: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if problems:
        say(
            f"left out clips that cannot be used: {left_out} (`confit-edge data check {quote(str(source))}` lists them)"
        )
    if kept:
        say("kept the splits that the manifest has; --anew makes new ones")
    elif any(abs(size / len(manifest) - share) > UNEVEN for size, share in zip(sizes.values(), shares, strict=True)):
        got = "/".join(f"{100 * size / len(manifest):.0f}" for size in sizes.values())
        say(f"the groups are too few or too large to split them {fractions}: the shares are {got}")
    if sizes["test"] and missing["test"]:
        say(f"classes without clips in test, because they have too few groups: {', '.join(missing['test'])}")


@app.command(cls=Verb)
def cut(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="As for `evaluate`: a CSV (path,start_s,end_s,label), or recordings with Audacity's labels next to them.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The new folder to write clips and manifest.csv to.")
    ],
    margin: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0.0,
            max=60.0,
            help="Seconds of the recording to keep before and after each sound; less if another sound is near.",
        ),
    ] = 0.0,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out sounds that overlap another, so that each clip has one label.")
    ] = False,
    rest: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write the sound between the labelled sounds to this folder, for `train --background`. It may hold"
            " sounds that nobody labelled, which training would learn as background.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Cut labelled sounds out of long recordings as clips.

    Each labelled sound becomes a clip with the recording's rate and channels. Clips are FLAC, or WAV if FLAC cannot hold the
    samples (floating point). FOLDER/manifest.csv lists path, label and group. The group is what the
    table's column `group` says or, without one, the recording, so that no recording is in two splits.

    - If labelled sounds overlap by 0.05 s or more, their clips get the labels of all of them, joined by a vertical bar in the
      column `labels`, and a model learns to detect each label independently. --alone leaves such clips out.
    - A margin ends where another labelled sound begins.
    - A sound labelled unknown belongs to no class. It becomes no clip if a sound of a class is heard in it.
    - A damaged recording is reported (with --json as a line `failed`) and left out, the others are still cut, and the exit
      status is 1.

    Keep some recordings out of the table, to `evaluate` the model on.

    Example:

        confit-edge data cut calls.csv -o clips --margin 0.3 --rest background

    Next: `confit-edge data check clips/manifest.csv`, then train on it:

        confit-edge train clips/manifest.csv -o runs/birds --encoder yamnet --background background
    """
    from confit_edge.cli._cut import cut_recordings, print_report
    from confit_edge.cli._signals import treat_signals_as_ctrl_c
    from confit_runtime.labels import read_labelled
    from confit_runtime.recordings import check_duplicate_recordings

    with failed_clip_reported(json):
        recordings = read_labelled(table)
    check_duplicate_recordings([recording.path for recording in recordings])
    treat_signals_as_ctrl_c()
    report, errors = cut_recordings(table, recordings, out, margin, alone, rest, json)
    if json:
        emit("cut", **report)
    else:
        print_report(report, errors)
    if errors:
        raise typer.Exit(1)


@app.command(cls=Verb)
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A corpus that --list shows, or hf:NAME_OR_FOLDER for a data set of Hugging Face `datasets`.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder that holds the corpus, directly or up to two folders below.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT.csv", help="The manifest to write.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="The fold to use as test, counted from 1 [1]; the next fold is val.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=2, help="Keep only this many classes, those with the most clips.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Accept a corpus with missing clips.")] = False,
    subset: Annotated[str | None, typer.Option(help="For hf: the configuration, if the data set has several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="For hf: the column that holds the label.")] = None,
    group_column: Annotated[
        str | None,
        typer.Option(
            help="For hf: the column that holds the group, which must stay in one split: speaker or recording."
        ),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the known corpora, and where to get each.")] = False,
    json: Json = False,
) -> None:
    """Write the manifest of a published corpus on this disk.

    The manifest holds the corpus's groups and its published split. No group is in two splits: if the published splits divide
    a group, `fetch` changes them and reports what it changed. It checks the folders and the number of files against what was
    published. It downloads nothing except data sets of the Hugging Face hub; --list shows where to get each corpus.

    Examples:

        confit-edge data fetch --list
        confit-edge data fetch esc50 --root ~/corpora --fold 2 -o esc50-fold2.csv

    Next: `confit-edge data check esc50-fold2.csv`.
    """
    from confit_edge.data.corpora import CORPORA
    from confit_edge.data.corpora import fetch as fetch_corpus
    from confit_edge.data.hub import fetch_hub
    from confit_edge.data.manifest import SPLITS, write_manifest

    if list_all:
        _list_corpora(json)
        return
    if name is None:
        raise UsageError("data fetch: name a corpus; --list shows them")
    if out is None:
        raise UsageError(f"data fetch {name}: name the manifest to write, with -o OUT.csv")
    check_suffix(out, ".csv", "the manifest is written as CSV, so its name", "-o")
    of_hub = {"--subset": subset, "--label-column": label_column, "--group-column": group_column}
    of_named = {"--root": root, "--fold": fold, "--top": top, "--partial": partial or None}
    for option, value in (of_named if name.startswith("hf:") else of_hub).items():
        if value is not None:
            raise UsageError(f"data fetch {name}: {option} does not apply to it; leave it out")
    if name.startswith("hf:"):
        fetched = fetch_hub(
            name.removeprefix("hf:"), out, subset=subset, label_column=label_column, group_column=group_column
        )
    elif name not in CORPORA:
        raise UsageError(f"{name}: not a known corpus; name one of {', '.join(CORPORA)}, or hf:NAME_OR_FOLDER")
    elif root is None:
        raise UsageError(f"data fetch {name}: name the folder that holds it, with --root DIR")
    else:
        fetched = fetch_corpus(CORPORA[name], root, out, fold=fold, top=top, partial=partial)
    write_manifest(fetched.manifest, out, overwrite=False)

    classes = len(fetched.manifest.classes)
    sizes = {split: len(fetched.manifest.select(split)) for split in SPLITS}
    if json:
        emit("fetch", out=str(out), tree=str(fetched.tree), classes=classes, sizes=sizes, warnings=fetched.warnings)
        return
    for warning in fetched.warnings:
        say(f"warning: {warning}")
    shown = ", ".join(f"{split} {size}" for split, size in sizes.items()) if any(sizes.values()) else "not split yet"
    print(f"{out}: {classes} classes, {len(fetched.manifest)} clips ({shown})")
    say(f"from {fetched.tree}. Next: confit-edge data check {quote(str(out))}")


def _list_corpora(json: bool) -> None:
    from confit_edge.data.corpora import CORPORA

    for corpus in CORPORA.values():
        if json:
            emit(
                "corpus", name=corpus.name, task=corpus.task, home=corpus.home, layout=corpus.layout, folds=corpus.folds
            )
        else:
            print(f"{corpus.name:<20}{corpus.task}\n{'':<20}{corpus.home}\n{'':<20}expects {corpus.layout}")
    if json:
        emit("summary", corpora=len(CORPORA))
    say(
        "The readers were tested on small folders in the published layout, not on the real corpora: check the result with"
        " `confit-edge data check`."
    )


def parse_fractions(text: str) -> Fractions:
    """`70/10/20`, `7/1/2` or `0.7/0.1/0.2` as three fractions that sum to 1. Raises UsageError.

    Rounded shares, such as thirds, are scaled to that sum; because they may be a typing error, the result is printed.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
        total = train + val + test
        if not (0 < total < float("inf")) or min(train, val) <= 0 or test < 0:
            raise ValueError(text)
    except ValueError as error:
        raise UsageError(
            f"--fractions {text}: expected TRAIN/VAL/TEST such as 70/10/20, train and val above 0"
        ) from error
    whole = min(WHOLES, key=lambda whole: abs(total / whole - 1))
    if abs(total - whole) > ROUNDED * whole:
        raise UsageError(
            f"--fractions {text}: sums to {total:g}; the shares of train, val and test must sum to 100, 10 or 1"
        )
    shares = train / total, val / total, test / total
    if not isclose(total, whole):
        say(
            f"--fractions {text}: sums to {total:g}, so it is scaled to {'/'.join(f'{100 * share:.1f}' for share in shares)}"
        )
    return shares


def _decoding(bar: Bar) -> Callable[[int, int], None]:
    """A callback that shows in the bar how many clips are decoded."""
    return lambda done, total: bar.show("decoding", total, done, clips=f"{done} of {total}")
