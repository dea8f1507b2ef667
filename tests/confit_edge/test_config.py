"""The recipe: plain data with no room for typing errors, each key also a flag."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from confit_edge.cli._training import learning_rates
from confit_edge.cli.train import train
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.yamnet import YAMNet
from confit_edge.pairtune.items import BATCH, LEAST_PER_CLASS
from confit_edge.pairtune.session import SOUP_OF_FEW
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError

KEYS = {field.name: field for field in dataclasses.fields(Recipe)}
NOT_RECIPE = {"manifest", "out", "recipe", "resume", "tensorboard", "json_lines"}


def test_every_key_is_a_flag_of_train_and_every_flag_a_key() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(train)
    parameters = {parameter.name: parameter for parameter in get_command(app).params}
    assert set(KEYS) == set(parameters) - NOT_RECIPE - {"help"}
    for key in KEYS:
        assert f"--{key.replace('_', '-')}" in parameters[key].opts
        assert inspect.signature(train).parameters[key].default is None, f"--{key} must not hide a recipe file's value"


# what the encoder or the clips settle, where a recipe leaves it open
SETTLED = {
    "lr": "[its own]",
    "gain": f"[{Encoder.gain:g}; with the encoder yamnet {YAMNet.gain:g}].",
    "soup": f"[{SOUP_OF_FEW} with few clips, else 1].",
    "clips_per_class": (
        f"[as many as fill a batch of {BATCH}, at least {LEAST_PER_CLASS}, at most what half of the classes have]."
    ),
}


def test_help_shows_every_default() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(train)
    helps = {parameter.name: getattr(parameter, "help", None) or "" for parameter in get_command(app).params}
    for key, field in KEYS.items():
        defaults = [either or other for either, other in re.findall(r"\[(.+?)\]|([\w-]+) \(default\)", helps[key])]
        if key in SETTLED:
            assert SETTLED[key] in helps[key], key
        else:
            assert defaults == ([] if field.default in (None, ()) else [written(field.default)]), key


def written(default: Any) -> str:
    """As help writes it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_a_recipe_survives_plain_data_and_a_file(tmp_path: Path) -> None:
    recipe = Recipe(objective="finetune", lr=(1e-4, 1e-3), background=("noise",), epochs=3, strict=True, window=2)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.from_file(path) == recipe


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 3\nseed: 5  # a comment\nlr: [0.001, 0.002]\n")
    assert Recipe.from_file(path, epochs=9) == Recipe(epochs=9, seed=5, lr=(0.001, 0.002))
    assert Recipe.from_file(path, lr=[0.1]).lr == (0.1,)


def test_background_and_others_may_be_one_place_or_several(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, places in (("rooms", ("rooms",)), ("[rooms, noise]", ("rooms", "noise")), ("", ())):
        path.write_text(f"background: {text}\nothers: {text}\n")
        assert Recipe.from_file(path) == Recipe(background=places, others=places)
    path.write_text("background: [rooms, '']\n")  # it would be the current folder
    with pytest.raises(UsageError, match=r"'background': is empty \(is a variable not set\?\)"):
        Recipe.from_file(path)
    path.write_text("background: [rooms, 3]\n")
    with pytest.raises(UsageError, match=r"'background' must be a text or a list, such as \[music, talk\]; it is 3$"):
        Recipe.from_file(path)


@pytest.mark.parametrize("text", ["5e-4", "5.0e-4", "0.0005", "5E-4", "[5e-4]"])
def test_a_learning_rate_may_be_written_as_anybody_would(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"lr: {text}\nhead_lr: 2e-3\n")
    assert Recipe.from_file(path) == Recipe(lr=(5e-4,), head_lr=2e-3)


def test_rates_as_on_the_command_line_are_told_how_a_recipe_has_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 3e-4,1e-3\n")
    with pytest.raises(UsageError, match=r"must be a number or a list, such as \[3e-4, 1e-3\]; it is '3e-4,1e-3'$"):
        Recipe.from_file(path)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 3\nepoch: 4\n7: x\nlabel-column: word\n")
    expected = r"recipe\.yaml: unknown keys: 7, epoch \(.* epochs\?\), label-column \(.* label_column\?\); known are accumulate"
    with pytest.raises(UsageError, match=expected):
        Recipe.from_file(path)
    path.write_text("label-column: word\n")
    with pytest.raises(UsageError, match=r"unknown keys: label-column \(did you mean label_column\?\)$"):
        Recipe.from_file(path)


@pytest.mark.parametrize(
    "text", ["epochs: 3\nsoup: 1\nepochs: 4\n", "epochs: 3\n'epochs': 3\n", "lr: {a: 1, a: 2}\n", "0: 1\n0: 2\n"]
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"recipe\.yaml: contains the key (epochs|a|0) twice"):
        Recipe.from_file(path)


def wrong(annotation: Any) -> list[Any]:
    """Values that are not of a key's type."""
    kind = typing.get_origin(annotation) or annotation
    if type(None) in typing.get_args(annotation):
        return [["x"], True, "6" if {int, float} & set(typing.get_args(annotation)) else 1]
    values = {
        int: [1.5, "3", None, True, [1]],
        float: ["fast", None, True, float("nan"), float("inf"), [1.0]],
        str: [1, None, ["x"]],
        bool: [1, "yes", None],
        tuple: ["fast", None, [None], [[1.0]], [True], [float("nan")]],
        typing.Literal: ["neither", 1, None, ["pairtune"]],
    }
    return values[kind]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value)
        for key, hint in typing.get_type_hints(Recipe).items()
        for value in wrong(hint)
        if (key, value) != ("freeze", 1)  # a number of layers, written as a number
        and not (key in ("others", "background") and value in ("fast", None))  # one place, and none
    ],
    ids=lambda part: str(part),
)
def test_a_value_of_a_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"the file: recipe key '{key}'"):
        Recipe.from_dict({key: value}, "the file")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("epochs", 0), ("seed", -1), ("seed", 2**64), ("classes_per_batch", 1), ("clips_per_class", 1)],
        *[
            ("window", 0.0),
            ("window", -1.0),
            ("temperature", 0.0),
            ("head_lr", 0.0),
            ("lr", [0.0]),
            ("lr", [1e-3, 0.0]),
        ],
        *[("noise_probability", 1.01), ("snr_low", 99.0), ("hardness", -1.0), ("shift", -0.1), ("gain", -1.0)],
        *[("accumulate", 0), ("chunk_size", -1), ("patience", -1), ("lr_decay", 0.0), ("lr_decay", 1.1)],
        *[
            ("freeze", "some"),
            ("freeze", 0),
            ("freeze", "-1"),
            ("freeze", "1.5"),
            ("freeze", ""),
            ("head_init", "probe"),
        ],
        *[("layers", 0), ("lora_rank", -1), ("pooling", "max"), ("initialise", "zeros")],
        *[("weight_decay", -1.0), ("probe_views", 0), ("search_epochs", -1), ("projection_dim", 1)],
        ("projection_layers", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"'{key}'"):
        Recipe.from_dict({key: value})


def test_frozen_layers_are_counted_in_words_or_numbers() -> None:
    assert Recipe.from_dict({"freeze": 6}) == Recipe.from_dict({"freeze": "6"}) == Recipe(freeze="6")
    assert Recipe(objective="finetune", head_init="probe").head_init == "probe"


def test_one_clip_of_each_class_is_enough_for_fine_tuning_only() -> None:
    assert Recipe(objective="finetune", clips_per_class=1).clips_per_class == 1
    with pytest.raises(UsageError, match="clips_per_class"):
        Recipe(clips_per_class=1)


@pytest.mark.parametrize(
    "text",
    [
        *("epochs: [1", "- a\n- b", "just words", "", "epochs: 3\nepochs: !!python/name:os.system x"),
        *("a: &a [x, x]\nencoder: [*a, *a]", "a: &a {seed: 1}\n<<: *a", "window: &w [*w]"),  # aliases
        *(f"encoder: {'[' * 5000}{']' * 5000}", f"encoder: {[['x' * 99] * 99] * 3}"),
        *(f"epochs: {'9' * 5000}", f"window: {'9' * 400}", "seed: 2024-99-99"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_on_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=str(path)) as caught:
        Recipe.from_file(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_recipe_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, what in (("nowhere.yaml", "no such file$"), ("binary.yaml", "not valid YAML"), (".", "Is a directory$")):
        with pytest.raises(UsageError, match=f"{tmp_path / name}: {what}"):
            Recipe.from_file(tmp_path / name)


def test_a_shipped_recipe_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "esc50").mkdir()  # the corpus itself, as one may have it
    assert Recipe.from_file(Path("esc50"), epochs=3).window == 5.0
    (tmp_path / "digits").mkdir()
    for name, reason in (("esc10", "no such file"), ("digits", "is a folder")):
        message = (
            rf"^{name}: {reason}, and no shipped recipe has that name \(shipped: emodb, esc50, gtzan, mswc, timit\)$"
        )
        with pytest.raises(UsageError, match=message):
            Recipe.from_file(Path(name))
    (tmp_path / "esc10").write_text("epochs: 4\n")
    assert Recipe.from_file(Path("esc10")) == Recipe(epochs=4)


@pytest.mark.parametrize(("text", "rates"), [("0.0005", [5e-4]), ("5e-4,1e-3", [5e-4, 1e-3]), ("1, 2", [1.0, 2.0])])
def test_learning_rates_on_the_command_line(text: str, rates: list[float]) -> None:
    assert learning_rates(text) == rates


@pytest.mark.parametrize("text", ["fast", "", "0.1;0.2", "0.1,"])
def test_a_learning_rate_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--lr"):
        learning_rates(text)


@pytest.mark.parametrize("mean", [{"soup": 2}, {"averaging": 0.5}])
def test_a_mean_of_adapters_is_refused(mean: dict[str, Any]) -> None:
    """The mean of their factors is not the mean of the weights that these make."""
    with pytest.raises(UsageError, match=f"'{next(iter(mean))}' cannot be combined with recipe key 'lora_rank'"):
        Recipe(**mean, lora_rank=4)
    assert dataclasses.replace(Recipe(**mean), soup=1, averaging=0.0, lora_rank=4).lora_rank == 4
