"""Prompt encoding: where the concept stands, and that batching changes nothing."""

from types import SimpleNamespace

import pytest
import torch

from testbed import judged, pack

prompts = pack.module("unlearn.host.text_encoding")
statistics = pack.module("unlearn.closed_form.token_statistics")
tuning = pack.module("unlearn.closed_form.tuning")
plans = pack.module("unlearn.closed_form.sentence_plan")
sentences = pack.module("unlearn.concepts.sentences")
prior_words = pack.module("unlearn.analysis.prior_words")
text = pack.module("unlearn.concepts.notation")
text_cache = pack.module("unlearn.files.text_cache")
UnlearnError = pack.module("unlearn.errors").UnlearnError


def reader(states):
    """The function that a solve reads token states with, from a dict of all of them."""
    return lambda wanted, progress=None: {p.text: states[p.text] for p in wanted}


def test_spans_stand_where_the_concept_does(loaded):
    clip = loaded[1]
    found = prompts.locate(clip, "a photo of a {concept}, detailed", "van gogh")
    assert found.text == "a photo of a van gogh, detailed"
    assert (found.first, found.last, found.end) == (
        5,
        6,
        9,
    )  # 0 is the start token; the comma is a token
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
    plan = plans.plan(loaded[1], text.parse("cat -> animal\nhouse -> building", "dog"))
    kept = {p.text for p in plan.kept}
    assert "cat" not in kept and not any("house" in t.split() for t in kept)
    assert (
        "a photo of a dog" in kept
        and "a photo of an animal" not in kept
        and "a photo of a animal" in kept
    )


def test_statistics_from_their_definition(loaded):
    """Two sentences: erased rows are mean differences, with weights that sum to the concept's."""
    clip = loaded[1]
    plan = plans.plan(
        clip, text.parse("fox -> wolf * 3"), templates=("{concept}", "a {concept}"), prior=False
    )
    states = prompts.encode(clip, plan.texts)
    stats = statistics.measure(plan, reader(states))
    scale = (
        torch.cat([statistics.kept_states(p, states[p.text]) for p in plan.kept])
        .double()
        .square()
        .mean()
        .sqrt()
    )

    def difference(t, p):
        return (states[t.format("fox")] - states[t.format("wolf")])[p].double() / scale

    own = (difference("{}", 1) + difference("a {}", 2)) / 2
    end = (difference("{}", 2) + difference("a {}", 3)) / 2
    rest = (
        stats.concept_gram - torch.outer(own, own) - torch.outer(end, end)
    )  # of weight 3 a third each: own, end, padding
    assert torch.allclose(stats.target_shift, -stats.concept_gram)
    values = torch.linalg.eigvalsh(rest)
    assert (
        values[0] > -1e-6 * values[-1] and (values > 1e-6 * values[-1]).sum() == 1
    )  # the padding is one row
    neutral = (
        torch.cat(
            [
                statistics.kept_states(n, states[n.text])
                for n in {n.text: n for *_, n in plan.pairs}.values()
            ]
        ).double()
        / scale
    )
    own = tuning.NEUTRAL_WEIGHT * float(neutral.square().mean())
    assert abs(float(torch.trace(stats.preserve_gram)) / 768 - 1 - own) < 1e-9


KEEPS = ("fox -> animal\nhouse -> building", "cat\nred tram")


def test_kept_words_are_read_beside_the_neutral_words(loaded):
    """Each kept word beside each neutral word."""
    plan = plans.plan(loaded[1], text.parse(*KEEPS), prior=False)
    assert names_beside(plan) == {
        (a, b) for a in ("cat", "red tram") for b in ("animal", "building")
    }
    assert [beside.concepts for beside in plan.beside] == [(0,), (1,)]
    assert all(len(word) == len(sentences.KEPT) for beside in plan.beside for word in beside.kept)
    one = next(pair for pair in plan.beside[0].pairs if pair.prompt.text == "a photo of a cat")
    assert one.neutral.text == "a photo of a animal" and one.weight == 1 / len(sentences.KEPT)
    read = {pair.prompt.text for beside in plan.beside for pair in beside.pairs}
    assert read | {prompt.text for prompt in plan.measured} <= set(plan.texts)
    # a neutral word on the keep list is not told apart from itself
    plan = plans.plan(loaded[1], text.parse("fox -> cat\nstyle: monet", "cat"), prior=False)
    assert names_beside(plan) == {("cat", "")}


def names_beside(plan):
    """(kept word, neutral word) of all that a plan reads beside neutral words."""
    words = [word for beside in plan.beside for word in beside.kept]
    return {(pair.prompt.name, pair.neutral.name) for word in words for pair in word}


def test_neutral_and_measured_words_are_bounded(loaded, monkeypatch):
    monkeypatch.setattr(tuning, "CONTRASTED", 2)
    monkeypatch.setattr(tuning, "MEASURED_WORDS", 3)
    lines = "fox -> pet\ncar -> van\ntree -> bush"
    monkeypatch.setattr(plans, "COMMON", ("river", "stone", "table"))
    wanted = text.parse(lines, "cat\ndog\ncup\nlamp\nrose")
    plan = plans.plan(loaded[1], wanted, prior=False)
    assert {neutral for _, neutral in names_beside(plan)} == {"pet", "bush"}
    assert {prompt.name for prompt in plan.measured} == {"cat", "cup", "rose"}
    assert len(plan.measured) == 3 * len(sentences.MEASURED)


@pytest.mark.parametrize("keep", [[], ["cat", "river"]])
def test_common_nouns_fill_up_what_is_measured(loaded, keep):
    """They stand for all that is to stay."""
    wanted = text.parse("fox -> animal\nhorse -> animal", "\n".join(keep))
    plan = plans.plan(loaded[1], wanted, prior=False)
    nouns = [noun for noun in sentences.COMMON if noun != "horse"]
    measured = [prompt.name for prompt in plan.measured[:: len(sentences.MEASURED)]]
    assert measured == list(dict.fromkeys([*keep, *nouns]))[:12]
    assert bool(plan.beside) == bool(keep)


@pytest.mark.parametrize("held", [2, 1])
def test_what_kept_words_add_from_its_definition(loaded, monkeypatch, held):
    """One sentence: differences at the word, at the end token and of the mean padding."""
    clip, kept = loaded[1], ("cat", "dog")
    monkeypatch.setattr(tuning, "LOOKALIKES", held)
    wanted = text.parse("fox -> animal", "\n".join(kept))
    plan = plans.plan(clip, wanted, ("a {concept}",), prior=False)
    states = prompts.encode(clip, plan.texts)
    stats = statistics.measure(plan, reader(states))

    def added(name):
        a, b = (states[f"a {word}"].double() / stats.scale for word in (name, "animal"))
        pads = list(text_cache.pads(3, 77))
        return torch.stack([a[2] - b[2], a[3] - b[3], (a - b)[pads].mean(0)])

    rows = {name: added(name) for name in (*kept, "fox", *sentences.COMMON)}
    means = {name: of.mean(0) for name, of in rows.items()}
    centre = sum(means[noun] for noun in sentences.COMMON) / len(sentences.COMMON)
    cosine = torch.nn.CosineSimilarity(dim=0)
    near = {
        name: cosine(means[name] - centre, means["fox"] - centre).clamp_min(0) ** 2 for name in kept
    }
    likest = sorted(kept, key=lambda name: -near[name])[:held]
    expected = sum(near[name] * (rows[name].T @ rows[name]) / 3 for name in likest)
    assert float(expected.trace()) > 0
    assert torch.allclose(stats.contrast_gram, expected, atol=1e-6)
    rows = torch.cat([statistics.kept_states(p, states[p.text]) for p in plan.measured]).double()
    assert len(plan.measured) == 12 * len(sentences.MEASURED)
    second = rows.T @ rows / len(rows) / stats.scale**2
    assert torch.allclose(stats.drift_gram, second, atol=1e-6 * float(second.diagonal().max()))


def test_pooled_vectors_are_read_beside_each_neutral_word(loaded):
    """Kinds of concepts have other sentences, and a pooled prompt is all of its text."""
    lines = "fox -> animal\nstyle: monet\nexplicit: nude"
    plan = plans.plan(loaded[1], text.parse(lines, "cat\nwolf"), prior=False).as_pooled()
    assert [beside.concepts for beside in plan.beside] == [(0,), (1, 2)]
    vectors = {
        t: state.mean(0, keepdim=True) for t, state in prompts.encode(loaded[1], plan.texts).items()
    }
    stats = statistics.measure(plan, reader(vectors))
    assert float(stats.contrast_gram.trace()) > 0 and stats.ends is not None


def test_with_nothing_to_measure_on_drift_is_of_what_is_studied(loaded):
    every = text.parse("\n".join(sentences.COMMON))
    plan = plans.plan(loaded[1], every, ("{concept}",), prior=False)
    stats = statistics.measure(plan, reader(prompts.encode(loaded[1], plan.texts)))
    assert stats.drift_gram is stats.preserve_gram and not stats.contrast_gram.any()


def test_own_vowels_get_their_article():
    assert prompts.fix_article("a photo of a {concept}", "apple") == "a photo of an {concept}"
    assert prompts.fix_article("a photo of a {concept}", "pear") == "a photo of a {concept}"


@pytest.mark.parametrize("task", (judged.SPRITES, judged.EMOJI), ids=("sprites", "emoji"))
def test_judged_sentences_are_never_studied(loaded, task):
    """What the demo and the benchmarks judge is no template, kept sentence or caption."""
    studied = set(plans.plan(loaded[1], task.concepts()).texts)
    drawn = {shot.caption.text for shot in (*task.few_shots(), *task.many_shots(3))}
    assert len(drawn) > 60 and not drawn & studied
    bare = {t.replace("{concept}", "{a}") for ts in sentences.TEMPLATES.values() for t in ts}
    templates = (*judged.PLAIN, *judged.STYLED, *judged.PAIR)
    assert not bare & {t.replace("a {a}", "{a}") for t in templates}


def test_statistics_of_many_concepts_are_the_sums_of_those_of_each(loaded):
    """They are summed up block by block, so ten thousand concepts need no more memory than ten."""
    clip = loaded[1]
    things = ("fox", "car", "cup", "boat", "rose", "lamp", "coin")
    names = [f"{a} {b}" for a in ("red", "tall", "big", "cold", "wet") for b in things]
    assert len(names) > tuning.BLOCK

    def planned(chosen):
        wanted = text.parse("\n".join(f"{n} -> thing" for n in chosen), "cat")
        return plans.plan(clip, wanted, ("{concept}", "a {concept}"), prior=False)

    states = prompts.encode(clip, planned(names).texts)
    asked = []

    def fetch(wanted, progress=None):
        asked.append(len(wanted))
        return {p.text: states[p.text] for p in wanted}

    streamed = statistics.measure(planned(names), fetch)
    assert max(asked) <= 2 * 2 * tuning.BLOCK < 2 * 2 * len(names)
    each = [statistics.measure(planned([name]), fetch) for name in names]
    assert torch.allclose(streamed.concept_gram, sum(one.concept_gram for one in each))
    assert torch.allclose(streamed.end_gram, sum(one.end_gram for one in each))
    assert torch.allclose(streamed.concepts, torch.cat([one.concepts for one in each], 1))
    assert torch.allclose(streamed.preserve_gram, each[0].preserve_gram)
    weighted = streamed.rows * streamed.rows_weight[:, None]
    assert torch.allclose(streamed.rows.T @ weighted, streamed.concept_gram)


def test_the_prior_holds_words_but_not_forgotten_ones(loaded):
    plan = plans.plan(
        loaded[1], text.parse("green car -> vehicle\nhouses"), templates=("{concept}",)
    )
    words, states = prior_words.word_states(
        plan.packed,
        plan.forgotten,
        lambda wanted, progress=None: prompts.encode(loaded[1], [p.text for p in wanted]),
    )
    assert len(words) > 2500 and states.shape == (len(words), 768)
    assert "tree" in words and not {"green", "car", "cars", "house", "houses"} & set(words)
    alone = prompts.encode(loaded[1], [plan.packed[0][0].text])[plan.packed[0][0].text]
    first = plan.packed[0][1][0]
    assert first[1] == 1 and torch.equal(states[0].float(), alone[1])


def test_expansion_studies_other_forms_unless_they_are_kept(loaded):
    plan = plans.plan(loaded[1], text.parse("fox\nice cream", "foxes"), prior=False, expand=True)
    studied = {a.name for _, _, a, _ in plan.pairs}
    assert {
        "fox",
        "ice cream",
        "ice creams",
        "ice-cream",
        "icecream",
    } <= studied and "foxes" not in studied
    weights = [sum(share for i, share, *_ in plan.pairs if i == k) for k in (0, 1)]
    assert all(abs(w - 1) < 1e-9 for w in weights)


def test_words_side_by_side_have_their_places(loaded):
    clip = loaded[1]
    assert prompts.word_positions(clip, ["cat", "dog"]) == ((1, 2), 3)
    long = prompts.locate(clip, "{concept}", "zzyzxian")
    assert long.last > 1 and prompts.word_positions(clip, ["cat", "zzyzxian", "dog"]) == (
        (1, 1 + long.last, 2 + long.last),
        3 + long.last,
    )
    assert prompts.word_positions(clip, ["cat"] * 76) == (None, 0)


def test_words_of_many_tokens_are_packed_fewer_to_a_prompt(loaded, monkeypatch):
    listed = ["zzyzxian"] * 80
    monkeypatch.setattr(sentences, "prior_words", lambda: listed)
    packed = prior_words.packed_words(loaded[1])
    assert [word for _, words in packed for word, _ in words] == listed and len(packed) > 1
    assert all(words[-1][1] == prompt.end - 1 <= 75 for prompt, words in packed)


def test_a_damaged_text_encoder_is_named(loaded):
    damaged = SimpleNamespace(
        tokenize=loaded[1].tokenize,
        encode_from_tokens=lambda tokens: torch.full((1, 77, 8), float("nan")),
    )
    with pytest.raises(UnlearnError, match="'clip' gives NaN for 'cat'"):
        prompts.encode(damaged, ["cat"])


def test_last_token_mode_spares_the_first_word(loaded):
    plan = plans.plan(loaded[1], text.parse("ice cream", ""), ("a {concept}",), prior=False)
    states = prompts.encode(loaded[1], plan.texts)
    assert (
        len(statistics.measure(plan, reader(states), "all").rows)
        == len(statistics.measure(plan, reader(states), "last").rows) + 1
    )
