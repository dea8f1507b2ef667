"""Makes ge2e_reference.npz: what Resemblyzer 0.1.4 itself answers to 1.6 s of speech, as loud as it is and softer.

pip install --no-deps Resemblyzer==0.1.4 && pip install librosa webrtcvad-wheels torch soundfile
python tests/data/make_ge2e_reference.py

`pcm` int16 [clips, 25600] at 16 kHz; `mel` [clips, 160, 40] and `embeddings` [clips, 256], of length 1, as Resemblyzer
computes them after it has made soft clips louder. Its cutting of silence is left out: it happens before a window is.
Licence: confit_edge/demo/data/background/README.md.
"""

from pathlib import Path

import numpy as np
import soundfile
from resemblyzer import VoiceEncoder
from resemblyzer.audio import normalize_volume, wav_to_mel_spectrogram

HERE = Path(__file__).parent
SPEECH = HERE.parents[1] / "confit_edge" / "demo" / "data" / "background" / "test" / "speech-it-2.ogg"
SAMPLES = 25_600


def main() -> None:
    speech, rate = soundfile.read(SPEECH, start=16_000, frames=3 * SAMPLES, dtype="float32")
    assert rate == 16_000
    clips = speech.reshape(3, SAMPLES) * np.array([[1.0], [0.3], [0.02]])
    pcm = np.round(clips * 32767).astype(np.int16)
    voice = VoiceEncoder("cpu", verbose=False)
    louder = [normalize_volume(clip.astype(np.float32) / 32768, -30, increase_only=True) for clip in pcm]
    mel = np.stack([wav_to_mel_spectrogram(clip)[:160] for clip in louder])
    embeddings = np.stack([voice.embed_utterance(clip) for clip in louder])
    np.savez_compressed(HERE / "ge2e_reference.npz", pcm=pcm, mel=mel, embeddings=embeddings)


if __name__ == "__main__":
    main()
