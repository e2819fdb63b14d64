"""FIA kernel against float64 references written straight from equations 1-8."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import fia


def u_paper(w, x):  # eq 1, with eps -> 0
    u = torch.zeros(w.shape, dtype=torch.float64)
    for i in range(w.shape[0]):
        y = sum(w[i, j].double() * x[:, j].double() for j in range(w.shape[1]))
        for j in range(w.shape[1]):
            xj = x[:, j].double()
            cosine = abs(xj @ y) / (xj.norm() * y.norm()) if xj.norm() * y.norm() > 0 else 0.0
            u[i, j] = w[i, j].abs() * xj.norm() * cosine
    return u


def u_wanda(w, x):
    rows = x.double() / x.double().norm(dim=1, keepdim=True).clamp_min(1e-8)
    return w.double().abs() * rows.norm(dim=0)


def activation(score, w, x):
    return fia.correlation(x, x @ w.T) if score == "paper" else fia.column_norms(x)


def a_reference(w, concept, base, r1, scale, u):  # eqs 2-3; concept, base: step -> list of X
    total = count = 0
    for xc, xb in zip(concept, base, strict=True):
        uc, ub = torch.stack([u(w, x) for x in xc]), torch.stack([u(w, x) for x in xb])
        s = (uc.mean(0) - ub.mean(0) - ub.std(0, correction=0)).clamp_min(0)
        tau = s.flatten().sort(descending=True).values[max(1, int(r1 * s.numel())) - 1]
        total, count = total + s, count + (s > tau).double()
    mean = total / len(concept)
    return 0.5 * (mean / mean.max() if scale == "layer_max" else mean) + 0.5 * count / len(concept)


def q_reference(a, r2):  # eqs 4-6
    c_out, c_in = a.shape
    rows = torch.zeros_like(a, dtype=torch.bool)
    for i in range(c_out):
        rows[i, a[i].argsort(descending=True, stable=True)[: max(1, int(r2 * c_in))]] = True
    layer = torch.zeros(a.numel(), dtype=torch.bool)
    layer[a.flatten().argsort(descending=True, stable=True)[: int(r2 * a.numel())]] = True
    return rows & layer.view_as(a) & (a > 0)


def tensors(seed, *shapes):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g) for s in shapes]


@pytest.mark.parametrize("score,u", [("paper", u_paper), ("wanda", u_wanda)])
@pytest.mark.parametrize("n,c_out,c_in", [(1, 1, 1), (7, 3, 12), (40, 8, 5), (2, 16, 33)])
def test_score_is_equation_1(score, u, n, c_out, c_in):
    w, x = tensors(n, (c_out, c_in), (n, c_in))
    got = w.abs() * activation(score, w, x)
    torch.testing.assert_close(got.double(), u(w, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * 1e4,
        lambda x: x * 1e-4,
        lambda x: x * (torch.arange(9) % 3),
        lambda x: x[:1].expand(6, 9),
    ],
)
@pytest.mark.parametrize("score,u", [("paper", u_paper), ("wanda", u_wanda)])
def test_score_on_adversarial_activations(score, u, make):
    """Large, small, dead columns, all positions alike."""
    w, x = tensors(3, (4, 9), (6, 9))
    x = make(x)
    want = u(w, x)
    torch.testing.assert_close(
        (w.abs() * activation(score, w, x)).double() / want.max(),
        want / want.max(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_score_of_nothing_is_nothing():
    for score in fia.SCORES:
        assert torch.equal(
            activation(score, torch.ones(2, 3), torch.zeros(4, 3)),
            torch.zeros(2, 3) if score == "paper" else torch.zeros(3),
        )


def test_names_of_the_scores():
    assert fia.SCORES == ("paper", "wanda")


def test_literal_scores_with_their_guards():
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert torch.allclose(fia.correlation(x, x, eps=1.0), torch.tensor([[25 / 6, 0.0], [0.0, 0.0]]))
    out = torch.empty(2, 2)
    assert fia.correlation(x, x, out=out) is out and out.tolist() == [[5.0, 0.0], [0.0, 0.0]]
    assert torch.allclose(
        fia.column_norms(x, eps=8.0), torch.tensor([0.625, 0.0])
    )  # rows no longer than eps are divided by eps
    assert torch.allclose(fia.column_norms(1e-6 * x), torch.tensor([2.0, 0.0]).sqrt())


def test_literal_moments():
    m = fia.RunningMoments(torch.zeros(1), torch.zeros(1))
    assert m.n == 0 and m.bound().tolist() == [0.0]
    m.add(torch.tensor([1.0]))
    m.add(torch.tensor([3.0]))
    assert (m.n, m.mean.tolist(), m.m2.tolist(), m.bound().tolist()) == (2, [2.0], [2.0], [3.0])
    assert fia.RunningMoments(torch.tensor([3.0]), torch.tensor([4.0]), 1).bound().tolist() == [5.0]
    bare = fia.RunningMoments(torch.zeros(1))
    bare.add(torch.tensor([8.0]))
    bare.add(torch.tensor([2.0]))
    merged = bare.merge(fia.RunningMoments(torch.tensor([11.0]), None, 1))
    assert bare.m2 is None and merged.m2 is None and (merged.n, merged.mean.tolist()) == (3, [7.0])


def test_literal_contrast():
    w, concept, bound = (
        torch.tensor([[-2.0, 3.0], [1.0, -1.0]]),
        torch.tensor([4.0, 1.0]),
        torch.tensor([1.0, 2.0]),
    )
    assert fia.contrast(w, concept, bound).tolist() == [[6.0, 0.0], [3.0, 0.0]]
    assert concept.tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    "share, want", [(0.0, 4.0), (0.3, 4.0), (0.5, 3.0), (0.74, 3.0), (1.0, 1.0)]
)
def test_literal_threshold(share, want):
    assert float(fia.top_threshold(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), share)) == want


def test_literal_saliency():
    """S twice: above the threshold of half of four entries lies only the largest of each step."""
    integral = fia.SaliencyAccumulator((2, 2))
    integral.add(torch.tensor([[4.0, 1.0], [0.0, 2.0]]), 0.5)
    integral.add(torch.tensor([[2.0, 0.0], [3.0, 0.0]]), 0.5)
    assert (
        integral.steps == 2
        and integral.count.tolist() == [[1, 0], [1, 0]]
        and integral.total.tolist() == [[6.0, 1.0], [3.0, 2.0]]
    )
    totals = integral.total.clone()
    assert torch.allclose(
        integral.saliency(), 0.5 * (totals / 6 + torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    )
    small = fia.SaliencyAccumulator((1, 2))
    small.add(torch.tensor([[1e-9, 5e-10]]), 0.5)
    assert torch.allclose(small.saliency(), torch.tensor([[0.5, 0.25]]))
    small = fia.SaliencyAccumulator((1, 2))
    small.add(torch.tensor([[3.0, 1.0]]), 1.0)
    assert small.saliency("none").tolist() == [[2.0, 0.5]]


def test_sums_are_kept_small_and_where_they_are_told():
    integral = fia.SaliencyAccumulator((2, 3), "meta")
    assert integral.count.dtype == torch.uint8 and integral.total.dtype == torch.float32
    assert {integral.count.device.type, integral.total.device.type} == {
        "meta"
    } and fia.SaliencyAccumulator((1,)).total.device.type == "cpu"


def test_high_steps_are_counted_beyond_a_byte():
    sums = fia.SaliencyAccumulator((2,), steps=300)
    for _ in range(300):
        sums.add(torch.tensor([1.0, 2.0]), 1.0)
    assert sums.count.tolist() == [0, 300]
    assert fia.count_dtype(255) == torch.uint8


def test_selection_works_where_its_input_is():
    ranked = torch.tensor([5, 0, 4, 1], dtype=torch.int32)
    with torch.device("meta"):
        q = fia.select_connections(ranked, 2, 3, 0.67)
    assert q.dtype == torch.int64 and q.tolist() == [0, 1, 5, 4]


def test_the_strongest_are_above_zero_and_in_order():
    indices, values = fia.strongest(torch.tensor([[-1.0, 0.5], [0.0, 2.0]]), 1.0)
    assert (
        indices.dtype == torch.int32
        and indices.tolist() == [3, 1]
        and values.tolist() == [2.0, 0.5]
    )
    assert fia.strongest(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.74)[0].tolist() == [3, 0]


def test_moments_are_those_of_float64():
    values = (
        torch.randn(50, 6, 7, generator=torch.Generator().manual_seed(1)) * 0.01 + 100
    )  # far from zero: sums of squares would cancel
    whole = fia.RunningMoments(torch.zeros(6, 7), torch.zeros(6, 7))
    for v in values:
        whole.add(v.clone())
    torch.testing.assert_close(whole.mean.double(), values.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        whole.bound().double() - 100,
        values.double().mean(0) + values.double().std(0, correction=0) - 100,
        rtol=2e-2,
        atol=1e-5,
    )


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_merged_moments_are_those_of_all(first, second):
    values = torch.randn(
        first + second, 3, generator=torch.Generator().manual_seed(first * 10 + second)
    )
    parts = []
    for part in (values[:first], values[first:]):
        m = fia.RunningMoments(torch.zeros(3), torch.zeros(3))
        for v in part:
            m.add(v.clone())
        parts.append(m)
    both = parts[0].merge(parts[1])
    assert both.n == first + second
    torch.testing.assert_close(both.mean, values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        both.bound(), values.mean(0) + values.std(0, correction=0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("scale", ["none", "layer_max"])
@pytest.mark.parametrize("score,u", [("paper", u_paper), ("wanda", u_wanda)])
def test_saliency_is_equations_2_and_3(score, u, scale):
    steps, prompts = 3, 4
    w, concept, base = tensors(5, (6, 10), (steps, prompts, 8, 10), (steps, prompts, 8, 10))
    integral = fia.SaliencyAccumulator((6, 10))
    for xc, xb in zip(concept * 1.6, base, strict=True):
        like = activation(score, w, xc[0])
        c, b = (
            fia.RunningMoments(torch.zeros_like(like)),
            fia.RunningMoments(torch.zeros_like(like), torch.zeros_like(like)),
        )
        for x in xc:
            c.add(activation(score, w, x))
        for x in xb:
            b.add(activation(score, w, x))
        integral.add(fia.contrast(w, c.mean, b.bound()), 0.1)
    want = a_reference(w, concept * 1.6, base, 0.1, scale, u)
    if score == "paper":
        assert want.max() > 0
    torch.testing.assert_close(integral.saliency(scale).double(), want, rtol=1e-5, atol=1e-6)


def test_same_prompts_give_no_saliency():
    w, x = tensors(2, (4, 6), (5, 9, 6))
    for score in fia.SCORES:
        like = activation(score, w, x[0])
        c, b = (
            fia.RunningMoments(torch.zeros_like(like)),
            fia.RunningMoments(torch.zeros_like(like), torch.zeros_like(like)),
        )
        for one in x:
            c.add(activation(score, w, one))
            b.add(activation(score, w, one))
        integral = fia.SaliencyAccumulator((4, 6))
        integral.add(fia.contrast(w, c.mean, b.bound()), 0.5)
        assert not integral.saliency().any()
        assert len(fia.strongest(integral.saliency(), 1.0)[0]) == 0


@given(st.integers(1, 12), st.integers(1, 20), st.floats(0.0, 1.0), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_selection_is_equations_4_to_6(c_out, c_in, r2, seed):
    a = torch.rand(c_out, c_in, generator=torch.Generator().manual_seed(seed)) - 0.2
    ranked, values = fia.strongest(a.clamp_min(0), 1.0)
    assert (values.diff() <= 0).all()
    q = fia.select_connections(ranked, c_out, c_in, r2)
    want = q_reference(a.clamp_min(0), r2)
    got = torch.zeros(a.numel(), dtype=torch.bool)
    got[q] = True
    assert torch.equal(got.view_as(a), want)
    assert len(q) <= r2 * c_out * c_in and got.view_as(a).sum(1).max() <= max(
        1, math.floor(r2 * c_in)
    )


def test_selection_needs_no_more_than_the_layers_share():
    a = torch.rand(30, 40, generator=torch.Generator().manual_seed(4))
    q = [
        fia.select_connections(fia.strongest(a, ceiling)[0], 30, 40, 0.03).sort().values
        for ceiling in (0.03, 0.06, 1.0)
    ]
    assert torch.equal(q[0], q[1]) and torch.equal(q[1], q[2])


def test_lines():
    assert fia.select_units(torch.tensor([0.0, 3.0, 1.0, 2.0]), 0.5).tolist() == [1, 3]
    assert fia.select_units(torch.tensor([0.0, 0.0]), 1.0).tolist() == []
    assert fia.select_units(torch.tensor([0.5, -3.0, 0.1]), 1.0).tolist() == [0, 2]
    assert fia.select_units(torch.tensor([0.5, 3.0, 0.1]), 0.0).tolist() == [1]


def masks(chosen, size, alpha):
    """(prune, agnostic) as bool [size]."""
    entries, who, agnostic = fia.fuse(chosen, alpha)
    out = torch.zeros(2, size, dtype=torch.bool)
    out[0, entries[~agnostic]], out[1, entries[agnostic]] = True, True
    for c, row in zip(chosen, who, strict=True):
        assert entries[row].tolist() == sorted(c.tolist())
    return out


def test_fusion_by_hand():
    chosen = [torch.tensor([0, 1, 2]), torch.tensor([1, 2]), torch.tensor([2, 4])]
    prune, agnostic = masks(chosen, 5, 0.6)  # ceil(1.8) = 2
    assert prune.tolist() == [True, False, False, False, True]
    assert agnostic.tolist() == [False, True, True, False, False]
    assert masks(chosen, 5, 1.1)[0].tolist() == [True, True, True, False, True]  # plain union
    assert masks(chosen[:1], 5, 0.6)[0].tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]  # one concept: Q itself
    assert not masks([torch.tensor([], dtype=torch.long)] * 2, 5, 0.6).any()


@given(st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_more_alpha_never_prunes_less(concepts, seed):
    g = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(30, generator=g)[:10] for _ in range(concepts)]
    s = sum(torch.zeros(30).index_fill(0, c, 1.0) for c in chosen)
    before = torch.zeros(30, dtype=torch.bool)
    for alpha in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.01, 2.0):
        prune, agnostic = masks(chosen, 30, alpha)
        assert not (before & ~prune).any() and not (prune & agnostic).any()
        if concepts > 1:
            assert torch.equal(prune, (s > 0) & (s < math.ceil(round(alpha * concepts, 9))))
        before = prune
    assert torch.equal(prune, s > 0)
