"""What a solve says of its result: concepts that are not gone, kept words, words without meaning.

The sprite world draws, and its judge looks.
"""

import copy
import gc
import re

import pytest

from testbed import pack, trial

aftermath = pack.module("unlearn.closed_form.aftermath")
solving = pack.module("unlearn.closed_form.solve")
text = pack.module("unlearn.concepts.notation")
wording = pack.module("unlearn.wording")
FORGOTTEN = ("fox", "house", "key")


def warned(report):
    """Warnings in front that a concept may show, which the verdict must not contradict."""
    lines = wording.front(report).splitlines()
    found = [x for x in lines if x.startswith("WARNING") and re.search("may show|still there", x)]
    assert bool(found) == ("may come back" in lines[0]) != ("gone" in lines[0]), report
    return found


@pytest.mark.parametrize("clones", [1, 2])
def test_comfyui_finds_no_leaked_network_after_an_edited_model_is_gone(loaded, clones):
    """Where it finds one, it collects all garbage before everything that it loads."""
    from comfy.model_management import current_loaded_models

    gc.collect()  # what earlier tests left in reference cycles goes now, not below
    dead = {id(entry) for entry in current_loaded_models if entry.is_dead()}
    edited = loaded[0]
    for _ in range(clones):
        edited = edited.clone()
        edited.patches = copy.copy(edited.patches) | {"diffusion_model.out.2.bias": []}
    aftermath.weights.restore(edited)
    del edited
    gc.collect()
    assert current_loaded_models
    assert not [e for e in current_loaded_models if e.is_dead() and id(e) not in dead]


def test_a_pasted_list_is_forgotten_as_it_is_meant():
    patch, report = trial.solve(
        '1. fox -> animal, house => building\n- "key"', trial.everything_but(*FORGOTTEN)
    )
    model = trial.apply(patch)[0]
    assert "Understood as: fox -> animal; house -> building; key." in report
    assert "was read as 'fox -> animal', 'house -> building'" in report
    for name in FORGOTTEN:
        assert trial.rate(name, model, n=4) <= 0.25, report


def test_silence_means_gone_and_a_warning_names_one_input():
    """The first is the default; of the others each leaves foxes in pictures. Case 14."""
    for forget in ("fox", "house -> building"):
        name = forget.split(" -> ")[0]
        patch, report = trial.solve(forget, trial.everything_but(name))
        assert not warned(report) and report.startswith(f"{name.capitalize()} gone."), report
        assert trial.rate(name, trial.apply(patch)[0], n=24) <= 0.1
    for settings, says in (
        ({"prior": False}, "turn on 'prior'"),
        ({"overshoot": 0.0}, "raise 'overshoot' of ScaPre Solve to 1"),
        ({"erase": 0.01}, "raise 'erase' of ScaPre Solve to 100"),
        ({"variant": "uce"}, "set 'variant' of ScaPre Solve to 'anchored'"),
    ):
        patch, report = trial.solve("fox", trial.everything_but("fox"), **settings)
        (line,) = warned(report)
        assert "'fox'" in line and "not studied" in report, report
        (advice,) = [x for x in wording.front(report).splitlines() if x.startswith("Try: ")]
        assert says in advice and "of ScaPre Solve" in advice, report


def test_a_neutral_sentence_that_concepts_share_is_predicted_once(monkeypatch):
    studio = trial.studio()
    edited = trial.apply(trial.solve("fox", "house", prior=False, overshoot=0.3)[0])[0]
    concepts = text.parse("fox -> thing\nhouse -> thing").concepts
    real, asked = aftermath.predictions.from_noise, []

    def from_noise(model, clip, texts, *args, **more):
        asked.append(len(texts))
        return real(model, clip, texts, *args, **more)

    monkeypatch.setattr(aftermath.predictions, "from_noise", from_noise)
    pair = studio.model, edited, studio.clip
    together = aftermath.remaining(*pair, concepts)
    alone = [aftermath.remaining(*pair, [concept])[0] for concept in concepts]
    assert asked == [6, 6, 4, 4, 4, 4]  # two sentences, with each concept and with the one word
    for one, other in zip(together, sorted(alone, key=lambda x: -x.left), strict=True):
        assert one.name == other.name and one.left == pytest.approx(other.left, abs=1e-3)
    assert abs(together[0].left - together[1].left) > 0.1  # the fox is half gone, the house is not


def test_a_kept_word_of_a_forgotten_phrase_is_held():
    patch, report = trial.solve("fox house -> house", "fox\nhouse")
    model = trial.apply(patch)[0]
    assert "Solved once more to hold" in report and "'fox'" in report, report
    assert trial.rate("fox", model) >= 0.75 and trial.rate("house", model) >= 0.75
    assert "'fox house' shares words with the keep list" in report and "'hard_keep' to" in report
    assert trial.seen("an image of a fox house", model).get("fox", 0) == 0


def test_what_a_report_proposes_first():
    def proposed(forget="fox -> animal", **settings):
        return aftermath.remedy(solving.SolveSettings.of(**settings), text.parse(forget))

    assert "'anchored'" in proposed(variant="paper", prior=False)
    assert "'prior'" in proposed(prior=False, tokens="last")
    assert "'tokens' of ScaPre Solve to 'all'" in proposed(tokens="last")
    assert "'overshoot' of ScaPre Solve to 1" in proposed(overshoot=0.5)
    assert "lower 'preserve' of ScaPre Solve to 1" in proposed(preserve=9.0)
    assert "'hard_keep'" in proposed(hard_keep=1.0)
    assert "'fox -> thing'" in proposed("fox")
    assert "'strength' of ScaPre Solve to 'strong'" in proposed()
    assert "'strength' of ScaPre Solve to 'normal'" in proposed(strength="gentle", prior=False)
    assert "'drift'" in proposed(strength="strong")


def test_words_that_mean_nothing_to_the_text_encoder_are_named():
    clip = trial.studio("sprites").clip
    known = text.parse("fox\nice cream\nmiku (vocaloid)\nR2-D2\nvan gogh\nx-ray\ncaf\u00e9")
    assert aftermath.unknown_words(clip, known).warnings == []
    (warning,) = aftermath.unknown_words(
        clip, text.parse("fox\n\u72d0\u72f8\nqxzvkj\n\u043b\u0438\u0441\u0430")
    ).warnings
    assert "'\u72d0\u72f8', 'qxzvkj'" in warning.more and "fox" not in "".join(warning)


def test_names_that_the_text_encoder_reads_alike_are_all_named():
    same_names = pack.module("unlearn.closed_form.same_names")
    clip = trial.studio("sprites").clip
    with pytest.raises(pack.module("unlearn.errors").UnlearnError) as error:
        same_names.by_tokens(clip, text.parse("caf\u00e9\ncafe\u0301\nfianc\u00e9\nfiance\u0301"))
    assert "; " in str(error.value) and str(error.value).count(" and ") >= 2


def test_a_model_that_cannot_be_asked_is_no_error(monkeypatch):
    def fails(*args, **more):
        raise KeyError("mask")

    monkeypatch.setattr(aftermath, "remaining", fails)
    restored = []
    monkeypatch.setattr(aftermath.weights, "restore", restored.append)
    settings = solving.SolveSettings()
    asked, told = aftermath.ask(("before", None), None, text.parse("fox"), settings)
    (line,) = told.details
    assert restored == ["before"] and not asked.found and not told.warnings
    assert "could not be found out" in line and "compare pictures" in line
    asked, told = aftermath.ask(("before", None), None, text.parse("fox"), settings, ("fox",))
    assert asked.doubtful == ("fox",) and "'fox' may show" in told.warnings[0].text
