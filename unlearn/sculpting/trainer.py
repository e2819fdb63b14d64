"""Sculpting Memory on a ComfyUI model: one concept after another is overwritten by training a moving part of the attention matrices.

Rounds, terms and masks are those of kernels/sculpt.py; the teacher is the model at the start of the round. Variants: `released` trains
overwrite and alignment, as the authors' code computes; `intended` adds distillation under the superclass; `replay` distils everything
else too: what earlier rounds made forgotten, the keep list, everyday captions and the empty prompt.
"""

import math
import re
import time
from typing import NamedTuple

import comfy.model_management
import latent_preview
import torch

from ...kernels import sculpting as kernel
from ..errors import UnlearnError
from ..host import progress
from .training_data import pick

EVERY = 5  # steps between two measurements of what is left
MEASURED = 8  # held-out predictions in a measurement
FASTER, FASTEST = (
    1.14,
    2.0,
)  # the rate grows while a concept goes more slowly than steps allow, up to so many times the setting
SETTLE, SETTLE_LEAST = (
    1.0,
    20,
)  # once a concept is gone, the rate falls to nothing over this share of the steps taken, and at least so many
ENOUGH = 0.9  # while the rate falls, a concept is overwritten only where more than this share of stop_at is left
STILL = 0.75  # share of the steps after which the rate falls in any case
RAMP = 10  # steps in which the learning rate rises: Adam's first ones are all of full length
POOL, USES = 25, 2  # the teacher is asked for 25 steps at once, and each answer serves twice
PREVIEW_STEPS = 10
EXPLODED = 100.0  # predictions have about unit variance
_READS = re.compile(r"attn2\.to_[kv]\.")  # the matrices that read the text


class Row(NamedTuple):
    """Rows of a batch: noised latents x [n, ...], noise levels [n], text rows, and what each is to become: (name, target, weight) terms."""

    x: torch.Tensor
    sigma: torch.Tensor
    texts: list
    terms: tuple


class Trainer:
    """The rounds over a Network's masters with Material; what has happened is in `history` (losses), `churn`, `left` and `steps`.

    Between two steps its state is whole: `number` of the round, `step` in it, `pace` (the learning rate over its setting), `settling`
    ([first step, end] of the steps in which the rate falls, or None), `push` (whether the concept is overwritten still), masters,
    optimiser, masks, importance, teacher and the generator's state at the beginning of the step (`mark`).
    """

    def __init__(self, network, material, settings, bar=None, node_id=None):
        self.network, self.material, self.settings, self.bar, self.node_id = (
            network,
            material,
            settings,
            bar,
            node_id,
        )
        self.params = list(network.masters.values())
        self.totals = [torch.zeros_like(p, requires_grad=False) for p in self.params]
        self.touched = [
            torch.zeros_like(p, dtype=torch.bool, requires_grad=False) for p in self.params
        ]
        self.optimizer = self.masks = None
        self.number, self.step, self.pace, self.settling, self.push = 0, 0, 1.0, None, True
        self.scaler = torch.amp.GradScaler(
            network.device.type, enabled=network.dtype == torch.float16
        )
        self.history, self.churn, self.left, self.steps = [], [], [], []
        self.spared = [
            p
            for key, p in network.masters.items()
            if settings["variant"] == "replay" and _READS.search(key)
        ]
        self.sparing = (
            kernel.retain_projector(material.held_states()).to(network.device)
            if self.spared
            else None
        )
        self.chunk = 10**9  # rows that go through the network at once; halved when memory runs out
        lessons = (
            (*material.plan.past, *material.plan.lessons)
            if settings["variant"] == "replay"
            else material.plan.lessons
        )
        self.checks = {lesson.concept.name: material.checks(lesson, MEASURED) for lesson in lessons}
        self.before = {
            name: max(material.left(network.reference, c, 2 * MEASURED), 1e-12)
            for name, c in self.checks.items()
        }

    def forecast(self):
        """(bytes, seconds) that training takes at most: what autograd keeps of one row and how long its passes take, times the rows."""
        s, net, kept = self.settings, self.network, {}
        own = {p.untyped_storage().data_ptr() for p in net.student.parameters()}

        def keep(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x, sigma = torch.zeros(1, *self.material.shape, device=net.device), net.levels([0.5])
        for _ in range(2):  # the first time is warming up
            start = time.time()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                loss = net.predict(net.student, x, sigma, [0]).square().mean()
            torch.autograd.grad(loss, self.params)
            float(loss.detach())  # waits for the device
            seconds = time.time() - start
        row = sum(n for at, n in kept.items() if at not in own)
        rows = s["batch"] * (1 + bool(s["align"] or s["distil"])) + s["held"] * (
            s["variant"] == "replay"
        )
        trained = sum(p.numel() for p in self.params)
        fixed = trained * (6 * 4 + 2) + sum(
            p.numel() * p.element_size()
            for p in (*net.reference.parameters(), *net.teacher_weights.values())
        )
        if not comfy.model_management.is_device_cpu(net.device):
            room = comfy.model_management.get_free_memory(net.device) - trained * 4 * 4
            self.chunk = max(1, min(self.chunk, int(room // max(1, row))))
        steps = len(self.material.plan.lessons) * (
            s["steps"] * rows * 1.4 + s["warmup"] * s["batch"]
        )
        return fixed + row * min(rows, self.chunk), steps * seconds

    def measure(self, name):
        """How much of a concept is left, held out: 1 as in the model that came in, 0 no difference to its superclass."""
        return (
            self.material.left(self.network.student, self.checks[name], 2 * MEASURED)
            / self.before[name]
        )

    def run(self, between=lambda: None, after=None):
        """All rounds that are left to do; `between` is called before every step, `after` at the end of every round."""
        while self.number < len(self.material.plan.lessons):
            if self.step == 0:
                self.open_round(self.number)
            self._round(self.material.plan.lessons[self.number], between)
            self.number, self.step = self.number + 1, 0
            if after is not None:
                after()

    def open_round(self, number):
        """Starts a round: teacher, optimiser, masks and importance are new (as released)."""
        self.number, self.masks, self.pace, self.settling, self.push = number, None, 1.0, None, True
        self.network.teach()
        fused = self.network.device.type in ("cpu", "cuda")
        self.optimizer = kernel.MaskedAdam(
            self.params, lr=self.settings["learning_rate"], fused=fused
        )
        self._forget_gradients()
        self.g = torch.Generator().manual_seed(
            (self.settings["seed"] + 104729 * (number + 1)) % 2**63
        )
        self.mark = self.g.get_state()

    def _forget_gradients(self):
        for total in self.totals:
            total.zero_()

    def _round(self, lesson, between):
        s, name = self.settings, lesson.concept.name
        groups = self.material.held(self.number) if s["variant"] == "replay" else None
        start, first = time.time(), self.step
        while self.step < (
            last := s["warmup"] + (self.settling[1] if self.settling else s["steps"])
        ):
            self.mark = (
                self.g.get_state()
            )  # whatever cancels from here on, the step can be taken again
            between()
            done, pace, settling, push = (
                self.step - s["warmup"],
                self.pace,
                self.settling,
                self.push,
            )
            if done > 0 and done % EVERY == 0:
                left = self.measure(name)
                seconds = (time.time() - start) / max(1, self.step - first) * (last - self.step)
                progress.say(
                    f"{name}: step {done}, {left:.0%} left, at most {seconds:.0f} s more",
                    self.node_id,
                )
                if settling is None and left > s["stop_at"] ** (
                    done / s["steps"]
                ):  # slower than evenly over all steps
                    pace = min(pace * FASTER, FASTEST)
                elif settling is None and left <= s["stop_at"]:
                    settling = [done, min(s["steps"], done + max(SETTLE_LEAST, int(SETTLE * done)))]
                push = settling is None or left > ENOUGH * s["stop_at"]
            if (
                settling is None and done >= s["steps"] * STILL
            ):  # it is not gone, and time is nearly up
                settling = [done, s["steps"]]
            if done < 0:
                self._warm_up(lesson, done)
            else:
                if done % (POOL * USES) == 0 or self.step == first:
                    self._ask_teacher(lesson, groups, done // (POOL * USES))
                losses = self._backward(self._rows(lesson, done, push), lesson)
                if self._accumulate():
                    self._move(done, pace, settling)
                self.history.append(losses)
                if settling is None and (done + 1) % s["refresh"] == 0:
                    self._refresh((done + 1) / s["steps"])
            self.step, self.pace, self.settling, self.push = self.step + 1, pace, settling, push
        self.left.append({n: self.measure(n) for n in self.checks})
        self.steps.append(self.step - s["warmup"])
        if self.bar is not None:
            self.bar.bar.update(s["steps"] - self.steps[-1])

    def _warm_up(self, lesson, done):
        """SM-5 to SM-8: the concept's own pictures under its own name; gradients are gathered, nothing moves."""
        b = self.settings["batch"]
        latents, own, _ = self._picked(lesson, b)
        sigma = self._levels(b, self.g)
        x = self.network.noised(latents, self._noise(latents, self.g), sigma)
        self._backward(
            [Row(x, sigma, own, (("warm-up", self.network.answer(latents, x, sigma), 1 / b),))],
            lesson,
        )
        self._accumulate()
        if done == -1:
            self.masks = [
                kernel.initial_mask(total, self.settings["density"]) for total in self.totals
            ]
            self._confine()

    def _picked(self, lesson, b):
        """(latents [b, ...] on the device, text rows with the concept, and with its superclass), drawn at random."""
        pictures = self.material.own[lesson.concept.name]
        pairs = [lesson.pairs[i] for i in pick(len(lesson.pairs), b, self.g)]
        own, other = ([self.network.row[t] for t in part] for part in zip(*pairs, strict=True))
        return pictures[pick(len(pictures), b, self.g)].to(self.network.device), own, other

    def _noise(self, like, g):
        return torch.randn(like.shape, generator=g).to(self.network.device)

    def _levels(self, b, g):
        """b noise levels, one in each b-th part of the schedule, in random order."""
        return self.network.levels(
            ((torch.arange(b) + torch.rand(b, generator=g)) / b)[torch.randperm(b, generator=g)]
        )

    @torch.no_grad()
    def _ask_teacher(self, lesson, groups, turn):
        """What is to be followed in the next steps: the teacher under the superclass, and in `replay` on what was forgotten before; there
        also the model that came in, on all else that is held."""
        s, net = self.settings, self.network
        g = torch.Generator().manual_seed(
            (s["seed"] + 15485863 * (self.number + 1) + 32452843 * (turn + 1)) % 2**63
        )
        self.answers, steps = {}, min(POOL, s["steps"] - turn * POOL * USES)
        if s["align"] or s["distil"] and s["variant"] != "released":
            pictures, n = self.material.other[lesson.concept.name], steps * s["batch"]
            rows = [net.row[lesson.pairs[i][1]] for i in pick(len(lesson.pairs), n, g)]
            self.answers["superclass"] = self._answered(
                pictures[pick(len(pictures), n, g)],
                rows,
                torch.ones(n, dtype=torch.bool),
                s["batch"],
                g,
            )
        if groups:
            self.answers["held"] = self._answered(
                *self.material.held_rows(groups, steps * s["held"], g), s["held"], g
            )

    def _answered(self, latents, rows, taught, b, g):
        """(x, sigma, rows, noise or v, prediction to follow or None) for latents under texts, b to a step; taught: bool [n], whether it is
        the teacher's prediction or that of the model that came in."""
        net, latents = self.network, latents.to(self.network.device)
        sigma = torch.cat([self._levels(b, g) for _ in range(len(rows) // b)])
        x, answer = net.noised(latents, self._noise(latents, g), sigma), None
        if self.settings["variant"] != "released":
            answer = torch.empty_like(x)
            for branch, chosen in ((net.teacher, taught), (net.reference, ~taught)):
                if at := chosen.nonzero()[:, 0].tolist():
                    answer[at] = self._apart(branch, x[at], sigma[at], [rows[i] for i in at])
        return x, sigma, rows, net.answer(latents, x, sigma), answer

    def _rows(self, lesson, done, push):
        """One step's rows: SM-1 on the concept's pictures unless it is gone, SM-2 and SM-3 on the superclass', and what is held."""
        s, net, b, out = self.settings, self.network, self.settings["batch"], []
        of = lambda name, n: (
            part if part is None else part[done % POOL * n :][:n] for part in self.answers[name]
        )
        latents, own, other = self._picked(lesson, b)
        sigma = self._levels(b, self.g)
        if "superclass" in self.answers:
            y, sigma, rows, noise, taught = of(
                "superclass", b
            )  # both pictures are noised to the same levels
            terms = (("align", noise, s["align"] / b), ("distil", taught, s["distil"] / b))
            out.append(Row(y, sigma, rows, tuple(t for t in terms if t[1] is not None and t[2])))
        if push or not (out or "held" in self.answers):
            x = net.noised(latents, self._noise(latents, self.g), sigma)
            target = self._apart(net.student, x, sigma, other)
            out.insert(0, Row(x, sigma, own, (("overwrite", target, lesson.concept.weight / b),)))
        if "held" in self.answers:
            x, sigma, rows, _, taught = of("held", s["held"])
            out.append(Row(x, sigma, rows, (("replay", taught, s["hold"] / s["held"]),)))
        return out

    @torch.no_grad()
    def _apart(self, branch, x, sigma, rows):
        """Predictions without gradient, as many rows at once as one step has, fewer when memory runs out."""
        size, out = min(self.chunk, 2 * self.settings["batch"] + self.settings["held"]), []
        while len(out) < len(x):
            at = len(out)
            try:
                out += self.network.predict(
                    branch, x[at : at + size], sigma[at : at + size], rows[at : at + size]
                )
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                if size == 1:
                    raise
                self.chunk = size = size // 2
        return torch.stack(out)

    def _backward(self, rows, lesson):
        """Gradients of the objective over all rows, in as few passes as memory allows; returns name -> loss of each term and `total`."""
        x, sigma = torch.cat([r.x for r in rows]), torch.cat([r.sigma for r in rows])
        texts = [t for r in rows for t in r.texts]
        offsets = [sum(len(r.x) for r in rows[:i]) for i in range(len(rows))]
        where = [o + torch.arange(len(r.x)) for r, o in zip(rows, offsets, strict=True)]
        terms = [
            (name, at, target, weight)
            for r, at in zip(rows, where, strict=True)
            for name, target, weight in r.terms
        ]
        while True:
            for p in self.params:
                p.grad = None
            try:
                return self._passes(x, sigma, texts, terms, lesson)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                if min(self.chunk, len(x)) == 1:
                    raise
                self.chunk = min(self.chunk, len(x)) // 2
            comfy.model_management.soft_empty_cache()

    def _passes(self, x, sigma, texts, terms, lesson):
        found = {"total": 0.0}
        for a in range(0, len(x), self.chunk):
            z = min(len(x), a + self.chunk)
            prediction = self.network.predict(self.network.student, x[a:z], sigma[a:z], texts[a:z])
            here = [
                (name, at[(at >= a) & (at < z)] - a, target[(at >= a) & (at < z)], weight)
                for name, at, target, weight in terms
            ]
            index, target = (
                torch.cat([at for _, at, _, _ in here]).to(x.device),
                torch.cat([t for _, _, t, _ in here]),
            )
            weights = torch.cat([torch.full((len(at),), w) for _, at, _, w in here]).to(x.device)
            total, errors = kernel.objective(prediction[index], target, weights)
            self.scaler.scale(total).backward()
            found["total"] += float(total.detach())
            for (name, _, _, _), part in zip(
                here, (errors * weights).split([len(at) for _, at, _, _ in here]), strict=True
            ):
                found[name] = found.get(name, 0.0) + float(part.sum())
        if not found["total"] < EXPLODED:
            raise UnlearnError(
                f"Training on '{lesson.concept.name}' went astray at step {self.step + 1} (loss {found['total']:.3g}) and nothing was "
                "changed; lower 'learning_rate', or set 'precision' to fp32."
            )
        return found

    def _accumulate(self):
        """Turns the gradients (SM-12) and takes them into the importance (SM-6); False when they overflowed, as only scaled float16 may."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.stack([p.grad.norm() for p in self.params]).norm()
        if not torch.isfinite(norm):
            if not self.scaler.is_enabled():
                raise UnlearnError(
                    "Training gave infinite gradients and nothing was changed; lower 'learning_rate', or set 'precision' to fp32."
                )
            self.scaler.update()
            return False
        for p in self.spared:
            kernel.project_gradient(p.grad, self.sparing)
        for p, total in zip(self.params, self.totals, strict=True):
            kernel.accumulate(total, p.grad, self.settings["importance"])
        if self.step < self.settings["warmup"]:
            self.scaler.update()
        return True

    def _move(self, done, pace, settling):
        """SM-11, the rate rising at first and falling as a cosine at last (the release: one cycle of a fixed length)."""
        rate = pace * min(1.0, (done + 1) / RAMP)
        if settling is not None:
            rate *= 0.5 * (
                1 + math.cos(math.pi * (done - settling[0]) / (settling[1] - settling[0]))
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * rate
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _confine(self):
        self.optimizer.confine(dict(zip(self.params, self.masks, strict=True)))
        for seen, mask in zip(self.touched, self.masks, strict=True):
            seen |= mask
        self._forget_gradients()

    def _refresh(self, at):
        """SM-9 on every matrix."""
        tau = kernel.turnover(self.settings["turnover"], at)
        found = [
            kernel.refresh(mask, total, tau)
            for mask, total in zip(self.masks, self.totals, strict=True)
        ]
        self.masks = [mask for mask, _ in found]
        self.churn.append(sum(moved for _, moved in found) / sum(int(m.sum()) for m in self.masks))
        self._confine()

    def preview(self):
        """Every so many steps, a picture of the concept being forgotten, as the host shows pictures in the making."""
        s, done = self.settings, self.step - self.settings["warmup"]
        if self.bar is None or not s["preview_every"] or done <= 0 or done % s["preview_every"]:
            return
        net, lesson = self.network, self.material.plan.lessons[self.number]
        row = [net.row[lesson.drawn[0][0]]]
        latent = net.draw(
            net.student,
            row,
            [net.row[""]],
            [s["seed"]],
            self.material.shape,
            PREVIEW_STEPS,
            s["cfg"],
        )
        form = net.model.get_model_object("latent_format")
        shower = latent_preview.get_previewer(torch.device("cpu"), form)
        if (
            shower is None and form.latent_rgb_factors is not None
        ):  # asked for here, so shown even where samplers show none
            shower = latent_preview.Latent2RGBPreviewer(
                form.latent_rgb_factors, form.latent_rgb_factors_bias
            )
        if shower is not None:
            self.bar.bar.update_absolute(
                self.bar.bar.current, preview=shower.decode_latent_to_preview_image("JPEG", latent)
            )
