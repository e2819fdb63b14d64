"""When a round speeds up, cools down and ends, and how large its learning rate is.

A round counts its steps from the first one after the warm-up. The learning rate grows while the
concept fades too slowly to be gone in the steps that are allowed. Once the concept is gone, or time
is nearly up, the cooldown begins: the rate falls to zero, and the concept is overwritten only while
it begins to come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from . import tuning


@dataclass(frozen=True)
class Phase:
    """Where a round stands.

    lr_scale: the learning rate as a multiple of the setting. cooldown: its first step and its end,
    or None before it. overwriting: whether the concept is still overwritten.
    """

    lr_scale: float = 1.0
    cooldown: tuple[int, int] | None = None
    overwriting: bool = True


@dataclass(frozen=True)
class Schedule:
    """The rules of a round with at most `steps` steps, which ends when `stop_at` is left.

    whole: the round takes all its steps, however little is left.
    """

    steps: int
    stop_at: float
    whole: bool = False

    def length(self, phase: Phase) -> int:
        """How many steps the round has as things stand."""
        return self.steps if phase.cooldown is None else phase.cooldown[1]

    def measures(self, step: int) -> bool:
        """Whether what is left of the concept is measured before this step."""
        return step > 0 and step % tuning.MEASURE_EVERY == 0

    def after_measurement(self, phase: Phase, step: int, left: float) -> Phase:
        """The next phase when the share `left` of the concept was measured before a step."""
        if phase.cooldown is not None:
            return replace(phase, overwriting=left > tuning.OVERWRITE_ABOVE * self.stop_at)
        if left > self.stop_at ** (step / self.steps):  # slower than evenly over all steps
            faster = min(phase.lr_scale * tuning.LR_GROWTH, tuning.LR_SCALE_LIMIT)
            return replace(phase, lr_scale=faster, overwriting=True)
        if left > self.stop_at or self.whole:
            return replace(phase, overwriting=True)
        length = max(tuning.COOLDOWN_LEAST, int(tuning.COOLDOWN_SHARE * step))
        cooldown = (step, min(self.steps, step + length))
        return Phase(phase.lr_scale, cooldown, left > tuning.OVERWRITE_ABOVE * self.stop_at)

    def before_step(self, phase: Phase, step: int) -> Phase:
        """The phase of a step: the cooldown begins in any case when time is nearly up."""
        if phase.cooldown is None and step >= self.steps * tuning.COOLDOWN_AT:
            return replace(phase, cooldown=(step, self.steps))
        return phase

    def learning_rate(self, phase: Phase, step: int) -> float:
        """The learning rate of a step as a multiple of the setting (SM-11).

        It rises over the first steps and falls as a cosine during the cooldown. The released code
        has one cycle of fixed length instead.
        """
        rate = phase.lr_scale * min(1.0, (step + 1) / tuning.RAMP_STEPS)
        if phase.cooldown is None:
            return rate
        first, end = phase.cooldown
        return rate * 0.5 * (1 + math.cos(math.pi * (step - first) / (end - first)))
