"""Corpora by name, for `confit-edge data fetch`.

None of the corpora was available when this was written: each reader is tested on a small tree laid out as published.
"""

from confit_edge.data.corpora.base import Fetched, KnownCorpus, fetch
from confit_edge.data.corpora.sounds import ESC50, GTZAN, URBANSOUND8K
from confit_edge.data.corpora.speech import EMODB, RAVDESS, TIMIT, VOXCELEB1
from confit_edge.data.corpora.words import MSWC, SPEECH_COMMANDS_12, SPEECH_COMMANDS_35

CORPORA = {
    corpus.name: corpus
    for corpus in (
        TIMIT,
        GTZAN,
        ESC50,
        MSWC,
        EMODB,
        SPEECH_COMMANDS_12,
        SPEECH_COMMANDS_35,
        VOXCELEB1,
        RAVDESS,
        URBANSOUND8K,
    )
}

__all__ = ["CORPORA", "Fetched", "KnownCorpus", "fetch"]
