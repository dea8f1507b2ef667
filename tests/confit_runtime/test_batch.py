"""Many streams in one call: each must be what it is alone, on the model that ships, and begin anew when told to."""

from __future__ import annotations

import numpy as np
import pytest

from confit_runtime import Model
from confit_runtime.errors import AudioError, UsageError

STREAMS, HOPS = 24, 22


def noise(model: Model) -> np.ndarray:
    loud = np.logspace(-4, -0.5, STREAMS, dtype=np.float32)[:, None]
    return loud * np.random.default_rng(0).standard_normal((HOPS, STREAMS, model.contract.hop), dtype=np.float32)


def test_many_streams_are_each_as_alone(digits: Model) -> None:
    pcm, together = noise(digits), digits.batch(STREAMS)
    rows = [together.push(chunk) for chunk in pcm]
    alone = digits.batch(1)
    for stream in range(STREAMS):
        alone.reset()
        for chunk, (scores, embedding) in zip(pcm, rows, strict=True):
            own_scores, own_embedding = alone.push(chunk[stream : stream + 1])
            np.testing.assert_allclose(scores[stream], own_scores[0], atol=1e-5)
            np.testing.assert_allclose(embedding[stream], own_embedding[0], atol=1e-5)


def test_hop_by_hop_is_the_whole_clip_in_one_call(digits: Model) -> None:
    """To a few steps of int8: its fp32 layers round otherwise in calls of another shape, which a step may tip over."""
    pcm, batch = noise(digits)[:, -1:], digits.batch(1)
    rows = [batch.push(chunk)[1][0] for chunk in pcm]
    _, whole = digits.rows(pcm.reshape(-1), digits.contract.sample_rate)
    np.testing.assert_allclose(np.concatenate(rows), whole, atol=0.02)


@pytest.mark.parametrize("kind", ["model", "windowed", "recurrent"])
def test_inputs_are_unchanged_and_reset_clears_state(kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    batch, pcm = model.batch(STREAMS), noise(model)
    first = [batch.push(chunk) for chunk in pcm]
    kept = [scores.copy() for scores, _ in first]
    for _ in range(2):
        batch.push(np.zeros_like(pcm[0]))  # the calls are odd, then even: the states lie the other way round
        batch.reset()
        again = [batch.push(chunk) for chunk in pcm]
        for (scores, embedding), before, (scores_again, embedding_again) in zip(first, kept, again, strict=True):
            np.testing.assert_array_equal(scores, before)
            np.testing.assert_array_equal(scores, scores_again)
            np.testing.assert_array_equal(embedding, embedding_again)


@pytest.mark.parametrize("kind", ["model", "windowed", "recurrent"])
def test_resetting_one_stream_leaves_the_others_running(kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    pcm, batch, undisturbed, anew = noise(model), model.batch(STREAMS), model.batch(STREAMS), model.batch(STREAMS)
    at, before = 5, 19
    others = np.arange(STREAMS) != at
    for chunk in pcm[:before]:
        batch.push(chunk), undisturbed.push(chunk)
    batch.reset(at)
    scored = 0
    for chunk in np.concatenate([pcm, pcm[:1]]):
        (scores, embedding), lone = batch.push(chunk), anew.push(chunk)
        for found, there, alone in zip((scores, embedding), undisturbed.push(chunk), lone, strict=True):
            np.testing.assert_array_equal(found[others], there[others])
            if alone.shape[1]:
                np.testing.assert_array_equal(found[at], alone[at])
            else:
                assert np.isnan(found[at]).all()
        scored += lone[0].shape[1]
    assert scored > 1
    for wrong in (STREAMS, -1):
        with pytest.raises(UsageError, match="stream"):
            batch.reset(wrong)


def test_nothing_is_scored_before_the_window_is_full(digits: Model) -> None:
    batch, contract = digits.batch(2), digits.contract
    shapes = [batch.push(np.zeros((2, contract.hop), np.float32))[0].shape[1] for _ in range(18)]
    hops = contract.window // contract.hop
    assert shapes == [0] * (hops - 1) + [1] * (18 - hops + 1)


def test_a_wrong_shape_is_rejected_without_side_effects(digits: Model) -> None:
    pcm, batch, other = noise(digits), digits.batch(STREAMS), digits.batch(STREAMS)
    with pytest.raises(UsageError, match=f"batch of {STREAMS}"):
        batch.push(pcm[0, :, 1:])
    with pytest.raises(UsageError, match=f"batch of {STREAMS}"):
        batch.push("sound")
    for bad, said in (
        (np.nan, "stream 3 of the batch: holds NaN"),
        (3e38, "stream 3 of the batch: holds samples up to 3e"),
    ):
        faulty = pcm[0].copy()
        faulty[3, 5] = bad
        with pytest.raises(AudioError, match=said):
            batch.push(faulty)
    with pytest.raises(AudioError, match="got int64"):
        batch.push(np.zeros(pcm[0].shape, np.int64).tolist())
    for chunk in pcm:
        np.testing.assert_array_equal(batch.push(chunk.tolist())[1], other.push(chunk)[1])


@pytest.mark.parametrize(("kind", "scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_integers_have_the_full_scale_of_their_type(digits: Model, kind: type, scale: int) -> None:
    whole, divided = digits.batch(STREAMS), digits.batch(STREAMS)
    for chunk in noise(digits):
        integers = np.clip(np.round(chunk.astype(np.float64) * scale), -scale, scale - 1).astype(kind)
        _, embedding = whole.push(integers)
        np.testing.assert_array_equal(embedding, divided.push(integers / scale)[1])
    assert embedding.any()
