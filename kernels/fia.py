"""FIA, Forget-It-All (arXiv 2601.06163): contrastive saliency of weight connections, and masks fused over concepts. Equations 1-8.

W [C_out, C_in] is a linear layer, X [N, C_in] what goes in over N positions, Y = X W^T [N, C_out] what comes out (without bias).
The score of eq 1 factors into |W_ij| and an activation part G that alone depends on prompt and step, so G is what is gathered and
W is multiplied in once:

    mean U = |W| mean G,   std U = |W| std G,   S = |W| relu(mean_c G - mean_b G - std_b G)                                  (eq 2)

Two scores: `paper`, G_ij = |<X_j, Y_i>| / ||Y_i|| (eq 1: ||X_j|| cancels in its cosine), and `wanda`, G_ij = n_j, the norm of column
j of X with its rows at unit length: what the released code computes, without the cosine.
"""

import torch

SCORES = ("paper", "wanda")


def correlation(x, y, eps=1e-12, out=None):
    """G [C_out, C_in] of the score `paper`: |<X_j, Y_i>| / (||Y_i|| + eps), from one product; x [N, C_in], y [N, C_out] (eq 1)."""
    g = torch.mm(y.T, x, out=out).abs_()
    return g.div_(torch.linalg.vector_norm(y, dim=0)[:, None] + eps)


def column_norms(x, eps=1e-12):
    """G [C_in] of the score `wanda`: norms of the columns of x [N, C_in] whose rows are brought to unit length."""
    weight = torch.linalg.vector_norm(x, dim=1).clamp_min(eps).reciprocal()
    return (weight.square() @ x.square()).sqrt()


class RunningMoments:
    """Mean and population standard deviation of tensors that come one by one (Welford), or of two such runs merged (Chan)."""

    def __init__(self, mean, m2=None, n=0):
        """mean, m2: where the running mean and sum of squared deviations are kept, changed in place; m2 None: the mean only."""
        self.mean, self.m2, self.n = mean, m2, n

    def add(self, g):
        """Takes in one tensor of the shape of `mean`; `g` is used up."""
        self.n += 1
        if self.m2 is None:
            self.mean.lerp_(g, 1 / self.n)
            return
        g -= self.mean
        self.mean.add_(g, alpha=1 / self.n)
        self.m2.addcmul_(
            g, g, value=1 - 1 / self.n
        )  # (g - old mean)(g - new mean) = (g - old mean)^2 (n - 1) / n

    def merge(self, other):
        """The moments of both runs together, as new ones."""
        n = self.n + other.n
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.n / n)
        m2 = None if self.m2 is None else self.m2 + other.m2 + gap.square() * (self.n * other.n / n)
        return RunningMoments(mean, m2, n)

    def bound(self):
        """mean + std: what a concept must exceed to count (eq 2)."""
        return self.mean + (self.m2 / max(1, self.n)).sqrt()


def contrast(w, mean_concept, bound_base):
    """S [C_out, C_in] of eq 2 from W, the concept's mean G and the base's mean + std of G; G may be [C_in], the same for every row."""
    return w.abs() * (mean_concept - bound_base).relu_()


def top_threshold(s, share):
    """The value of rank floor(share * numel) (at least 1) in s, largest first: tau of eq 3."""
    rank = max(1, int(share * s.numel()))
    return s.flatten().kthvalue(s.numel() - rank + 1).values


class SaliencyAccumulator:
    """Sums over denoising steps for eq 3: `total` of S [C_out, C_in] and `count` of how often S was above its step's threshold."""

    def __init__(self, shape, device="cpu"):
        self.total, self.steps = torch.zeros(shape, device=device), 0
        self.count = torch.zeros(shape, dtype=torch.uint8, device=device)

    def add(self, s, r1):
        """One step's S; r1 is the share of connections that count as high at a step."""
        self.count += s > top_threshold(s, r1)
        self.total += s
        self.steps += 1

    def saliency(self, scale="layer_max"):
        """A of eq 3, [C_out, C_in] (uses `total` up). scale: `none` as printed, `layer_max` as released, the mean of S divided by its
        largest entry, so that strength and frequency weigh the same."""
        a = self.total.div_(self.steps)
        if scale == "layer_max":
            a.div_(a.max().clamp_min(1e-30))
        return a.add_(self.count, alpha=1 / self.steps).mul_(0.5)


def strongest(a, share):
    """(indices int32 [k], values [k]) into the flattened a, largest first: at most floor(share * numel) entries, all above zero."""
    values, indices = a.flatten().topk(int(share * a.numel()))
    positive = int((values > 0).sum())
    return indices[:positive].int(), values[:positive]


def select_connections(ranked, c_out, c_in, r2):
    """Q of eqs 4-6 as flat indices: top floor(r2 C_in) (at least 1) of each row and top floor(r2 C_out C_in) of the layer.

    ranked: int32 flat indices, largest saliency first, at least as many as the layer's share. Whatever is larger than an entry of
    the layer's top lies in that top too, so ranks within rows can be counted there.
    """
    top = ranked[: int(r2 * c_out * c_in)].long()
    row, order = torch.sort(top // c_in, stable=True)
    starts = torch.searchsorted(row, row)
    rank = torch.arange(len(row), device=row.device) - starts
    return top[order[rank < max(1, int(r2 * c_in))]]


def select_units(sums, r2):
    """Indices of the top floor(r2 n) (at least 1) of row or column sums [n] that are above zero: granularity `neuron` and `row`."""
    values, indices = sums.topk(max(1, int(r2 * len(sums))))
    return indices[values > 0]


def fuse(chosen, alpha):
    """(entries [u], who bool [C, u], agnostic bool [u]) from each concept's chosen indices (eq 8).

    entries: all that any concept chose, in order; who: which concepts chose it. One chosen by s >= ceil(alpha C) concepts is
    concept-agnostic and survives, the others are pruned. With one concept all that it chose is pruned.
    """
    entries, place = torch.cat(chosen).unique(return_inverse=True)
    who = torch.zeros(len(chosen), len(entries), dtype=torch.bool)
    for row, mine in zip(who, place.split([len(c) for c in chosen]), strict=True):
        row[mine] = True
    if len(chosen) == 1:
        return entries, who, torch.zeros(len(entries), dtype=torch.bool)
    return (
        entries,
        who,
        who.sum(0) >= alpha * len(chosen) - 1e-9,
    )  # for whole s the same as >= ceil(alpha C), but for rounding
