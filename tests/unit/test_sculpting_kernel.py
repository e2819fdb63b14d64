"""The moving mask and its optimiser, against references written straight from the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from testbed import pack

kernel = pack.module("kernels.sculpting")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_literal_losses_and_objective():
    prediction, target = (
        torch.tensor([[1.0, 3.0], [0.0, 2.0]]),
        torch.tensor([[1.0, 1.0], [2.0, 2.0]]),
    )
    assert kernel.squared_error(prediction, target).tolist() == [2.0, 2.0]
    total, errors = kernel.objective(prediction, target, torch.tensor([0.5, 0.25]))
    assert float(total) == 1.5 and errors.tolist() == [2.0, 2.0]


def test_errors_of_pictures_in_half_precision():
    """One float32 number for each row of any shape; in half precision squares would overflow."""
    prediction, target = (
        torch.full((2, 3, 4, 4), 200.0).half(),
        torch.full((2, 3, 4, 4), -200.0).half(),
    )
    errors = kernel.squared_error(prediction, target)
    assert errors.dtype == torch.float32 and errors.tolist() == [160000.0, 160000.0]
    assert kernel.squared_error(prediction, torch.full((2, 3, 4, 4), 0.1)).allclose(
        torch.tensor(199.9**2)
    )
    assert kernel.squared_error(torch.full((2, 3, 4, 4), 0.1), target).allclose(
        torch.tensor(200.1**2)
    )


def test_no_gradient_reaches_the_target():
    w = torch.ones(3, requires_grad=True)
    x = rand(2, 3)
    total, errors = kernel.objective(
        x * w, 2 * x * w, torch.ones(2)
    )  # the student is its own target
    assert total.requires_grad and not errors.requires_grad
    total.backward()
    # d/dw mean (w x - t)^2 = 2 x (w x - t) / 3 with t = 2 x held fixed
    assert torch.allclose(w.grad, (-2 * x.square() / 3).sum(0))


def test_the_objective_is_the_weighted_sum_of_the_terms():
    p, t = rand(6, 4, seed=1), rand(6, 4, seed=2)
    weights = torch.tensor([1 / 2, 1 / 2, 0.25 / 3, 0.25 / 3, 0.25 / 3, 0.1])
    mse = torch.nn.functional.mse_loss
    want = mse(p[:2], t[:2]) + 0.25 * mse(p[2:5], t[2:5]) + 0.1 * mse(p[5:], t[5:])
    assert torch.allclose(kernel.objective(p, t, weights)[0], want)


def test_importance_is_the_signed_or_the_absolute_sum():
    signed, absolute = torch.zeros(2), torch.zeros(2)
    assert kernel.MEASURES == ("signed", "absolute")
    for g in ([1.0, -2.0], [-1.0, -1.0]):
        kernel.accumulate(signed, torch.tensor(g))
        kernel.accumulate(absolute, torch.tensor(g), "absolute")
    assert signed.tolist() == [0.0, -3.0] and absolute.tolist() == [2.0, 3.0]


def test_literal_mask_and_refresh():
    g = torch.tensor([[0.1, -5.0, 2.0], [3.0, -0.2, 0.3]])
    mask = kernel.initial_mask(g, 0.5)
    assert mask.tolist() == [[False, True, True], [True, False, False]]
    g = torch.tensor([[4.0, -0.1, 2.0], [3.0, -0.2, 0.3]])
    new, moved = kernel.refresh(
        mask, g, 0.34
    )  # one of three leaves: the -5 of old is now the smallest inside, 4 the largest outside
    assert moved == 1 and new.tolist() == [[True, False, True], [True, False, False]]


def test_of_equal_entries_the_first_are_taken():
    values = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0])
    chosen = [kernel._largest(values, k) for k in range(6)]
    assert [m.nonzero().flatten().tolist() for m in chosen] == [
        [],
        [3],
        [0, 3],
        [0, 2, 3],
        [0, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert {m.dtype for m in chosen} == {torch.bool}


def test_nothing_is_exchanged_where_there_is_nothing_else():
    mask = torch.ones(2, 2, dtype=torch.bool)
    new, moved = kernel.refresh(mask, rand(2, 2), 0.5)
    assert moved == 0 and torch.equal(new, mask) and new.data_ptr() != mask.data_ptr()


def test_turnover_decays_as_a_cosine():
    assert (
        kernel.turnover(0.2, 0) == 0.2
        and kernel.turnover(0.2, 1) == 0
        and math.isclose(kernel.turnover(0.2, 0.5), 0.1)
    )
    shipped = [
        round(kernel.turnover(0.2, e / 10), 3) for e in (1, 3, 5, 7)
    ]  # of ten epochs of fifty steps, at steps 100 to 400
    assert shipped == [0.195, 0.159, 0.1, 0.041]


def reference_refresh(mask, importance, u):
    inside = sorted((i for i in range(len(mask)) if mask[i]), key=lambda i: (importance[i], i))
    outside = sorted(
        (i for i in range(len(mask)) if not mask[i]), key=lambda i: (-importance[i], i)
    )
    return {i for i in range(len(mask)) if mask[i]} - set(inside[:u]) | set(outside[:u])


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_density_is_constant_and_the_exchange_is_the_sorted_one(values, density, tau, seed):
    mask = kernel.initial_mask(rand(len(values), seed=seed), density)
    assert int(mask.sum()) == max(1, math.floor(density * len(values)))
    total = torch.tensor(values, dtype=torch.float32)  # many ties
    new, moved = kernel.refresh(mask, total, tau)
    assert new.sum() == mask.sum() and (mask & ~new).sum() == (new & ~mask).sum() == moved
    want = reference_refresh(mask.tolist(), total.abs().tolist(), moved)
    assert set(new.nonzero().flatten().tolist()) == want


class Plain:
    """Adam with a dense 0/1 mask and SM-6 to SM-11, entry by entry in python floats."""

    def __init__(self, w, lr, density, tau0, every, warmup, steps):
        self.w, self.lr, self.density, self.tau0, self.every, self.warmup, self.steps = (
            w,
            lr,
            density,
            tau0,
            every,
            warmup,
            steps,
        )
        n = len(w)
        self.m, self.v, self.g, self.mask, self.t = [0.0] * n, [0.0] * n, [0.0] * n, [0] * n, 0

    def step(self, i, gradient):
        n = len(self.w)
        self.g = [a + b for a, b in zip(self.g, gradient, strict=True)]
        if i < self.warmup:
            if i == self.warmup - 1:
                best = sorted(range(n), key=lambda j: -abs(self.g[j]))[
                    : max(1, int(self.density * n))
                ]
                self.mask, self.g = [int(j in best) for j in range(n)], [0.0] * n
            return
        self.t += 1
        for j in range(n):
            if not self.mask[j]:
                continue
            self.m[j] = 0.9 * self.m[j] + 0.1 * gradient[j]
            self.v[j] = 0.999 * self.v[j] + 0.001 * gradient[j] ** 2
            self.w[j] -= (
                self.lr
                * (self.m[j] / (1 - 0.9**self.t))
                / ((self.v[j] / (1 - 0.999**self.t)) ** 0.5 + 1e-8)
            )
        if self.t % self.every == 0:
            tau = self.tau0 * 0.5 * (1 + math.cos(math.pi * self.t / self.steps))
            u = max(1, int(tau * sum(self.mask)))
            inside = sorted((j for j in range(n) if self.mask[j]), key=lambda j: abs(self.g[j]))[:u]
            outside = sorted(
                (j for j in range(n) if not self.mask[j]), key=lambda j: -abs(self.g[j])
            )[:u]
            for j in inside:
                self.mask[j], self.m[j], self.v[j] = 0, 0.0, 0.0
            for j in outside:
                self.mask[j] = 1
            self.g = [0.0] * n


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_twenty_steps_equal_the_plain_reference(how):
    n, warmup, steps, lr = 40, 3, 20, 0.05
    target, w0 = rand(n, seed=3).double(), rand(n, seed=4).double()
    plain = Plain(w0.tolist(), lr, 0.5, 0.3, 5, warmup, steps)
    w = torch.nn.Parameter(w0.clone())
    optimizer, total, mask, done = (
        kernel.MaskedAdam([w], lr=lr, **how),
        torch.zeros(n).double(),
        None,
        0,
    )
    for i in range(warmup + steps):
        scale = rand(n, seed=100 + i).double()  # gradients with noise, so that the mask does move
        plain.step(i, (2 * (torch.tensor(plain.w) - target) * scale).tolist())
        w.grad = 2 * (w.detach() - target) * scale
        kernel.accumulate(total, w.grad)
        if i < warmup:
            assert torch.equal(w.detach(), w0)  # nothing moves during the warm-up
            if i == warmup - 1:
                mask = kernel.initial_mask(total, 0.5)
                optimizer.confine({w: mask})
                total.zero_()
            continue
        before, inside = w.detach().clone(), mask
        optimizer.step()
        done += 1
        assert torch.equal(w.detach()[~inside], before[~inside])  # to the bit
        assert torch.all(w.detach()[inside] != before[inside])
        if done % 5 == 0:
            mask, _ = kernel.refresh(mask, total, kernel.turnover(0.3, done / steps))
            optimizer.confine({w: mask})
            total.zero_()
            assert int(mask.sum()) == n // 2
    assert torch.allclose(w.detach(), torch.tensor(plain.w, dtype=torch.float64), atol=1e-9)
    assert mask.int().tolist() == plain.mask


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_a_weight_that_leaves_stops_at_once_and_returns_without_momentum(how):
    w = torch.nn.Parameter(rand(6))
    optimizer = kernel.MaskedAdam([w], lr=0.1, **how)
    everything, half = torch.ones(6, dtype=torch.bool), torch.tensor([True] * 3 + [False] * 3)
    optimizer.confine({w: everything})
    for _ in range(5):
        w.grad = torch.ones(6)
        optimizer.step()
    optimizer.confine({w: half})
    left = w.detach().clone()
    w.grad = torch.ones(6)
    optimizer.step()
    assert torch.equal(w.detach()[3:], left[3:]) and torch.all(w.detach()[:3] != left[:3])
    optimizer.confine({w: everything})
    w.grad = torch.zeros(6)
    optimizer.step()
    assert torch.equal(w.detach()[3:], left[3:])


def restored_step(parameter, **how):
    optimizer = kernel.MaskedAdam([parameter], lr=0.1, **how)
    moments = torch.zeros(parameter.shape, device="cpu")
    optimizer.restore(
        parameter, {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments}
    )
    return optimizer.state[parameter]


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"capturable": True}])
def test_a_restored_step_is_on_the_device_where_this_adam_keeps_it(how):
    """A fused Adam on a GPU reads `step` there, any other on the CPU. The GPU here is a fake."""
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.empty(2, 3, device="cuda"))
        fresh = kernel.MaskedAdam([parameter], lr=0.1, **how)
        fresh.confine({parameter: torch.ones(2, 3, dtype=torch.bool, device="cuda")})
        parameter.grad = torch.empty(2, 3, device="cuda")
        fresh.step()
        wanted = {name: value.device for name, value in fresh.state[parameter].items()}
        found = {name: value.device for name, value in restored_step(parameter, **how).items()}
    assert found == wanted


def test_everything_inside_is_adam_with_the_same_settings():
    ours, plain = torch.nn.Parameter(rand(5)), torch.nn.Parameter(rand(5))
    how = {"lr": 0.1, "betas": (0.5, 0.7), "eps": 0.3}
    optimizer, adam = kernel.MaskedAdam([ours], **how), torch.optim.Adam([plain], **how)
    optimizer.confine({ours: torch.ones(5, dtype=torch.bool)})
    for i in range(4):
        ours.grad, plain.grad = rand(5, seed=i), rand(5, seed=i)
        optimizer.step()
        adam.step()
    assert torch.equal(ours, plain)


def test_parameters_without_a_mask_do_not_move():
    w = torch.nn.Parameter(rand(3))
    optimizer, before = kernel.MaskedAdam([w], lr=0.1), w.detach().clone()
    w.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(w.detach(), before)


def test_literal_turning_away():
    """States along the first axis only: K = diag(9, 0) or a multiple, so P = diag(1/2, 1)."""
    a = kernel.retain_projector(torch.tensor([[3.0, 0.0]]))
    p = torch.eye(2) - a @ a.T
    assert a.shape == (2, 1) and torch.allclose(p, torch.diag(torch.tensor([0.5, 1.0])))
    b = kernel.retain_projector(torch.tensor([[5.0, 0.0]] * 4))
    assert torch.allclose(torch.eye(2) - b @ b.T, p)
    g = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    turned = g.clone()
    kernel.project_gradient(turned, a)
    assert torch.allclose(turned, torch.tensor([[0.5, 1.0], [1.0, 0.0]]) * (6 / 2.25) ** 0.5)
    assert torch.isclose(turned.norm(), g.norm())
    nothing = torch.zeros(2, 2)
    kernel.project_gradient(nothing, a)
    assert not nothing.any()


@pytest.mark.parametrize("share, kept", [(0.0554, 2), (0.05, 1)])
def test_what_is_shortened_by_less_than_a_twentieth_is_left(share, kept):
    """Of directions with shares 1 - s and s of the states, the second shrinks by s / (1 + s)."""
    states = torch.diag(torch.tensor([1 - share, share]).sqrt())
    assert kernel.retain_projector(states).shape == (2, kept)


def test_literal_tolerance_and_strength():
    one = torch.tensor([[3.0, 0.0]])
    assert kernel.retain_projector(one, tolerance=0.5).shape == (2, 1) and kernel.retain_projector(
        one, tolerance=0.51
    ).shape == (2, 0)
    assert torch.allclose(
        kernel.retain_projector(one, kappa=0.5).abs(), torch.tensor([[0.8**0.5], [0.0]])
    )
    few = kernel.retain_projector(rand(2, 5).half(), tolerance=0.0)  # rounding below zero is zero
    assert few.shape == (5, 5) and few.dtype == torch.float32 and few.isfinite().all()


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2])
def test_turning_away_is_the_inverse_of_sm12_but_for_what_it_hardly_shortens(tolerance):
    states = torch.randn(200, 40, generator=torch.Generator().manual_seed(3)) * torch.logspace(
        1, -2, 40
    )
    a = kernel.retain_projector(states, tolerance=tolerance)
    k = states.double().T @ states.double()
    p = torch.linalg.inv(torch.eye(40, dtype=k.dtype) + k * (40 / (2 * k.trace())))
    error = torch.linalg.matrix_norm(torch.eye(40) - (a @ a.T).double() - p, 2)
    assert error <= max(tolerance, 1e-5) and (tolerance == 0 or a.shape[1] < 40)


def test_turning_away_takes_out_what_the_held_states_share_and_little_else():
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(64, generator=g)
    held = shared + 0.1 * torch.randn(500, 64, generator=g)
    concept = shared + 0.5 * torch.randn(64, generator=g)
    gradient = torch.outer(torch.randn(8, generator=g), concept)
    before = (gradient @ shared).norm() / (gradient @ (concept - shared)).norm()
    kernel.project_gradient(gradient, kernel.retain_projector(held))
    assert (gradient @ shared).norm() / (gradient @ (concept - shared)).norm() < before / 10
