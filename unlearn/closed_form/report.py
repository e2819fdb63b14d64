"""What a ScaPre solve says of itself, as a picture and in words."""

from ..analysis import charts, forecast

DRIFT_WARNING = 0.17  # drift of what is kept; measured: at 0.17 nearly all of it was still drawn right, at 0.19 a tenth was lost
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class ScaPreReport:
    """What a solve has found: what is left of each concept, how far what is kept moves, the forecast, the weights of the channels."""

    def __init__(self, stats, after, changes, hits, channels, rank, lost, notes):
        """after: forecast.Moments of the edit; changes: (layer label, relative change); channels: variants.Channels or None."""
        self.names, self.changes, self.hits, self.rank, self.lost, self.notes = (
            stats.names,
            changes,
            hits,
            rank,
            lost,
            notes,
        )
        self.channels = channels if channels is not None and channels.seen else None
        c = stats.concepts
        whole = ((after.before @ c) * c).sum(0).clamp_min(1e-30)
        self.left = (((after.cross @ c) * c).sum(0) / whole).clamp_min(0).tolist()
        self.drift = after.drift(stats.preserve_gram)

    def picture(self, variant):
        shown = sorted(zip(self.left, self.names, strict=True), key=lambda x: -x[0])[:24]
        shown = [(n, x, f"{x:.0%} left", charts.GOOD if x < 0.3 else charts.BAD) for x, n in shown]
        top = max([c for _, c in self.changes] + [1e-9])
        layers = [(label, c / top, f"{c:.2%}", charts.NEUTRAL) for label, c in self.changes[:40]]
        kept = [
            (
                "everything kept",
                self.drift,
                f"{self.drift:.1%} moved",
                charts.GOOD if self.drift <= DRIFT_WARNING else charts.BAD,
            )
        ]
        sections = [
            ("What each concept still adds to keys and values", shown),
            ("Kept prompts", kept),
        ]
        if self.hits:
            sections.append((forecast.CHART_HEADING, forecast.bars(self.hits)))
        if self.channels is not None and self.channels.seen:
            at = (0.05, 0.25, 0.5, 0.75, 0.95)
            sections.append(
                (
                    f"Informax weights ({self.channels.estimator})",
                    [
                        (f"quantile {q:.0%}", v, f"{v:.2f}", charts.NEUTRAL)
                        for q, v in zip(at, self.channels.quantiles(at).tolist(), strict=True)
                    ],
                )
            )
        return charts.bar_charts(
            "ScaPre Solve" + f" ({variant})" * (variant != "anchored"),
            [*sections, ("Change of each layer's weights", layers)],
        )

    def text(self, patch):
        names, left = self.names, self.left
        worst = max(zip(left, names, strict=True))
        lines = [
            f"Forgets {len(names)} concept{'s' * (len(names) > 1)} in {len(self.changes)} layers, rank {self.rank}, "
            f"{patch.nbytes / 2**20:.2f} MB; cutting the rank gave up {self.lost:.1e} of the change.",
            f"What the concepts add to keys and values is cut to {sum(left) / len(left):.0%} on average "
            f"(most left: {worst[1]}, {worst[0]:.0%}).",
            f"Kept prompts move by {self.drift:.1%}.",
            *self.notes,
        ]
        if self.channels is not None:
            q = ", ".join(f"{v:.2f}" for v in self.channels.quantiles(QUANTILES).tolist())
            lines.append(
                f"Informax weights ({self.channels.estimator}), quantiles at 5, 25, 50, 75 and 95 %: {q}."
            )
        lines += forecast.describe(self.hits)
        if worst[0] > 0.5:
            lines.append(
                f"WARNING: '{worst[1]}' is hardly touched; raise 'erase' or lower 'preserve'."
            )
        if self.drift > DRIFT_WARNING:
            lines.append(
                "WARNING: kept prompts move a lot; raise 'preserve', lower 'erase', or list what you care about under 'keep'."
            )
        return "\n".join(
            [
                *lines,
                "Next: connect the patch to Apply Unlearn Patch and compare pictures with the same seed.",
            ]
        )
