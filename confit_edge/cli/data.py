"""`confit-edge data`: look at labelled clips before training on them, split them, cut them out of long recordings, and take in
published corpora."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Bar, Json, Verb, Verbs, emit, say, with_failed
from confit_runtime.errors import UsageError
from confit_runtime.files import check_suffix

if TYPE_CHECKING:
    from confit_edge.data.splits import Fractions

RATE = 16_000  # Hz, at which clips are compared
WHOLES, ROUNDED = (1, 10, 100), 0.015  # what shares may sum to, and so far from it: a half per cent of each of three
UNEVEN = 0.1  # of all clips: a split that is so far from its share is told

app = typer.Typer(
    cls=Verbs,
    help="Check, split, cut or fetch labelled clips for training.",
    no_args_is_help=True,
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="CSV, JSONL or Parquet with the columns path, label, group and split (the last two are optional), or a"
        " folder with one sub-folder per class: CLASS/clip.wav or CLASS/GROUP/clip.wav.",
    ),
]
LabelColumn = Annotated[
    str, typer.Option(help="Column that says what is heard. `labels` holds several, joined by a vertical bar.")
]
GroupColumn = Annotated[
    str, typer.Option(help="Column of what must stay in one split: the speaker, the recording, the kit.")
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        help="Keep splits apart by this column instead, where the label is the group itself: to tell voices apart,"
        " `--label-column group --split-by label` keeps each spoken word in one split. New splits are then made."
    ),
]


@app.command(cls=Verb)
def check(
    source: Source,
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where any clip cannot be used.")] = False,
    json: Json = False,
) -> None:
    """Decode every clip and report: classes, durations, damaged clips, duplicates, leaks between splits.

    Fails (exit 1) when it cannot be trained on, or when training on it would mislead: a group in two splits, or the same
    sound in two splits or under two labels. With --strict also when a clip cannot be used; without it such clips are
    reported, and training leaves them out.
    """
    from confit_edge.data.check import check as check_manifest
    from confit_edge.data.clips import ClipStore
    from confit_edge.data.manifest import read_manifest

    manifest = read_manifest(
        source, label_column=label_column, group_column=group_column, split_by=split_by, alone=True
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
        Path, typer.Option("--out", "-o", metavar="OUT.csv", help="The manifest to write: path, label, group, split.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Another seed deals the groups out differently.")] = 0,
    fractions: Annotated[
        str,
        typer.Option(
            metavar="TRAIN/VAL/TEST",
            help="Shares of train, val and test, which sum to 100, 10 or 1: 70/10/20, 8/2/0, 0.7/0.1/0.2."
            " Of rounded ones (33/33/33) it is told what they are taken as.",
        ),
    ] = "70/15/15",
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Make new splits although the manifest has some. Otherwise those are kept.")
    ] = False,
    json: Json = False,
) -> None:
    """Split clips into train, val and test so that no group is torn apart and every class is in each, where it can be.

    Train fits, val chooses (epoch, thresholds), test is reported once. Clips that cannot be used are left out, as training
    does; it makes the same splits by itself: write them down to keep them while the data grows, or to share them.
    """
    from dataclasses import replace

    from confit_edge.data.clips import ClipStore, count_kinds, usable_clips
    from confit_edge.data.manifest import SPLITS, is_written, read_manifest, write_manifest
    from confit_edge.data.splits import missing_classes, with_splits
    from confit_edge.data.tables import ManifestError

    shares = parse_fractions(fractions)
    check_suffix(out, ".csv", "the manifest is written as CSV, so its name", "-o")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(
            f"-o {out}: is the manifest that is read, whose other columns would be lost; name another file"
        )
    if out.is_file() and not is_written(out):
        raise UsageError(f"-o {out}: is there already, and is no manifest that this verb wrote; name another file")
    manifest = read_manifest(
        source, label_column=label_column, group_column=group_column, split_by=split_by, alone=True
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
    write_manifest(manifest, out)

    sizes = {name: len(manifest.select(name)) for name in SPLITS}
    missing = missing_classes(manifest)
    if json:
        emit("split", out=str(out), made=not kept, sizes=sizes, missing=missing, unusable=kinds)
        return
    print(f"{out}: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if problems:
        say(f"left out, being of no use: {left_out} (`confit-edge data check {quote(str(source))}` names them)")
    if kept:
        say("the manifest's own splits were kept; --anew makes new ones")
    elif any(abs(size / len(manifest) - share) > UNEVEN for size, share in zip(sizes.values(), shares, strict=True)):
        got = "/".join(f"{100 * size / len(manifest):.0f}" for size in sizes.values())
        say(f"the groups are too few or too large to be shared out as {fractions}: the shares are {got}")
    if sizes["test"] and missing["test"]:
        say(f"not in test, for want of groups: {', '.join(missing['test'])}")


@app.command(cls=Verb)
def cut(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="What `evaluate` reads: a CSV (path,start_s,end_s,label), or recordings with Audacity's labels beside them.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where clips and their manifest.csv go: a new folder.")
    ],
    margin: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0.0,
            max=60.0,
            help="Seconds of the recording around each sound, less where another is near.",
        ),
    ] = 0.0,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out sounds that another overlaps, so that each clip has one label.")
    ] = False,
    rest: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write what lies between the sounds, for `train --background`. Unlabelled is not always empty: what"
            " nobody labelled there is learnt as nothing.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make training clips of the labelled sounds in long recordings.

    Each sound becomes a clip, at the recording's own rate and with its channels: FLAC, or WAV where that cannot hold it, as of
    floating point. FOLDER/manifest.csv tells path, label and group. The group is the recording, so that none stands in two
    splits, or what a column `group` of the table says.

    Where labelled sounds overlap (by 0.05 s or more), a clip holds several, and it gets the labels of all, joined by a vertical
    bar in the column `labels`: a model is then trained to tell each by itself. --alone leaves such clips out. A margin ends where
    another labelled sound begins. A sound labelled unknown is of no class, and becomes no clip where one that is is heard in it.

    Keep some recordings out of the table, to `evaluate` the model on. One that turns out to be damaged is told (with --json
    in a line `failed`) and left out, and the others go on; the exit status is then 1.

    Examples:

        confit-edge data cut calls.csv -o clips --margin 0.3 --rest background

        confit-edge train clips/manifest.csv -o runs/birds --encoder yamnet --background background
    """
    from confit_edge.cli._cut import cut_out, tell
    from confit_edge.cli._stopped import stop_as_ctrl_c_does
    from confit_runtime.labels import read_labelled
    from confit_runtime.recordings import refuse_twins

    with with_failed(json):
        recordings = read_labelled(table)
    refuse_twins([recording.path for recording in recordings])
    stop_as_ctrl_c_does()
    report, errors = cut_out(table, recordings, out, margin, alone, rest, json)
    if json:
        emit("cut", **report)
    else:
        tell(report, errors)
    if errors:
        raise typer.Exit(1)


@app.command(cls=Verb)
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A corpus that --list names, or hf:NAME_OR_FOLDER for a set of Hugging Face `datasets`.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder that holds the corpus, itself or up to two folders below.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT.csv", help="The manifest to write.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="The fold to test on, from 1 (the first unless given); the next one is val.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=2, help="Keep only so many classes, those with most clips.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what is there where clips are missing.")] = False,
    subset: Annotated[str | None, typer.Option(help="For hf: the configuration of a set that has several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="For hf: the column that says what is heard.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="For hf: the column of what must stay in one split: speaker, recording.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name the corpora, and where each is to be had.")] = False,
    json: Json = False,
) -> None:
    """Write the manifest of a published corpus that is on this disk, with its groups and its published split.

    The tree and its counts are checked against what was published. Nothing is downloaded (but for sets of the Hugging
    Face hub): --list says where each corpus is to be had. No group is in two splits: where the published ones tear a
    group apart, what is changed is told.

    Example: `confit-edge data fetch esc50 --root ~/corpora --fold 2 -o esc50-fold2.csv`
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
            raise UsageError(f"data fetch {name}: {option} is not for it")
    if name.startswith("hf:"):
        fetched = fetch_hub(
            name.removeprefix("hf:"), out, subset=subset, label_column=label_column, group_column=group_column
        )
    elif name not in CORPORA:
        raise UsageError(f"{name}: not a corpus known by name ({', '.join(CORPORA)}), or hf:NAME_OR_FOLDER")
    elif root is None:
        raise UsageError(f"data fetch {name}: name the folder that holds it, with --root DIR")
    else:
        fetched = fetch_corpus(CORPORA[name], root, out, fold=fold, top=top, partial=partial)
    write_manifest(fetched.manifest, out)

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
        "Each reader was tested on a small tree of the published shape and has not met the real corpus yet: check with"
        " `confit-edge data check`."
    )


def parse_fractions(text: str) -> Fractions:
    """`70/10/20`, `7/1/2` or `0.7/0.1/0.2` as three fractions that sum to 1. Raises UsageError.

    Rounded ones, such as thirds, are brought to that sum; as they may be a slip of the pen, what they are taken as is said.
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
        raise UsageError(f"--fractions {text}: sums to {total:g}; shares of train, val and test sum to 100, 10 or 1")
    shares = train / total, val / total, test / total
    if not isclose(total, whole):
        say(
            f"--fractions {text}: sums to {total:g}, so it is taken as {'/'.join(f'{100 * share:.1f}' for share in shares)}"
        )
    return shares


def _decoding(bar: Bar) -> Callable[[int, int], None]:
    """Shows in the bar how many clips are decoded."""
    return lambda done, total: bar.show("decoding", total, done, clips=f"{done} of {total}")
