"""How far concepts are pushed past zero.

A sentence that was not studied holds more of a concept than the studied ones have in common, so an
edit that ends at zero leaves some of it: of one concept alone less than of a style or of a name of
two words; of many, whose edits help each other, hardly any. So what each concept adds to the end
token is pushed past zero by a share of itself. What is left of it in keys and values falls
linearly as the share rises. Pushing the concept's own tokens and the padding too was measured to
take its superclass along, and to forget no more. A style is pushed less far than an object.
"""

from collections.abc import Sequence

import torch

from ...kernels.forecast import retention
from ..analysis.forecast import WeightGrams
from . import tuning
from .token_statistics import Statistics

NORMAL = tuning.STRENGTHS["normal"]
LEAST_SHOWN = 0.005  # shares below it are shown as 0 %


class OvershootFit:
    """Finds the share by which each concept is pushed.

    stats: of the solve; kinds: of its concepts; grams: of the layers before it; operator H [d, d]:
    the LayerEdit's `solution_operator`; concepts [s] and differences [s, d] float64: what
    `in_new_sentences` of token_statistics.py gives; strength: how much is to be left.
    With very many concepts only some of them are in `concepts`; the others are pushed by the mean.

    On a model with earlier patches of this pack less is asked for, and both what is left and the
    drift count from before those patches: edits made one by one move more than one for all.
    """

    def __init__(
        self,
        stats: Statistics,
        kinds: Sequence[str],
        grams: WeightGrams,
        operator: torch.Tensor,
        concepts: torch.Tensor,
        differences: torch.Tensor,
        strength: tuning.Strength = NORMAL,
    ) -> None:
        self.stats, self.kinds, self.grams, self.operator = stats, kinds, grams, operator
        self.differences = differences
        self.checked, self._index = concepts.unique(return_inverse=True)
        self._count = torch.bincount(self._index)
        self.earlier = grams.base_gram is not None
        target = tuning.RESIDUAL_WARNING if self.earlier else tuning.TARGET_RESIDUAL
        self.target, self.strength = target + strength.left, strength
        self.base = self.multiplier(torch.zeros(len(self.checked), dtype=torch.float64))

    def for_all(self, shares: torch.Tensor) -> torch.Tensor:
        """The share of every concept [m], from those of the checked ones [k]."""
        mean = torch.full((len(self.stats.names),), float(shares.mean()), dtype=torch.float64)
        return mean.index_copy(0, self.checked, shares)

    def _checked_kinds(self) -> list[str]:
        return [self.kinds[int(i)] for i in self.checked]

    def multiplier(self, shares: torch.Tensor) -> torch.Tensor:
        """M [d, d] of the edit W0 (I + M) with the checked concepts pushed by shares [k]."""
        return self.stats.overshot(self.for_all(shares)).target_shift @ self.operator

    def remaining(self, multiplier: torch.Tensor) -> torch.Tensor:
        """What W0 (I + M) leaves of each checked concept [k], the mean over its sentences."""
        before, cross = self.grams.base_gram, self.grams.base_cross
        if before is None or cross is None:  # no earlier patches on the model
            before = cross = self.grams.before
        left = retention(self.differences, before, cross + cross @ multiplier)
        sums = torch.zeros(len(self.checked), dtype=torch.float64)
        return sums.index_add(0, self._index, left) / self._count

    def drift(self, multiplier: torch.Tensor) -> float:
        """How far W0 (I + M) moves what is kept, relative, root mean square."""
        return self.grams.after_shared_edit(multiplier).drift(self.stats.drift_gram)

    def search(self, most: torch.Tensor) -> torch.Tensor:
        """Shares [k], 0 to `most` [k], at which the target is left of each checked concept."""
        shares = torch.zeros(len(self.checked), dtype=torch.float64)
        for _ in range(tuning.OVERSHOOT_ITERATIONS):
            excess = self.remaining(self.multiplier(shares)) - self.target
            shares = torch.minimum((shares + excess).clamp_min(0), most)
        return shares

    def part_within(self, limit: float, multiplier: torch.Tensor) -> float:
        """The part of the push, 0 to 1, at which what is kept moves by `limit` at most.

        multiplier: M with the whole push. The squared drift is a parabola in the part.
        """
        push = multiplier - self.base
        if self.drift(self.base + push) <= limit:
            return 1.0
        zero, half, one = (self.drift(self.base + part * push) ** 2 for part in (0.0, 0.5, 1.0))
        if zero >= limit**2:
            return 0.0
        square = max(2 * (one - 2 * half + zero), 1e-30)
        linear = one - zero - square
        root = max(0.0, linear**2 - 4 * square * (zero - limit**2)) ** 0.5
        return max(0.0, (root - linear) / (2 * square))

    def fit(self, most: float, limit: float) -> tuple[torch.Tensor, list[str], tuple[str, ...]]:
        """(the share of every concept [m] float64, notes for the report, names that may come back).

        most: the largest share, of a style less; limit: the largest drift of what is kept; both at
        the strength 'normal'.
        """
        most, limit = most * self.strength.pushed, limit * self.strength.drift
        parts = [most * tuning.PUSHED[kind] for kind in self._checked_kinds()]
        shares = self.search(torch.tensor(parts, dtype=torch.float64))
        whole = self.multiplier(shares)
        part = self.part_within(limit, whole)
        remaining = self.remaining(self.base + part * (whole - self.base))
        notes = []
        if self.earlier:
            spent = self.drift(torch.zeros_like(self.base))
            notes.append(
                f"Earlier patches on this model have moved kept prompts by {spent:.1%}; that "
                "counts against 'drift'."
            )
        notes += _note_of_shares(part * shares, limited=part < 1)
        back = self._may_come_back(remaining.tolist())
        if back:
            listed = ", ".join(f"{name} {left:.0%}" for name, left in list(back.items())[:10])
            notes.append(
                "In keys and values, before anything is drawn, sentences that were not studied "
                f"keep more than usual of: {listed}. What the edited model predicts decides, where "
                "it could be asked."
            )
        return part * self.for_all(shares), notes, tuple(back)

    def _may_come_back(self, remaining: Sequence[float]) -> dict[str, float]:
        """name -> share left in keys and values, of concepts of which much is left."""
        names = [self.stats.names[i] for i in self.checked.tolist()]
        bounds = [tuning.LEFT_UNSEEN[kind] for kind in self._checked_kinds()]
        found = sorted(zip(remaining, names, bounds, strict=True), reverse=True)
        return {name: left for left, name, bound in found if left > bound}


def _note_of_shares(shares: torch.Tensor, limited: bool) -> list[str]:
    if float(shares.max()) < LEAST_SHOWN:
        return []
    least, most = f"{float(shares.min()):.0%}", f"{float(shares.max()):.0%}"
    found = most if least == most else f"{least} to {most}"
    because = ", as far as 'drift' allows" if limited else ""
    return [f"Concepts are pushed {found} past zero, for sentences not studied{because}."]
