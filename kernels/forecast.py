"""Collateral forecast: how much of a word's effect on keys and values an edit leaves.

It is not from a paper. Everything follows from three Gram matrices [d, d], summed over the layers
l with weights W0 before and W after the edit, so that thousands of words cost a product each:

    before = sum_l W0_l^T W0_l,   cross = sum_l W0_l^T W_l,   after = sum_l W_l^T W_l.

A word is given by its contrast x: its token states less those of the same sentence without it.
"""

import torch

SMALLEST = 1e-30  # keeps a state of zeros from dividing by zero


def _quadratic_form(states: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """s^T M s, float64 [...], of states [..., d] and a matrix [d, d]."""
    states = states.double()
    return ((states @ matrix.double()) * states).sum(-1)


def change(
    states: torch.Tensor, before: torch.Tensor, cross: torch.Tensor, after: torch.Tensor
) -> torch.Tensor:
    """Relative change of the outputs, |(W - W0) s| / |W0 s| over all layers, [n] float64.

    states [n, d]. It was measured to predict little of what a model loses.
    """
    original = _quadratic_form(states, before)
    moved = _quadratic_form(states, after) - 2 * _quadratic_form(states, cross) + original
    return (moved.clamp_min(0) / original.clamp_min(SMALLEST)).sqrt()


def retention(
    contrasts: torch.Tensor,
    before: torch.Tensor,
    cross: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The share of a contrast's outputs that is left, <W0 x, W x> / |W0 x|^2 over all layers.

    1 is untouched, 0 is gone, below 0 is reversed. contrasts [n, d] -> [n] float64; or [n, k, d]
    with weights [n, k], which takes the k token roles of each word as one.
    """
    left, whole = _quadratic_form(contrasts, cross), _quadratic_form(contrasts, before)
    if weights is not None:
        left, whole = (left * weights).sum(-1), (whole * weights).sum(-1)
    return left / whole.clamp_min(SMALLEST)


def moments(
    w0: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W0^T W0, W0^T W, W^T W), float64 [d, d], of one layer W = W0 + up @ down.

    w0 [d_out, d], up [d_out, r], down [r, d]. The products of W0 are taken in float32.
    """
    w0, up = w0.float(), up.float()
    before = (w0.T @ w0).double()
    mixed = (w0.T @ up).double() @ down.double()
    square = down.double().T @ (up.T @ up).double() @ down.double()
    return before, before + mixed, before + mixed + mixed.T + square


def shared(before: torch.Tensor, multiplier: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross, after), float64 [d, d], where every layer becomes W = W0 (I + M).

    before [d, d], multiplier M [d, d]. They are before (I + M) and (I + M)^T before (I + M).
    """
    identity = torch.eye(len(multiplier), dtype=torch.float64, device=multiplier.device)
    factor = identity + multiplier.double()
    return before.double() @ factor, factor.T @ before.double() @ factor


def agreement(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How far each word still stands out from the others as it did, [n] in [-1, 1].

    before, after [n, m]: what the unedited and the edited network predict for each word. It is the
    cosine of the two, each less its mean over all words.
    """
    a, b = before - before.mean(0), after - after.mean(0)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(SMALLEST)


def share_left(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The share of what a word adds to a prediction that is left, [n] float64.

    before, after [n, m]: predictions with a word less those without it, of the unedited and the
    edited network. 1 is untouched, 0 is gone, below 0 is reversed.
    """
    a, b = before.double(), after.double()
    return (a * b).sum(1) / a.square().sum(1).clamp_min(SMALLEST)
