"""`confit-edge data`: look at labelled clips before training on them, and split them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Json, emit, say
from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_edge.data.splits import Fractions

RATE = 16_000  # Hz, at which clips are compared

app = typer.Typer(help="Look at labelled clips, and split them.", no_args_is_help=True)

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


@app.command()
def check(
    source: Source,
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where any clip cannot be used.")] = False,
    json: Json = False,
) -> None:
    """Decode every clip and report: classes, durations, damaged clips, duplicates, leaks between splits.

    Fails (exit 1) when training on it would mislead: a group in two splits, or the same sound in two splits or under
    two labels. With --strict also when a clip cannot be used; without it such clips are reported, and training leaves
    them out.
    """
    from confit_edge.data.check import check as check_manifest
    from confit_edge.data.clips import ClipStore
    from confit_edge.data.manifest import read_manifest

    manifest = read_manifest(source, label_column=label_column, group_column=group_column, split_by=split_by)
    with _progress("decoding") as progress:
        report = check_manifest(manifest, ClipStore(RATE), progress=progress)
    if json:
        emit("check", **report.to_dict())
    else:
        print(report.text())
    if report.leaks or (strict and report.problems):
        raise typer.Exit(1)


@app.command()
def split(
    source: Source,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT.csv", help="The manifest to write: path, label, group, split.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Another seed deals the groups out differently.")] = 0,
    fractions: Annotated[
        str, typer.Option(metavar="TRAIN/VAL/TEST", help="Shares of train, val and test, such as 70/10/20 or 80/20/0.")
    ] = "70/10/20",
    label_column: LabelColumn = "label",
    group_column: GroupColumn = "group",
    split_by: SplitBy = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Make new splits although the manifest has some. Otherwise those are kept.")
    ] = False,
    json: Json = False,
) -> None:
    """Split clips into train, val and test so that no group is torn apart and every class is in each, where it can be.

    Train fits, val chooses (epoch, thresholds), test is reported once. Training makes the same splits by itself; write
    them down to keep them while the data grows, or to share them.
    """
    from dataclasses import replace

    from confit_edge.data.manifest import SPLITS, read_manifest, write_manifest
    from confit_edge.data.splits import missing_classes, with_splits

    shares = parse_fractions(fractions)
    if out.suffix.lower() != ".csv":
        raise UsageError(f"-o {out}: a CSV is written, so its name must end in .csv")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(
            f"-o {out}: is the manifest that is read, whose other columns would be lost; name another file"
        )
    manifest = read_manifest(source, label_column=label_column, group_column=group_column, split_by=split_by)
    if anew:
        manifest = replace(manifest, clips=tuple(replace(clip, split=None) for clip in manifest.clips))
    kept = any(clip.split for clip in manifest.clips)
    manifest = with_splits(manifest, seed=seed, fractions=shares)
    write_manifest(manifest, out)

    sizes = {name: len(manifest.select(name)) for name in SPLITS}
    missing = missing_classes(manifest)
    if json:
        emit("split", out=str(out), made=not kept, clips=sizes, missing=missing)
        return
    print(f"{out}: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if kept:
        say("the manifest's own splits were kept; --anew makes new ones")
    if sizes["test"] and missing["test"]:
        say(f"not in test, for want of groups: {', '.join(missing['test'])}")


def parse_fractions(text: str) -> Fractions:
    """`70/10/20` as three fractions that sum to 1. Raises UsageError."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
        total = train + val + test
        if not (0 < total < float("inf")) or min(train, val) <= 0 or test < 0:
            raise ValueError(text)
    except ValueError as error:
        raise UsageError(
            f"--fractions {text}: expected TRAIN/VAL/TEST such as 70/10/20, train and val above 0"
        ) from error
    return train / total, val / total, test / total


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
