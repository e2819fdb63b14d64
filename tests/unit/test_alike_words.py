"""Look-alikes whose words are alike: what is mixed, and that all readers see it."""

import pytest
import torch

from testbed import pack, tiny
from testbed.worlds import alike, catalogue

WORLD = catalogue.SPRITES
PAIRS = [((5,), (7,)), ((7,), (5,)), ((1, 2), (9,)), ((9,), (1, 2)), ((5, 6), (8, 3))]


def test_tokens_are_aligned_from_the_end():
    assert alike.aligned((1, 2), (3, 4)) == [3, 4]
    assert alike.aligned((1, 2), (9,)) == [9, 9]
    assert alike.aligned((9,), (1, 2)) == [2]


def test_names_are_replaced_where_they_stand_whole():
    assert alike.replaced([0, 5, 4, 7], PAIRS) == [0, 7, 4, 5]
    assert alike.replaced([1, 2, 9, 0], PAIRS) == [9, 9, 2, 0]
    assert alike.replaced([1, 4, 2], PAIRS) == [1, 4, 2]  # not beside each other
    assert alike.replaced([5, 6], PAIRS) == [8, 3]  # the longest name counts
    assert alike.replaced([], PAIRS) == []


def test_an_embedding_reads_mixtures_until_it_is_told_not_to():
    table = torch.nn.Embedding(10, 4)
    w, ids = table.weight.detach(), torch.tensor([[0, 5, 4], [1, 2, 9]])
    handle = alike.mix(table, PAIRS, 0.5)
    found = table(ids).detach()
    want = torch.stack(
        [
            torch.stack([w[0], 0.75 * w[5] + 0.25 * w[7], w[4]]),
            torch.stack(
                [0.75 * w[1] + 0.25 * w[9], 0.75 * w[2] + 0.25 * w[9], 0.75 * w[9] + 0.25 * w[2]]
            ),
        ]
    )
    assert torch.allclose(found, want)
    handle.remove()
    assert torch.equal(table(ids), w[ids])


def test_a_share_takes_away_that_much_of_the_distance():
    for share in (0.0, 0.5, 1.0):
        table = torch.nn.Embedding(10, 4)
        before = table.weight[5] - table.weight[7]
        alike.mix(table, PAIRS, share)
        after = table(torch.tensor([5])) - table(torch.tensor([7]))
        assert torch.allclose(after[0], (1 - share) * before, atol=1e-6)


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="share is 2"):
        alike.make_alike(None, WORLD, 2)


def states(clip, texts):
    return pack.module("unlearn.host.text_encoding").encode(clip, texts)


@pytest.mark.host
def test_every_reader_of_a_clip_sees_the_mixture():
    """The pack's encoder, its prefix tree and ComfyUI's node, with both encoders of SDXL's CLIP."""
    pack.load()
    cache = pack.module("unlearn.files.text_cache")
    prompts = pack.module("unlearn.host.text_encoding")
    with torch.inference_mode():
        clip = tiny.sdxl_clip()
        said = ["a photo of a fox", "a photo of a cat", "a photo of a house", "a red mushroom", ""]
        before = states(clip, said)
        handles = alike.make_alike(clip, WORLD, 0.5)
        assert len(handles) == 2
        after = states(clip, said)
        fox, cat = said[:2]

        def distance(found, width=slice(None)):
            return (found[fox][5] - found[cat][5])[width].norm()

        for width in (slice(0, tiny.SDXL_WIDTHS[0]), slice(tiny.SDXL_WIDTHS[0], None)):
            assert distance(after, width) < 0.85 * distance(before, width)
        assert torch.equal(after[""], before[""])
        assert torch.equal(after[fox][:5], before[fox][:5])  # a causal encoder
        assert not torch.equal(after[said[2]][5], before[said[2]][5])
        assert not torch.equal(after["a red mushroom"][3], before["a red mushroom"][3])

        tree = cache.TextStateCache(clip, None)
        assert tree.fast_encoder is not None
        found = tree.get([prompts.locate(clip, "{concept}", text) for text in said])
        assert torch.allclose(found[fox][:7], after[fox][:7], atol=1e-4)
        clone = clip.clone()
        node = clone.encode_from_tokens(clone.tokenize(fox))
        assert torch.allclose(node[0][:7].float(), after[fox][:7], atol=1e-4)
        for handle in handles:
            handle.remove()
        assert torch.equal(states(clip, [fox])[fox], before[fox])


@pytest.mark.host
@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_every_object_is_mixed_with_its_look_alike(name, monkeypatch):
    world, mixed = catalogue.get(name), {}
    monkeypatch.setattr(alike, "encoders", lambda clip: [("l", Encoder)])
    monkeypatch.setattr(alike, "mix", lambda embedding, pairs, share: mixed.update(pairs))
    clip = tiny.Clip()
    alike.make_alike(clip, world, 0.5)
    tokens = pack.module("unlearn.host.text_encoding").tokens_of
    ids = {n: tokens(clip, n)[0] for n in world.objects}
    assert mixed == {ids[n]: ids[world.twin[n]] for n in world.objects}
    assert len(mixed) == len(world.objects)


class Encoder:
    """A text encoder with nothing but the way to its embedding."""

    class transformer:
        @staticmethod
        def get_input_embeddings():
            return None
