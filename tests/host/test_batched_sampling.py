"""Prompts in batches: what does not fit into memory at once is run in smaller batches."""

import pytest
import torch

from testbed import pack

sampling = pack.module("unlearn.host.batched_sampling")
UnlearnError = pack.module("unlearn.errors").UnlearnError
TEXTS = ["a photo of a cat", "a photo of a house", "a photo of a fox"]
HOW = {"level": 0.1, "size": 64}


def limited(monkeypatch, most):
    """Memory for `most` rows in one call; the sizes of the batches that were run, in a list."""
    real, sizes = sampling.comfy.samplers.calc_cond_batch, []

    def call(model, conds, x, *rest):
        if len(x) > most:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(x))
        return real(model, conds, x, *rest)

    monkeypatch.setattr(sampling.comfy.samplers, "calc_cond_batch", call)
    return sizes


def test_predictions_go_on_in_smaller_batches_when_memory_runs_out(loaded, monkeypatch):
    model, clip, _ = loaded
    whole = sampling.predict_from_noise(model, clip, TEXTS, (1, 2), **HOW)
    sizes, steps = limited(monkeypatch, 3), []
    small = sampling.predict_from_noise(
        model, clip, TEXTS, (1, 2), step=lambda: steps.append(1), **HOW
    )
    assert whole.shape == (3, 2, 4 * 8 * 8) and sizes == [3, 3] and len(steps) == 2
    torch.testing.assert_close(small, whole, rtol=1e-3, atol=1e-3)


def test_small_pictures_are_predicted_in_larger_batches(loaded, monkeypatch):
    model, clip, _ = loaded
    seeds = tuple(range(10))
    sizes = limited(monkeypatch, 1000)
    whole = sampling.predict_from_noise(model, clip, TEXTS, seeds, **HOW)
    monkeypatch.setattr(sampling, "PREDICTED_PLACES", 20 * 8 * 8)
    by_places = sampling.predict_from_noise(model, clip, TEXTS, seeds, **HOW)
    monkeypatch.setattr(sampling, "PREDICTED_PLACES", 1)
    least = sampling.predict_from_noise(model, clip, TEXTS, seeds, **HOW)
    assert sizes == [30, 20, 10, 8, 8, 8, 6]
    for found in (by_places, least):
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)


def test_when_not_even_one_fits_the_error_says_what_to_change(loaded, monkeypatch):
    limited(monkeypatch, 0)
    with pytest.raises(UnlearnError, match=r"ran out on a single picture; lower 'size' .*--novram"):
        sampling.predict_from_noise(loaded[0], loaded[1], TEXTS, (1,), **HOW)


class Nobody:
    """Watches a run and notes what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, guider):
        self.told.append("begin")

    def end(self):
        self.told.append("end")

    def batch(self, chosen, b):
        assert len(chosen) == b
        self.told.append(tuple(chosen))

    def group(self, step, g):
        self.told.append(f"group {g} of step {step}")


def test_sampling_goes_on_in_smaller_batches_and_tells_each(loaded, monkeypatch):
    plan = sampling.SamplingPlan(
        TEXTS, (1, 2, 3), [[0, 2], [1]], steps=4, window=2, cfg=3.0, size=64
    )
    sizes, watch = limited(monkeypatch, 2), Nobody()  # both halves of guidance for one prompt
    assert sampling.sample(loaded[0], loaded[1], plan, watch) == 6 and sizes == [2] * 6

    def step(n):
        return [(0,), (2,), f"group 0 of step {n}", (1,), f"group 1 of step {n}"]

    assert watch.told == ["begin", (0, 2), *step(0), *step(1), "end"]  # the first did not fit
