"""What the student follows: predictions of the teacher and of the model that came in.

They are made for many steps at once, because a larger batch is faster, and each is used more than
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..host.memory import BatchSize
from ..host.training_network import Network
from . import tuning
from .plan import ForgetTask
from .settings import TrainingSettings
from .training_data import RetainedGroup, TrainingData, pick


class FollowedRows(NamedTuple):
    """Rows to follow: latents x at noise levels sigma under texts.

    noise: the output that denoises x. prediction: the output to follow, or None.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    text_ids: Sequence[int]
    noise: torch.Tensor
    prediction: torch.Tensor | None

    def of_step(self, step: int, n: int) -> FollowedRows:
        """The n rows of a training step."""
        first = step % tuning.TEACHER_STEPS * n
        rows = slice(first, first + n)
        prediction = None if self.prediction is None else self.prediction[rows]
        return FollowedRows(
            self.x[rows], self.sigma[rows], self.text_ids[rows], self.noise[rows], prediction
        )


class TeacherPool:
    """The rows that are followed in one round, made anew every so many steps.

    superclass: SM-2 and SM-3, or None where neither has a weight. retained: in `replay`, what is to
    stay; concepts that were forgotten before follow the teacher, all else the model that came in.
    """

    def __init__(
        self,
        network: Network,
        data: TrainingData,
        settings: TrainingSettings,
        round_number: int,
        batch_size: BatchSize,
    ) -> None:
        self.network = network
        self.data = data
        self.settings = settings
        self.round = round_number
        self.batch_size = batch_size
        self.task: ForgetTask = data.plan.tasks[round_number]
        self.groups: list[RetainedGroup] = (
            data.retained_groups(round_number) if settings.replays else []
        )
        self.superclass: FollowedRows | None = None
        self.retained: FollowedRows | None = None
        self.number: int | None = None  # of the pool that is made

    def prepare(self, step: int) -> None:
        """Makes the pool of a step, unless it is made already."""
        number = step // (tuning.TEACHER_STEPS * tuning.TEACHER_USES)
        if number != self.number:
            self.fill(number)
            self.number = number

    @torch.no_grad()
    def fill(self, number: int) -> None:
        """Makes the pool of that number. The same number always gives the same rows."""
        s = self.settings
        seed = s.seed + 15485863 * (self.round + 1) + 32452843 * (number + 1)
        g = torch.Generator().manual_seed(seed % 2**63)
        done = number * tuning.TEACHER_STEPS * tuning.TEACHER_USES
        steps = min(tuning.TEACHER_STEPS, s.steps - done)
        if s.shows_superclass:
            n, pairs = steps * s.batch, self.task.pairs
            pictures = self.data.other[self.task.concept.name]
            text_ids = [self.network.text_id[pairs[i][1]] for i in pick(len(pairs), n, g)]
            latents = pictures[pick(len(pictures), n, g)]
            from_teacher = torch.ones(n, dtype=torch.bool)
            self.superclass = self._followed(latents, text_ids, from_teacher, s.batch, g)
        if self.groups:
            rows = self.data.retained_rows(self.groups, steps * s.held, g)
            self.retained = self._followed(*rows, s.held, g)

    def _followed(
        self,
        latents: torch.Tensor,
        text_ids: list[int],
        from_teacher: torch.Tensor,
        per_step: int,
        g: torch.Generator,
    ) -> FollowedRows:
        """Latents under texts with their predictions.

        from_teacher: booleans [n], whether the teacher predicts or the model that came in.
        """
        net = self.network
        latents = latents.to(net.device)
        steps = len(text_ids) // per_step
        sigma = torch.cat([spread_levels(net, per_step, g) for _ in range(steps)])
        x = net.noised(latents, noise_like(latents, g), sigma)
        noise = net.denoising_target(latents, x, sigma)
        prediction = None
        if self.settings.distils:
            prediction = torch.empty_like(x)
            for branch, chosen in ((net.teacher, from_teacher), (net.reference, ~from_teacher)):
                at = chosen.nonzero()[:, 0].tolist()
                if at:
                    ids = [text_ids[i] for i in at]
                    prediction[at] = net.predict_in_batches(
                        branch, x[at], sigma[at], ids, self.batch_size, most_rows(self.settings)
                    )
        return FollowedRows(x, sigma, text_ids, noise, prediction)


def most_rows(settings: TrainingSettings) -> int:
    """Rows that are predicted at once without gradient: as many as one training step has."""
    return 2 * settings.batch + settings.held


def noise_like(latents: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Standard normal noise, drawn on the CPU, so that it is the same on every device."""
    return torch.randn(latents.shape, generator=g).to(latents.device)


def spread_levels(network: Network, n: int, g: torch.Generator) -> torch.Tensor:
    """n noise levels, one in each n-th part of the schedule, in random order."""
    fractions = (torch.arange(n) + torch.rand(n, generator=g)) / n
    return network.levels(fractions[torch.randperm(n, generator=g)])
