"""Prompt encoding: where the concept stands, and that batching changes nothing."""

import pack
import pytest
import torch

prompts = pack.module("nodes.host.prompts")
statistics = pack.module("nodes.host.statistics")
text = pack.module("nodes.concept_text")
UnlearnError = pack.module("nodes.errors").UnlearnError


def test_spans_stand_where_the_concept_does(loaded):
    clip = loaded[1]
    found = prompts.locate(clip, "a photo of a {concept}, detailed", "van gogh")
    assert found.text == "a photo of a van gogh, detailed"
    assert (found.first, found.last, found.end) == (5, 6, 9)  # 0 is the start token; the comma is a token
    ids = clip.tokenize("van gogh")["l"][0]
    assert [e[0] for e in clip.tokenize(found.text)["l"][0][5:7]] == [e[0] for e in ids[1:3]]


def test_parentheses_belong_to_the_name(loaded):
    found = prompts.locate(loaded[1], "a {concept}", "cat (animal)")
    assert found.end == found.last + 1 == 6
    state = prompts.encode(loaded[1], ["cat (animal)"])["cat (animal)"]
    stock = loaded[1].encode_from_tokens(loaded[1].tokenize(r"cat \(animal\)"))[0]
    assert torch.allclose(state, stock, atol=1e-5)


def test_batched_states_equal_the_stock_encoder(loaded):
    texts = ["a cat", "", "an oil painting of two houses by the sea, klimt"]
    states = prompts.encode(loaded[1], texts)
    for t in texts:
        stock = loaded[1].encode_from_tokens(loaded[1].tokenize(t))[0]
        assert torch.allclose(states[t], stock, atol=1e-4), t


def test_a_concept_without_letters_is_refused(loaded):
    for nothing in ("\u200b", "\u0007"):
        with pytest.raises(UnlearnError, match="has no letters") as error:
            prompts.locate(loaded[1], "a {concept}", nothing)
        assert "\n" not in str(error.value)


def test_too_long_a_concept_is_refused(loaded):
    with pytest.raises(UnlearnError, match="reads 75"):
        prompts.locate(loaded[1], "a {concept}", "very " * 80 + "long")
    with pytest.raises(UnlearnError, match="shorten"):
        prompts.encode(loaded[1], ["very " * 80])


def test_a_template_needs_its_place_holder(loaded):
    with pytest.raises(UnlearnError, match="{concept}"):
        prompts.locate(loaded[1], "a photo", "cat")


def test_the_plan_never_keeps_what_it_forgets(loaded):
    plan = statistics.plan(loaded[1], text.parse("cat -> animal\nhouse -> building", "dog"))
    kept = {p.text for p in plan.kept}
    assert "cat" not in kept and not any("house" in t.split() for t in kept)
    assert "a photo of a dog" in kept and "a photo of an animal" not in kept and "a photo of a animal" in kept


def test_statistics_by_hand(loaded):
    """Weights sum to each concept's own; a prompt's difference to itself is nothing."""
    clip = loaded[1]
    plan = statistics.plan(clip, text.parse("cat -> cat2 * 3\nfox -> animal"), templates=("a {concept}",), prior=False)
    states = prompts.encode(clip, plan.texts)
    same = {t: states[t.replace("cat2", "cat")] if t.replace("cat2", "cat") in states else states[t] for t in plan.texts}
    stats = statistics.measure(plan, same)
    assert stats.concepts[:, 0].norm() < stats.concepts[:, 1].norm() * 0.6
    full = statistics.measure(plan, states, target="state")
    assert torch.allclose(full.erase, full.erase.T) and full.positive.shape == full.negative.shape
    assert abs(float(torch.trace(full.erase)) - 4) < 1  # unit-norm states, weights 3 + 1


def test_own_vowels_get_their_article():
    assert statistics._grammar("a photo of a {concept}", "apple") == "a photo of an {concept}"
    assert statistics._grammar("a photo of a {concept}", "pear") == "a photo of a {concept}"
