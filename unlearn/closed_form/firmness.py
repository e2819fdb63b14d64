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
from .layer_edit import Components
from .token_statistics import Statistics


class FirmnessFit:
    """Tells how far an edit moves what is kept, and what it leaves, at any factor on 'erase'.

    components: of the edit. stats: of the solve. grams: of the layers before it. On a model with
    earlier patches of this pack both count from before those patches.

    With M = L diag(h) R both are polynomials in h, so after a few products with the r components
    each factor costs r^2 operations: the square of the drift is a + b h + h Q h, and what is left
    of a concept is c + D h.
    """

    def __init__(self, components: Components, stats: Statistics, grams: WeightGrams) -> None:
        self.components = components
        left, right = components.left, components.right
        now, origin, cross = grams.before, grams.base_gram, grams.base_cross
        if origin is None or cross is None:  # no earlier patches on the model
            origin = cross = now
        keep, rows = stats.drift_gram, stats.concepts.T
        whole = (origin * keep).sum().clamp_min(1e-30)
        kept_right = right @ keep
        self.still = ((now - cross - cross.T + origin) * keep).sum() / whole
        self.linear = 2 * (kept_right * ((now - cross) @ left).T).sum(1) / whole
        self.square = (left.T @ now @ left) * (kept_right @ right.T) / whole
        before = ((rows @ origin) * rows).sum(1).clamp_min(1e-30)
        self.left_alone = ((rows @ cross) * rows).sum(1) / before
        self.taken = (rows @ cross @ left) * (rows @ right.T) / before[:, None]

    def drift(self, factor: float) -> float:
        """How far what is kept moves, relative, root mean square."""
        h = self.components.gains(factor)
        return float((self.still + self.linear @ h + h @ self.square @ h).clamp_min(0)) ** 0.5

    def left(self, factor: float) -> torch.Tensor:
        """The share left of each concept [m] in the studied sentences."""
        return self.left_alone + self.taken @ self.components.gains(factor)

    def factor(self, limit: float) -> float:
        """The factor on 'erase', at most 1, at which what is kept moves by `limit` at most.

        It is larger where more than tuning.FIRM_LEFT of a concept would be left.
        """
        if self.drift(1.0) <= limit:
            return 1.0
        low, high = math.log(tuning.LEAST_FIRM), 0.0
        for _ in range(tuning.FIRM_ITERATIONS):
            middle = (low + high) / 2
            tried = math.exp(middle)
            if self.drift(tried) > limit and float(self.left(tried).max()) <= tuning.FIRM_LEFT:
                high = middle
            else:
                low = middle
        return math.exp(low if self.drift(math.exp(low)) <= limit else high)
