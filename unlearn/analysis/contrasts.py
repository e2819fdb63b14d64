"""What a phrase adds to a sentence: its token states less those of the same sentence with a neutral word."""

import torch

from ..files import text_cache


def _rows(concept, neutral, c, n, tokens):
    """Rows (role, c state, n state, weight) of one sentence pair: `concept` and `neutral` are Prompts, c and n their states [77, d].

    Roles: each of the concept's own tokens, counted from the last; the words behind it together; the end token; samples of the padding
    together, as heavy as one token (one by one they were measured to take superclasses along). Causal attention leaves what stands before
    the concept as it was.
    """
    length, shift = len(c), neutral.last - concept.last
    stand_in = max(
        neutral.last, neutral.first
    )  # with nothing in the concept's place: what comes next
    first = concept.first if tokens == "all" else concept.last
    rows = [(("own", p - concept.last), p, stand_in, 1.0) for p in range(first, concept.last + 1)]
    rows += [
        ("word", p, p + shift, 1.0 / (concept.end - concept.last - 1))
        for p in range(concept.last + 1, concept.end)
    ]
    rows.append(("end", concept.end, concept.end + shift, 1.0))
    pads = list(
        zip(
            text_cache.pads(concept.end, length), text_cache.pads(neutral.end, length), strict=False
        )
    )
    rows += [("pad", p, q, 1.0 / len(pads)) for p, q in pads]
    return [(role, c[p], n[min(q, length - 1)], weight) for role, p, q, weight in rows]


def contrast(pairs, read, tokens, target, scale):
    """(x, y [n, d], weights [n] float64, concept states, neutral states [k, d] float32, whether each of n is of the end token) of one
    concept's sentence pairs."""
    found = []  # (what is averaged over sentences, c state, n state, weight)
    for _, share, a, b in pairs:
        rows = _rows(a, b, read[a.text], read[b.text], tokens)
        total = sum(w for *_, w in rows)
        found += [((a.name, role), c, n, share * w / total) for role, c, n, w in rows]
    group, c, n, weights = zip(*found, strict=True)
    c, n, weights = (
        torch.stack(c).double() / scale,
        torch.stack(n).double() / scale,
        torch.tensor(weights, dtype=torch.float64),
    )
    if target == "difference":
        x, weights = _averaged(c - n, weights, group)
        return (
            x,
            torch.zeros_like(x),
            weights,
            c.float(),
            n.float(),
            [role == "end" for _, role in dict.fromkeys(group)],
        )
    return c, n, weights, c.float(), n.float(), [role == "end" for _, role in group]


def _averaged(rows, weights, group):
    """Weighted means of the rows of each group, with the groups' weights: what the sentences have in common."""
    ids = {g: j for j, g in enumerate(dict.fromkeys(group))}
    index = torch.tensor([ids[g] for g in group])
    total = torch.zeros(len(ids), dtype=torch.float64).index_add(0, index, weights)
    sums = torch.zeros(len(ids), rows.shape[1], dtype=torch.float64).index_add(
        0, index, rows * weights[:, None]
    )
    return sums / total[:, None], total
