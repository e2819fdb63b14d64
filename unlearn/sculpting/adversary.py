"""Searching, while a concept is trained away, for the text states that bring it back best.

Whoever looks for an erased concept looks for text that still draws it: an embedding learned from
pictures, a prompt found by search. All of these reach the network as token states. So an adversary
searches the states themselves, a few steps of gradient descent at a time. Under what it finds,
the trainer leads pictures of the concept away from it (adversarial training; for text encoders
AdvUnlearn, arXiv 2405.15234).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...kernels import sculpting as kernel
from ..host.memory import BatchSize
from ..host.training_network import Network
from . import tuning


class Adversary:
    """States [slots, n, d] of one concept, float32 on the network's device.

    The first token of a text is the same in all, so it is never changed.
    """

    def __init__(self, network: Network, slots: int, steps: int) -> None:
        """slots: rows that are searched at once. steps: of descent in each training step."""
        self.network = network
        self.steps = steps
        self.texts = [0] * slots
        one = network.conds["c_crossattn"][:1]
        self.states = one.float().repeat(slots, 1, 1).to(network.device)
        self.remember()

    def remember(self) -> None:
        """Notes the present state, from which a training step can be taken again."""
        self.before_step = (self.states.clone(), list(self.texts))

    def restart(self, slot: int, text_id: int) -> None:
        """Lets a slot begin again from a text of the network."""
        self.texts[slot] = text_id
        self.states[slot] = self.network.conds["c_crossattn"][text_id].to(self.states)

    def turn(self, step: int, slot: int) -> int:
        """How often a slot has begun again before a training step; -1 before its first time."""
        return (step - self._offset(slot)) // tuning.SEARCHED_FOR

    def _offset(self, slot: int) -> int:
        return slot * tuning.SEARCHED_FOR // len(self.texts)

    def restart_some(self, step: int, text_ids: Sequence[int]) -> None:
        """Before a training step: slots begin again in turn, all of them at the first step.

        text_ids: a text for each slot.
        """
        for slot, text_id in enumerate(text_ids):
            if step == 0 or (step - self._offset(slot)) % tuning.SEARCHED_FOR == 0:
                self.restart(slot, text_id)

    def search(
        self, x: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor, batch_size: BatchSize
    ) -> None:
        """Changes the states so that the student denoises pictures of the concept better.

        x: latents [slots, ...] at noise levels sigma [slots]. noise: the outputs that denoise them.
        batch_size: how many slots go through the network at once.
        Each step moves every number by the same length, as in projected gradient descent
        (arXiv 1706.06083), a share of the states' root mean square.
        """
        for _ in range(self.steps):
            length = tuning.SEARCH_STEP * self.states.square().mean().sqrt()
            at, moved = 0, self.states.clone()
            while at < len(x):
                work = partial(self._gradient, x[at:], sigma[at:], noise[at:], at)
                n, gradient = batch_size.run(len(x) - at, work)
                moved[at : at + n, 1:] -= length * gradient[:, 1:].sign()
                at += n
            self.states = moved

    def _gradient(
        self, x: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor, first: int, n: int
    ) -> torch.Tensor:
        """The gradient [n, t, d] of the denoising loss by the states of n slots from `first` on."""
        states = self.states[first : first + n].detach().requires_grad_()
        texts = self.texts[first : first + n]
        student = self.network.student
        prediction = self.network.predict(student, x[:n], sigma[:n], texts, context=states)
        loss = kernel.squared_error(prediction, noise[:n]).sum()
        return torch.autograd.grad(loss, states)[0]
