"""An orthonormal basis of what many rows span, found in one pass.

Classical Gram-Schmidt, twice for each block ("twice is enough", Giraud et al. 2005), with a QR
factorisation of what is left of the block. Sums of outer products of the rows, and edits that are
made of them, live in this span. Where it is far smaller than the space, they are computed in it.
"""

import torch

TOLERANCE = 1e-5  # of the longest row of a block: what is shorter is rounding


class Span:
    """Takes rows [n, d] block by block; `basis` [d, r] float32 has orthonormal columns."""

    def __init__(self, width: int) -> None:
        self.basis = torch.zeros(width, 0)

    @property
    def whole(self) -> bool:
        """Whether everything lies in the span."""
        return self.basis.shape[1] >= self.basis.shape[0]

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows [n, d] to the span."""
        if self.whole or not len(rows):
            return
        rows = rows.float()
        longest = float(rows.norm(dim=1).max())
        if longest <= 0:
            return
        left = rows
        for _ in range(2):
            left = left - (left @ self.basis) @ self.basis.T
        q, r = torch.linalg.qr(left.T)
        size = r.norm(dim=1)
        new = q[:, size > TOLERANCE * longest]
        for _ in range(2):  # of small remainders hardly any figure is exact
            new = new - self.basis @ (self.basis.T @ new)
            new = torch.linalg.qr(new)[0]
        room = self.basis.shape[0] - self.basis.shape[1]
        self.basis = torch.cat([self.basis, new[:, :room]], 1)
