"""Collateral forecast: how much of what a word says to a model's keys and values survives an edit, before a picture is drawn.

Everything follows from three moments over all layers, so thousands of words cost a product each:

    before = sum_l W0_l^T W0_l,   cross = sum_l W0_l^T W_l,   after = sum_l W_l^T W_l    [d, d].

A word is given by its contrast x, the difference of its token states to those of the same sentence without it.
"""

import torch


def _form(rows, m, other=None):
    return ((rows.double() @ m.double()) * (rows if other is None else other).double()).sum(-1)


def change(states, before, cross, after):
    """Relative change of the outputs, |(W - W0) s| / |W0 s| over all layers, [n] float64, of states [n, d]. Predicts little."""
    moved = _form(states, after) - 2 * _form(states, cross) + _form(states, before)
    return (moved.clamp_min(0) / _form(states, before).clamp_min(1e-30)).sqrt()


def retention(contrasts, before, cross, weights=None):
    """Share of a contrast's outputs that is still there, <W0 x, W x> / |W0 x|^2 over all layers; 1 untouched, 0 gone, below 0 reversed.

    contrasts [n, d] -> [n]; or [n, k, d] with weights [n, k]: several roles (own token, end token, padding) of each word as one.
    """
    left, whole = _form(contrasts, cross), _form(contrasts, before)
    if weights is not None:
        left, whole = (left * weights).sum(-1), (whole * weights).sum(-1)
    return left / whole.clamp_min(1e-30)


def moments(w0, up, down):
    """(W0^T W0, W0^T W, W^T W), float64 [d, d], of one layer W = W0 + up @ down; w0 [d_out, d], up [d_out, r], down [r, d]."""
    w0, up = w0.float(), up.float()
    before = (w0.T @ w0).double()
    mixed = (w0.T @ up).double() @ down.double()
    square = down.double().T @ (up.T @ up).double() @ down.double()
    return before, before + mixed, before + mixed + mixed.T + square


def shared(before, m):
    """(cross, after) where every layer is edited by the same W = W0 (I + M): before (I + M) and (I + M)^T before (I + M)."""
    factor = torch.eye(len(m), dtype=torch.float64, device=m.device) + m.double()
    return before.double() @ factor, factor.T @ before.double() @ factor


def agreement(before, after):
    """How far each word still stands out in the same way, [n] in [-1, 1]: the cosine of what an edited and the unedited network predict for
    it, [n, m], both less the mean over all words."""
    a, b = before - before.mean(0), after - after.mean(0)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-30)
