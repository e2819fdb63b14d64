"""How firmly concepts are erased where layers read no CLIP (unlearn/closed_form/firmness.py)."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack, trial
from testbed.train import tiny_transformer
from testbed.worlds import catalogue

families = pack.module("unlearn.host.architectures")
anchored = pack.module("unlearn.closed_form.variants.anchored")
forecast = pack.module("unlearn.analysis.forecast")
firmness = pack.module("unlearn.closed_form.firmness")
layer_edit = pack.module("unlearn.closed_form.layer_edit")
retention = pack.module("kernels.forecast").retention
tuning = pack.module("unlearn.closed_form.tuning")


def fit_of_one_number(erase=100.0):
    """The FirmnessFit of an edit that cuts erase / (1 + erase) off the only number there is.

    What is kept moves as far as it is cut.
    """
    one = torch.ones(1, 1, dtype=torch.float64)

    def gains(factor):
        return torch.tensor([factor * erase / (1 + factor * erase)], dtype=torch.float64)

    grams = forecast.WeightGrams()
    grams.add_original(torch.tensor([[3.0]]))
    stats = SimpleNamespace(drift_gram=one, concepts=one)
    return firmness.FirmnessFit(layer_edit.Components(-one, one, gains), stats, grams)


@pytest.mark.parametrize(
    "limit, factor",
    [
        (1.0, 1.0),  # within the limit as it is
        (0.9, 0.09),  # nine tenths are cut at an `erase` of 9
        (0.6, 0.04),  # three fifths would be, but then more than FIRM_LEFT is left: four fifths
    ],
)
def test_erase_is_lowered_as_far_as_drift_asks_and_what_is_left_allows(limit, factor):
    assert tuning.FIRM_LEFT == 0.2
    assert fit_of_one_number().factor(limit) == pytest.approx(factor, rel=0.01)


def test_an_edit_that_leaves_too_much_already_stays_as_firm_as_it_is():
    half_is_left = fit_of_one_number(erase=1.0)
    assert half_is_left.factor(0.1) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.1, 1e-3])
def test_what_moves_and_what_is_left_are_those_of_the_whole_matrices(factor, earlier):
    g = torch.Generator().manual_seed(3)
    d, r, m = 7, 3, 2
    mu = torch.rand(r, generator=g).double()
    v = torch.randn(d, r, generator=g).double()
    shift = torch.randn(d, d, generator=g).double()
    edit = anchored._Solved(mu, v, 5.0, 0.0, None).edit(shift)
    grams = forecast.WeightGrams()
    for _ in range(2):
        w = torch.randn(5, d, generator=g)
        before = w + 0.1 * torch.randn(5, d, generator=g) if earlier else None
        grams.add_original(w, before)
    kept = torch.randn(20, d, generator=g).double()
    stats = SimpleNamespace(
        drift_gram=kept.T @ kept, concepts=torch.randn(d, m, generator=g).double()
    )
    fit = firmness.FirmnessFit(edit.components, stats, grams)
    multiplier = edit.less_firm(factor).right_multiplier
    after = grams.after_shared_edit(multiplier)
    assert fit.drift(factor) == pytest.approx(after.drift(stats.drift_gram), rel=1e-9)
    origin, cross = (grams.base_gram, grams.base_cross) if earlier else (grams.before,) * 2
    assert (origin is not None) and (cross is not None)
    left = retention(stats.concepts.T, origin, cross + cross @ multiplier)
    assert torch.allclose(fit.left(factor), left, rtol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 0.1, 1e-3])
def test_less_firm_is_the_solution_at_a_lower_erase(factor):
    g = torch.Generator().manual_seed(3)
    mu = torch.rand(4, generator=g).double().sort(descending=True).values
    v = torch.randn(6, 4, generator=g).double()
    target = -(v @ torch.diag(mu) @ v.T)
    edit = anchored._Solved(mu, v, 50.0, 0.0, None).edit(target)
    want = anchored._Solved(mu, v, 50.0 * factor, 0.0, None).edit(target)
    found = edit.less_firm(factor)
    w0 = torch.randn(3, 6, generator=g)
    assert torch.equal(found.right_multiplier, want.right_multiplier)
    assert torch.equal(found.up(w0) @ found.down, want.up(w0) @ want.down)
    assert torch.equal(found.for_target(2 * target).down, want.for_target(2 * target).down)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return tiny_transformer.made("wan", tmp_path_factory.mktemp("wan"))


def test_drift_bounds_the_whole_edit_of_a_transformer_where_what_is_kept_is_known(wan):
    few = {"templates": ("{concept}", "a photo of a {concept}"), "prior": False, "expand": False}
    few |= {"overshoot": 0.0}  # without a push what is moved is by the edit itself
    twelve = catalogue.EMOJI.order[1:13]

    def moved(keep, drift):
        """How far kept prompts move, and whether the report says that 'erase' was divided."""
        kept = "\n".join(keep)
        how = {"model": wan.model, "clip": wan.clip, "drift": drift, **few}
        report = trial.solve("fox", kept, **how)[1]
        said = float(report.split("Kept prompts move by ")[1].split("%")[0]) / 100
        return said, "'erase' was divided" in report

    free, lowered = moved(twelve, 1.0)
    assert not lowered
    bounded, lowered = moved(twelve, 0.9 * free)
    assert lowered and bounded <= 0.9 * free + 0.001
    # Eleven are filled up by a common noun that nothing holds.
    free, _ = moved(twelve[1:], 1.0)
    assert moved(twelve[1:], 0.9 * free) == (free, False)


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_pushed_past_zero_where_text_is_mixed_with_the_picture_behind(
    wan, monkeypatch, exact
):
    monkeypatch.setattr(type(families.of(wan.model)), "exact", exact)
    few = {"templates": ("{concept}", "a photo of a {concept}"), "prior": False, "expand": False}
    report = trial.solve("fox", "cat\nwolf", model=wan.model, clip=wan.clip, drift=1.0, **few)[1]
    assert ("past zero" in report) == exact
