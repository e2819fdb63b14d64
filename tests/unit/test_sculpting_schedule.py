"""How a training round is steered, and how its batches are put together and cut."""

import pytest
import torch

from testbed import pack

tuning = pack.module("unlearn.sculpting.tuning")
schedules = pack.module("unlearn.sculpting.schedule")
batches = pack.module("unlearn.sculpting.batches")
settings_of = pack.module("unlearn.sculpting.settings")
UnlearnError = pack.module("unlearn.errors").UnlearnError

Phase = schedules.Phase


@pytest.fixture
def schedule(monkeypatch):
    """100 steps to 0.25; the rate doubles up to 4 times, the cooldown is half as long again."""
    for name, value in {
        "MEASURE_EVERY": 5,
        "LR_GROWTH": 2.0,
        "LR_SCALE_LIMIT": 4.0,
        "COOLDOWN_SHARE": 0.5,
        "COOLDOWN_LEAST": 10,
        "COOLDOWN_AT": 0.8,
        "OVERWRITE_ABOVE": 0.9,
        "RAMP_STEPS": 4,
    }.items():
        monkeypatch.setattr(tuning, name, value)
    return schedules.Schedule(100, 0.25)


def test_measured_every_few_steps_but_not_at_the_first(schedule):
    assert [step for step in range(-10, 16) if schedule.measures(step)] == [5, 10, 15]


@pytest.mark.parametrize("left, scale", [(0.51, 2.0), (0.49, 1.0)])
def test_the_rate_grows_while_a_concept_is_behind_an_even_fade(schedule, left, scale):
    """An even fade to 0.25 is at its square root, 0.5, after half of the steps."""
    found = schedule.after_measurement(Phase(), 50, left)
    assert found == Phase(scale, None, True)


def test_the_rate_has_a_limit(schedule):
    assert schedule.after_measurement(Phase(3.0), 50, 1.0).lr_scale == 4.0


@pytest.mark.parametrize(
    "step, left, cooldown, overwriting",
    [
        (40, 0.25, (40, 60), True),  # half as long again, and 0.25 is above 0.9 of 0.25
        (10, 0.2, (10, 20), False),  # at least ten steps
        (90, 0.2, (90, 100), False),  # never beyond the last step
    ],
)
def test_a_concept_that_is_gone_starts_the_cooldown(schedule, step, left, cooldown, overwriting):
    found = schedule.after_measurement(Phase(2.0), step, left)
    assert found == Phase(2.0, cooldown, overwriting)
    assert schedule.length(found) == cooldown[1] and schedule.length(Phase()) == 100


@pytest.mark.parametrize("left, overwriting", [(0.22, False), (0.23, True), (0.9, True)])
def test_in_the_cooldown_only_overwriting_changes(schedule, left, overwriting):
    phase = Phase(2.0, (40, 60), True)
    assert schedule.after_measurement(phase, 45, left) == Phase(2.0, (40, 60), overwriting)


def test_the_cooldown_starts_in_any_case_when_time_is_nearly_up(schedule):
    assert schedule.before_step(Phase(), 79) == Phase()
    assert schedule.before_step(Phase(), 80) == Phase(1.0, (80, 100), True)
    started = Phase(1.0, (60, 90), False)
    assert schedule.before_step(started, 80) is started


def test_the_rate_rises_linearly_and_falls_as_a_cosine(schedule):
    rising = [schedule.learning_rate(Phase(2.0), step) for step in range(6)]
    assert rising == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    phase = Phase(2.0, (40, 60), True)
    assert schedule.learning_rate(phase, 40) == 2.0
    assert schedule.learning_rate(phase, 50) == pytest.approx(1.0)
    assert schedule.learning_rate(phase, 60) == pytest.approx(0.0)


def rows(first, n, *terms):
    x = torch.arange(first, first + n, dtype=torch.float32)[:, None]
    return batches.Rows(x, x[:, 0] / 10, list(range(first, first + n)), terms)


def test_a_batch_keeps_every_term_with_its_rows_however_it_is_cut():
    one = batches.Term("a", torch.tensor([[10.0], [11.0]]), 0.5)
    two = batches.Term("b", torch.tensor([[20.0], [21.0], [22.0]]), 2.0)
    three = batches.Term("c", torch.tensor([[30.0], [31.0], [32.0]]), 0.25)
    batch = batches.Batch([rows(0, 2, one), rows(2, 3, two, three)])
    assert len(batch) == 5 and batch.text_ids == [0, 1, 2, 3, 4]
    wanted = {(0, 10, 0.5), (1, 11, 0.5)}
    wanted |= {(2, 20, 2.0), (3, 21, 2.0), (4, 22, 2.0)}
    wanted |= {(2, 30, 0.25), (3, 31, 0.25), (4, 32, 0.25)}
    for size in (1, 2, 3, 5, 10**9):
        found, lengths = [], []
        for chunk in batch.chunks(size):
            lengths.append(len(chunk.x))
            x = chunk.x[chunk.index, 0].tolist()
            found += zip(x, chunk.target[:, 0].tolist(), chunk.weights.tolist(), strict=True)
            assert chunk.sigma.tolist() == (chunk.x[:, 0] / 10).tolist()
        assert max(lengths) <= size and sum(lengths) == 5
        assert len(found) == 8 and set(found) == wanted


def test_losses_by_term_are_weighted_sums():
    one = batches.Term("a", torch.zeros(2, 1), 0.5)
    two = batches.Term("b", torch.zeros(1, 1), 2.0)
    (chunk,) = batches.Batch([rows(0, 2, one), rows(2, 1, two)]).chunks(10)
    assert chunk.by_term(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 10.0]


@pytest.mark.parametrize(
    "more, wanted",
    [
        ({}, 4 + 4 + 8),
        ({"variant": "intended"}, 4 + 4),
        ({"resist": 2}, 4 + 4 + 4 + 4 + 8),
        ({"align": 0.0, "distil": 0.0}, 4 + 8),
        ({"variant": "released", "align": 0.0, "distil": 0.0}, 4),
    ],
)
def test_rows_of_a_step(more, wanted):
    assert settings_of.TrainingSettings(batch=4, held=8, **more).rows_per_step == wanted


def test_provenance_holds_every_constant_that_affects_a_result():
    """A constant that is added to tuning.py must be recorded, or named here as harmless."""
    harmless = {"PREVIEW_STEPS", "SAVE_EVERY", "CACHED_LATENT_BYTES", "LOW_RANK_WARNING"}
    harmless |= {"TEACHER_TIME", "RETAINED_SHARES"}  # the shares are recorded one by one
    harmless |= {"STRENGTHS", "AGAINST_SEARCH", "SEARCH_STEPS"}  # what they change is recorded
    constants = {name for name in vars(tuning) if name.isupper()} - {"IN_PROVENANCE"}
    recorded = tuning.IN_PROVENANCE
    assert {name for name in constants if name.lower() not in recorded} == harmless
    assert recorded["lr_scale_limit"] == tuning.LR_SCALE_LIMIT
    assert recorded["retained_shares_keep"] == tuning.RETAINED_SHARES["keep"]


def test_a_strength_changes_the_settings_that_are_recorded():
    plain = settings_of.TrainingSettings(stop_at=0.9)
    assert plain.at("normal") == plain
    gentle, strong = plain.at("gentle"), plain.at("strong")
    assert gentle.learning_rate < plain.learning_rate < strong.learning_rate
    assert gentle.hold > plain.hold and strong.stop_at < plain.stop_at
    # More may not be left: with a quarter more, the fox of the sprite world was still drawn.
    assert gentle.stop_at == plain.stop_at
    assert strong.steps > plain.steps and type(strong.steps) is int
    with pytest.raises(UnlearnError, match="'strength' is 'mighty'; choose one of gentle, normal"):
        plain.at("mighty")


def test_against_a_search_more_is_trained_and_what_is_kept_weighs_more():
    plain = settings_of.TrainingSettings(steps=15, trainable="keys and values")
    harder = plain.against_search()
    assert harder.resist == tuning.SEARCH_STEPS > 0 == plain.resist
    assert harder.trainable == "attention and feed-forward"
    assert (harder.hold, harder.held) == (10 * plain.hold, 2 * plain.held)
    assert (harder.steps, harder.kept_pictures) == (45, 4)
    assert {type(n) for n in (harder.held, harder.steps, harder.kept_pictures)} == {int}
