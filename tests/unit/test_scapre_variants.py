"""Every variant of ScaPre and its neighbours against slow float64 references.

The references are written straight from the equations.
"""

import math

import pytest
import torch

from testbed import pack

bures, complement, forecast, informax, rece, released, scapre, sylvester, uce = (
    pack.module(f"kernels.{n}")
    for n in (
        "bures",
        "complement",
        "forecast",
        "informax",
        "rece",
        "released",
        "scapre",
        "sylvester",
        "uce",
    )
)
D, ROWS, M = 12, 7, 3


def rand(g, *shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.fixture
def g():
    return torch.Generator().manual_seed(5)


def relative(got, want):
    return float((got - want).norm() / want.norm())


def penalty(g, lam=0.3):
    x = rand(g, 20, D)
    return lam * torch.eye(D).double() + x.T @ x / 20


# --- the paper's Sylvester system


def test_sylvester_equals_its_kronecker_matrix(g):
    a, alpha, right = penalty(g), torch.rand(ROWS, generator=g).double(), rand(g, ROWS, D)
    kronecker = torch.kron(torch.eye(D).double(), torch.diag(alpha)) + torch.kron(
        a.T.contiguous(), torch.eye(ROWS).double()
    )
    want = (
        torch.linalg.solve(kronecker, right.T.reshape(-1)).reshape(D, ROWS).T
    )  # vec stacks columns (eq 10)
    got = sylvester.solve(alpha, *sylvester.spectrum(a), right)
    assert relative(got, want) < 1e-10


def test_sylvester_residual(g):
    a, alpha, right = penalty(g), torch.rand(ROWS, generator=g).double(), rand(g, ROWS, D)
    w = sylvester.solve(alpha, *sylvester.spectrum(a), right)
    assert relative(alpha[:, None] * w + w @ a, right) < 1e-10


def test_printed_with_empty_targets_forgets_everything(g):
    a, alpha, w0 = penalty(g), torch.rand(ROWS, generator=g).double(), rand(g, ROWS, D)
    w = sylvester.printed(w0, alpha, *sylvester.spectrum(a), torch.zeros(D, D))
    assert torch.equal(w, torch.zeros_like(w))  # (8)-(10) taken literally with V* = 0
    assert (
        abs(float(bures.geodesic(w, w0, 0.4).norm() / w0.norm()) - 0.4) < 1e-12
    )  # and the refinement shrinks all alike


def test_edit_is_the_printed_system_with_an_anchor(g):
    c, n, alpha, w0 = (
        rand(g, 5, D),
        rand(g, 5, D),
        torch.rand(ROWS, generator=g).double(),
        rand(g, ROWS, D),
    )
    s, t = scapre.gram(c), scapre.cross_gram(n, c)
    a = 0.5 * torch.eye(D).double() + s
    delta = sylvester.edit(w0, alpha, *sylvester.spectrum(a), t)
    w = w0 + delta
    right = w0 @ (n.T @ c) + alpha[:, None] * w0 + w0 @ (a - s)
    assert relative(alpha[:, None] * w + w @ a, right) < 1e-10
    assert torch.equal(sylvester.edit(w0, alpha, *sylvester.spectrum(a), 0 * t), 0 * w0)


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_a_singular_system_is_refused(g, level):
    with pytest.raises(ValueError, match="lambda"):
        sylvester.solve(
            torch.zeros(ROWS), *sylvester.spectrum(level * torch.eye(D)), rand(g, ROWS, D)
        )


def test_one_singular_entry_is_enough(g):
    a = torch.diag(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="lambda"):
        sylvester.solve(torch.tensor([0.0, 1.0]), *sylvester.spectrum(a), rand(g, 2, 2))


def test_sylvester_of_float32_is_that_of_float64(g):
    w0, right, alpha = (
        rand(g, ROWS, D).float(),
        rand(g, D, D).float(),
        torch.rand(ROWS, generator=g),
    )
    spectrum = sylvester.spectrum(penalty(g))
    for system in (sylvester.printed, sylvester.edit):
        got = system(w0, alpha, *spectrum, right)
        assert got.dtype == torch.float64 and torch.equal(
            got, system(w0.double(), alpha.double(), *spectrum, right.double())
        )


def test_literal_sylvester():
    """diag(1, 3) W + W diag(1, 2) = R: each entry of R is divided by alpha_i + a_j.

    A counts by its symmetric part, in float64.
    """
    a = torch.tensor([[1.0, 0.5], [-0.5, 2.0]])
    values, vectors = sylvester.spectrum(a)
    assert values.dtype == torch.float64 and values.tolist() == [1.0, 2.0]
    w = sylvester.solve(
        torch.tensor([1.0, 3.0]), values, vectors, torch.tensor([[2.0, 3.0], [8.0, 10.0]])
    )
    assert w.dtype == torch.float64 and w.tolist() == [[1.0, 1.0], [2.0, 2.0]]


def root(m):
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_geodesic_equals_the_covariance_form(g, t):
    w, w0 = rand(g, ROWS, D), rand(g, ROWS, D)
    s, s0, eye = w @ w.T, w0 @ w0.T, torch.eye(ROWS).double()
    half = root(s)
    inverse = torch.linalg.inv(half)
    transport = inverse @ root(half @ s0 @ half) @ inverse
    step = (1 - t) * eye + t * transport
    st = step @ s @ step
    u, _, vt = torch.linalg.svd(root(st) @ w, full_matrices=False)
    want = root(st) @ u @ vt
    got = bures.geodesic(w, w0, t)
    assert relative(got, want) < 1e-8
    assert relative(got @ got.T, st) < 1e-8


def test_geodesic_ends(g):
    w, w0 = (
        rand(g, 20, D),
        rand(g, 20, D),
    )  # more rows than columns: singular covariances need no jitter
    assert torch.equal(bures.geodesic(w, w0, 0), w)
    assert relative(bures.geodesic(w, w0, 1) @ bures.geodesic(w, w0, 1).T, w0 @ w0.T) < 1e-10
    assert relative(bures.geodesic(w0, w0, 0.7), w0) < 1e-10


def test_literal_geodesic_from_float32():
    """In one dimension the best rotation is a sign: from 2 to -4 only the length moves."""
    w, w0 = torch.tensor([[2.0]]), torch.tensor([[-4.0]])
    assert [float(bures.geodesic(w, w0, t)) for t in (0, 0.5, 1)] == [2.0, 3.0, 4.0]
    assert {bures.geodesic(w, w0, t).dtype for t in (0, 0.5)} == {torch.float64}


def bures_distance(s, s0):
    return float(s.trace() + s0.trace() - 2 * root(root(s) @ s0 @ root(s)).trace())


def test_the_way_is_the_shortest(g):
    w, w0 = rand(g, ROWS, D), rand(g, ROWS, D)

    def cov(t):
        return bures.geodesic(w, w0, t) @ bures.geodesic(w, w0, t).T

    whole = math.sqrt(bures_distance(w @ w.T, w0 @ w0.T))
    assert abs(math.sqrt(bures_distance(cov(0.3), w0 @ w0.T)) - 0.7 * whole) < 1e-6


# --- the released editors


@pytest.fixture
def editors(g):
    w0, c = rand(g, ROWS, D), rand(g, D, M)
    blocks, neutral = [rand(g, 4 + k, D) for k in range(M)], [rand(g, 4 + k, D) for k in range(M)]
    masks, h = torch.rand(M, ROWS, generator=g).double(), torch.rand(ROWS, generator=g).double()
    return w0, masks, blocks, neutral, c, h


def write_in(w0, masks, blocks, neutral):
    out = torch.zeros(w0.shape[0], D).double()
    for k in range(M):
        for i in range(len(w0)):
            for t in range(len(blocks[k])):
                out[i] += masks[k, i] * (w0[i] @ neutral[k][t]) * blocks[k][t]
    return out


def test_editor_a_from_its_equations(editors):
    w0, masks, blocks, neutral, c, h = editors
    eta, a_min = 1.3, 0.6
    right = 0.5 * torch.eye(D).double() + c @ c.T + eta * sum(o.T @ o for o in blocks)
    new = (0.5 * w0 + eta * write_in(w0, masks, blocks, neutral)) @ torch.linalg.inv(right)
    a = torch.diag(a_min + (1 - a_min) * (1 - h))
    want = a @ new + (torch.eye(ROWS).double() - a) @ w0
    assert relative(released.editor_a(*editors, eta=eta, a_min=a_min), want) < 1e-10


def test_editor_a_with_no_strength_returns_the_weights(editors):
    w0, masks, blocks, neutral, c, h = editors
    assert (
        relative(
            released.editor_a(w0, masks, blocks, neutral, c, torch.ones(ROWS), eta=1.0, a_min=0.0),
            w0,
        )
        < 1e-12
    )  # a_i = 0
    none = torch.zeros(D, 1).double()  # C empty
    assert relative(released.editor_a(w0, masks, blocks, neutral, none, h, eta=0.0), w0) < 1e-12


def test_editor_a_optional_term(editors):
    w0, masks, blocks, neutral, c, h = editors
    u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
    w = torch.sigmoid((sigma - sigma.median()) / 2) ** 3
    rest = (torch.eye(D).double() - u @ torch.diag(w) @ u.T) @ c
    right = 0.5 * torch.eye(D).double() + c @ c.T + sum(o.T @ o for o in blocks)
    plain = released.editor_a(*editors, a_min=1.0)
    got = released.editor_a(*editors, a_min=1.0, svd=(2, 3))
    assert relative(plain - got, w0 @ rest @ rest.T @ torch.linalg.inv(right)) < 1e-9


@pytest.mark.parametrize(
    "steps, with_r, size",
    [(0, False, 1), (1, False, 1), (3, True, 1), (1, True, 1), (0, False, 1e-4)],
)
def test_editor_b_equals_its_rows(editors, steps, with_r, size):
    """Down to concepts so short that the 1e-8 in Pi matters."""
    w0, masks, blocks, neutral, c, h = editors
    c = size * c
    eta, mu = 2.0, float(h.mean())
    r = released.ased(c, mu, 1.0, 8) if with_r else None
    pi = c @ torch.linalg.inv(c.T @ c + 1e-8 * torch.eye(M).double()) @ c.T
    base = (
        (0.5 + mu) * torch.eye(D).double()
        + c @ c.T
        + eta * sum(o.T @ o for o in blocks)
        + (r if with_r else 0)
    )
    v = eta * write_in(w0, masks, blocks, neutral)
    want = torch.stack(
        [
            torch.linalg.solve(base + eta * masks[:, i].max() * pi, (0.5 + mu) * w0[i] + v[i])
            for i in range(ROWS)
        ]
    )
    for i in range(ROWS):  # (C-5)
        w, u, u0 = want[i].clone(), want[i] / want[i].norm(), w0[i] / w0[i].norm()
        uw, row = u, w
        for _ in range(steps):
            kappa = max(0.0, float(u @ u0))
            length = ((0.5 + mu) * w.norm() + mu * w0[i].norm() * kappa) / (0.5 + 2 * mu)
            u = (0.5 + mu) * w.norm() * uw + mu * w0[i].norm() * kappa * u0
            u = u / u.norm()
            row = length * u
        want[i] = row
    assert (
        relative(
            released.editor_b(w0, masks, blocks, neutral, c, h, eta=eta, r=r, steps=steps), want
        )
        < 1e-7
    )


def test_editors_default_to_the_released_settings(editors):
    w0, masks, blocks, neutral, c, h = editors
    assert torch.equal(
        released.editor_a(*editors), released.editor_a(*editors, eta=1.0, a_min=0.8, svd=None)
    )
    assert torch.equal(
        released.editor_b(*editors), released.editor_b(*editors, eta=2.0, r=None, steps=1)
    )
    assert torch.equal(released.ased(c, 0.4), released.ased(c, 0.4, temperature=1.0, power=1.0))
    assert torch.equal(
        released.proximal(w0 + 1, w0, 0.3), released.proximal(w0 + 1, w0, 0.3, steps=1)
    )
    assert torch.equal(released.entropy(w0), released.entropy(w0, bins=20))
    for edit in (released.editor_a, released.editor_b):
        with pytest.raises(TypeError):
            edit(*editors, 1.0)  # settings go by name


def test_editors_take_half_precision_and_answer_in_float64(editors):
    half = [x.half() if torch.is_tensor(x) else [y.half() for y in x] for x in editors]
    again = [x.double() if torch.is_tensor(x) else [y.double() for y in x] for x in half]
    r = released.ased(half[4], 0.4)
    for edit in (
        released.editor_a,
        lambda *x: released.editor_a(*x, svd=(2, 3)),
        lambda *x: released.editor_b(*x, r=r),
    ):
        assert edit(*half).dtype == torch.float64 and torch.equal(edit(*half), edit(*again))


def test_every_concept_needs_its_replacement(editors):
    w0, masks, blocks, neutral, _, _ = editors
    with pytest.raises(ValueError):
        released.write_in(w0, masks, blocks, neutral[:2])


def test_editor_b_gives_back_what_no_concept_touches():
    w0, zero, h = (
        torch.tensor([[2.0, -3.0]]).double(),
        torch.zeros(1, 2),
        torch.tensor([0.1]).double(),
    )
    got = released.editor_b(w0, torch.zeros(1, 1), [zero], [zero], zero.T, h, steps=0)
    assert torch.allclose(got, w0, rtol=1e-12)


def test_literal_proximal_step():
    """lambda = mu = 1/2, with w along w0, across it, against it, and zero."""
    w = torch.tensor([[4.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [0.0, 0.0]]).double()
    w0 = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double()
    got = released.proximal(w, w0, 0.5)
    want = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-4 / 3, 0.0], [0.0, 0.0]]).double()
    assert torch.allclose(got, want)
    slanted = torch.tensor([[3.0, 4.0]]).double()  # kappa = 3/5
    u = torch.tensor([3.3, 4.0]).double()
    assert torch.allclose(released.proximal(slanted, w0[:1], 0.5), (5 + 0.3) / 1.5 * u / u.norm())
    assert torch.allclose(
        released.proximal(1e-6 * slanted, 1e-6 * w0[:1], 0.5, 2),
        1e-6 * released.proximal(slanted, w0[:1], 0.5, 2),
    )


def test_ased_from_its_equation(g):
    c = rand(g, D, M)
    u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
    middle = sorted(sigma.tolist())[1]
    want = sum(
        0.4
        * (1 - 1 / (1 + math.exp(-(float(sigma[i]) - middle) / 2)) ** 5)
        * torch.outer(u[:, i], u[:, i])
        for i in range(M)
    )
    assert torch.allclose(released.ased(c, 0.4, 2.0, 5), want)


def table_information(z, y):
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            joint = sum(1 for s, t in zip(z, y, strict=True) if (s, t) == (a, b)) / len(z) + 1e-8
            total += joint * math.log(
                joint / ((z.count(a) / len(z) + 1e-8) * (y.count(b) / len(y) + 1e-8))
            )
    return total


@pytest.mark.parametrize(
    "ones, zeros, ties", [(5, 5, False), (7, 4, True), (3, 8, True), (6, 0, True)]
)
def test_mask_from_its_equation(g, ones, zeros, ties):
    """Classes of any size, the second one empty too, and activations that equal their median."""
    positive, negative = rand(g, ones, 9) + torch.linspace(0, 3, 9), rand(g, zeros, 9)
    both = torch.cat([positive, negative])
    both = both.round() if ties else both
    mi = []
    for i in range(9):
        tau = sorted(both[:, i].tolist())[(len(both) - 1) // 2]
        mi.append(
            table_information([int(v > tau) for v in both[:, i].tolist()], [1] * ones + [0] * zeros)
        )
    mi = torch.tensor(mi).double()
    want = torch.sigmoid((mi - mi.mean()) / (mi.std() + 1e-8) / 0.7) ** 3
    assert mi.std() > 0 and torch.allclose(
        released.mask(both[:ones], both[ones:], 3), want, atol=1e-7
    )


@pytest.mark.parametrize("p, expected", [(2, 0.29), (3, 0.16), (5, 0.047), (8, 0.0075)])
def test_mask_saturates_where_others_measured_it(p, expected):
    """98.5 % of rows at ln 2, the rest at nothing: the mask is a constant that only p moves."""
    positive, negative = torch.ones(5, 1000), torch.zeros(5, 1000)
    positive[:, :15] = 0
    assert abs(float(released.mask(positive, negative, p)[500]) - expected) < 0.15 * expected


def test_entropy_of_rows():
    flat, spread = torch.full((40,), 2.0), torch.arange(40.0)
    half = torch.cat([torch.zeros(20), torch.ones(20)])
    h = released.entropy(torch.stack([flat, spread, half], 1), bins=20)
    assert h.shape == (3,) and h.dtype == torch.float64
    assert (
        h[0] < 1e-9
        and abs(h[1] - 1) < 1e-9
        and abs(float(h[2]) - math.log(2) / math.log(20)) < 1e-9
    )


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-6, 0.0), (-8.0, 50.0)])
def test_literal_entropy_whatever_the_scale(scale, shift):
    """Of four values two lie in one of four bins and one each in two others.

    The entropy is 3 ln 2 / 2, over ln 4.
    """
    a = torch.tensor([0.0, 0.0, 1.5, 4.0]).double()
    assert torch.allclose(
        released.entropy((scale * a + shift)[:, None], 4), torch.tensor([0.75]).double()
    )


# --- UCE, Informax, RECE, hard preservation, forecast


def test_uce_from_its_equation(g):
    w0, c, n, k = rand(g, ROWS, D), rand(g, 4, D), rand(g, 4, D), rand(g, 6, D)
    left = (
        0.5 * w0
        + 1.5 * sum(torch.outer(w0 @ n[i], c[i]) for i in range(4))
        + 2 * sum(torch.outer(w0 @ x, x) for x in k)
    )
    right = (
        0.5 * torch.eye(D).double()
        + 1.5 * sum(torch.outer(x, x) for x in c)
        + 2 * sum(torch.outer(x, x) for x in k)
    )
    want = left @ torch.linalg.inv(right)
    m = uce.multiplier(scapre.gram(c), scapre.cross_gram(n, c), scapre.gram(k), 0.5, 1.5, 2)
    assert relative(w0 + w0 @ m, want) < 1e-10
    one, two = uce.factors(m)
    assert two.shape == (4, D) and relative(one @ two, m) < 1e-10


def test_uce_with_nothing_to_erase_is_nothing():
    one, two = uce.factors(uce.multiplier(torch.zeros(D, D), torch.zeros(D, D), torch.eye(D)))
    assert one.shape == (D, 0) and two.shape == (0, D)


def test_uce_literal_in_one_dimension_with_its_defaults():
    """lambda 1/2 and unit scales: c = 1, n = 3, k = 2 give (3 - 1) / (1/2 + 1 + 4)."""
    m = uce.multiplier(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[4.0]]))
    assert m.dtype == torch.float64 and abs(float(m) - 2 / 5.5) < 1e-12
    m = uce.multiplier(
        torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[4.0]]), 0.1, 0.3, 0.7
    )
    assert abs(float(m) - 0.6 / (0.1 + 0.3 + 2.8)) < 1e-12


def test_uce_scales_float32_moments_in_float64():
    third = torch.tensor([[1 / 3]])
    got = uce.multiplier(third, third, third, 0.5, 0.1, 0.7)
    assert abs(float(got) - 0.1 * float(third) / (0.5 + 0.8 * float(third))) < 1e-14


def test_uce_factors_drop_what_is_below_the_tolerance():
    m = torch.diag(torch.tensor([1e6, 1e-2, 1e-4, 0.0])).double()
    one, two = uce.factors(m)
    assert one.shape == (4, 2) and torch.allclose(two.norm(dim=1), torch.ones(2).double())
    assert uce.factors(torch.diag(torch.tensor([4.0, 2.0, 1.0])).double(), 0.5)[0].shape == (
        3,
        1,
    )  # exactly at the tolerance: dropped
    assert uce.factors(1e-20 * m)[0].shape == (4, 2) and uce.factors(torch.diag(m[:, 0]))[
        0
    ].shape == (4, 1)


@pytest.mark.parametrize("ones, zeros", [(7, 4), (3, 8)])
def test_printed_informax_from_its_table(g, ones, zeros):
    """Classes of unequal size, activations at their median, rows that separate the classes."""
    both = rand(g, ones + zeros, 9).round()
    both[:ones, :3] += 20
    mi = []
    for column in both.T.tolist():
        fired, total = [v > sorted(column)[(len(column) - 1) // 2] for v in column], 0.0
        for z in (True, False):
            for of_class in (fired[:ones], fired[ones:]):
                joint = of_class.count(z) / len(column)
                total += (
                    joint
                    * math.log(joint / (fired.count(z) / len(column) * len(of_class) / len(column)))
                    if joint
                    else 0
                )
        mi.append(total)
    mi = torch.tensor(mi, dtype=torch.float64)
    got = informax.printed(both[:ones].float(), both[ones:].float())
    assert got.dtype == torch.float32 and torch.allclose(got, (mi / mi.max()).float(), atol=1e-6)
    assert torch.allclose(informax.printed(both[:ones], both[ones:]), mi / mi.max(), atol=1e-12)


def test_literal_graded_information():
    """1 - r^2 is the variance within classes, over itself plus a quarter of the squared distance.

    It is multiplied by (n - 1) / (n - 2).
    """
    columns = {
        -0.5 * math.log(0.2 * 3 / 2): ([0.0, 2], [4.0, 6]),  # within 1, between 4
        0.0: ([0.0, 2], [0.0, 2]),  # corrected to 3/2, cut at 1
        -0.5 * math.log(1e-12): ([1.0, 1], [0.0, 0]),  # nothing within
    }
    for want, (p, q) in columns.items():
        for scale in (1.0, 1e-6):
            p_, q_ = scale * torch.tensor(p)[:, None], scale * torch.tensor(q)[:, None]
            got = informax.graded_information(p_, q_)
            assert got.dtype == torch.float64 and abs(float(got) - want) < 1e-6
    three = informax.graded_information(
        torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]])
    )  # within 1/2, between 9/4, (n - 1) / (n - 2) = 2
    assert abs(float(three) + 0.5 * math.log(2 * 0.5 / 2.75)) < 1e-12
    fields = [
        torch.tensor([[0.0], [2.0], [4.0]]),
        torch.tensor([[5.0]]),
    ]  # within 4/3, between 9/4, 3/2
    for one, two in (fields, fields[::-1]):
        assert (
            abs(
                float(informax.graded_information(one, two))
                + 0.5 * math.log(1.5 * (4 / 3) / (4 / 3 + 2.25))
            )
            < 1e-6
        )
    alike = informax.graded_information(torch.ones(4, 1), torch.ones(3, 1))
    assert (
        float(alike)
        == float(
            informax.graded_information(
                torch.tensor([[0.0], [2e-16]]), torch.tensor([[4e-16], [6e-16]])
            )
        )
        == 0
    )
    assert (
        abs(
            float(informax.graded_information(torch.ones(1, 1), torch.zeros(1, 1)))
            + 0.5 * math.log(1e-12)
        )
        < 1e-9
    )  # n - 2 = 0


def test_literal_scaled_information():
    assert informax.scaled(torch.tensor([1.0, 4.0, 0.0])).tolist() == [0.25, 1.0, 0.0]
    assert informax.scaled(torch.tensor([1e-9, 4e-9])).tolist() == [0.25, 1.0]
    assert informax.scaled(torch.tensor([1e-13, 0.0])).tolist() == [1.0, 1.0]


def test_graded_informax_does_not_saturate(g):
    """All rows separate the classes, by margins from 4 to 40 times the noise.

    The printed weights are nearly all alike; the graded ones follow the margins.
    """
    margin = torch.linspace(4, 40, 30).double()
    positive, negative = rand(g, 20, 30) + margin, rand(g, 60, 30)
    as_printed = informax.printed(positive, negative)
    weights = informax.graded([positive], negative)
    assert as_printed.min() > 0.9
    assert (
        weights.min() < 0.7
        and weights.max() == 1
        and torch.corrcoef(torch.stack([weights, margin]))[0, 1] > 0.9
    )


def test_graded_information_of_noise_is_nearly_none(g):
    """The correction for small samples: ten samples of noise look informative without it."""
    p, q = rand(g, 5, 4000), rand(g, 5, 4000)
    between = (p.mean(0) - q.mean(0)).square() / 4
    share = between / (between + (p.var(0, unbiased=False) + q.var(0, unbiased=False)) / 2)
    plain = -0.5 * (1 - share).log()
    assert informax.graded_information(p, q).mean() < 0.7 * plain.mean()


def test_graded_takes_the_best_concept():
    one = torch.tensor([[5.0, 0.0], [5.1, 0.1], [4.9, 0.05]])
    two, none = one.flip(1), torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.05, 0.05]])
    assert torch.allclose(informax.graded([one, two], none), torch.ones(2).double(), atol=1e-6)
    assert torch.equal(informax.graded([none], none), torch.ones(2).double())
    assert informax.graded([one, none], none).tolist() == [1.0, 0.0]


def test_reviving_embedding_is_the_least_squares_answer(g):
    before = [rand(g, ROWS, D) for _ in range(4)]
    after = [w + 0.3 * rand(g, ROWS, D) for w in before]
    c, lam = rand(g, 2, D), 0.7
    stacked = torch.cat([*after, math.sqrt(lam) * torch.eye(D).double()])
    wanted = torch.cat([torch.cat([w @ c.T for w in before]), torch.zeros(D, 2).double()])
    want = torch.linalg.lstsq(stacked, wanted).solution.T
    ww, cross = (
        sum(w.T @ w for w in after),
        sum(a.T @ b for a, b in zip(after, before, strict=True)),
    )
    assert relative(rece.revive(ww, cross, c, lam), want) < 1e-9
    back = rece.revived(sum(w.T @ w for w in before), ww, cross, c, lam)
    left = sum((a @ want.T - b @ c.T).square().sum(0) for a, b in zip(after, before, strict=True))
    whole = sum((b @ c.T).square().sum(0) for b in before)
    assert torch.allclose(back, (1 - left / whole).clamp(0, 1))
    tiny = rece.revived(sum(w.T @ w for w in before), ww, cross, 1e-6 * c, lam)
    assert torch.allclose(tiny, back)


def test_literal_revival():
    """Edited layers that say nothing leave lambda alone: c / lambda, in float64 from float32."""
    zero, eye = torch.zeros(2, 2), torch.eye(2)
    assert torch.allclose(
        rece.revive(zero, eye, eye[:1], 0.1), torch.tensor([[10.0, 0.0]]).double(), rtol=1e-12
    )
    back = rece.revived(eye, eye, eye, eye, 1.0)  # half of c: a quarter of |c|^2 is missing
    assert back.dtype == torch.float64 and torch.allclose(back, torch.tensor([0.75, 0.75]).double())


def test_revival_lies_between_none_and_all():
    """An embedding of zero brings nothing back; inconsistent moments give 1 at most."""
    eye = torch.eye(3)
    assert rece.revived(eye, eye, eye, torch.zeros(1, 3), 0.1).tolist() == [0.0]
    assert rece.revived(eye, eye, 2 * eye, eye[:1], 0.1).tolist() == [1.0]


def test_nothing_revives_what_is_projected_away():
    eye = torch.eye(4).double()
    gone = torch.diag(torch.tensor([0.0, 1, 1, 1])).double()
    back = rece.revived(eye, gone.T @ gone, gone.T @ eye, eye[:2], 1e-6)
    assert back[0] < 1e-9 and back[1] > 0.999


def test_complement_leaves_kept_states_alone(g):
    kept = rand(g, 5, D)
    basis = complement.complement(kept.T @ kept)
    assert basis.shape == (D, D - 5) and (kept @ basis).norm() < 1e-10
    assert torch.allclose(basis.T @ basis, torch.eye(D - 5).double(), atol=1e-12)


@pytest.mark.parametrize(
    "diagonal, energy, tolerance, free",
    [
        ([8.0, 1, 1], 0.8, 1e-12, 2),  # the first carries exactly 8 of 10
        ([8.0, 1, 0.5], 0.85, 1e-12, 1),
        ([8.0, 1, 1], 1.0, 1e-12, 0),
        ([0.4, 0, 0], 0.9, 1e-12, 2),
        ([1e8, 1e-3, 1e-5], 1.0, 1e-12, 1),  # 1e-12 of the largest is 1e-4
        ([1e-8, 1e-19, 1e-21], 1.0, 1e-12, 1),
        ([2.0, 1, 0.5], 1.0, 0.5, 2),  # exactly at the tolerance does not count
        ([1.0, 1, -1], 0.9, 1e-12, 1),  # what rounding made negative carries nothing
        ([0.0, 0, 0], 1.0, 1e-12, 3),
        ([0.0, 0, 0], 0.5, 1e-12, 3),
    ],
)
def test_literal_complements(diagonal, energy, tolerance, free):
    basis = complement.complement(
        torch.diag(torch.tensor(diagonal, dtype=torch.float64)), energy, tolerance
    )
    assert basis.shape == (3, free) and not basis[: 3 - free].any()


def test_complement_takes_everything_with_energy_unless_told():
    gram = torch.diag(torch.tensor([1.0, 1e-11, 1e-13]))
    assert (
        complement.complement(gram).shape == (3, 1)
        and complement.complement(gram).dtype == torch.float64
    )


def test_confined_solution_is_the_best_of_those_that_keep(g):
    """It minimises the objective over all edits that leave the kept states as they were."""
    w0, c, n, kept = rand(g, ROWS, D), rand(g, 4, D), rand(g, 4, D), rand(g, 5, D)
    p, eta = penalty(g), 3.0
    basis = complement.complement(kept.T @ kept)
    mu, v = scapre.confined_basis(scapre.gram(c), p, basis)
    up = scapre.anchored_up(w0, scapre.cross_gram(n, c) @ v, mu, eta).double()
    delta = up @ v.T
    assert (delta @ kept.T).norm() < 1e-10 * delta.norm()
    z = torch.linalg.solve(
        basis.T @ (p + eta * c.T @ c) @ basis, (eta * w0 @ (n - c).T @ c @ basis).T
    ).T
    assert relative(delta, z @ basis.T) < 1e-6


def test_forecast_moments(g):
    w0, up, down, x = rand(g, ROWS, D), rand(g, ROWS, 2), rand(g, 2, D), rand(g, 5, D)
    w = w0 + up @ down
    before, cross, after = forecast.moments(w0, up, down)
    assert (
        relative(before, w0.T @ w0) < 1e-6
        and relative(cross, w0.T @ w) < 1e-6
        and relative(after, w.T @ w) < 1e-6
    )
    outs, outs0 = x @ w.T, x @ w0.T
    assert torch.allclose(
        forecast.change(x, before, cross, after),
        (outs - outs0).norm(dim=1) / outs0.norm(dim=1),
        atol=1e-5,
    )
    survival = (outs * outs0).sum(1) / outs0.square().sum(1)
    assert torch.allclose(forecast.retention(x, before, cross), survival, atol=1e-5)
    weights = torch.tensor([[1.0, 2.0, 0.0]]).double()
    pooled = (outs * outs0).sum(1)[:3] @ weights[0] / (outs0.square().sum(1)[:3] @ weights[0])
    assert torch.allclose(
        forecast.retention(x[None, :3], before, cross, weights), pooled, atol=1e-5
    )


def test_forecast_of_a_shared_factor(g):
    w0, m = rand(g, ROWS, D), rand(g, D, D)
    w = w0 + w0 @ m
    cross, after = forecast.shared(w0.T @ w0, m)
    assert relative(cross, w0.T @ w) < 1e-10 and relative(after, w.T @ w) < 1e-10
    cross, after = forecast.shared(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert (
        cross.dtype == torch.float64
        and cross.tolist() == [[1.0, 1.0], [0.0, 2.0]]
        and after.tolist() == [[1.0, 1.0], [1.0, 5.0]]
    )


def test_forecast_moments_of_half_precision_are_those_in_float32(g):
    w0, up, down = (rand(g, *shape).half() for shape in ((300, 4), (300, 2), (2, 4)))
    for got, want in zip(
        forecast.moments(w0, up, down),
        forecast.moments(w0.double(), up.double(), down.double()),
        strict=True,
    ):
        assert got.dtype == torch.float64 and relative(got, want) < 1e-6


def test_forecast_knows_no_unit(g):
    """Shares do not depend on the size of states or weights, and zero gives no NaN."""
    x, w0, w = rand(g, 5, D), rand(g, ROWS, D), rand(g, ROWS, D)
    moments = w0.T @ w0, w0.T @ w, w.T @ w
    small = [1e-9 * m for m in moments]
    assert torch.allclose(forecast.change(1e-3 * x, *small), forecast.change(x, *moments))
    assert torch.allclose(
        forecast.retention(1e-3 * x, *small[:2]), forecast.retention(x, *moments[:2])
    )
    assert torch.allclose(
        forecast.agreement(1e-6 * x, 1e-6 * x.flip(1)), forecast.agreement(x, x.flip(1))
    )
    nothing = torch.zeros(2, D)
    assert (
        forecast.change(nothing, *moments).tolist()
        == forecast.retention(nothing, *moments[:2]).tolist()
        == [0.0, 0.0]
    )
    assert forecast.agreement(nothing, nothing).tolist() == [0.0, 0.0]
    eye = torch.eye(D)
    assert forecast.change(x, eye, 1.001 * eye, eye).tolist() == [0.0] * 5
    assert forecast.change(x.float(), eye, eye, eye).dtype == torch.float64


def test_agreement_is_the_cosine_of_what_sets_words_apart():
    before = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    after = torch.tensor(
        [[6.0, 0.0], [0.0, -1.0], [0.0, -3.0], [-6.0, 4.0]]
    )  # as it was, turned, reversed
    assert torch.allclose(
        forecast.agreement(before, after), torch.tensor([1.0, 0.0, -1.0, -0.5547]), atol=1e-4
    )
    assert torch.allclose(forecast.agreement(before, before + 7), torch.ones(4))
    assert torch.allclose(forecast.agreement(before + 7, before), torch.ones(4))


def test_kernels_work_where_their_inputs_are(g):
    """A kernel that forgets the device of its inputs fails under another default device."""
    few, many, w0, rows = (
        rand(g, 5, 4),
        rand(g, scapre.TALL, 4),
        rand(g, 6, 4),
        torch.ones(1, 6),
    )
    eye = few.T @ few + 1
    with torch.device("meta"):
        found = [
            scapre.gram(many),
            uce.multiplier(eye, eye, eye),
            rece.revive(eye, eye, few, 0.5),
            *forecast.shared(eye, eye),
            informax.printed(few, few + 1),
            released.mask(few, few + 1, 2),
            released.write_in(w0, rows, [few], [few]),
        ]
    assert {x.device.type for x in found} == {"cpu"}
