"""How firmly concepts are erased where layers read no CLIP (unlearn/closed_form/firmness.py)."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack, trial
from testbed.train import tiny_transformer
from testbed.worlds import catalogue, checkpoint

families = pack.module("unlearn.host.architectures")
anchored = pack.module("unlearn.closed_form.variants.anchored")
forecast = pack.module("unlearn.analysis.forecast")
firmness = pack.module("unlearn.closed_form.firmness")
layer_edit = pack.module("unlearn.closed_form.layer_edit")
tuning = pack.module("unlearn.closed_form.tuning")


def edit_of_one_number(erase=100.0):
    """An edit that cuts erase / (1 + erase) off the only number there is."""

    def at(factor):
        cut = factor * erase / (1 + factor * erase)
        return layer_edit.LayerEdit(right_multiplier=torch.tensor([[-cut]], dtype=torch.float64))

    return layer_edit.LayerEdit(right_multiplier=at(1).right_multiplier, less_firm=at)


def grams(length):
    """Gram matrices of one weight of that length; what is kept moves as far as it is cut."""
    found = forecast.WeightGrams()
    found.add_original(torch.tensor([[length]]))
    return found


STATS = SimpleNamespace(
    drift_gram=torch.ones(1, 1, dtype=torch.float64),
    concepts=torch.ones(1, 1, dtype=torch.float64),
)


@pytest.mark.parametrize(
    "limit, factor",
    [
        (1.0, 1.0),  # within the limit as it is
        (0.9, 0.09),  # nine tenths are cut at an `erase` of 9
        (0.6, 0.04),  # three fifths would be, but then more than FIRM_LEFT is left: four fifths
    ],
)
def test_erase_is_lowered_as_far_as_drift_asks_and_what_is_left_allows(limit, factor):
    edit = edit_of_one_number()
    assert tuning.FIRM_LEFT == 0.2
    assert firmness.factor(edit, STATS, grams(3.0), limit) == pytest.approx(factor, rel=0.01)


def test_an_edit_that_leaves_too_much_already_stays_as_firm_as_it_is():
    edit = edit_of_one_number(erase=1.0)  # half is left
    assert firmness.factor(edit, STATS, grams(3.0), 0.1) == pytest.approx(1, rel=1e-3)


def test_a_variant_that_cannot_be_less_firm_stays_as_it_is():
    edit = layer_edit.LayerEdit(right_multiplier=-torch.ones(1, 1, dtype=torch.float64))
    assert firmness.factor(edit, STATS, grams(3.0), 0.1) == 1


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
    folder = tmp_path_factory.mktemp("wan")
    with torch.inference_mode(False):
        run = tiny_transformer.training("wan", folder)
        run.advance()
        run.write(checkpoint.load_judge(catalogue.EMOJI.file))
    return tiny_transformer.studio("wan", folder / "tiny.safetensors")


def test_drift_bounds_the_whole_edit_of_a_transformer_where_what_is_kept_is_known(wan):
    few = {"templates": ("{concept}", "a photo of a {concept}"), "prior": False, "expand": False}
    few |= {"overshoot": 0.0}  # without a push what is moved is by the edit itself
    twelve = catalogue.EMOJI.order[1:13]

    def moved(keep, drift):
        """How far kept prompts move, and whether the report says that 'erase' was lowered."""
        kept = "\n".join(keep)
        how = {"model": wan.model, "clip": wan.clip, "drift": drift, **few}
        report = trial.solve("fox", kept, **how)[1]
        said = float(report.split("Kept prompts move by ")[1].split("%")[0]) / 100
        return said, "'erase' was lowered" in report

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
