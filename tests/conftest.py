"""What the tests of training and export share: a few of the demo's clips, one run made from them, one model file."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from confit_edge.torchaudio_pure import skip_native_library

if TYPE_CHECKING:
    from confit_edge.data.corpus import Corpus
    from confit_edge.runs import Run
    from confit_export.export import Exported

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; more threads than free cores only wait
skip_native_library()  # before a test imports transformers, which imports torchaudio

os.umask(0o022)  # for tests of permissions
hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is not an error
hypothesis.settings.load_profile("no deadline")

# what whoever runs the tests may have set, and the programs that are tested would obey
for name in (
    "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "TERMINAL_WIDTH",
    "GITHUB_ACTIONS",  # where typer takes any output for a terminal with colours
    "PYTHONWARNINGS", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
):  # fmt: skip
    os.environ.pop(name, None)

DEMO = Path(__file__).parents[1] / "confit_edge" / "demo" / "data"
WORDS = ("yes", "stop", "happy", "seven", "marvin")
VOICES = {"train": 6, "val": 3, "test": 3}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded clips are kept here, not in the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CONFIT_EDGE_CACHE"] = str(folder)
    return folder


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that anybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="confit-public-"))
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`cut(words, voices)`: a new folder with a manifest of those words said by so many voices of each split."""
    with (DEMO / "words" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def make(words: tuple[str, ...] = WORDS, voices: dict[str, int] = VOICES) -> Path:
        folder = tmp_path_factory.mktemp("words")
        said_by = {split: sorted({row["group"] for row in rows if row["split"] == split}) for split in voices}
        kept = {voice for split, count in voices.items() for voice in said_by[split][:count]}
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "group", "split"])
            for row in rows:
                if row["label"] in words and row["group"] in kept:
                    name = row["path"].replace("/", "-")
                    shutil.copy(DEMO / "words" / row["path"], folder / name)
                    table.writerow([name, row["label"], row["group"], row["split"]])
        return folder / "manifest.csv"

    return make


@pytest.fixture(scope="session")
def manifest(cut: Callable[..., Path]) -> Path:
    """Five words of twelve voices: 30 training clips, 15 for validation, 15 for test."""
    return cut()


@pytest.fixture(scope="session")
def background(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four seconds of music (its file is at 48 kHz) and twelve of foreign speech by each of two people."""
    import soundfile

    folder = tmp_path_factory.mktemp("background")
    for source in sorted((DEMO / "background" / "train").glob("*.ogg")):
        pcm, rate = soundfile.read(source, stop=12 * 16_000, dtype="float32")
        soundfile.write(folder / f"{source.stem}.wav", pcm, rate)
    return folder


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of tones, shorter than any window, of four pitches by four, two and three whistlers: 32, 8 and 12 clips."""
    import numpy as np
    import soundfile

    folder, rng, time = tmp_path_factory.mktemp("tones"), np.random.default_rng(0), np.arange(2400) / 16_000
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group", "split"])
        for split, whistlers, takes in (("train", 4, 2), ("val", 2, 1), ("test", 3, 1)):
            for whistler, pitch, take in np.ndindex(whistlers, 4, takes):
                name = f"{split}-{whistler}-{pitch}-{take}.wav"
                hertz = 300 * (pitch + 1) + 20 * whistler + rng.normal(0, 40)
                pcm = 0.3 * np.sin(2 * np.pi * hertz * time) + rng.normal(0, 0.05, len(time))
                soundfile.write(folder / name, pcm, 16_000)
                table.writerow([name, f"tone{pitch}", f"{split}{whistler}", split])
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random transformers checkpoints of every kind that is supported."""
    import torch
    import transformers as hf

    raw: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    whisper: dict[str, Any] = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 100,
        "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    moonshine: dict[str, Any] = {
        "hidden_size": 32, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "intermediate_size": 64,
        "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2, "vocab_size": 99,
    }  # fmt: skip
    ast: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_length": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    models = {
        "wav2vec2": hf.Wav2Vec2Model(hf.Wav2Vec2Config(**raw)),
        "hubert": hf.HubertModel(hf.HubertConfig(**raw)),
        "wavlm": hf.WavLMModel(hf.WavLMConfig(**raw)),
        "data2vec-audio": hf.Data2VecAudioModel(hf.Data2VecAudioConfig(**raw, conv_pos_kernel_size=3)),
        "ast": hf.ASTModel(hf.ASTConfig(**ast)),
        "moonshine": hf.MoonshineModel(hf.MoonshineConfig(**moonshine)),
        "whisper": hf.WhisperModel(hf.WhisperConfig(**whisper)),
    }
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.fixture(scope="session")
def corpus(manifest: Path) -> Corpus:
    """The clips of `manifest`, without background."""
    from confit_edge.data.corpus import read_corpus

    return read_corpus(manifest, rate=16_000, seed=0)


@pytest.fixture(scope="session")
def run_path(manifest: Path, background: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: two epochs of PairTune, with background. Not to be changed."""
    from confit_edge.pairtune.session import train
    from confit_edge.recipe import Recipe

    path = tmp_path_factory.mktemp("runs") / "words"
    train(manifest, path, Recipe(epochs=2, soup=1, probe_views=1, background=(str(background),), frozen_baseline=False))
    return path


@pytest.fixture(scope="session")
def run(run_path: Path) -> Run:
    from confit_edge.runs import read_run

    return read_run(run_path)


@pytest.fixture(scope="session")
def run_corpus(run: Run) -> Corpus:
    """The corpus of `run`, read again as export does."""
    from confit_edge import runs

    return runs.run_corpus(run)


@pytest.fixture(scope="session")
def exports(run: Run, run_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """`run` exported in `fp32` and in `int8`."""
    from confit_export.export import export_run

    folder = tmp_path_factory.mktemp("models")

    def make(precision: str, **options: Any) -> Exported:
        return export_run(run, run_corpus, folder / precision / "words.onnx", say=lambda line: None, **options)

    return {"fp32": make("fp32", quantize=False), "int8": make("int8")}
