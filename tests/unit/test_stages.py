"""Words on what a node is doing, told by a clock that a test moves."""

import pytest

from testbed import pack

stages = pack.module("unlearn.host.stages")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def told():
    """(stage, what it said, its clock)."""
    clock, said = Clock(), []
    return stages.Stage(said.append, clock), said, clock


def advance(stage, clock, times, seconds, n=1):
    for _ in range(times):
        clock.now += seconds
        stage.step(n)


def test_a_stage_is_named_at_once_and_a_time_when_it_is_known(told):
    stage, said, clock = told
    stage.begin("Reading 3,000 everyday words", total=60)
    assert said == ["Reading 3,000 everyday words"]
    advance(stage, clock, 20, 1.0)
    assert said[-1] == "Reading 3,000 everyday words, 40 s left"


def test_parts_are_counted_and_each_may_have_several_steps(told):
    stage, said, clock = told
    stage.begin("Drawing training picture {at} of {of}", total=64 * 20, each=20)
    assert said == ["Drawing training picture 1 of 64"]
    advance(stage, clock, 7 * 20, 0.1)
    assert stage.text() == "Drawing training picture 8 of 64, 2 min left"
    advance(stage, clock, 57 * 20, 0.1)
    assert stage.text() == "Drawing training picture 64 of 64"


def test_messages_come_at_most_twice_a_second(told):
    stage, said, clock = told
    stage.begin("Working", total=10_000)
    advance(stage, clock, 1000, 0.01)
    assert 15 <= len(said) <= 21


def test_a_guess_stands_until_something_is_known_and_what_comes_then_behind_it(told):
    stage, said, clock = told
    stage.begin("Drawing", total=100, then="then training, at most 12 min", guess=180)
    assert said == ["Drawing, 3 min left, then training, at most 12 min"]
    advance(stage, clock, 50, 0.1)
    assert said[-1] == "Drawing, 5 s left, then training, at most 12 min"


def test_what_took_no_time_does_not_count_for_the_estimate(told):
    stage, _, clock = told
    stage.begin("Reading", total=100)
    stage.skip(60)
    advance(stage, clock, 10, 1.0)
    assert stage.seconds_left() == pytest.approx(30)


def test_the_estimate_follows_a_change_of_pace_but_not_one_slow_step(told):
    stage, _, clock = told
    stage.begin("Reading", total=1000)
    advance(stage, clock, 100, 0.2)
    clock.now += 1.0
    stage.step()
    assert stage.seconds_left() < 1.1 * 0.2 * 899
    advance(stage, clock, 200, 0.4)
    assert stage.seconds_left() == pytest.approx(0.4 * 699, rel=0.1)


def test_steps_that_are_done_again_are_not_counted_twice(told):
    stage, _, clock = told
    stage.begin("Drawing picture {at} of {of}", total=8, each=4)
    advance(stage, clock, 6, 1.0)
    stage.back_to(4)
    assert stage.text().startswith("Drawing picture 2 of 2, 4 s left")


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "1 s"), (8.4, "8 s"), (43, "45 s"), (89, "90 s"), (100, "2 min"), (7200, "2 h")],
)
def test_durations_in_words(seconds, words):
    assert stages.in_words(seconds) == words
