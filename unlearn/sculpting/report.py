"""What the artist sees of a training run: the losses, a picture and a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .. import wording
from ..analysis import charts
from ..types import UnlearnPatch
from ..wording import Findings, Warn
from . import tuning
from .settings import DEFAULTS, TrainingSettings

MOST_BARS = 24  # concepts in the picture
MOST_LAYERS = 40  # matrices in the picture
MOST_REFRESHES = 12  # refreshes of the mask in the text
SLACK = 1.1  # on what may be left of a concept that counts as forgotten
AVERAGED = 10  # last steps that a loss is averaged over


class TrainingResult(NamedTuple):
    """What happened in a training run.

    concepts: names, in order; those after len(steps) were not reached. weight_counts: of each
    trained matrix. losses: for every step. mask_turnover: share exchanged, for every refresh.
    left: concept -> share left, after every round. steps: of every round.
    """

    settings: TrainingSettings
    concepts: tuple[str, ...]
    weight_counts: tuple[int, ...]
    losses: tuple[Mapping[str, float], ...]
    mask_turnover: tuple[float, ...]
    left: tuple[Mapping[str, float], ...]
    steps: tuple[int, ...]

    @property
    def left_at_end(self) -> Mapping[str, float]:
        """What is left of every concept after the last round; empty before the first is done."""
        return self.left[-1] if self.left else {}


class MatrixChange(NamedTuple):
    """How much a matrix changed, relative to its norm, and which share of its weights moved."""

    label: str
    change: float
    moved: float


class Outcome(NamedTuple):
    """The learned patch, the change of each matrix, and what a low rank lost of the change."""

    patch: UnlearnPatch
    changes: tuple[MatrixChange, ...]
    residual: float


def loss_map(losses: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The losses as ComfyUI's LOSS_MAP: term -> its value at every step, `loss` for the total.

    At a step without a term its last value is repeated.
    """
    names = dict.fromkeys(name for step in losses for name in step)
    found: dict[str, list[float]] = {}
    for name in names:
        values: list[float] = []
        for step in losses:
            values.append(step.get(name, values[-1] if values else 0.0))
        found["loss" if name == "total" else name] = values
    if len(set(found["loss"])) == 1:  # the stock graph divides by the range
        found["loss"].append(found["loss"][0] + 1e-6)
    return found


def picture(result: TrainingResult, changes: Sequence[MatrixChange]) -> torch.Tensor:
    """The report as an IMAGE."""
    left = [
        (name, x, f"{x:.0%} left", _colour(x, result.settings.stop_at))
        for name, x in list(result.left_at_end.items())[:MOST_BARS]
    ]
    longest = max([*result.steps, 1])
    steps = [
        (name, n / longest, f"{n} steps", charts.NEUTRAL)
        for name, n in list(zip(result.concepts, result.steps, strict=False))[:MOST_BARS]
    ]
    largest = max([c.change for c in changes] + [1e-9])
    matrices = [
        (c.label, c.change / largest, f"{c.change:.2%}", charts.NEUTRAL)
        for c in changes[:MOST_LAYERS]
    ]
    return charts.bar_charts(
        verdict(result),
        [
            ("What is left of each concept in new sentences", left),
            ("Details: steps", steps),
            ("Details: change of each matrix", matrices),
        ],
    )


def _colour(left: float, goal: float) -> tuple[int, int, int]:
    return charts.GOOD if left <= SLACK * goal else charts.BAD


def verdict(result: TrainingResult) -> str:
    """What is said of a training: which concepts reached what counts as forgotten."""
    left = result.left_at_end
    goal = min(result.settings.stop_at, DEFAULTS["stop_at"])
    gone = [name for name, share in left.items() if share <= SLACK * goal]
    back = [name for name in left if name not in gone]
    missing = [name for name in result.concepts if name not in left]
    words = [
        wording.sentence(f"{wording.names(names)} {said}")
        for names, said in (
            (back, "may come back"),
            (gone, "forgotten"),
            (missing, "not trained yet"),
        )
        if names
    ]
    return " ".join(words)


def text(result: TrainingResult, outcome: Outcome, seconds: float, notes: Sequence[Warn]) -> str:
    """The report in words. notes: warnings from outside the training."""
    told = Findings(warnings=[*notes])
    _not_forgotten(result, told)
    told.details += [
        _summary(result, outcome, seconds),
        f"Forgotten: at most {SLACK * min(result.settings.stop_at, DEFAULTS['stop_at']):.0%} of a "
        "concept's effect is left in sentences that were not trained on.",
        *_rounds(result),
        *_losses(result),
    ]
    _low_rank(result, outcome.residual, told)
    ready = "Next: connect the patch to Apply Unlearn Patch."
    told.advice.insert(len(told.advice) if told.warnings else 0, ready)
    told.details.append("Compare pictures with the same seed.")
    return told.report(verdict(result))


def _summary(result: TrainingResult, outcome: Outcome, seconds: float) -> str:
    n = sum(result.weight_counts)
    counted = zip(outcome.changes, result.weight_counts, strict=True)
    moved = sum(change.moved * count for change, count in counted) / n
    return (
        f"{result.settings.variant}: {len(result.steps)} of {len(result.concepts)} concepts in "
        f"{sum(result.steps)} steps and {seconds:.0f} s; {moved:.0%} of {n / 1e6:.1f} M weights "
        f"in {len(outcome.changes)} matrices moved, {outcome.patch.nbytes / 2**20:.2f} MB."
    )


def _rounds(result: TrainingResult) -> list[str]:
    lines = []
    for name, steps, left in zip(result.concepts, result.steps, result.left, strict=False):
        later = (
            f", {result.left_at_end[name]:.0%} at the end" if left is not result.left[-1] else ""
        )
        lines.append(f"{name}: {steps} steps, {left[name]:.0%} left{later}")
    for name, left in result.left_at_end.items():
        if name not in result.concepts:
            lines.append(f"{name} (earlier): {left:.0%} left")
    return lines


def _losses(result: TrainingResult) -> list[str]:
    ends = []
    for term, values in loss_map(result.losses).items():
        last = values[-AVERAGED:]
        ends.append(f"{term} {values[0]:.2g} to {sum(last) / len(last):.2g}")
    lines = [f"Loss, first step to last ten: {', '.join(ends)}."]
    if result.mask_turnover:
        shares = ", ".join(f"{share:.0%}" for share in result.mask_turnover[:MOST_REFRESHES])
        lines.append(f"Exchanged in the mask at each refresh: {shares}.")
    return lines


def _low_rank(result: TrainingResult, residual: float, told: Findings) -> None:
    rank = result.settings.low_rank
    if not rank:
        return
    told.details.append(f"Cut to rank {rank}: {residual:.0%} of the change is lost.")
    if residual > tuning.LOW_RANK_WARNING:
        told.warn(
            "The patch holds little of what was learned.",
            "So low a rank holds little of what was learned; raise 'low_rank', or set it to 0.",
        )
        told.advice.append("Try: set 'low_rank' of Dynamic Mask Trainer to 0.")


def _not_forgotten(result: TrainingResult, told: Findings) -> None:
    s = result.settings
    for name, steps, left in zip(result.concepts, result.steps, result.left, strict=False):
        if left[name] > s.stop_at and steps >= s.steps:
            told.warn(
                f"'{wording.name(name)}' was not forgotten.",
                f"'{name}' was not forgotten in {steps} steps; raise 'steps' or 'learning_rate'.",
            )
            told.advice.append("Try: choose a longer 'preset' of Dynamic Mask Trainer.")
