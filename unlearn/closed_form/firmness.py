"""How firmly concepts are erased behind layers that do not read a CLIP's own states.

What CLIP says of any two words is mostly the same, so what a concept adds is small beside it.
Behind the text projection of a transformer little is the same, and what a concept adds is as large
as a state. The same 'erase' then outweighs what is kept a thousandfold: the last thousandth of a
concept is pushed out at the cost of other words. So 'erase' is lowered there until what is kept
moves by no more than 'drift', or until a concept would keep too much.
"""

from __future__ import annotations

import math

import torch

from ..analysis.forecast import WeightGrams
from . import tuning
from .layer_edit import LayerEdit
from .overshoot import retained
from .token_statistics import Statistics


def factor(edit: LayerEdit, stats: Statistics, grams: WeightGrams, limit: float) -> float:
    """The factor on 'erase', at most 1, at which what is kept moves by `limit` at most.

    stats: of the solve. grams: of the layers before it. The factor is larger where more than
    tuning.FIRM_LEFT of a concept would be left in the studied sentences. 1 for an edit that cannot
    be made less firm.
    """
    if edit.less_firm is None or drift(edit, stats, grams) <= limit:
        return 1.0
    low, high = math.log(tuning.LEAST_FIRM), 0.0
    for _ in range(tuning.FIRM_ITERATIONS):
        middle = (low + high) / 2
        softer = edit.less_firm(math.exp(middle))
        left = retained(grams, stats.concepts.T, _multiplier(softer))
        if drift(softer, stats, grams) > limit and float(left.max()) <= tuning.FIRM_LEFT:
            high = middle
        else:
            low = middle
    within = drift(edit.less_firm(math.exp(low)), stats, grams) <= limit
    return math.exp(low if within else high)


def drift(edit: LayerEdit, stats: Statistics, grams: WeightGrams) -> float:
    """How far an edit moves what is kept, relative, root mean square."""
    return grams.after_shared_edit(_multiplier(edit)).drift(stats.drift_gram)


def _multiplier(edit: LayerEdit) -> torch.Tensor:
    if edit.right_multiplier is None:
        raise ValueError("a LayerEdit with less_firm has a right_multiplier too")
    return edit.right_multiplier
