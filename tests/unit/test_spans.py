"""The span of rows, and where phrases stand among tokens."""

import pytest
import torch

from testbed import pack

kernel = pack.module("kernels.spans")
scapre = pack.module("kernels.scapre")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_span_is_no_larger_than_its_rows_and_holds_them(rank):
    rows = rand(60, rank) @ rand(rank, 12, seed=1)
    span = kernel.Span(12)
    for block in rows.split(7):
        span.add(block)
    basis = span.basis
    assert basis.shape == (12, rank) and span.whole == (rank == 12)
    assert torch.allclose(basis.T @ basis, torch.eye(rank), atol=1e-5)
    assert torch.allclose(rows @ basis @ basis.T, rows, atol=1e-4)


def test_rows_of_nothing_add_nothing():
    span = kernel.Span(4)
    span.add(torch.zeros(3, 4))
    span.add(torch.zeros(0, 4))
    assert span.basis.shape == (4, 0)
    span.add(torch.eye(4)[:1])
    span.add(torch.eye(4)[:2])
    assert span.basis.shape == (4, 2)


def test_what_is_solved_in_a_span_is_what_is_solved_in_the_whole_space():
    """S and K live in the span; outside it the penalty is lambda I, and the edit does nothing."""
    rows, kept = rand(3, 4) @ rand(4, 20, seed=1), rand(6, 4, seed=2) @ rand(4, 20, seed=1)
    span = kernel.Span(20)
    span.add(torch.cat([rows, kept]))
    basis = span.basis.double()

    def multiplier(x, k, width):
        s, p = scapre.gram(x), scapre.gram(k) + 0.05 * torch.eye(width, dtype=torch.float64)
        mu, v = scapre.anchored_basis(s, p)
        return -s @ v @ torch.diag(100 / (1 + 100 * mu)) @ v.T

    whole = multiplier(rows, kept, 20)
    small = multiplier(rows.double() @ basis, kept.double() @ basis, basis.shape[1])
    assert torch.allclose(basis @ small @ basis.T, whole, atol=1e-4)


def test_rank_by_change_counts_what_is_erased_and_not_where_nothing_is_kept():
    """Two concepts as long; in the direction of one nothing is kept, so its mu is far larger."""
    s = torch.diag(torch.tensor([1.0, 1.0, 0.0])).double()
    p = torch.diag(torch.tensor([1e-6, 1.0, 1.0])).double()
    mu, v = scapre.anchored_basis(s, p)
    assert scapre.rank_by_energy(mu, 100.0, 0.999) == 1
    assert scapre.rank_by_change(mu, s @ v, 100.0, 0.999) == 2
    assert scapre.rank_by_change(mu[:0], s @ v[:, :0], 100.0, 0.999) == 0
