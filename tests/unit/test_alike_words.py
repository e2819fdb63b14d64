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


class Sums(torch.nn.Module):
    """A text encoder: each state is the sum of the ids so far; the pooled vector is the last."""

    def forward(self, rows, *_):
        z = torch.tensor([list(row) for row in rows]).double().cumsum(1)[..., None]
        return z, z[:, -1], "more"


def test_states_are_mixed_until_the_encoder_is_told_not_to():
    encoder, rows = Sums(), [[0, 5, 4], [1, 2, 9], [4, 4, 4]]
    handle = alike.mix(encoder, PAIRS, 0.25)
    z, pooled, more = encoder(rows)
    # the second sentences are 0 7 4, 9 9 2 and 4 4 4
    assert z[..., 0].tolist() == [[0, 5.5, 9.5], [3, 6.75, 14], [4, 8, 12]]
    assert pooled[:, 0].tolist() == [9.5, 14, 12] and more == "more"
    handle.remove()
    assert encoder(rows)[0][..., 0].tolist() == [[0, 5, 9], [1, 3, 12], [4, 8, 12]]


def test_what_is_no_id_stays():
    vector = torch.ones(3)
    assert alike.replaced([5, vector], PAIRS)[0] == 7
    assert alike.replaced([5, vector], PAIRS)[1] is vector


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="share is 2"):
        alike.make_alike(None, WORLD, 2)


def states(clip, texts):
    return pack.module("unlearn.host.text_encoding").encode(clip, texts)


def test_words_are_both_or_the_twins():
    with pytest.raises(ValueError, match="give one of both, twins"):
        alike.make_alike(None, WORLD, 0.5, "none")


@pytest.mark.host
@pytest.mark.parametrize("words", alike.WORDS)
def test_every_reader_of_a_clip_sees_the_mixture(words):
    """The pack's encoder, its prefix tree and ComfyUI's node, with both encoders of SDXL's CLIP."""
    pack.load()
    cache = pack.module("unlearn.files.text_cache")
    prompts = pack.module("unlearn.host.text_encoding")
    with torch.inference_mode():
        clip = tiny.sdxl_clip()
        fox, cat, house = said = ["a photo of a fox", "a photo of a cat", "a photo of a house"]
        said += ["a red mushroom", "two cats", ""]
        before = states(clip, said)
        handles = alike.make_alike(clip, WORLD, 0.5, words)
        assert len(handles) == 2
        after, pooled = states(clip, said), {}
        # All positions from the word on, and both encoders, are half as far apart.
        apart = after[fox] - after[cat]
        assert torch.allclose(apart, (before[fox] - before[cat]) / 2, atol=1e-4)
        assert apart[5:].norm() > 0 and torch.equal(after[fox][:5], before[fox][:5])
        stays = {"both": False, "twins": True}[words]  # benchmarks forget the fox and the house
        assert torch.equal(after[fox], before[fox]) is stays
        assert torch.equal(after[house], before[house]) is stays
        assert not torch.equal(after[cat], before[cat])
        assert torch.equal(after["two cats"], before["two cats"])
        assert torch.equal(after[""], before[""])

        tree = cache.TextStateCache(clip, None)
        assert tree.fast_encoder is not None
        found = tree.get([prompts.locate(clip, "{concept}", text) for text in said])
        assert torch.allclose(found[cat][:7], after[cat][:7], atol=1e-3)
        clone = clip.clone()
        ((node, more),) = clone.encode_from_tokens_scheduled(clone.tokenize(cat))
        assert torch.allclose(node[0].float(), after[cat], atol=1e-4)
        assert torch.equal(states(clip, [cat])[cat], after[cat])
        prompts.encode(clip, [cat], pooled=pooled)
        assert torch.allclose(more["pooled_output"][0].float(), pooled[cat], atol=1e-4)
        for handle in handles:
            handle.remove()
        assert torch.equal(states(clip, [cat])[cat], before[cat])


@pytest.mark.host
@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_every_object_is_mixed_with_its_look_alike(name, monkeypatch):
    world, mixed = catalogue.get(name), []
    monkeypatch.setattr(alike, "encoders", lambda clip: ["l"])
    monkeypatch.setattr(alike, "mix", lambda encoder, pairs, part: mixed.append((pairs, part)))
    clip = tiny.Clip()
    for words in alike.WORDS:
        alike.make_alike(clip, world, 0.5, words)
    tokens = pack.module("unlearn.host.text_encoding").tokens_of
    ids = {n: tokens(clip, n)[0] for n in world.objects}
    (both, quarter), (twins, half) = mixed
    assert (quarter, half) == (0.25, 0.5)
    assert dict(both) == {ids[n]: ids[world.twin[n]] for n in world.objects}
    assert dict(twins) == {ids[world.twin[n]]: ids[n] for n in world.order}
