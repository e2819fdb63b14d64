"""What a ScaPre solve says of itself, as a picture and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..analysis import charts, forecast
from ..analysis.forecast import WordImpact
from ..types import UnlearnPatch
from . import tuning
from .informax_weights import InformaxWeights
from .patch_edits import PatchEdits
from .token_statistics import Statistics

GOOD_RETENTION = 0.3  # of a concept: less is shown as forgotten
HARDLY_TOUCHED = 0.5  # of a concept: more gets a warning
CONCEPTS_SHOWN = 24
LAYERS_SHOWN = 40


@dataclass(frozen=True)
class ScaPreReport:
    """What a solve has found.

    names, retention: of each concept, and the share of it that is left in keys and values.
    drift: how far kept prompts move, relative, root mean square. impacts: the forecast.
    """

    names: tuple[str, ...]
    retention: tuple[float, ...]
    drift: float
    edits: PatchEdits
    impacts: Sequence[WordImpact]
    row_weights: InformaxWeights | None
    notes: Sequence[str]

    @classmethod
    def of(
        cls,
        stats: Statistics,
        edits: PatchEdits,
        impacts: Sequence[WordImpact],
        row_weights: InformaxWeights | None,
        notes: Sequence[str],
    ) -> "ScaPreReport":
        """The report on the edits of a solve."""
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
            notes=notes,
        )

    def picture(self, variant: str) -> torch.Tensor:
        """The report as bar charts, an IMAGE [1, height, width, 3]."""
        sections = [
            ("What each concept still adds to keys and values", self._concept_bars()),
            ("Kept prompts", [self._drift_bar()]),
        ]
        if self.impacts:
            sections.append((forecast.CHART_HEADING, forecast.bars(self.impacts)))
        if self.row_weights is not None:
            title = f"Informax weights ({self.row_weights.estimator})"
            sections.append((title, self._quantile_bars(self.row_weights)))
        sections.append(("Change of each layer's weights", self._layer_bars()))
        title = "ScaPre Solve" if variant == "anchored" else f"ScaPre Solve ({variant})"
        return charts.bar_charts(title, sections)

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
        """The report in words, with warnings and what to do next."""
        lines = [*self._summary(patch), *self.notes]
        if self.row_weights is not None:
            values = ", ".join(f"{value:.2f}" for value in self.row_weights.quantiles().tolist())
            lines.append(
                f"Informax weights ({self.row_weights.estimator}), quantiles at 5, 25, 50, 75 and "
                f"95 %: {values}."
            )
        lines += forecast.describe(self.impacts)
        lines += self._warnings()
        lines.append(
            "Next: connect the patch to Apply Unlearn Patch and compare pictures with the same "
            "seed."
        )
        return "\n".join(lines)

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

    def _warnings(self) -> list[str]:
        most, name = self._most_left()
        warnings = []
        if most > HARDLY_TOUCHED:
            warnings.append(
                f"WARNING: '{name}' is hardly touched; raise 'erase' or lower 'preserve'."
            )
        if self.drift > tuning.DRIFT_WARNING:
            warnings.append(
                "WARNING: kept prompts move a lot; raise 'preserve', lower 'erase', or list what "
                "you care about under 'keep'."
            )
        return warnings


def _colour(good: bool) -> tuple[int, int, int]:
    return charts.GOOD if good else charts.BAD
