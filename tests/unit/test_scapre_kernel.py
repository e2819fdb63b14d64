"""The closed-form maths against references written straight from the equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import pack

kernel = pack.module("kernels.scapre")
informax = pack.module("kernels.informax")


def problem(seed, d=24, rows=10, n=9, keep=30):
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    c, target, kept = rand(n, d), rand(n, d), rand(keep, d)
    omega, m = (
        torch.rand(n, generator=g, dtype=torch.float64) + 0.1,
        torch.rand(rows, generator=g, dtype=torch.float64),
    )
    return rand(rows, d), c, target, omega, m, kept


def penalty(kept, lam=0.1, beta=0.5):
    return lam * torch.eye(kept.shape[1], dtype=torch.float64) + beta * kept.T @ kept


def reference(w0, c, target, omega, m, p, eta):
    """Minimises eta m_i sum omega (w c - w0 n)^2 + (w - w0)^T P (w - w0) for each row.

    It solves the normal equations.
    """
    out = []
    for row, weight in zip(w0, m, strict=True):
        gain = eta * weight * omega
        a = p + (c.T * gain) @ c
        b = p @ row + c.T @ (gain * (target @ row))
        out.append(torch.cholesky_solve(b[:, None], torch.linalg.cholesky(a))[:, 0])
    return torch.stack(out)


def solve(w0, c, target, omega, m, p, eta):
    mu, v = kernel.anchored_basis(kernel.gram(c, omega), p)
    up = kernel.anchored_up(w0, kernel.cross_gram(target, c, omega) @ v, mu, eta, m)
    return w0 + up.double() @ v.T


@pytest.mark.parametrize("eta", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("n", [1, 9, 60])
def test_equals_row_by_row_cholesky(eta, n):
    w0, c, target, omega, m, kept = problem(1, n=n)
    want = reference(w0, c, target, omega, m, penalty(kept), eta)
    got = solve(w0, c, target, omega, m, penalty(kept), eta)
    assert (got - want).norm() / (want - w0).norm() < 1e-5


def test_literal_two_by_two():
    # One concept along x is erased. With lambda = 1 and eta = 3 the x column shrinks to
    # 1 / (1 + 3), and the y column stays.
    w0 = torch.tensor([[4.0, 7.0], [8.0, 5.0]], dtype=torch.float64)
    c, nothing = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 2).double()
    got = solve(w0, c, nothing, torch.ones(1), torch.ones(2), torch.eye(2).double(), 3.0)
    assert torch.allclose(got, torch.tensor([[1.0, 7.0], [2.0, 5.0]]).double(), atol=1e-6)


def test_zero_erase_changes_nothing():
    w0, c, target, omega, m, kept = problem(2)
    assert torch.equal(solve(w0, c, target, omega, m, penalty(kept), 0.0), w0)


def test_constant_weights_are_uce_with_a_scaled_target():
    w0, c, target, omega, _, kept = problem(3)
    lam, beta, eta, m = 0.5, 1.0, 1.0, 0.3
    scaled = eta * m * omega
    left = lam * w0 + w0 @ ((target.T * scaled) @ c) + beta * w0 @ kept.T @ kept
    right = lam * torch.eye(24).double() + (c.T * scaled) @ c + beta * kept.T @ kept
    uce = left @ torch.linalg.inv(right)
    got = solve(w0, c, target, omega, torch.full((10,), m).double(), penalty(kept, lam, beta), eta)
    assert (got - uce).norm() / (uce - w0).norm() < 1e-5


def test_rank_is_that_of_the_concepts():
    _, c, _, omega, _, kept = problem(4, n=5)
    mu, v = kernel.anchored_basis(kernel.gram(c, omega), penalty(kept), tolerance=1e-10)
    assert len(mu) == 5 and v.shape == (24, 5)
    assert torch.all(mu[:-1] >= mu[1:])


def test_kept_states_move_less_with_more_preservation():
    w0, c, target, omega, m, kept = problem(5, keep=8)
    moved = [
        ((solve(w0, c, target, omega, m, penalty(kept, 0.1, b), 10.0) - w0) @ kept.T).norm()
        for b in (0.0, 1.0, 100.0)
    ]
    assert moved[0] > moved[1] > moved[2]


def test_penalty_must_be_positive_definite():
    with pytest.raises(torch.linalg.LinAlgError):
        kernel.anchored_basis(torch.eye(3).double(), -torch.eye(3).double())


@pytest.mark.parametrize(
    "diagonal, tolerance, kept",
    [
        ([1e8, 1e-3, 1e-5], 1e-12, 2),  # 1e-12 of the largest is 1e-4
        ([1e-13, 1e-20, 1e-26], 1e-12, 2),
        ([2.0, 1.0, 0.5], 0.5, 1),  # exactly at the tolerance does not count
        ([0.0, 0.0, 0.0], 1e-12, 0),
    ],
)
def test_literal_bases(diagonal, tolerance, kept):
    s, eye = torch.diag(torch.tensor(diagonal, dtype=torch.float64)), torch.eye(3)
    for mu, v in (
        kernel.anchored_basis(s, eye, tolerance),
        kernel.confined_basis(s, eye.double(), eye.double(), tolerance),
    ):
        assert mu.tolist() == pytest.approx(diagonal[:kept], rel=1e-9, abs=0) and torch.allclose(
            v.abs(), torch.eye(3).double()[:, :kept]
        )


def test_bases_leave_out_rounding_unless_told():
    s, eye = torch.diag(torch.tensor([1.0, 1e-11, 1e-13])), torch.eye(3).double()
    assert (
        len(kernel.anchored_basis(s, eye)[0])
        == len(kernel.confined_basis(s.double(), eye, eye)[0])
        == 2
    )


def test_literal_rank_by_energy():
    assert kernel.rank_by_energy(torch.tensor([1.0, 1.0]), 1.0, 0.5) == 1  # exactly half
    assert kernel.rank_by_energy(torch.tensor([1.0, 1.0]), 1.0, 0.51) == 2
    assert (
        kernel.rank_by_energy(torch.zeros(2), 1.0, 1.0)
        == kernel.rank_by_energy(torch.zeros(0), 1.0, 1.0)
        == 0
    )
    assert kernel.rank_by_energy(torch.tensor([1e-4, 1e-9]).double(), 1.0, 1.0) == 2


def test_half_precision_in_float64_out():
    x, y, omega = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(2)).half()
        for shape in ((50, 4), (50, 4), (50,))
    )
    for got, want in (
        (kernel.gram(x, omega), kernel.gram(x.double(), omega.double())),
        (kernel.cross_gram(x, y, omega), kernel.cross_gram(x.double(), y.double(), omega.double())),
        (kernel.cross_gram(x, y), (x.double() - y.double()).T @ y.double()),
        (kernel.spectral_trace(x), kernel.spectral_trace(x.double())),
        (
            kernel.anchored_basis(kernel.gram(x).half(), torch.eye(4).half())[0],
            torch.linalg.eigvalsh(kernel.gram(x).half().double()).flip(0),
        ),
    ):
        assert got.dtype == torch.float64 and torch.allclose(got, want, rtol=1e-12)


def test_spectral_trace_from_its_equation():
    c = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, _ = torch.linalg.svd(c, full_matrices=False)
    want = sum(
        (1 - 1 / (1 + torch.exp(-s[i]))) * s[i] * torch.outer(u[:, i], u[:, i]) for i in range(3)
    )
    assert torch.allclose(kernel.spectral_trace(c), want)


def test_informax_tells_rows_apart():
    # row 0 separates the classes, row 1 is noise-free but blind, row 2 separates half of them
    positive = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    negative = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    weights = informax.printed(positive, negative)
    assert weights[0] == 1 and weights[1] < 1e-6 and 0.2 < weights[2] < 0.8


def test_informax_without_information_is_one():
    same = torch.ones(4, 5)
    assert torch.equal(informax.printed(same, same), torch.ones(5))


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=20), st.floats(1e-3, 1e4), st.floats(0.5, 1)
)
@settings(max_examples=60, deadline=None)
def test_rank_by_energy_is_the_smallest_that_carries_it(values, eta, energy):
    mu = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = kernel.rank_by_energy(mu, eta, energy)
    erased = mu * (eta * mu / (1 + eta * mu)) ** 2
    assert 1 <= rank <= len(mu)
    assert erased[:rank].sum() >= energy * erased.sum() * (1 - 1e-9)
    assert rank == 1 or erased[: rank - 1].sum() < energy * erased.sum() * (1 + 1e-9)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 16), st.floats(1e-2, 1e3))
@settings(max_examples=40, deadline=None)
def test_any_shape_equals_the_reference(seed, n, d, eta):
    w0, c, target, omega, m, kept = problem(seed, d=d, rows=3, n=n, keep=d)
    want = reference(w0, c, target, omega, m, penalty(kept), eta)
    assert (solve(w0, c, target, omega, m, penalty(kept), eta) - want).norm() <= 1e-4 * (
        want.norm() + w0.norm()
    )


@pytest.mark.parametrize("d", [3, 30])
def test_a_tall_gram_matrix_is_the_plain_product(d):
    g = torch.Generator().manual_seed(5)
    tall = kernel.TALL + 3
    x = torch.randn(tall, d, generator=g, dtype=torch.float64)
    omega = torch.randn(len(x), generator=g, dtype=torch.float64)
    for weights in (None, omega):
        plain = x.T @ (x if weights is None else x * weights[:, None])
        found = kernel.gram(x, weights)
        assert torch.equal(found, found.T) and torch.allclose(found, plain, rtol=1e-12, atol=1e-9)
