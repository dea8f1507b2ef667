"""`confit-edge demo`: the whole mission on the sound that ships with confit-edge."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
