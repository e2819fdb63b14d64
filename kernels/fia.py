"""FIA, Forget-It-All (arXiv 2601.06163), equations 1 to 8: saliency of connections, and masks.

W [C_out, C_in] is a linear layer, X [N, C_in] is its input at N positions, and Y = X W^T [N,
C_out] is its output without the bias. The score of equation 1 is a product of |W_ij| and an
activation part G, which alone depends on the prompt and the step. So only G is collected, and |W|
is multiplied in once:

    mean U = |W| mean G,   std U = |W| std G,   S = |W| relu(mean_c G - mean_b G - std_b G)   (eq 2)

There are two scores. `paper` has G_ij = |<X_j, Y_i>| / ||Y_i|| (equation 1, where ||X_j|| cancels
against the cosine's denominator). `wanda` has G_ij = n_j, the norm of column j of X after its rows
were brought to unit length. The released code computes `wanda`, without the cosine.
"""

from collections.abc import Sequence

import torch

SCORES = ("paper", "wanda")


def correlation(
    x: torch.Tensor, y: torch.Tensor, eps: float = 1e-12, out: torch.Tensor | None = None
) -> torch.Tensor:
    """G [C_out, C_in] of the score `paper` from x [N, C_in] and y [N, C_out] (equation 1).

    G_ij = |<X_j, Y_i>| / (||Y_i|| + eps). `out` takes the result where it is given.
    """
    g = torch.mm(y.T, x, out=out).abs_()
    return g.div_(torch.linalg.vector_norm(y, dim=0)[:, None] + eps)


def column_norms(x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """G [C_in] of the score `wanda`: column norms of x [N, C_in] after its rows got unit length.

    A row shorter than eps is divided by eps.
    """
    weight = torch.linalg.vector_norm(x, dim=1).clamp_min(eps).reciprocal()
    return (weight.square() @ x.square()).sqrt()


class RunningMoments:
    """Mean and squared deviations of tensors that come one by one (Welford's method).

    Two runs can be merged (Chan's method). `mean` and `m2`, the sum of squared deviations, are
    changed in place. Where `m2` is None only the mean is kept. `n` counts the tensors.
    """

    def __init__(self, mean: torch.Tensor, m2: torch.Tensor | None = None, n: int = 0) -> None:
        self.mean = mean
        self.m2 = m2
        self.n = n

    def add(self, g: torch.Tensor) -> None:
        """Takes in one tensor of the shape of `mean`. The content of `g` is overwritten."""
        self.n += 1
        if self.m2 is None:
            self.mean.lerp_(g, 1 / self.n)
            return
        g -= self.mean
        self.mean.add_(g, alpha=1 / self.n)
        # (g - old mean)(g - new mean) is (g - old mean)^2 (n - 1) / n
        self.m2.addcmul_(g, g, value=1 - 1 / self.n)

    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """The moments of both runs together, as a new object."""
        n = self.n + other.n
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.n / n)
        m2 = None
        if self.m2 is not None:
            assert other.m2 is not None
            m2 = self.m2 + other.m2 + gap.square() * (self.n * other.n / n)
        return RunningMoments(mean, m2, n)

    def bound(self) -> torch.Tensor:
        """Mean plus population standard deviation, which a concept must exceed (equation 2).

        It needs `m2`.
        """
        assert self.m2 is not None
        return self.mean + (self.m2 / max(1, self.n)).sqrt()


def contrast(w: torch.Tensor, mean_concept: torch.Tensor, bound_base: torch.Tensor) -> torch.Tensor:
    """S [C_out, C_in] of equation 2.

    w: the weight [C_out, C_in]. mean_concept: the concept's mean of G. bound_base: the baseline's
    mean plus standard deviation of G. Both are [C_out, C_in], or [C_in] where G is the same in
    every row.
    """
    return w.abs() * (mean_concept - bound_base).relu_()


def top_threshold(s: torch.Tensor, share: float, entries: int | None = None) -> torch.Tensor:
    """tau of equation 3: the value of rank floor(share * numel), at least 1, largest first.

    entries: how many there are, where s holds only those above zero.
    """
    rank = max(1, int(share * (s.numel() if entries is None else entries)))
    if rank > s.numel():
        return s.new_zeros(())
    return s.flatten().kthvalue(s.numel() - rank + 1).values


class SaliencyAccumulator:
    """Sums over denoising steps for equation 3.

    `total` is the sum of S [C_out, C_in]. `count` says at how many steps an entry of S was above
    the threshold of its step.
    """

    def __init__(
        self, shape: Sequence[int], device: torch.device | str = "cpu", steps: int = 255
    ) -> None:
        """steps: how many steps will be added at the most. It decides how wide `count` is."""
        self.total = torch.zeros(shape, device=device)
        self.count = torch.zeros(shape, dtype=count_dtype(steps), device=device)
        self.steps = 0

    def add(self, s: torch.Tensor, r1: float, positive: torch.Tensor | None = None) -> None:
        """Adds the S of one step, from any device.

        r1 is the share of connections that count as high at a step. positive: the entries of s
        above zero, where they are known; it is faster with them.
        """
        values = s if positive is None else positive
        high = s > top_threshold(values, r1, s.numel())
        self.count += high.to(self.count.device)
        self.total += s.to(self.total.device)
        self.steps += 1

    def saliency(self, scale: str = "layer_max") -> torch.Tensor:
        """A of equation 3, [C_out, C_in]. The content of `total` is overwritten.

        scale `none` is the equation as printed. scale `layer_max` is the released code: the mean
        of S is divided by its largest entry, so that strength and frequency weigh the same.
        """
        a = self.total.div_(self.steps)
        if scale == "layer_max":
            a.div_(a.max().clamp_min(1e-30))
        return a.add_(self.count, alpha=1 / self.steps).mul_(0.5)


def count_dtype(steps: int) -> torch.dtype:
    """The smallest dtype that can count to `steps`."""
    return torch.uint8 if steps <= 255 else torch.int16


def strongest(a: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices int32 [k], values [k]) of the largest entries of the flattened a, largest first.

    k is at most floor(share * numel). Only entries above zero count.
    """
    values, indices = a.flatten().topk(int(share * a.numel()))
    positive = int((values > 0).sum())
    return indices[:positive].int(), values[:positive]


def select_connections(ranked: torch.Tensor, c_out: int, c_in: int, r2: float) -> torch.Tensor:
    """Q of equations 4 to 6 as flat indices int64.

    An entry is in Q when it is among the top floor(r2 C_in), at least 1, of its row and among the
    top floor(r2 C_out C_in) of the layer. ranked: int32 flat indices, largest saliency first, at
    least as many as the layer's share. Every entry that is larger than one of the layer's top is
    in that top too, so the ranks within rows can be counted there.
    """
    top = ranked[: int(r2 * c_out * c_in)].long()
    row, order = torch.sort(top // c_in, stable=True)
    starts = torch.searchsorted(row, row)
    rank = torch.arange(len(row), device=row.device) - starts
    return top[order[rank < max(1, int(r2 * c_in))]]


def select_units(sums: torch.Tensor, r2: float) -> torch.Tensor:
    """Indices of the top floor(r2 n), at least 1, of row or column sums [n] that are above zero.

    This is the choice at granularity `row` and `neuron`.
    """
    values, indices = sums.topk(max(1, int(r2 * len(sums))))
    return indices[values > 0]


def fuse(
    chosen: Sequence[torch.Tensor], alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(entries [u], who bool [C, u], agnostic bool [u]) from the choices of C concepts (eq 8).

    entries: all indices that any concept chose, in ascending order. who: which concepts chose
    each. agnostic: chosen by at least ceil(alpha C) concepts. Such an entry is concept-agnostic
    and stays, and the others are pruned. With one concept everything that it chose is pruned.
    """
    entries, place = torch.cat(list(chosen)).unique(return_inverse=True)
    who = torch.zeros(len(chosen), len(entries), dtype=torch.bool)
    for row, mine in zip(who, place.split([len(c) for c in chosen]), strict=True):
        row[mine] = True
    if len(chosen) == 1:
        return entries, who, torch.zeros(len(entries), dtype=torch.bool)
    # For whole numbers this is the same as >= ceil(alpha C). The small number is for rounding.
    agnostic = who.sum(0) >= alpha * len(chosen) - 1e-9
    return entries, who, agnostic
