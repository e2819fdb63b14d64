"""The rounds of Sculpting Memory: one concept after another is overwritten by training.

The equations are those of kernels/sculpting.py. The teacher is the model at the start of the round.
The variant `released` trains SM-1 and SM-2, as the authors' code does; `intended` adds SM-3;
`replay` distils everything else too: concepts that were forgotten before, the keep list, everyday
captions and the empty prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.amp.grad_scaler import GradScaler

from ...kernels import sculpting as kernel
from ..errors import UnlearnError
from ..host import progress
from ..host.architectures import cross_attention
from ..host.memory import BatchSize
from ..host.training_network import Network
from . import tuning
from .adversary import Adversary
from .batches import Batch, Rows, Term
from .plan import ForgetTask
from .report import TrainingResult
from .schedule import Phase, Schedule
from .settings import TrainingSettings
from .teacher import TeacherPool, most_rows, noise_like, spread_levels
from .training_data import Check, TrainingData, pick

LIGHTER = (
    "turn on 'checkpointing', lower 'size', or set 'trainable' to 'keys and values' and "
    "'precision' to bf16"
)
UNLIMITED = 10**9  # rows at once, until memory runs out
FUSED = ("cpu", "cuda")  # types of devices on which Adam does a step in one operation


class Trainer:
    """Trains a Network on TrainingData, round after round.

    Between two steps its state is complete: `round`, `step` in it (the warm-up counted), `phase`,
    the trained weights, optimizer, masks, importance and teacher, and `generator_state`, that of
    the random generator before the step. `started` is whether the first round was opened.

    What has happened is in `losses` (term -> value, for every step), `mask_turnover` (share
    exchanged, for every refresh), `left` (concept -> share left, for every round) and `steps` (for
    every round).
    """

    def __init__(
        self,
        network: Network,
        data: TrainingData,
        settings: TrainingSettings,
        bar: progress.Progress | None = None,
        node_id: str | None = None,
    ) -> None:
        self.network = network
        self.data = data
        self.settings = settings
        self.bar = bar
        self.node_id = node_id
        self.schedule = Schedule(settings.steps, settings.stop_at, whole=settings.resist > 0)
        self.adversary: Adversary | None = None
        if settings.resist:
            self.adversary = Adversary(network, settings.batch, settings.resist)
        self.weights = list(network.trainable.values())
        self.importance = [torch.zeros_like(w, requires_grad=False) for w in self.weights]
        self.touched = [
            torch.zeros_like(w, dtype=torch.bool, requires_grad=False) for w in self.weights
        ]
        self.masks: list[torch.Tensor] = []  # none before the end of the warm-up
        self.optimizer = self._new_optimizer()
        self.started = False
        self.round, self.step, self.phase = 0, 0, Phase()
        scaled = network.dtype == torch.float16
        self.scaler = GradScaler(network.device.type, enabled=scaled)
        self.losses: list[dict[str, float]] = []
        self.mask_turnover: list[float] = []
        self.left: list[dict[str, float]] = []
        self.steps: list[int] = []
        self.batch_size = BatchSize(UNLIMITED, remedy=LIGHTER)
        self._prepare_projection()
        self._prepare_measurements()

    def _prepare_projection(self) -> None:
        """Which weights have their gradients projected, and the projector's factor (SM-12)."""
        self.projected: list[int] = []
        self.projector = torch.zeros(0)
        if self.settings.replays:
            reading = {layer.key for layer in cross_attention(self.network.model)}
            keys = enumerate(self.network.trainable)
            self.projected = [i for i, key in keys if key in reading]  # SM-12
        if self.projected:
            factor = kernel.retain_projector(
                self.data.retained_states(), tuning.RETAIN_KAPPA, tuning.RETAIN_TOLERANCE
            )
            self.projector = factor.to(self.network.device)

    def _prepare_measurements(self) -> None:
        """What each concept is measured on, and how much its name changes in the reference."""
        plan, n = self.data.plan, tuning.MEASURED_PREDICTIONS
        tasks = (*plan.earlier_tasks, *plan.tasks) if self.settings.replays else plan.tasks
        self.measured_rows = BatchSize(2 * n, remedy=LIGHTER)
        self.checks: dict[str, Check] = {
            task.concept.name: self.data.check(task, n) for task in tasks
        }
        self.before = {name: self._unedited(check) for name, check in self.checks.items()}

    def _unedited(self, check: Check) -> float:
        reference = self.network.reference
        return max(self.data.difference(reference, check, self.measured_rows), 1e-12)

    def measure(self, name: str) -> float:
        """How much of a concept is left: 1 as in the model that came in, 0 like its superclass."""
        now = self.data.difference(self.network.student, self.checks[name], self.measured_rows)
        return now / self.before[name]

    def result(self) -> TrainingResult:
        """What a report needs of this training. It holds no tensor."""
        return TrainingResult(
            self.settings,
            tuple(task.concept.name for task in self.data.plan.tasks),
            tuple(w.numel() for w in self.weights),
            tuple(self.losses),
            tuple(self.mask_turnover),
            tuple(self.left),
            tuple(self.steps),
        )

    def run(
        self,
        before_step: Callable[[], None] = lambda: None,
        after_round: Callable[[], None] | None = None,
    ) -> None:
        """Does all rounds that are left."""
        while self.round < len(self.data.plan.tasks):
            if self.step == 0:
                self.open_round(self.round)
            self._train_round(before_step)
            self.round, self.step = self.round + 1, 0
            if after_round is not None:
                after_round()

    def open_round(self, number: int) -> None:
        """Starts a round with a new teacher, optimizer, mask and importance, as released."""
        self.round, self.masks, self.phase = number, [], Phase()
        self.started = True
        self.network.update_teacher()
        self.optimizer = self._new_optimizer()
        self._clear_importance()
        seed = (self.settings.seed + 104729 * (number + 1)) % 2**63
        self.generator = torch.Generator().manual_seed(seed)
        self.generator_state = self.generator.get_state()

    def _new_optimizer(self) -> kernel.MaskedAdam:
        fused = self.network.device.type in FUSED
        return kernel.MaskedAdam(self.weights, lr=self.settings.learning_rate, fused=fused)

    def _clear_importance(self) -> None:
        for total in self.importance:
            total.zero_()

    def _train_round(self, before_step: Callable[[], None]) -> None:
        s, task = self.settings, self.data.plan.tasks[self.round]
        teacher = TeacherPool(self.network, self.data, s, self.round, self.batch_size)
        start, first = time.time(), self.step
        while self.step < s.warmup + self.schedule.length(self.phase):
            # Whatever interrupts the step from here on, it can be taken again from this state.
            self.generator_state = self.generator.get_state()
            if self.adversary is not None:
                self.adversary.remember()
            before_step()
            per_step = (time.time() - start) / max(1, self.step - first)
            phase = self._next_phase(task, per_step)
            if self.step < s.warmup:
                self._warm_up(task)
            else:
                self._train_step(task, teacher, phase)
            self.step, self.phase = self.step + 1, phase
        self.left.append({name: self.measure(name) for name in self.checks})
        self.steps.append(self.step - s.warmup)
        if self.bar is not None:
            # Not Progress.skip, which raises after cancelling: the round is not closed yet.
            self.bar.bar.update(s.steps - self.steps[-1])
            self.bar.stage.skip(s.steps - self.steps[-1])

    def _next_phase(self, task: ForgetTask, seconds_per_step: float) -> Phase:
        """The phase of the step to come, after a measurement where one is due."""
        step, phase, name = self.step - self.settings.warmup, self.phase, task.concept.name
        if self.schedule.measures(step):
            left = self.measure(name)
            seconds = seconds_per_step * (self.schedule.length(phase) - step)
            progress.log.info(
                "%s: step %d, %.0f%% left, at most %.0f s more", name, step, 100 * left, seconds
            )
            if self.bar is not None:
                self.bar.stage.then = f"{left:.0%} of '{name}' remains"
            phase = self.schedule.after_measurement(phase, step, left)
        return self.schedule.before_step(phase, step)

    def _warm_up(self, task: ForgetTask) -> None:
        """SM-5 to SM-8: gradients on the concept's own pictures are gathered, nothing moves."""
        s = self.settings
        latents, own, _ = self._random_pictures(task)
        sigma = spread_levels(self.network, s.batch, self.generator)
        x = self.network.noised(latents, noise_like(latents, self.generator), sigma)
        term = Term("warm-up", self.network.denoising_target(latents, x, sigma), 1 / s.batch)
        self._backward(Batch([Rows(x, sigma, own, (term,))]), task)
        self._gather_importance()
        if self.step == s.warmup - 1:
            self.masks = [kernel.initial_mask(total, s.density) for total in self.importance]
            self._confine()

    def _train_step(self, task: ForgetTask, teacher: TeacherPool, phase: Phase) -> None:
        """One step of SM-4 and SM-6 to SM-11."""
        step = self.step - self.settings.warmup
        teacher.prepare(step)
        rows = self._step_rows(task, teacher, phase.overwriting)
        losses = self._backward(Batch(rows), task)
        if self._gather_importance():
            self._move(step, phase)
        self.losses.append(losses)
        if phase.cooldown is None and (step + 1) % self.settings.refresh == 0:
            self._refresh_masks((step + 1) / self.settings.steps)

    def _random_pictures(
        self, task: ForgetTask, n: int | None = None
    ) -> tuple[torch.Tensor, list[int], list[int]]:
        """Latents [n, ...] on the device, and texts with the concept and its superclass.

        n: how many; None for a batch.
        """
        n, g, text_id = n or self.settings.batch, self.generator, self.network.text_id
        pairs = [task.pairs[i] for i in pick(len(task.pairs), n, g)]
        pictures = self.data.own[task.concept.name]
        latents = pictures[pick(len(pictures), n, g)].to(self.network.device)
        own = [text_id[text] for text, _ in pairs]
        return latents, own, [text_id[text] for _, text in pairs]

    def _led_tasks(self, task: ForgetTask, adversary: Adversary) -> list[ForgetTask]:
        """Whose pictures are led away, for each slot of the search.

        Every second slot is of the round's concept. The others are of those forgotten earlier, in
        turn, so that they stay hard to bring back.
        """
        plan, step = self.data.plan, self.step - self.settings.warmup
        done = (*plan.earlier_tasks, *plan.tasks[: self.round])
        earlier = [t for t in done if t.concept.name in self.data.own]
        found = []
        for slot in range(self.settings.batch):
            turn = adversary.turn(step, slot) + slot // 2
            found.append(earlier[turn % len(earlier)] if earlier and slot % 2 else task)
        return found

    def _led_away(self, task: ForgetTask, adversary: Adversary) -> list[Rows]:
        """Rows that lead pictures of concepts away from them, whatever the text says.

        They are led away under the states that a search finds at each noise level, and under texts
        of all else at low ones, where a picture of a concept is told from others. All have the
        weight of the round's concept.
        """
        net, g, step = self.network, self.generator, self.step - self.settings.warmup
        led = self._led_tasks(task, adversary)
        n, weight = len(led), task.concept.weight / len(led)
        pictures, own, _ = zip(*(self._random_pictures(t, 1) for t in led), strict=True)
        latents, text_ids = torch.cat(pictures), [text_id for ids in own for text_id in ids]
        sigma = spread_levels(net, n, g)
        x = net.noised(latents, noise_like(latents, g), sigma)
        adversary.restart_some(step, text_ids)
        adversary.search(x, sigma, net.denoising_target(latents, x, sigma), self.batch_size)
        away = Term("resist", self._away(led, latents, x, sigma), weight)
        searched = Rows(x, sigma, text_ids, (away,), states=adversary.states.clone())
        fractions = (torch.arange(n) + torch.rand(n, generator=g)) / n
        low = net.levels(1 - tuning.LED_AWAY_BELOW * fractions[torch.randperm(n, generator=g)])
        z = net.noised(latents, noise_like(latents, g), low)
        away = Term("lead away", self._away(led, latents, z, low), weight)
        return [searched, Rows(z, low, [self._other_text(t) for t in led], (away,))]

    def _other_text(self, task: ForgetTask) -> int:
        """A random text that does not name the concept of a task."""
        own = {text for text, _ in task.pairs}
        others = [i for text, i in self.network.text_id.items() if text not in own]
        return others[pick(len(others), 1, self.generator)[0]]

    def _away(
        self, led: Sequence[ForgetTask], latents: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """The outputs that denoise x to the mean of each superclass' pictures, not to `latents`.

        At weak noise it is only a part of the way, so that these outputs differ from those that
        denoise x by LED_AWAY_BY times the size of the noise at most.
        """
        means = [self.data.other[t.concept.name].mean(0) for t in led]
        way = (torch.stack(means).to(x.device) - latents).flatten(1)
        share = tuning.LED_AWAY_BY * sigma / way.square().mean(1).sqrt().clamp_min(1e-12)
        toward = (share.clamp(max=1)[:, None] * way).view_as(latents)
        return self.network.denoising_target(latents + toward, x, sigma)

    def _step_rows(self, task: ForgetTask, teacher: TeacherPool, overwriting: bool) -> list[Rows]:
        """The rows of a step: SM-1 while it is overwritten, SM-2 and SM-3, and what is retained."""
        s, net, step = self.settings, self.network, self.step - self.settings.warmup
        latents, own, other = self._random_pictures(task)
        sigma = spread_levels(net, s.batch, self.generator)
        found: list[Rows] = []
        if teacher.superclass is not None:
            y, sigma, text_ids, noise, prediction = teacher.superclass.of_step(step, s.batch)
            # From here on sigma is theirs: both kinds of pictures have the same noise levels.
            terms = []
            if s.align:
                terms.append(Term("align", noise, s.align / s.batch))
            if prediction is not None and s.distil:
                terms.append(Term("distil", prediction, s.distil / s.batch))
            found.append(Rows(y, sigma, text_ids, tuple(terms)))
        if overwriting or not (found or self.adversary or teacher.retained):
            x = net.noised(latents, noise_like(latents, self.generator), sigma)
            target = net.predict_in_batches(
                net.student, x, sigma, other, self.batch_size, most_rows(s)
            )
            term = Term("overwrite", target, task.concept.weight / s.batch)
            found.insert(0, Rows(x, sigma, own, (term,)))
        if self.adversary is not None:
            found += self._led_away(task, self.adversary)
        if teacher.retained is not None:
            retained = teacher.retained.of_step(step, s.held)
            assert retained.prediction is not None  # `replay` distils
            term = Term("replay", retained.prediction, s.hold / s.held)
            found.append(Rows(retained.x, retained.sigma, retained.text_ids, (term,)))
        return found

    def _backward(self, batch: Batch, task: ForgetTask) -> dict[str, float]:
        """Sets the gradients of the objective over a batch, in as few passes as memory allows.

        Returns the loss of each term by name, and `total`.
        """
        _, losses = self.batch_size.run(len(batch), partial(self._set_gradients, batch))
        if not losses["total"] < tuning.EXPLODED_LOSS:
            raise UnlearnError(
                f"Training on '{task.concept.name}' went astray at step {self.step + 1} (loss "
                f"{losses['total']:.3g}) and nothing was changed; lower 'learning_rate', or set "
                "'precision' to fp32."
            )
        return losses

    def _set_gradients(self, batch: Batch, rows: int) -> dict[str, float]:
        """Sets the gradients of a batch, `rows` of its rows at a time (SM-4)."""
        for w in self.weights:
            w.grad = None
        net, sums = self.network, []
        for chunk in batch.chunks(rows):
            context = net.states(chunk.text_ids, chunk.states)
            prediction = net.predict(net.student, chunk.x, chunk.sigma, chunk.text_ids, context)
            total, errors = kernel.objective(prediction[chunk.index], chunk.target, chunk.weights)
            self.scaler.scale(total).backward()
            sums.append(torch.cat([total.detach()[None], chunk.by_term(errors)]))
        losses: dict[str, float] = {}
        names = ["total", *(placed.term.name for placed in batch.placed)]
        # Read once for the whole step, because each reading waits for the device.
        for found in torch.stack(sums).tolist():
            for name, loss in zip(names, found, strict=True):
                losses[name] = losses.get(name, 0.0) + loss
        return losses

    def _gather_importance(self) -> bool:
        """Projects the gradients (SM-12) and adds them to the importance (SM-6).

        Returns False when they overflowed, which only scaled float16 may.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [w.grad for w in self.weights if w.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if not torch.isfinite(norm):
            if not self.scaler.is_enabled():
                raise UnlearnError(
                    "Training gave infinite gradients and nothing was changed; lower "
                    "'learning_rate', or set 'precision' to fp32."
                )
            self.scaler.update()
            return False
        for i in self.projected:
            kernel.project_gradient(gradients[i], self.projector)
        for gradient, total in zip(gradients, self.importance, strict=True):
            kernel.accumulate(total, gradient, self.settings.importance)
        if self.step < self.settings.warmup:
            self.scaler.update()
        return True

    def _move(self, step: int, phase: Phase) -> None:
        """SM-11 at the learning rate of the step."""
        rate = self.schedule.learning_rate(phase, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _confine(self) -> None:
        self.optimizer.confine(dict(zip(self.weights, self.masks, strict=True)))
        for touched, mask in zip(self.touched, self.masks, strict=True):
            touched |= mask
        self._clear_importance()

    def _refresh_masks(self, done: float) -> None:
        """SM-9 and SM-10 on every matrix; done: share of the steps that are taken."""
        tau = kernel.turnover(self.settings.turnover, done)
        exchanged, masks = 0, []
        for mask, total in zip(self.masks, self.importance, strict=True):
            refreshed, n = kernel.refresh(mask, total, tau)
            masks.append(refreshed)
            exchanged += n
        self.masks = masks
        self.mask_turnover.append(exchanged / sum(int(mask.sum()) for mask in masks))
        self._confine()
