"""What the rounds of one solve share, and what its groups of layers do together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...kernels import rece
from ..analysis.forecast import WeightForecast, WeightGrams, WordImpact
from ..host.model_types import Clip
from ..host.progress import Progress
from . import token_statistics, tuning
from .firmness import FirmnessFit
from .input_groups import InputGroup
from .layer_edit import LayerEdit
from .overshoot import OvershootFit
from .token_statistics import Statistics

Solve = Callable[[Statistics, float], LayerEdit]
LookAgain = Callable[[list[LayerEdit], list[WordImpact]], list[WordImpact]]


@dataclass(frozen=True)
class Solution:
    """An edit, the Statistics it was made from, and notes for the report.

    may_come_back: names of which keys and values of sentences that were not studied keep much.
    """

    edit: LayerEdit
    stats: Statistics
    notes: tuple[str, ...] = ()
    may_come_back: tuple[str, ...] = ()

    def again(self, edit: LayerEdit, stats: Statistics, *notes: str) -> "Solution":
        """The next solution, with more notes."""
        return replace(self, edit=edit, stats=stats, notes=(*self.notes, *notes))


class SolveSession:
    """One solve of one group of layers: their Gram matrices before it, and the forecast.

    solve: (Statistics, factor on 'erase') -> LayerEdit, the variant at its settings. `firmness` is
    that factor.
    """

    def __init__(
        self,
        clip: Clip,
        group: InputGroup,
        grams: WeightGrams,
        keep: Sequence[str],
        solve: Solve,
    ) -> None:
        self.clip, self.group = clip, group
        self.grams, self.keep, self._solve = grams, tuple(keep), solve
        self.firmness = 1.0
        self._forecast: WeightForecast | None = None

    def solve(self, stats: Statistics) -> LayerEdit:
        """The variant's edit."""
        return self._solve(stats, self.firmness)

    def impacts(
        self, stats: Statistics, grams: WeightGrams, pictured: bool = False
    ) -> list[WordImpact]:
        """What layers with these Gram matrices keep of each word at risk, the worst first."""
        return self._forecaster(stats).impacts(grams, pictured)

    def worse_of(
        self, impacts: Sequence[WordImpact], stats: Statistics, grams: WeightGrams
    ) -> list[WordImpact]:
        """The impacts of another group, or of this one where these are worse."""
        return self._forecaster(stats).worse_of(impacts, grams)

    def _forecaster(self, stats: Statistics) -> WeightForecast:
        """The one forecast of this session, which keeps what it has read of a word."""
        if self._forecast is None:
            self._forecast = WeightForecast(
                self.clip,
                self.group.fetch,
                self.keep,
                stats.words,
                stats.word_states,
                self.group.pooled,
                self.group.located,
            )
        return self._forecast

    def within_drift(self, found: Solution, limit: float) -> Solution:
        """The solution with 'erase' lowered, now and in later solves, so that what is kept moves by
        `limit` at most; see firmness.py. The same where layers read a CLIP's own states."""
        less_firm, components = found.edit.less_firm, found.edit.components
        if self.group.located is None or self.group.pooled:
            return found
        if less_firm is None or components is None:
            return found
        fit = FirmnessFit(components, found.stats, self.grams)
        self.firmness = fit.factor(limit)
        if self.firmness == 1:
            return found
        note = (
            f"'erase' was divided by {1 / self.firmness:,.0f}, because what is kept would have "
            f"moved by {fit.drift(1.0):.0%}. So more of a concept is left; raise 'drift' to leave "
            "less."
        )
        return found.again(less_firm(self.firmness), found.stats, note)

    def overshoot(
        self,
        found: Solution,
        most: float,
        drift: float,
        progress: Progress | None = None,
        strength: str = "normal",
    ) -> Solution:
        """The solution with concepts pushed past zero; see overshoot.py.

        most: the largest share of itself by which a concept is pushed; drift: how far what is kept
        may move, both at the strength 'normal'. Nothing is solved again where the edit has
        `for_target`. Nothing is pushed where the plan has no sentences to check it in, nor where
        text is mixed with the picture behind the layers: what is pushed there turns into something
        else (docs/results/transformers.md).
        """
        operator = found.edit.solution_operator
        if operator is None or most <= 0 or not self.group.plan.checked:
            return found
        concepts, differences = token_statistics.in_new_sentences(
            self.group.plan, self.group.fetch, progress
        )
        kinds = self.group.plan.kinds
        how = tuning.STRENGTHS[strength]
        fit = OvershootFit(found.stats, kinds, self.grams, operator, concepts, differences, how)
        shares, notes, back = fit.fit(most if self.group.exact else 0.0, drift)
        found = replace(found, may_come_back=back)
        stats = found.stats.overshot(shares)
        if found.edit.for_target is None:
            return found.again(self.solve(stats), stats, *notes)
        return found.again(found.edit.for_target(stats.target_shift), stats, *notes)

    def close_revivals(self, found: Solution, rounds: int) -> Solution:
        """Searches for embeddings that bring a concept back, erases them too and solves again."""
        first = found.stats
        damping = tuning.REVIVAL * float(self.grams.before.diagonal().mean())
        for number in range(1, rounds + 1):
            after = self.after(found.edit)
            back = rece.revived(
                self.grams.before, after.after, after.cross.T, found.stats.rows, damping
            )
            revived = rece.revive(after.after, after.cross.T, first.rows, damping)
            length = first.rows.norm(dim=1) / revived.norm(dim=1).clamp_min(1e-30)
            stats = found.stats.erasing(revived * length[:, None], first.rows_weight)
            found = found.again(
                self.solve(stats),
                stats,
                f"Round {number}: the best embedding found brings back {float(back.mean()):.0%} "
                "of a forgotten concept on average.",
            )
        return found

    def protecting(self, found: Solution, names: Sequence[str]) -> Solution:
        """Solved again with what these words and kept texts add to a sentence kept as well."""
        forecaster = self._forecaster(found.stats)
        forecaster.examine(names)
        rows = torch.cat([forecaster.contrasts[name].rows for name in names]) / found.stats.scale
        stats = found.stats.protecting(rows, tuning.PROTECTION)
        return found.again(self.solve(stats), stats)

    def after(self, edit: LayerEdit) -> WeightGrams:
        """The Gram matrices of the layers after an edit."""
        if edit.right_multiplier is None:
            raise ValueError("a LayerEdit with a solution_operator has a right_multiplier too")
        return self.grams.after_shared_edit(edit.right_multiplier)


def impacts(
    sessions: Sequence[SolveSession],
    stats: Sequence[Statistics],
    grams: Sequence[WeightGrams],
    pictured: bool = False,
) -> list[WordImpact]:
    """What all groups keep of each word at risk, the worst first: of each word the worst group.

    pictured: only words that a picture can show are at risk.
    """
    found = sessions[0].impacts(stats[0], grams[0], pictured)
    for session, own, after in zip(sessions[1:], stats[1:], grams[1:], strict=True):
        found = session.worse_of(found, own, after)
    return found


def protect(
    sessions: Sequence[SolveSession], found: list[Solution], level: float, look_again: LookAgain
) -> list[Solution]:
    """Keeps every word that stands out less than `level` as well, and solves all groups again.

    look_again: (edits of all groups, what the forecast says) -> what the edited model itself shows.
    """
    protected: dict[str, None] = {}
    for _ in range(tuning.PROTECTION_ROUNDS if level > 0 else 0):
        grams = [session.after(one.edit) for session, one in zip(sessions, found, strict=True)]
        expected = impacts(sessions, [one.stats for one in found], grams)
        seen = look_again([one.edit for one in found], expected)
        at_risk = [i.name for i in seen if i.retention < level and i.name not in protected]
        if not at_risk:
            break
        protected |= dict.fromkeys(at_risk)
        found = [
            session.protecting(one, tuple(protected))
            for session, one in zip(sessions, found, strict=True)
        ]
    if not protected:
        return found
    names = ", ".join([*protected][:20]) + " ..." * (len(protected) > 20)
    note = f"Auto-protect holds {len(protected)} more: {names}."
    return [found[0].again(found[0].edit, found[0].stats, note), *found[1:]]
