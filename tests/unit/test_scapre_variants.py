"""Every variant of ScaPre and its neighbours against slow float64 references written straight from the equations."""

import math

import pytest
import torch

import pack

bures, complement, forecast, informax, rece, released, scapre, sylvester, uce = (
    pack.module(f"kernels.{n}") for n in ("bures", "complement", "forecast", "informax", "rece", "released", "scapre", "sylvester", "uce")
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
    kronecker = torch.kron(torch.eye(D).double(), torch.diag(alpha)) + torch.kron(a.T.contiguous(), torch.eye(ROWS).double())
    want = torch.linalg.solve(kronecker, right.T.reshape(-1)).reshape(D, ROWS).T  # vec stacks columns (eq 10)
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
    assert abs(float(bures.geodesic(w, w0, 0.4).norm() / w0.norm()) - 0.4) < 1e-12  # and the refinement shrinks all alike


def test_edit_is_the_printed_system_with_an_anchor(g):
    c, n, alpha, w0 = rand(g, 5, D), rand(g, 5, D), torch.rand(ROWS, generator=g).double(), rand(g, ROWS, D)
    s, t = scapre.gram(c), scapre.cross_gram(n, c)
    a = 0.5 * torch.eye(D).double() + s
    delta = sylvester.edit(w0, alpha, *sylvester.spectrum(a), t)
    w = w0 + delta
    right = w0 @ (n.T @ c) + alpha[:, None] * w0 + w0 @ (a - s)
    assert relative(alpha[:, None] * w + w @ a, right) < 1e-10
    assert torch.equal(sylvester.edit(w0, alpha, *sylvester.spectrum(a), 0 * t), 0 * w0)


def test_a_singular_system_is_refused(g):
    with pytest.raises(ValueError, match="lambda"):
        sylvester.solve(torch.zeros(ROWS), *sylvester.spectrum(torch.zeros(D, D)), rand(g, ROWS, D))


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
    w, w0 = rand(g, 20, D), rand(g, 20, D)  # more rows than columns: singular covariances need no jitter
    assert torch.equal(bures.geodesic(w, w0, 0), w)
    assert relative(bures.geodesic(w, w0, 1) @ bures.geodesic(w, w0, 1).T, w0 @ w0.T) < 1e-10
    assert relative(bures.geodesic(w0, w0, 0.7), w0) < 1e-10


def bures_distance(s, s0):
    return float(s.trace() + s0.trace() - 2 * root(root(s) @ s0 @ root(s)).trace())


def test_the_way_is_the_shortest(g):
    w, w0 = rand(g, ROWS, D), rand(g, ROWS, D)
    cov = lambda t: bures.geodesic(w, w0, t) @ bures.geodesic(w, w0, t).T
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
    assert relative(released.editor_a(w0, masks, blocks, neutral, c, torch.ones(ROWS), eta=1.0, a_min=0.0), w0) < 1e-12  # a_i = 0
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


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("with_r", [False, True])
def test_editor_b_equals_its_rows(editors, steps, with_r):
    w0, masks, blocks, neutral, c, h = editors
    eta, mu = 2.0, float(h.mean())
    r = released.ased(c, mu, 1.0, 8) if with_r else None
    pi = c @ torch.linalg.inv(c.T @ c + 1e-8 * torch.eye(M).double()) @ c.T
    base = (0.5 + mu) * torch.eye(D).double() + c @ c.T + eta * sum(o.T @ o for o in blocks) + (r if with_r else 0)
    v = eta * write_in(w0, masks, blocks, neutral)
    want = torch.stack([torch.linalg.solve(base + eta * masks[:, i].max() * pi, (0.5 + mu) * w0[i] + v[i]) for i in range(ROWS)])
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
    assert relative(released.editor_b(*editors, eta=eta, r=r, steps=steps), want) < 1e-7


def test_ased_from_its_equation(g):
    c = rand(g, D, M)
    u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
    middle = sorted(sigma.tolist())[1]
    want = sum(0.4 * (1 - 1 / (1 + math.exp(-(float(sigma[i]) - middle) / 2)) ** 5) * torch.outer(u[:, i], u[:, i]) for i in range(M))
    assert torch.allclose(released.ased(c, 0.4, 2.0, 5), want)


def table_information(z, y):
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            joint = sum(1 for s, t in zip(z, y, strict=True) if (s, t) == (a, b)) / len(z) + 1e-8
            total += joint * math.log(joint / ((z.count(a) / len(z) + 1e-8) * (y.count(b) / len(y) + 1e-8)))
    return total


def test_mask_from_its_equation(g):
    positive, negative = rand(g, 5, 9) + torch.linspace(0, 3, 9), rand(g, 5, 9)
    both = torch.cat([positive, negative])
    mi = []
    for i in range(9):
        tau = sorted(both[:, i].tolist())[4]
        mi.append(table_information([int(v > tau) for v in both[:, i].tolist()], [1] * 5 + [0] * 5))
    mi = torch.tensor(mi).double()
    want = torch.sigmoid((mi - mi.mean()) / (mi.std() + 1e-8) / 0.7) ** 3
    assert torch.allclose(released.mask(positive, negative, 3), want, atol=1e-9)


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
    assert h[0] < 1e-9 and abs(h[1] - 1) < 1e-9 and abs(float(h[2]) - math.log(2) / math.log(20)) < 1e-9


# --- UCE, Informax, RECE, hard preservation, forecast


def test_uce_from_its_equation(g):
    w0, c, n, k = rand(g, ROWS, D), rand(g, 4, D), rand(g, 4, D), rand(g, 6, D)
    left = 0.5 * w0 + 1.5 * sum(torch.outer(w0 @ n[i], c[i]) for i in range(4)) + 2 * sum(torch.outer(w0 @ x, x) for x in k)
    right = 0.5 * torch.eye(D).double() + 1.5 * sum(torch.outer(x, x) for x in c) + 2 * sum(torch.outer(x, x) for x in k)
    want = left @ torch.linalg.inv(right)
    m = uce.multiplier(scapre.gram(c), scapre.cross_gram(n, c), scapre.gram(k), 0.5, 1.5, 2)
    assert relative(w0 + w0 @ m, want) < 1e-10
    one, two = uce.factors(m)
    assert two.shape == (4, D) and relative(one @ two, m) < 1e-10


def test_uce_with_nothing_to_erase_is_nothing():
    one, two = uce.factors(uce.multiplier(torch.zeros(D, D), torch.zeros(D, D), torch.eye(D)))
    assert one.shape == (D, 0) and two.shape == (0, D)


def test_graded_informax_does_not_saturate(g):
    """Rows that all separate the classes, but by margins from 4 to 40 times the noise: printed tells none apart, graded orders them."""
    margin = torch.linspace(4, 40, 30).double()
    positive, negative = rand(g, 20, 30) + margin, rand(g, 60, 30)
    as_printed = informax.printed(positive, negative)
    weights = informax.graded([positive], negative)
    assert as_printed.min() > 0.9
    assert weights.min() < 0.7 and weights.max() == 1 and torch.corrcoef(torch.stack([weights, margin]))[0, 1] > 0.9


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


def test_reviving_embedding_is_the_least_squares_answer(g):
    before = [rand(g, ROWS, D) for _ in range(4)]
    after = [w + 0.3 * rand(g, ROWS, D) for w in before]
    c, lam = rand(g, 2, D), 0.7
    stacked = torch.cat([*after, math.sqrt(lam) * torch.eye(D).double()])
    wanted = torch.cat([torch.cat([w @ c.T for w in before]), torch.zeros(D, 2).double()])
    want = torch.linalg.lstsq(stacked, wanted).solution.T
    ww, cross = sum(w.T @ w for w in after), sum(a.T @ b for a, b in zip(after, before, strict=True))
    assert relative(rece.revive(ww, cross, c, lam), want) < 1e-9
    back = rece.revived(sum(w.T @ w for w in before), ww, cross, c, lam)
    left = sum((a @ want.T - b @ c.T).square().sum(0) for a, b in zip(after, before, strict=True))
    whole = sum((b @ c.T).square().sum(0) for b in before)
    assert torch.allclose(back, (1 - left / whole).clamp(0, 1))


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
    assert complement.complement(torch.diag(torch.tensor([8.0, 1.0, 1.0])), 0.8).shape == (3, 2)
    assert complement.complement(torch.zeros(3, 3)).shape == (3, 3)


def test_confined_solution_is_the_best_of_those_that_keep(g):
    """Minimises the anchored objective over all edits that leave the kept states exactly as they were."""
    w0, c, n, kept = rand(g, ROWS, D), rand(g, 4, D), rand(g, 4, D), rand(g, 5, D)
    p, eta = penalty(g), 3.0
    basis = complement.complement(kept.T @ kept)
    mu, v = scapre.confined_basis(scapre.gram(c), p, basis)
    up = scapre.anchored_up(w0, scapre.cross_gram(n, c) @ v, mu, eta).double()
    delta = up @ v.T
    assert (delta @ kept.T).norm() < 1e-10 * delta.norm()
    z = torch.linalg.solve(basis.T @ (p + eta * c.T @ c) @ basis, (eta * w0 @ (n - c).T @ c @ basis).T).T
    assert relative(delta, z @ basis.T) < 1e-6


def test_forecast_moments(g):
    w0, up, down, x = rand(g, ROWS, D), rand(g, ROWS, 2), rand(g, 2, D), rand(g, 5, D)
    w = w0 + up @ down
    before, cross, after = forecast.moments(w0, up, down)
    assert relative(before, w0.T @ w0) < 1e-6 and relative(cross, w0.T @ w) < 1e-6 and relative(after, w.T @ w) < 1e-6
    outs, outs0 = x @ w.T, x @ w0.T
    assert torch.allclose(forecast.change(x, before, cross, after), (outs - outs0).norm(dim=1) / outs0.norm(dim=1), atol=1e-5)
    survival = (outs * outs0).sum(1) / outs0.square().sum(1)
    assert torch.allclose(forecast.survival(x, before, cross), survival, atol=1e-5)
    weights = torch.tensor([[1.0, 2.0, 0.0]]).double()
    pooled = (outs * outs0).sum(1)[:3] @ weights[0] / (outs0.square().sum(1)[:3] @ weights[0])
    assert torch.allclose(forecast.survival(x[None, :3], before, cross, weights), pooled, atol=1e-5)


def test_forecast_of_a_shared_factor(g):
    w0, m = rand(g, ROWS, D), rand(g, D, D)
    w = w0 + w0 @ m
    cross, after = forecast.shared(w0.T @ w0, m)
    assert relative(cross, w0.T @ w) < 1e-10 and relative(after, w.T @ w) < 1e-10


def test_agreement_is_the_cosine_of_what_sets_words_apart():
    before = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    after = torch.tensor([[6.0, 0.0], [0.0, -1.0], [0.0, -3.0], [-6.0, 4.0]])  # as it was, turned, reversed
    assert torch.allclose(forecast.agreement(before, after), torch.tensor([1.0, 0.0, -1.0, -0.5547]), atol=1e-4)
    assert torch.allclose(forecast.agreement(before, before + 7), torch.ones(4))
