"""The peers' closed forms against small numbers worked out by hand or by brute force."""

import math

import pytest
import torch

from benchmarks.peers import (
    _shared,
    conceptprune,
    esd,
    mace_cfr,
    negative_prompt,
    oce,
    perp_neg,
    rece,
    salun,
    slider,
    speed,
    uce,
)

types = mace_cfr.pack.module("unlearn.types")
prompts = mace_cfr.prompts


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def test_uce_literal():
    # c = x is to say what y says: with lambda 1 the x column of W0 goes half way to its y column
    m = uce.multiplier(rows([1, 0]), rows([0, 1]), torch.zeros(0, 2), lam=1.0)
    assert torch.allclose(m, rows([-0.5, 0], [0.5, 0]))
    w0 = rows([4, 8], [2, 6])
    assert torch.allclose(w0 @ (torch.eye(2) + m), rows([6, 8], [4, 6]))


def test_uce_solves_its_normal_equations():
    w0, c, n, k = rand(3, 4), rand(2, 4, seed=1), rand(2, 4, seed=2), rand(3, 4, seed=3)
    left = 0.5 * w0 + (w0 @ n.T) @ c + (w0 @ k.T) @ k
    want = left @ torch.linalg.inv(0.5 * torch.eye(4) + c.T @ c + k.T @ k)
    assert torch.allclose(w0 + w0 @ uce.multiplier(c, n, k), want)


def test_rece_literal():
    # Half of x is left. With lambda 1/4 the embedding that brings x back is (1/4 + 1/4)^-1 1/2 x =
    # x. Erasing it with lambda 1 halves it again.
    start, x = rows([-0.5, 0], [0, 0]), rows([1, 0])
    m = rece.rounds(
        torch.eye(2).double(),
        start,
        x,
        torch.zeros(1, 2),
        torch.zeros(0, 2),
        lam=0.25,
        count=1,
        edit=1.0,
    )
    assert torch.allclose(m, rows([-0.75, 0], [0, 0]))


def test_rece_rounds_leave_less_each_time():
    w0, c = rand(6, 4), rand(1, 4, seed=1)
    start = uce.multiplier(c, torch.zeros(1, 4), torch.zeros(0, 4), lam=5.0)
    left = []
    for count in range(4):
        m = rece.rounds(w0.T @ w0, start, c, torch.zeros(1, 4), torch.zeros(0, 4), 0.1, count)
        t = torch.eye(4) + m
        left.append(
            float(rece.kernel.revived(w0.T @ w0, t.T @ w0.T @ w0 @ t, t.T @ w0.T @ w0, c, 0.1))
        )
    assert left[0] > 0.9 and all(a > b for a, b in zip(left, left[1:], strict=False)), left


def test_mace_block_takes_the_same_tokens_of_both_sentences():
    # "a [fire truck] here" -> "a [car] here": positions 0 to 7, the end token at 5 and at 4
    a, b = (
        prompts.Prompt("a fire truck here", "fire truck", 2, 3, 5),
        prompts.Prompt("a car here", "car", 2, 2, 4),
    )
    old, new = torch.arange(8.0)[:, None], 10 + torch.arange(8.0)[:, None]
    c, y = mace_cfr.block(a, b, old, new)
    assert c.flatten().tolist() == [0, 1, 4, 5, 6, 7] and y.flatten().tolist() == [
        10,
        11,
        13,
        14,
        15,
        16,
    ]
    c, y = mace_cfr.block(b, a, new, old)
    assert c.flatten().tolist() == [10, 11, 13, 14, 15, 16] and y.flatten().tolist() == [
        0,
        1,
        4,
        5,
        6,
        7,
    ]


def test_mace_solves_its_normal_equations():
    w0, c, y, k = rand(3, 4), rand(5, 4, seed=1), rand(5, 4, seed=2), rand(6, 4, seed=3)
    prior = k.T @ k
    want = (10 * w0 + w0 @ y.T @ c + w0 @ prior) @ torch.linalg.inv(
        10 * torch.eye(4) + c.T @ c + prior
    )
    assert torch.allclose(w0 + w0 @ mace_cfr.multiplier(c, y, prior), want)


def test_speed_is_the_best_change_that_leaves_the_retained_and_the_held_alone():
    w0, c, n, k = rand(3, 6), rand(2, 6, seed=1), rand(2, 6, seed=2), rand(6, 1, seed=4)
    retain = rand(2, 6, seed=3)
    p = speed.projector(retain.T @ retain, 1e-9)
    change = w0 @ (n - c).T @ speed.right(c, p, k, rho=0.7)
    assert torch.allclose(change @ retain.T, torch.zeros(3, 2).double(), atol=1e-10)
    assert torch.allclose(change @ k, torch.zeros(3, 1).double(), atol=1e-10)
    # brute force: least squares over rows that are perpendicular to all of them
    basis = torch.linalg.svd(torch.cat([retain, k.T]))[2][3:].T  # [6, 3]
    s = c.T @ c / 2
    want = (
        basis
        @ torch.linalg.solve(
            basis.T @ s @ basis + 0.7 * torch.eye(3), basis.T @ c.T @ (n - c) @ w0.T / 2
        )
    ).T
    assert torch.allclose(change, want)


def test_speed_centres_find_clusters():
    found = speed.centres(rows([0, 0], [0, 1], [9, 9], [9, 8]), 2)
    assert sorted(map(tuple, found.tolist())) == [(0, 0.5), (9, 8.5)]


def test_oce_is_the_rotation_nearest_to_its_target():
    w0, erase, guide, keep = rand(2, 3), rand(1, 3, seed=1), rand(1, 3, seed=2), rand(1, 3, seed=3)
    c = torch.eye(3).double()
    r = oce.rotation(w0, erase, guide, keep, c, s=30.0, g=1.0, p=2.0, lam=1.0)
    assert torch.allclose(r @ r.T, torch.eye(2).double()) and torch.isclose(
        torch.det(r), torch.tensor(1.0).double()
    )
    e, f = (x / x.norm() for x in ((w0 @ erase.T), (w0 @ guide.T)))
    k = w0 @ keep.T
    target = 2 * w0 @ w0.T + 2 * k @ k.T - 30 * (e @ e.T) @ (torch.eye(2) - f @ f.T)
    turns = [i * math.tau / 7200 for i in range(7200)]
    nearest = min(
        turns,
        key=lambda t: float(
            (rows([math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]) - target).norm()
        ),
    )
    assert (
        abs((math.atan2(r[1, 0], r[0, 0]) - nearest + math.pi) % math.tau - math.pi)
        < math.tau / 7200
    )


def test_oce_without_anything_to_erase_changes_nothing():
    w0 = rand(3, 3)
    same = oce.rotation(
        w0, rand(1, 3, seed=1), rand(1, 3, seed=1), rand(2, 3, seed=2), torch.eye(3).double()
    )
    assert torch.allclose(same, torch.eye(3).double(), atol=1e-9)


@pytest.mark.parametrize("peer, perp", [(negative_prompt, False), (perp_neg, True)])
def test_negative_prompts_name_every_concept(peer, perp):
    concepts = types.ConceptSet((types.Concept("fox", aliases=("vixen",)), types.Concept("house")))
    model = object()
    assert peer.erase(model, None, concepts) == (model, 0, "fox, vixen, house", perp)


def test_conceptprune_literal():
    # Two of four weights in a row are in the top half. Of these, the ones count for which the
    # concept's norm is larger than the base's.
    w = torch.tensor([[4.0, -3.0, 2.0, 1.0], [-1.0, 1.0, 1.0, 8.0]])
    base, target = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.5, 2, 3, 1]])
    want = torch.tensor([[False, True, True, False], [False, False, True, False]])
    assert torch.equal(conceptprune.skilled(w, target, base, top=0.5), want)
    both = torch.cat([target, base])  # at the second step nothing is above the base
    assert torch.equal(conceptprune.skilled(w, both, torch.cat([base, base]), top=0.5), want)
    assert not conceptprune.skilled(w, both, torch.cat([base, base]), top=0.5, select=0.5).any()


def test_salun_mask_is_global():
    small, large = salun.masks([torch.tensor([[0.1, -0.2]]), torch.tensor([[3.0], [-4.0]])])
    assert not small.any() and large.all()
    assert salun.masks([torch.tensor([1.0, -5, 2, 3])], 0.25)[0].tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_targets_literal():
    empty, said = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert esd.target(empty, said).tolist() == [-1.0, 3.0]
    assert slider.target(said, empty).tolist() == [5.0, 0.0]


@pytest.fixture
def trainee(loaded, monkeypatch):
    """(Network on the sprite world, a batch (x, sigma) of fox pictures).

    The model that came in must stay as it was.
    """
    model, clip, _ = loaded
    monkeypatch.setattr(_shared, "DRAWING", 2)
    for peer in (esd, slider, salun):
        monkeypatch.setattr(peer, "PICTURES", 2)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, ["", "fox", "animal", "cat"], 64)
        x, sigma = _shared.noised(
            net, _shared.drawn(net, ["fox"] * 4, 5), torch.Generator().manual_seed(1)
        )
        yield net, x, sigma
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


@pytest.mark.world
def test_esd_two_steps_lower_its_loss(trainee):
    net, x, sigma = trainee
    rows = [net.text_id["fox"]] * 4

    def now():
        return float(esd.loss(net, net.student, x, sigma, rows).detach())

    before = now()
    esd.train(net, ["fox"], 2)
    assert now() < before


@pytest.mark.world
def test_slider_lowers_its_loss_and_at_minus_one_raises_it(trainee):
    net, x, sigma = trainee

    def now():
        return float(
            slider.loss(
                net, net.student, x, sigma, [net.text_id["fox"]] * 4, [net.text_id["animal"]] * 4
            ).detach()
        )

    before = now()
    lora = slider.train(net, [("fox", "animal")], 2)
    assert now() < before
    lora.put(-1.0)
    assert now() > before


@pytest.mark.world
def test_salun_two_steps_lower_forgetting_within_the_mask(trainee):
    net, x, sigma = trainee

    foxes, animals = ([net.text_id[name]] * 4 for name in ("fox", "animal"))

    def now():
        return float(salun.forgetting(net, x, sigma, foxes, animals).detach())

    before = now()
    masks = salun.train(net, [("fox", "animal")], ["cat"], 2)
    assert now() < before
    for (key, w), mask in zip(net.trainable.items(), masks, strict=True):
        assert torch.equal(w.detach()[~mask], net.start(key)[~mask])


@pytest.mark.world
def test_edits_reach_a_clone_and_not_the_model(loaded):
    model, clip, _ = loaded
    concepts = types.ConceptSet((types.Concept("fox", superclass="animal"),), ("cat",))
    out = uce.erase(model, clip, concepts)
    key = _shared.layers.cross_attention(model)[0].key
    c = uce.states(clip, concepts)[0].float()

    def said(m, x):
        return x @ _shared.weights.read(m, key).T

    animal = _shared.last_states(clip, ["animal"]).float()
    assert (said(out.model, c) - said(model, animal)).norm() < 0.1 * (
        said(model, c) - said(model, animal)
    ).norm()
    assert out.nbytes == sum(320 * 2 for _ in range(8)) + 768 * 4 and not model.patches
