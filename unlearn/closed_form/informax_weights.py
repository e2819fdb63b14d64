"""Informax weights of a layer's output rows, by one of three estimators."""

import torch

from ...kernels import informax
from . import tuning
from .token_statistics import Statistics

ESTIMATORS = ("graded", "printed", "shuffled")
QUANTILE_SAMPLES = 100_000  # weights that quantiles are taken from, at most


class InformaxWeights:
    """Gives the Informax weights of any layer, and remembers how they are spread.

    estimator: "graded"; "printed", as in the paper; or "shuffled", the graded ones in random
    order, a control that tells whether the order matters.
    """

    def __init__(self, stats: Statistics, estimator: str, seed: int = 0) -> None:
        self.stats, self.estimator = stats, estimator
        self.given: list[torch.Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, w0: torch.Tensor) -> torch.Tensor:
        """The weights [d_out] in [0, 1] of a layer w0 [d_out, d]."""
        stats, w0 = self.stats, w0.float()
        if self.estimator == "printed":
            weights = informax.printed(torch.cat(stats.positives) @ w0.T, stats.neutral @ w0.T)
        else:
            weights = informax.graded(
                [states @ w0.T for states in stats.positives],
                torch.cat([stats.neutral, stats.lookalikes]) @ w0.T,
            )
        if self.estimator == "shuffled":
            weights = weights[torch.randperm(len(weights), generator=self._generator)]
        self.given.append(weights.double())
        return weights

    def quantiles(self, at: tuple[float, ...] = tuning.QUANTILES) -> torch.Tensor:
        """Quantiles of all weights given out so far, float64 [len(at)]."""
        step = max(1, sum(map(len, self.given)) // QUANTILE_SAMPLES)
        levels = torch.tensor(at, dtype=torch.float64)
        return torch.quantile(torch.cat(self.given)[::step], levels) + 0.0  # not -0.0
