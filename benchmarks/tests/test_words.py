"""`dev.py bench world --text`: its figures on small numbers, and on the shipped text encoder."""

import pytest
import torch

from benchmarks.world import words
from testbed.worlds import captions, catalogue, meaning
from testbed.worlds.meaning import clip_tokenizer


def test_figures_of_two_groups():
    # Two words along x, two along y; all share a large z.
    rows = torch.tensor([[1.0, 0, 3], [1, 0, 3], [0, 1, 3], [0, 1, 3]])
    found = words.figures(rows, ["a", "a", "b", "b"])
    assert found["neighbour"] == pytest.approx(1)
    assert found["mean"] == pytest.approx((1 + 2 * 0.9) / 3)
    assert found["same"] == pytest.approx(1) and found["other"] == pytest.approx(-1)


def test_neighbours_are_the_nearest_first():
    rows = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.5, 0.5], [0.1, 0.9]])
    found = words.neighbours(rows, list("abcde"))
    assert [word for word, _ in found["a"]] == ["b", "d", "e", "c"]
    assert found["a"][-1][1] == pytest.approx(0)


@pytest.mark.host
@pytest.mark.parametrize("part", meaning.KINDS)
def test_words_are_as_crowded_as_a_trained_clips(part):
    """Of the shipped encoder, in its own coordinates: a wide state has the same cosines."""
    if not meaning.file_of(part).exists():
        pytest.skip(f"{meaning.file_of(part).name} is not there: it is not trained yet")
    world, tokenizer = catalogue.get("emoji"), clip_tokenizer()
    texts = [words.SENTENCE.format(a=captions.a(name)) for name in world.objects]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    ends = meaning.NarrowEncoder(part).read(ids)[1]
    found = words.figures(ends, [world.superclass[name] for name in world.objects])
    assert 0.6 <= found["mean"] <= 0.9
    assert found["neighbour"] >= 0.9
    assert found["same"] > found["other"] + 0.1
