"""How like a kept word is to a forgotten one."""

import pytest
import torch

from testbed import pack

lookalikes = pack.module("unlearn.closed_form.lookalikes")

COMMON = torch.eye(8, dtype=torch.float64)[4:]


def row(*entries):
    return torch.tensor([entries], dtype=torch.float64)


@pytest.mark.parametrize("shared", [0.0, 5.0])
def test_one_kept_twin_is_told_from_any_other_word(shared):
    """Whatever all words have in common says nothing."""
    fox = row(4, 0, 0, 0, 0, 0, 0, 0) + shared
    twin, house = row(4, 3, 0, 0, 0, 0, 0, 0) + shared, row(0, 0, 5, 0, 0, 0, 0, 0) + shared
    (near,) = lookalikes.likeness(twin, fox, COMMON + shared).tolist()
    (far,) = lookalikes.likeness(house, fox, COMMON + shared).tolist()
    assert 0.6 < near < 0.65 and far < 0.01


def test_likeness_from_its_definition():
    kept, forgotten = row(1, 1, 0), row(0, 2, 0)
    # Beside the centre (-1, 1, 0) these are (2, 0, 0) and (1, 1, 0).
    (near,) = lookalikes.likeness(kept, forgotten, row(-1, 1, 0)).tolist()
    assert near == pytest.approx(0.5)


def test_opposite_words_are_not_alike():
    assert lookalikes.likeness(row(1, 0), row(-1, 0), row(0, 0)).tolist() == [0.0]
