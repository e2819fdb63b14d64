"""The simulated words are as crowded as they are said to be, and figures are of what it says."""

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks.world import crowded as bench
from testbed import crowded, pack
from testbed.worlds import catalogue

encoding = pack.module("unlearn.host.text_encoding")
WORLD = catalogue.SPRITES


@pytest.fixture(scope="module")
def simulated():
    return bench.Bench("crowded")


def cosines(rows):
    """The mean cosine of the pairs of rows (a, b)."""
    a, b = (torch.stack(side) for side in zip(*rows, strict=True))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


def test_words_are_as_alike_as_it_says():
    clip, ends = crowded.Clip(WORLD, 256), {}
    for name in WORLD.objects:
        prompt = encoding.locate(clip, "a photo of a {concept}", name)
        ends[name] = clip.encode_from_tokens(clip.tokenize(prompt.text))[0][prompt.end]
    pairs = [(a, b) for a in WORLD.objects for b in WORLD.objects if a < b]
    apart = [p for p in pairs if WORLD.superclass[p[0]] != WORLD.superclass[p[1]]]
    twins = [(name, WORLD.twin[name]) for name in WORLD.order]
    near = [p for p in pairs if p not in apart and WORLD.twin[p[0]] != p[1]]
    found = [cosines([(ends[a], ends[b]) for a, b in some]) for some in (apart, near, twins)]
    assert found == pytest.approx([0.64, 0.74, 0.92], abs=0.01)


def test_a_state_depends_on_what_stands_before_it_alone():
    clip = crowded.Clip(WORLD, 64)
    a, b, c = (
        clip.encode_from_tokens(clip.tokenize(t))[0] for t in ("a fox", "a fox sits", "the fox")
    )
    assert torch.equal(a[:3], b[:3]) and not torch.allclose(a[3], b[3])
    assert torch.equal(a[0], c[0]) and not torch.allclose(a[2], c[2])
    assert float(a[0].abs().max()) == 33.0


def test_nothing_is_lost_where_nothing_is_changed(simulated):
    """Without an edit every word keeps all that it adds, and nothing moves."""
    layers = simulated.words.layers
    grams = bench.patch_edits.WeightGrams()
    for _, w0 in layers:
        grams.add_edited(w0, torch.zeros_like(w0))
    assert simulated.retention("cat", "animal", grams) == pytest.approx(1.0)
    assert grams.drift(simulated.held_out(("fox",))) == 0.0


def test_look_alikes_keep_what_they_add_because_it_is_held(simulated):
    """Most of what a twin adds is lost without the weight, and nearly all is kept with it."""
    held = simulated.measure(4).row()
    with bench.constants(CONTRAST_WEIGHT=0.0):
        loose = simulated.measure(4).row()
    assert loose["twins"] < 0.6 and held["twins"] > 0.93 and held["least"] > 0.9
    assert held["left"] < 0 and held["wider"] > 0.93


def test_drift_is_what_was_asked_for(simulated):
    """On sentences that no solve was given, where the bound stops the push."""
    settings = bench.scapre.SolveSettings.of(drift=0.15, overshoot=3.0)
    row = simulated.measure(12, settings).row()
    assert row["told"] == pytest.approx(0.15, abs=1e-3)
    assert row["drift"] == pytest.approx(0.15, rel=0.15)


def test_what_checks_a_choice_is_not_what_it_was_made_on():
    gone = {kind: set(world.order) for kind, world in bench.KINDS.items()}
    assert not gone["meaning"] & gone["others"] and len(gone["meaning"]) == len(gone["others"])
    assert gone["meaning"] | gone["others"] == set(catalogue.EMOJI.order)
    assert set(bench.CHOSEN_ON) == set(bench.KINDS) - {"glyphs", "others"}


def test_constants_are_put_back():
    before = bench.tuning.CONTRAST_WEIGHT
    with pytest.raises(RuntimeError), bench.constants(CONTRAST_WEIGHT=-1.0):
        assert bench.tuning.CONTRAST_WEIGHT == -1.0
        raise RuntimeError
    assert bench.tuning.CONTRAST_WEIGHT == before


def test_every_try_is_one_that_a_solve_takes():
    for part in bench.PARTS.values():
        tries = part()
        assert len({one.name for one in tries}) == len(tries)
        for one in tries:
            bench.scapre.SolveSettings.of(**one.settings)
            assert all(hasattr(bench.tuning, name) for name in one.constants)


def test_dev_py_lists_it():
    spec = importlib.util.spec_from_file_location("dev", Path(__file__).parents[2] / "dev.py")
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    assert dev.named("bench")["crowded"] == "benchmarks.world.crowded"


def test_every_constant_is_tried_at_a_half_and_at_double():
    tries = {one.name: one for one in bench.sensitivity()}
    assert len(tries) == 1 + 2 * len(bench.CONSTANTS + bench.SETTINGS)
    for name in bench.CONSTANTS:
        value = getattr(bench.tuning, name)
        for factor in (0.5, 2.0):
            (tried,) = tries[f"{name} x{factor:g}"].constants.values()
            assert type(tried) is type(value)
            share = (1 - tried) / (1 - value) if name == "ENERGY" else tried / value
            assert share == pytest.approx(factor)
