"""An orthonormal basis of what many rows span, found in one pass.

Block Gram-Schmidt, done twice ("twice is enough", Giraud et al. 2005). What is left of a block
gives new directions by the eigenvectors of its rows' products. Sums of outer products of the rows,
and edits that are made of them, live in this span. Where it is far smaller than the space, they are
computed in it.
"""

import torch

TOLERANCE = 1e-4  # of the longest row of a block: what is shorter is rounding in half precision


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
        left = self._without(rows.float())
        exact = left.double()  # squares of what is near TOLERANCE are no figures of float32
        values, vectors = torch.linalg.eigh(exact @ exact.T)
        least = TOLERANCE * float(rows.float().norm(dim=1).max())
        chosen = values > max(least, 1e-30) ** 2
        room = self.basis.shape[0] - self.basis.shape[1]
        new = left.T @ vectors[:, chosen][:, -room:].float()
        new = torch.linalg.qr(new)[0]
        new = torch.linalg.qr(self._without(new.T).T)[0]
        self.basis = torch.cat([self.basis, new], 1)

    def _without(self, rows: torch.Tensor) -> torch.Tensor:
        """What is left of rows [n, d] beside the span."""
        for _ in range(2):
            rows = rows - (rows @ self.basis) @ self.basis.T
        return rows
