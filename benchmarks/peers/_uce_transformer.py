"""UCE on a diffusion transformer: its formula where text enters, as `uce.py` has it for UNets.

With cross-attention these layers are the keys and values of every block, which see text behind the
model's own text projection. With joint attention it is the one matrix through which token states
enter (`context_embedder`, `txt_in`); a pooled text vector stays as it is, as in the published code.
What the layers see is observed in the loaded model, because no text encoder gives it.

c, n and k are those of uce.py. They are solved in an orthonormal basis of all rows that occur: M
maps what is outside that span to nothing, so the result is the same.
"""

from typing import NamedTuple

import torch

from testbed import pack

from . import _shared

observed = pack.module("unlearn.files.observed_states")
Span = pack.module("kernels.spans").Span


class Own(NamedTuple):
    """What UCE reads of one group of layers, float64.

    c, n [m, r]: blocks of the names and of their targets. kept [r, r]: sum of k k^T over all rows
    of the empty text and of the kept names. basis [d, r].
    """

    c: torch.Tensor
    n: torch.Tensor
    kept: torch.Tensor
    basis: torch.Tensor


def is_transformer(model):
    return isinstance(_shared.layers.of(model), _shared.layers.Transformer)


def blocks_of(states, group, text):
    """(rows [n, d] float64, number of the last word token's row) of a text in each segment."""
    prompt = states.places(group).locate("{concept}", text)
    parts = states.places(group).parts(prompt)
    seen = states.get(group, parts)
    return [(seen[part.text].double(), max(part.last, 0)) for part in parts]


def read(states, group, concepts):
    """The Own of a group of layers."""
    c, n = [], []
    for name, target in _shared.pairs(concepts):
        pairs = zip(blocks_of(states, group, name), blocks_of(states, group, target), strict=True)
        for (old, last), (new, new_last) in pairs:
            block = _shared.block(old, new, last, new_last)
            c.append(block[0])
            n.append(block[1])
    kept = [rows for text in ("", *concepts.keep) for rows, _ in blocks_of(states, group, text)]
    every = torch.cat([*c, *n, *kept])
    span = Span(every.shape[1])
    span.add(every)
    basis = torch.eye(every.shape[1], dtype=torch.float64) if span.whole else span.basis.double()
    held = torch.cat(kept) @ basis
    return Own(torch.cat(c) @ basis, torch.cat(n) @ basis, held.T @ held, basis)


def edits(model, clip, concepts, setting):
    """Low-rank edits of every layer that sees token states."""
    states = observed.ObservedStates(_shared.layers.of(model), clip)
    found = []
    for group in states.groups:
        if group.pooled:
            continue
        own = read(states, group, concepts)
        preserve = setting.preserve * max(0.1, 1 / (1 + len(concepts.keep)))
        m = _shared.multiplier(own.c, own.n, own.kept, setting.lam, setting.erase, preserve)
        left, right = _shared.uce.factors(m, 1e-6)
        left, right = (own.basis @ left).float(), (right @ own.basis.T).float()
        for layer in group.layers:
            if layer.rows is not None or layer.columns is not None:
                raise ValueError(f"UCE is not written for a part of a matrix: {layer.key}")
            change = (_shared.weights.read(model, layer.key) @ left).half()
            found.append((layer.key, _shared.adapters.LowRank.of(change, right)))
    return found
