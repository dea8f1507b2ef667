"""What the tests of training share: a corpus that is quick to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from confit_edge.data.corpus import Clips, Corpus


@pytest.fixture(scope="session")
def few(corpus: Corpus) -> Corpus:
    """Four clips of each class to train on, two for validation: real words, quick to train on."""

    def head(clips: Clips, count: int) -> Clips:
        rows = sorted(int(row) for column in clips.targets.T for row in np.flatnonzero(column)[:count])
        pcm, groups, paths = ([part[row] for row in rows] for part in (clips.pcm, clips.groups, clips.paths))
        return Clips(pcm, clips.targets[rows], groups, paths)

    return replace(corpus, train=head(corpus.train, 4), val=head(corpus.val, 2))
