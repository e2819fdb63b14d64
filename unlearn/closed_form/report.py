"""What a ScaPre solve says of itself, as a picture and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import wording
from ..analysis import charts, forecast
from ..analysis import tuning as noise
from ..analysis.forecast import WordImpact
from ..types import UnlearnPatch
from ..wording import Findings
from . import tuning
from .aftermath import OF_SOLVE, Asked
from .informax_weights import InformaxWeights
from .patch_edits import PatchEdits
from .token_statistics import Statistics

GOOD_RETENTION = 0.3  # of a concept: less is shown as forgotten
HARDLY_TOUCHED = 0.5  # of a concept: more gets a warning
CONCEPTS_SHOWN = 24
LAYERS_SHOWN = 40
WHAT_SAFE_MEANS = (
    "Safe: of what an entry of the keep list adds to a sentence at least "
    f"{noise.RETENTION_WARNING:.0%} is left, and kept prompts hardly move; nothing was drawn."
)


@dataclass(frozen=True)
class ScaPreReport:
    """What a solve has found.

    names, retention: of each concept, and the share of it that is left in keys and values.
    drift: how far kept prompts move, relative, root mean square. impacts: the forecast.
    asked: what the edited model still predicts. told: what else the report says.
    """

    names: tuple[str, ...]
    retention: tuple[float, ...]
    drift: float
    edits: PatchEdits
    impacts: Sequence[WordImpact]
    row_weights: InformaxWeights | None
    asked: Asked
    told: Findings

    @classmethod
    def of(
        cls,
        stats: Statistics,
        edits: PatchEdits,
        impacts: Sequence[WordImpact],
        row_weights: InformaxWeights | None,
        notes: tuple[Asked, Findings],
    ) -> "ScaPreReport":
        """The report on the edits of a solve. notes: of `aftermath.notes`."""
        concepts = stats.concepts
        whole = ((edits.grams.before @ concepts) * concepts).sum(0).clamp_min(1e-30)
        left = ((edits.grams.cross @ concepts) * concepts).sum(0) / whole
        shown_weights = row_weights if row_weights is not None and row_weights.given else None
        return cls(
            names=stats.names,
            retention=tuple(left.clamp_min(0).tolist()),
            drift=edits.grams.drift(stats.drift_gram),
            edits=edits,
            impacts=impacts,
            row_weights=shown_weights,
            asked=notes[0],
            told=notes[1],
        )

    def picture(self) -> torch.Tensor:
        """The report as bar charts under its verdict, an IMAGE [1, height, width, 3].

        What only the field knows is at the bottom.
        """
        sections = []
        if self.asked.found:
            sections.append(("What is left of each concept in new sentences", self._asked_bars()))
        sections.append(("How far kept prompts move", [self._drift_bar()]))
        if self.impacts:
            sections.append((forecast.CHART_HEADING, forecast.bars(self.impacts)))
        sections.append(
            ("Details: what each concept adds to keys and values", self._concept_bars())
        )
        if self.row_weights is not None:
            title = f"Details: Informax weights ({self.row_weights.estimator})"
            sections.append((title, self._quantile_bars(self.row_weights)))
        sections.append(("Details: change of each layer's weights", self._layer_bars()))
        return charts.bar_charts(self.verdict(), sections)

    def _asked_bars(self) -> list[tuple]:
        return [
            (one.name, one.left, f"{max(one.left, 0):.0%} left", _colour(one.left < GOOD_RETENTION))
            for one in self.asked.found
        ]

    def _concept_bars(self) -> list[tuple]:
        found = sorted(zip(self.retention, self.names, strict=True), key=lambda pair: -pair[0])
        return [
            (name, left, f"{left:.0%} left", _colour(left < GOOD_RETENTION))
            for left, name in found[:CONCEPTS_SHOWN]
        ]

    def _drift_bar(self) -> tuple:
        colour = _colour(self.drift <= tuning.DRIFT_WARNING)
        return ("everything kept", self.drift, f"{self.drift:.1%} moved", colour)

    @staticmethod
    def _quantile_bars(row_weights: InformaxWeights) -> list[tuple]:
        values = row_weights.quantiles().tolist()
        return [
            (f"quantile {level:.0%}", value, f"{value:.2f}", charts.NEUTRAL)
            for level, value in zip(tuning.QUANTILES, values, strict=True)
        ]

    def _layer_bars(self) -> list[tuple]:
        top = max([change for _, change in self.edits.changes] + [1e-9])
        return [
            (label, change / top, f"{change:.2%}", charts.NEUTRAL)
            for label, change in self.edits.changes[:LAYERS_SHOWN]
        ]

    def text(self, patch: UnlearnPatch) -> str:
        """The report in words: the verdict, warnings, what to do, and all figures."""
        told = Findings()
        told.add(self.told)
        told.add(forecast.findings(self.impacts))
        self._warn(told)
        if self.row_weights is not None:
            values = ", ".join(f"{value:.2f}" for value in self.row_weights.quantiles().tolist())
            told.details.append(
                f"Informax weights ({self.row_weights.estimator}), quantiles at 5, 25, 50, 75 and "
                f"95 %: {values}."
            )
        told.details[:0] = [*self._summary(patch), *([WHAT_SAFE_MEANS] if self._kept() else [])]
        ready = "Next: connect the patch to Apply Unlearn Patch."
        told.advice.insert(len(told.advice) if told.warnings else 0, ready)
        told.details.append("Compare pictures with the same seed.")
        return told.report(self.verdict())

    def verdict(self) -> str:
        """What the solve found of the concepts and of the keep list, in a few words."""
        untouched = self._hardly_touched()
        back = [*self.asked.back(), *self.asked.doubtful]
        if self.asked.weak:
            back = [one.name for one in self.asked.found] + back
        back = [name for name in dict.fromkeys(back) if name not in untouched]
        order = {name: place for place, name in enumerate(self.names)}
        gone, mostly = [], []
        for one in sorted(self.asked.found, key=lambda one: order.get(one.name, 0)):
            if one.name not in (*untouched, *back):
                (gone if one.left <= tuning.LEFT_GONE else mostly).append(one.name)
        words = []
        for found, said in (
            (untouched, "hardly touched"),
            (back, "may come back"),
            (gone, "gone"),
            (mostly, "mostly gone"),
        ):
            if found:
                words.append(wording.sentence(f"{wording.names(found)} {said}"))
        rest = len(self.names) - len({*untouched, *back, *gone, *mostly})
        if not words:
            return "Patch made. Compare pictures."
        words += self._of_kept()
        if rest:
            words.append(f"{rest} more not checked.")
        return " ".join(words)

    def _kept(self) -> list[WordImpact]:
        return [impact for impact in self.impacts if impact.on_keep_list]

    def _of_kept(self) -> list[str]:
        """What the verdict says of the keep list, or of all that is kept where it moves a lot."""
        kept = self._kept()
        lost = [impact.name for impact in forecast.harmed_words(kept)]
        if lost:
            return [wording.sentence(f"{wording.names(lost)} may change")]
        if self.drift > tuning.DRIFT_WARNING:
            return ["Other pictures may change."]
        safe = wording.names(sorted(impact.name for impact in kept), joined=", ")
        return [wording.sentence(f"{safe} safe")] if safe else []

    def _hardly_touched(self) -> list[str]:
        pairs = zip(self.retention, self.names, strict=True)
        return [name for left, name in pairs if left > HARDLY_TOUCHED]

    def _summary(self, patch: UnlearnPatch) -> list[str]:
        count = len(self.names)
        mean = sum(self.retention) / count
        most, name = self._most_left()
        return [
            f"Forgets {count} concept{'s' * (count > 1)} in {len(self.edits.changes)} layers, "
            f"rank {self.edits.rank}, {patch.nbytes / 2**20:.2f} MB; cutting the rank gave up "
            f"{self.edits.lost:.1e} of the change.",
            f"What the concepts add to keys and values is cut to {mean:.0%} on average "
            f"(most left: {name}, {most:.0%}).",
            f"Kept prompts move by {self.drift:.1%}.",
        ]

    def _most_left(self) -> tuple[float, str]:
        return max(zip(self.retention, self.names, strict=True))

    def _warn(self, told: Findings) -> None:
        """Adds warnings of concepts that are hardly touched and of kept prompts that move."""
        untouched = self._hardly_touched()
        if untouched:
            most, name = self._most_left()
            why = (
                f"'{name}' is hardly touched: of what it adds to keys and values {most:.0%} is "
                "left; raise 'erase' or lower 'preserve'."
            )
            new = [one for one in untouched if one not in self.asked.back()]
            if new:
                told.warn(f"{wording.names(new, quotes=True)} hardly touched.", why)
            else:  # a warning that it is still there is enough
                told.details.append(why)
            told.advice.append(f"Try: raise 'erase' {OF_SOLVE}.")
        if self.drift > tuning.DRIFT_WARNING:
            told.warn(
                "Other pictures may change a lot.",
                f"Kept prompts move by {self.drift:.1%}; raise 'preserve', lower 'erase', or list "
                "what you care about under 'keep'.",
            )
            told.advice.append(f"Try: raise 'preserve' {OF_SOLVE}.")


def _colour(good: bool) -> tuple[int, int, int]:
    return charts.GOOD if good else charts.BAD
