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

from . import tuning
from .layer_edit import LayerEdit
from .overshoot import OvershootFit


def factor(edit: LayerEdit, fit: OvershootFit, limit: float) -> float:
    """The factor on 'erase', at most 1, at which what is kept moves by `limit` at most.

    fit: tells how far an edit moves what is kept, and how much it leaves in studied sentences.
    The factor is larger where more than tuning.FIRM_LEFT of a concept would be left. 1 for an edit
    that cannot be made less firm.
    """
    if edit.less_firm is None or fit.drift(fit.base) <= limit:
        return 1.0
    low, high = math.log(tuning.LEAST_FIRM), 0.0
    for _ in range(tuning.FIRM_ITERATIONS):
        middle = (low + high) / 2
        m = _multiplier(edit, math.exp(middle))
        if fit.drift(m) > limit and float(fit.remaining_studied(m).max()) <= tuning.FIRM_LEFT:
            high = middle
        else:
            low = middle
    within = fit.drift(_multiplier(edit, math.exp(low))) <= limit
    return math.exp(low if within else high)


def _multiplier(edit: LayerEdit, firmness: float) -> torch.Tensor:
    """M [d, d] of an edit with 'erase' times `firmness`."""
    found = edit.less_firm(firmness).right_multiplier if edit.less_firm else edit.right_multiplier
    if found is None:
        raise ValueError("a LayerEdit with less_firm has a right_multiplier too")
    return found
