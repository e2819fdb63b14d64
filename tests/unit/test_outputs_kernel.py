"""Least squares that give inputs other outputs, against float64 references of the objective."""

import pytest
import torch

from testbed import pack

kernel = pack.module("kernels.uce")


def rand(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n, d=24, d_out=7, kept=30):
    omega = rand(n, seed=3).abs() + 0.1
    return rand(n, d, seed=1), rand(n, d_out, seed=2), omega, rand(kept, d, seed=4)


def solve(x, y, omega, kept, eta, lam, beta):
    weighted = x * omega[:, None]
    return kernel.multiplier(weighted.T @ x, y.T @ weighted, kept.T @ kept, lam, eta, beta)


def stacked(x, y, omega, kept, eta, lam, beta):
    """The minimiser of eta sum omega |D x - y|^2 + beta |D k|^2 + lam |D|^2, by one lstsq."""
    gain = (eta * omega).sqrt()[:, None]
    rows = torch.cat([gain * x, beta**0.5 * kept, lam**0.5 * torch.eye(x.shape[1]).double()])
    wanted = torch.cat([gain * y, torch.zeros(len(rows) - len(x), y.shape[1]).double()])
    return torch.linalg.lstsq(rows, wanted).solution.T


@pytest.mark.parametrize("eta", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [1, 9, 60])
def test_equals_stacked_least_squares(eta, n):
    x, y, omega, kept = problem(n)
    found = solve(x, y, omega, kept, eta, 0.1, 0.5)
    torch.testing.assert_close(found, stacked(x, y, omega, kept, eta, 0.1, 0.5))


def test_few_inputs_get_their_outputs_and_what_is_kept_stays():
    x, y, omega, _ = problem(5)
    basis = torch.linalg.qr(torch.cat([x, rand(15, 24, seed=9)]).T)[0].T
    kept = basis[5:20]  # 15 directions beside those of x
    found = solve(x, y, omega, kept, 1e6, 1e-6, 1e6)
    torch.testing.assert_close(x @ found.T, y, atol=1e-4, rtol=1e-4)
    assert float((kept @ found.T).abs().max()) < 1e-4
