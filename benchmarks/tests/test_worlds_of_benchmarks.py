"""What the benchmarks forget and judge follows from the world they are given."""

import pytest

from benchmarks.world import dynamic_mask, fia, scapre_world
from testbed.worlds import catalogue

EVERY = pytest.mark.parametrize("world", catalogue.WORLDS.values(), ids=catalogue.WORLDS)


@EVERY
def test_a_sequence_keeps_the_look_alikes_of_its_six_objects(world):
    names = dynamic_mask.sequence_of(world)
    assert len(names) == 6 and not {world.twin[n] for n in names} & set(names)
    wanted = dynamic_mask.concepts(names, world)
    assert [c.name for c in wanted.concepts] == list(names)
    assert all(c.superclass == world.superclass[c.name] for c in wanted.concepts)
    assert set(wanted.keep) == {*world.objects, *world.styles} - set(names)
    drawn = {c.name for c in dynamic_mask.kept_shots(names, 1, world)}
    assert drawn == {*world.objects, *world.superclasses} - set(names)
    styles = {c.style for c in dynamic_mask.kept_shots(names, 1, world)} - {None}
    assert styles == set(world.styles)


@EVERY
def test_a_forget_set_and_its_shots_are_of_the_world(world):
    wanted = scapre_world.concepts(4, world=world)
    assert [c.name for c in wanted.concepts] == list(world.order[:4])
    assert len(wanted.keep) == len(world.objects) - 4 + len(world.styles)
    plan = scapre_world.shots(plain=2, styled=1, world=world)
    assert len(plan) == 3 * len(world.objects) == len({shot.seed for shot in plan})
    assert {shot.caption.style for shot in plan} == {None, *world.styles}


@EVERY
def test_saliency_is_measured_beside_what_is_kept(world):
    gone = fia.ORDINARY.get(world.name, world.order[:3])
    assert set(gone) < set(world.objects)
    for styles in (False, True):
        templates, base, contexts = fia.lines(world, gone, styles)
        assert all("{concept}" in t for t in templates) and len(contexts) == len(world.objects) - 3
        assert not any(name in context.split() for name in gone for context in contexts)
        assert not any("{concept}" in line for line in base)
    judged = {c.text for c in fia.shots(gone, 4, world.styles, world)}
    given = {t.format(a=f"a {n}", bare=n) for t in fia.GIVEN for n in gone}
    assert not judged & given
