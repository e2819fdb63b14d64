"""The peers' closed forms against small numbers worked out by hand or by brute force."""

import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peers import (
    Erased,
    _information,
    _shared,
    _uce_transformer,
    conceptprune,
    esd,
    mace_cfr,
    negative_prompt,
    oce,
    perp_neg,
    rece,
    rows,
    salun,
    sculpting,
    slider,
    speed,
    uce,
)
from testbed import tiny
from testbed.train import tiny_transformer

types, prompts = _shared.types, _shared.prompts
FEW = types.ConceptSet(
    (types.Concept("fox", superclass="animal"), types.Concept("house", superclass="building")),
    ("cat", "ice cream"),
)
STYLE = types.ConceptSet((types.Concept("monet", kind="style"),), ("cat",))
EXPLICIT = types.ConceptSet((types.Concept("naked", kind="explicit"),), ("cat",))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def gram(x):
    return x.T @ x


def near(a, b, tolerance=1e-6):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_uce_literal():
    # c = x is to say what y says: with lambda 1 the x column of W0 goes half way to its y column
    m = _shared.multiplier(numbers([1, 0]), numbers([0, 1]), torch.zeros(2, 2), lam=1.0)
    assert torch.allclose(m, numbers([-0.5, 0], [0.5, 0]))
    w0 = numbers([4, 8], [2, 6])
    assert torch.allclose(w0 @ (torch.eye(2) + m), numbers([6, 8], [4, 6]))


def test_uce_solves_its_normal_equations():
    w0, c, n, k = rand(3, 4), rand(2, 4, seed=1), rand(2, 4, seed=2), rand(3, 4, seed=3)
    left = 0.5 * w0 + (w0 @ n.T) @ c + (w0 @ k.T) @ k
    want = left @ torch.linalg.inv(0.5 * torch.eye(4) + c.T @ c + k.T @ k)
    assert torch.allclose(w0 + w0 @ _shared.multiplier(c, n, gram(k)), want)


def test_uce_weighs_rows():
    w0, c, n, k = rand(3, 4), rand(2, 4, seed=1), rand(2, 4, seed=2), rand(3, 4, seed=3)
    omega = torch.diag(numbers(0.25, 2.0))
    left = 0.5 * w0 + 10 * (w0 @ n.T) @ omega @ c + 3 * (w0 @ k.T) @ k
    want = left @ torch.linalg.inv(0.5 * torch.eye(4) + 10 * c.T @ omega @ c + 3 * gram(k))
    found = _shared.multiplier(c, n, gram(k), 0.5, 10.0, 3.0, omega.diagonal())
    assert torch.allclose(w0 + w0 @ found, want)


def test_uce_maps_blocks_from_the_last_token_on_that_are_as_long_as_each_other():
    old, new = torch.arange(8.0)[:, None], 10 + torch.arange(8.0)[:, None]
    c, n = _shared.block(old, new, 2, 1)  # two tokens to one
    assert c.flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert n.flatten().tolist() == [11, 12, 13, 14, 15, 16]
    c, n = _shared.block(old, new, 1, 0)  # one token to the empty text, from its start token on
    assert c.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert n.flatten().tolist() == [10, 11, 12, 13, 14, 15, 16]


def test_uce_official_is_its_equation_on_what_it_reads():
    clip, setting = tiny.Clip(), uce.OFFICIAL["few"]
    own = uce.read(clip, FEW, "few")
    said = prompts.encode(clip, ["", "fox", "animal", "house", "building", "cat", "ice cream"])
    c, n = (
        torch.cat([said[a][1:], said[b][1:]]).double()
        for a, b in (("fox", "house"), ("animal", "building"))
    )
    k = torch.cat([said[text] for text in ("", "cat", "ice cream")]).double()
    w0 = rand(2, 768)
    left = 0.5 * w0 + (w0 @ n.T) @ c + (w0 @ k.T) @ k / 3
    want = left @ torch.linalg.inv(0.5 * torch.eye(768) + gram(c) + gram(k) / 3)
    assert near(w0 + w0 @ uce.solved(own, setting), want, 1e-6)
    # and of its present code: last tokens alone, the names that are kept without the empty text
    c, n, k = (
        torch.stack([said[text][at] for text, at in of]).double()
        for of in (
            (("fox", 1), ("house", 1)),
            (("animal", 1), ("building", 1)),
            (("cat", 1), ("ice cream", 2)),
        )
    )
    left = 0.5 * w0 + (w0 @ n.T) @ c + (w0 @ k.T) @ k
    want = left @ torch.linalg.inv(0.5 * torch.eye(768) + gram(c) + gram(k))
    assert near(w0 + w0 @ uce.solved(own, setting._replace(whole=False)), want, 1e-6)


def test_rece_literal():
    # Half of x is left. With lambda 1/4 the embedding that brings x back is (1/4 + 1/4)^-1 1/2 x =
    # x. Erasing it with lambda 1 halves it again.
    start, x = numbers([-0.5, 0], [0, 0]), numbers([1, 0])
    setting = rece.Setting(lam=0.25, edit=1.0)
    m = rece.rounds(torch.eye(2).double(), start, x, torch.zeros(1, 2), torch.zeros(2, 2), setting)
    assert torch.allclose(m, numbers([-0.75, 0], [0, 0]))


def test_rece_rounds_are_its_equations_one_after_another():
    w0, c, n, k = rand(6, 4), rand(2, 4, seed=1), rand(2, 4, seed=2), rand(3, 4, seed=3)
    setting, w = rece.Setting(lam=0.2, count=2, edit=0.3, preserve=0.4), 0.9 * w0
    for _ in range(2):
        back = (torch.linalg.inv(0.2 * torch.eye(4) + gram(w)) @ (w.T @ w0) @ c.T).T
        left = 0.3 * w + (w @ n.T) @ back + 0.4 * (w @ k.T) @ k
        w = left @ torch.linalg.inv(0.3 * torch.eye(4) + gram(back) + 0.4 * gram(k))
    start = -0.1 * torch.eye(4).double()
    assert near(w0 + w0 @ rece.rounds(gram(w0), start, c, n, gram(k), setting), w)


def test_rece_rounds_leave_less_each_time():
    w0, c = rand(6, 4), rand(1, 4, seed=1)
    start = _shared.multiplier(c, torch.zeros(1, 4), torch.zeros(4, 4), lam=5.0)
    left = []
    for count in range(4):
        setting = rece.Setting(lam=0.1, count=count)
        m = rece.rounds(gram(w0), start, c, torch.zeros(1, 4), torch.zeros(4, 4), setting)
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
    assert torch.allclose(w0 + w0 @ mace_cfr.multiplier(c, y, prior, 10.0), want)


def test_mace_official_holds_captions_and_the_keep_list():
    clip = tiny.Clip()
    own, setting = mace_cfr.read(clip, FEW, "few"), mace_cfr.OFFICIAL["few"]
    said = _shared.captions(FEW)
    states = prompts.encode(clip, [*said, *FEW.keep])
    everyday = sum(gram(states[text].double()) for text in said) / (77 * len(said))
    listed = sum(gram(states[text].double()) for text in FEW.keep)
    assert near(own.captions, everyday, 1e-6) and near(own.kept, listed, 1e-6)
    assert setting.kept == pytest.approx(1e-4 * 5e4)
    assert setting.prior == pytest.approx(1e-4 * 617e3 * 77)
    assert not any("fox" in text.split() for text in said)


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


def test_speed_with_lambda_and_weights_is_its_equation():
    w0, c, n, k = rand(3, 6), rand(4, 6, seed=1), rand(4, 6, seed=2), rand(6, 2, seed=4)
    retain, weight, eye = rand(2, 6, seed=3), numbers(0.5, 0.5, 1.0, 0.2), torch.eye(6).double()
    p = speed.projector(gram(retain), 1e-9)
    s_tt, s_at = c.T @ torch.diag(weight) @ c, n.T @ torch.diag(weight) @ c
    m = torch.linalg.inv(s_tt @ p + 0.7 * eye)
    inner = torch.linalg.inv(k.T @ p @ m @ k + 0.5 * torch.eye(2))
    want = w0 @ (s_at - s_tt) @ p @ (eye - m @ k @ inner @ k.T @ p) @ m
    assert near(w0 @ (n - c).T @ speed.right(c, p, k, 0.7, 0.5, weight), want)


@pytest.mark.parametrize("sift", [True, False])
def test_speed_refines_as_if_every_copy_were_made(sift):
    retain, w0, plain = rand(9, 6), rand(3, 6, seed=1), rand(3, 6, seed=2)
    found = speed.refined(retain, w0, plain, torch.Generator().manual_seed(5), copies=4, sift=sift)

    def strong(x):
        return x[(size := (x @ plain.T).norm(dim=1)) >= size.mean()]

    kept = strong(retain) if sift else retain
    v = torch.linalg.svd(w0, full_matrices=False)[2][-1]
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(4 * len(kept), 6, generator=g, dtype=torch.float64)
    copies = strong(kept.repeat(4, 1) + (noise @ v)[:, None] * v)
    assert 0 < len(copies) < 4 * len(kept)
    assert near(found, gram(torch.cat([kept, copies])) / (len(kept) + len(copies)))


def test_speed_reads_all_tokens_of_the_explicit_word_and_the_last_of_others():
    clip = tiny.Clip()
    own = speed.read(clip, EXPLICIT, "explicit")
    said = prompts.encode(clip, ["", "naked", "fox", "animal", "cat", "ice cream"])
    assert near(own.c, said["naked"][1:].double()) and near(own.n, said[""][1:].double())
    assert near(own.retain["empty"], said[""][1:].double()) and own.count == 1
    own = speed.read(clip, FEW, "few")
    assert near(own.c[0], said["fox"][1].double()) and near(own.n[0], said["animal"][1].double())
    assert near(own.retain["listed"][1], said["ice cream"][2].double())
    assert len(own.retain["words"]) > 2000 and own.held.shape == (768, 4)


def test_speed_centres_find_clusters():
    found = speed.centres(numbers([0, 0], [0, 1], [9, 9], [9, 8]), 2)
    assert sorted(map(tuple, found.tolist())) == [(0, 0.5), (9, 8.5)]


def test_oce_is_the_rotation_nearest_to_its_target():
    w0, erase, guide, keep = rand(2, 3), rand(1, 3, seed=1), rand(1, 3, seed=2), rand(1, 3, seed=3)
    c = torch.eye(3).double()
    r = oce.rotation(w0, erase, guide, keep, c, oce.Setting(30.0, 1.0, 2.0, 1.0))
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
            (numbers([math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]) - target).norm()
        ),
    )
    assert (
        abs((math.atan2(r[1, 0], r[0, 0]) - nearest + math.pi) % math.tau - math.pi)
        < math.tau / 7200
    )


def test_oce_without_anything_to_erase_changes_nothing():
    w0, c, eye = rand(3, 3), rand(1, 3, seed=1), torch.eye(3).double()
    same = oce.rotation(w0, c, c, rand(2, 3, seed=2), eye, oce.Setting())
    assert torch.allclose(same, eye, atol=1e-9)


def test_oce_spans_no_more_than_what_it_is_given():
    x = rand(1, 5)
    assert near(oce.basis(torch.cat([x, x, 2 * x])).abs(), (x / x.norm()).T.abs())
    both = torch.cat([rand(2, 5), rand(2, 5)])
    e = oce.basis(both)
    assert e.shape == (5, 2) and near(e.T @ e, torch.eye(2).double())
    assert near(both @ e @ e.T, both)


def test_oce_reads_sentences_but_for_many_concepts():
    clip = tiny.Clip()
    said = prompts.encode(clip, ["painting of house", "house", "style of real", "style of monet"])
    assert near(oce.read(clip, FEW, "few").c[-1], said["painting of house"][3].double())
    many = oce.read(clip, FEW, "many")
    assert len(many.c) == 2 and near(many.c[1], said["house"][1].double())
    style = oce.read(clip, STYLE, "style")
    assert near(style.c[-1], said["style of monet"][3].double())
    assert near(style.n[-1], said["style of real"][3].double())


@pytest.mark.parametrize("peer, perp", [(negative_prompt, False), (perp_neg, True)])
def test_negative_prompts_name_every_concept(peer, perp):
    concepts = types.ConceptSet((types.Concept("fox", aliases=("vixen",)), types.Concept("house")))
    model = object()
    assert peer.erase(model, None, concepts) == Erased(model, 0, "fox, vixen, house", perp)


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


def test_conceptprune_takes_norms_over_the_rows_of_all_prompts():
    x, y = rand(5, 3), rand(4, 3, seed=1)
    norms = [part.norm(dim=0)[None] for part in (x, y)]
    assert near(conceptprune.over_all_prompts(norms), torch.cat([x, y]).norm(dim=0)[None])


def test_sculpting_masks_follow_the_sums_of_gradients():
    w = torch.nn.Parameter(torch.zeros(1, 4))
    masks = sculpting.Masks([w])
    for grads in ([3.0, -1, 0, 2], [0.0, -1, -3, 2]):
        w.grad = torch.tensor([grads])
        masks.take()
    assert w.grad.tolist() == [[0, -1, -3, 2]]  # no mask yet
    masks.begin()  # sums 3, -2, -3, 4: the half with the largest
    assert masks.masks[0].tolist() == [[True, False, False, True]]
    w.grad = torch.tensor([[1.0, 5, 2, 3]])
    masks.take()
    assert w.grad.tolist() == [[1, 0, 0, 3]]
    masks.refresh(0.5)  # of two, one leaves and one enters: by 1, 5, 2, 3
    assert masks.masks[0].tolist() == [[False, True, False, True]]


def test_sculpting_takes_back_its_best_epoch():
    w = torch.nn.Parameter(torch.tensor([1.0]))
    best = sculpting.Best([w])
    warmup = ((0.0, 0.1),)  # the lowest loss, but nothing was trained
    for value, loss in (*warmup, (1.0, 3.0), (2.0, 1.0), (3.0, 2.0)):
        w.data.fill_(value)
        best.add(torch.tensor(loss), trained=value > 0, epoch_ends=False)
        best.add(torch.tensor(loss), trained=value > 0, epoch_ends=True)
    best.take()
    assert w.tolist() == [2.0]
    assert sculpting.plan(500) == (50, 100, 50) and sculpting.plan(50) == (5, 10, 5)


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


# --- The rows `same information` ------------------------------------------------------------------


def known(n=6, d=8):
    """An Information of two concepts with made-up states."""
    weight = torch.arange(1.0, n + 1).double()
    return _information.Information(
        concept=rand(n, d),
        target=rand(n, d, seed=1),
        weight=weight / weight.sum(),
        own=torch.tensor([True, False, False] * (n // 3)),
        end=torch.tensor([False, False, True] * (n // 3)),
        of=torch.arange(n) // (n // 2),
        count=2,
        keep_gram=gram(rand(9, d, seed=2)),
        kept=rand(20, d, seed=3),
        listed=rand(3, d, seed=4),
        null=rand(12, d, seed=5),
    )


@pytest.fixture
def two_matrices(monkeypatch):
    """A key and a value matrix [5, 8] in place of a model's cross-attention."""
    matrices = {"key": rand(5, 8, seed=6).float(), "value": rand(5, 8, seed=7).float()}
    found = [_shared.layers.Layer(role, role, role, "text") for role in matrices]
    monkeypatch.setattr(_shared.layers, "cross_attention", lambda model: found)
    monkeypatch.setattr(_shared.weights, "read", lambda model, key: matrices[key])
    return {key: w.double() for key, w in matrices.items()}


def changed(edits, matrices):
    """Weight key -> W of edits on two_matrices."""
    return {
        key: w + edit.change(w.float(), 1.0).double()
        for (key, edit), w in ((e, matrices[e[0]]) for e in edits)
    }


def test_uce_and_mace_solve_their_equations_on_what_ours_reads(two_matrices):
    k, eye = known(), torch.eye(8).double()
    for rest, lam, erase, preserve, edits in (
        (slice(None), 0.5, 10.0, 3.0, uce.same_edits(None, k, uce.Setting(0.5, 10.0, 3.0))),
        (~k.own, 0.05, 1.0, 0.1, mace_cfr.same_edits(None, k, mace_cfr.Setting(0.05, 0.1, 0.0))),
    ):
        c, n, omega = k.concept[rest], k.target[rest], torch.diag(k.weight[rest])
        right = lam * eye + erase * c.T @ omega @ c + preserve * k.keep_gram
        for key, w in changed(edits, two_matrices).items():
            w0 = two_matrices[key]
            left = lam * w0 + erase * w0 @ n.T @ omega @ c + preserve * w0 @ k.keep_gram
            assert near(w, left @ torch.linalg.inv(right), 3e-3), key


def test_rece_goes_on_from_uce_on_what_ours_reads(two_matrices):
    k, setting = known(), rece.Setting(lam=0.2, preserve=1.0, start=uce.Setting(erase=10.0))
    grams = sum(gram(w) for w in two_matrices.values())
    start = _shared.multiplier(k.concept, k.target, k.keep_gram, 0.5, 10.0, 1.0, k.weight)
    m = rece.rounds(grams, start, k.concept, k.target, k.keep_gram, setting, 10.0, k.weight)
    for key, w in changed(rece.same_edits(None, k, setting), two_matrices).items():
        assert near(w, two_matrices[key] @ (torch.eye(8) + m), 3e-3)


@pytest.mark.parametrize("factors", [64, 0])
def test_speed_solves_its_equation_on_what_ours_reads(two_matrices, monkeypatch, factors):
    monkeypatch.setattr(speed, "LOW_RANK", factors)
    k, setting, w0 = known(), speed.Setting(0.7, 1.0, lam=0.5), two_matrices["value"]
    omega, held = torch.diag(k.weight / 2), speed.held(k.null)
    s_tt, s_at, eye = k.concept.T @ omega @ k.concept, k.target.T @ omega @ k.concept, torch.eye(8)
    plain = w0 @ (s_at - s_tt) @ torch.linalg.inv(eye + s_tt)
    g = torch.Generator().manual_seed(3)
    p = speed.projector(speed.refined(k.kept, w0, plain, g), 1.0)
    assert 0 < int(p.trace().round()) < 8
    m = torch.linalg.inv(s_tt @ p + 0.7 * eye)
    inner = torch.linalg.inv(held.T @ p @ m @ held + 0.5 * torch.eye(4))
    want = w0 + w0 @ (s_at - s_tt) @ p @ (eye - m @ held @ inner @ held.T @ p) @ m
    found = changed(speed.same_edits(None, k, setting, 3), two_matrices)
    assert found.keys() == {"value"} and near(found["value"], want, 5e-3)


def test_oce_turns_each_concepts_own_and_end_tokens(two_matrices):
    k, setting, w0 = known(), oce.Setting(30.0, 1.0, 2.0, 1.0), two_matrices["value"]
    c, n = (x[torch.tensor([0, 2, 3, 5])] for x in (k.concept, k.target))
    r = oce.rotation(w0, c, n, k.listed, k.keep_gram, setting)
    found = changed(oce.same_edits(None, k, setting), two_matrices)
    assert found.keys() == {"value"} and near(found["value"], r @ w0, 3e-3)


def test_the_information_is_what_ours_reads():
    clip = tiny.Clip()
    k = _information.read(clip, FEW)
    plan = _information.plans.plan(clip, FEW)
    found = _information.statistics.measure(plan, _information.Reader(clip).get)
    assert torch.equal(k.keep_gram, found.preserve_gram) and k.count == 2
    weights = torch.zeros(2).double().index_add(0, k.of, k.weight)
    assert near(weights, numbers(1.0, 1.0))  # a concept's sentences weigh one together
    assert len(plan.pairs) == 12 and len(plan.checked) == 4
    said = prompts.encode(clip, ["a photo of a fox", "a photo of a animal"])
    own = said["a photo of a fox"][5].double() / found.scale
    at = (k.concept - own).norm(dim=1).argmin()
    assert near(k.concept[at], own, 1e-6) and k.own[at] and not k.end[at] and k.of[at] == 0
    assert near(k.target[at], said["a photo of a animal"][5].double() / found.scale, 1e-6)
    # the keep list: the last token and the end token, over three sentences each
    three = ("cat", "a photo of a cat", "the cat in the garden")
    said, last = prompts.encode(clip, three), (1, 5, 2)
    mean = torch.stack([said[t][at] for t, at in zip(three, last, strict=True)]).mean(0)
    assert k.listed.shape == (4, 768) and near(k.listed[0], mean.double() / found.scale, 1e-5)
    assert len(k.kept) > len(found.word_states) > 2000


def test_tokens_of_a_sentence_weigh_one_together():
    a = prompts.Prompt("a fire truck here", "fire truck", 2, 3, 5)
    b = prompts.Prompt("a car here", "car", 2, 2, 4)
    found = _information.compared(a, b, 77)
    assert sum(row.weight for row in found) == pytest.approx(1)
    assert [(r.at, r.other) for r in found if r.own] == [(2, 2), (3, 2)]
    assert [(r.at, r.other) for r in found if r.end] == [(5, 4)]
    assert (4, 3) in [(r.at, r.other) for r in found]
    pads = [r for r in found if r.at > 5]
    assert sum(r.weight for r in pads) == pytest.approx(found[0].weight)


# --- Rows -----------------------------------------------------------------------------------------


def test_a_closed_form_has_three_rows_and_its_name_is_the_official_one():
    every = rows.known()
    assert every["uce"] == rows.Row("uce official", "uce", "official")
    for peer in ("uce", "rece", "speed", "oce", "mace_cfr"):
        names = {n: r for n, r in every.items() if r.peer == peer}
        assert names.keys() == {peer, f"{peer} sweep", f"{peer} same information"}
        for kind in _shared.KINDS:
            grid = rows.grid(every[f"{peer} sweep"], kind)
            assert grid[0] == every[peer].module.OFFICIAL[kind]
            assert len(set(grid)) == len(grid) <= 5
        assert len(set(rows.grid(every[f"{peer} same information"], "few"))) == 4
    assert every["ours"].group == "ours" and list(every)[0] == "ours"
    assert every["esd"] == rows.Row("esd official", "esd", "official")
    assert "closed form only" in every["mace_cfr"].module.NAME


def test_fewer_training_steps_are_in_the_name():
    row = rows.known(steps=200)["esd"]
    assert row.id == "esd, 200 steps"
    assert rows.method(row, FEW).name == "ESD-x (200 of 1000 steps)"
    row = rows.known(steps=300)["salun"]
    assert rows.method(row, FEW).name == "SalUn (cross-attention) (300 of 500 steps)"
    assert rows.method(row, EXPLICIT).name == "SalUn (cross-attention)"
    assert rows.known(steps=200)["uce"].id == "uce official"


def test_kinds_are_told_apart():
    many = types.ConceptSet(tuple(types.Concept(str(i)) for i in range(10)))
    found = [_shared.kind_of(c) for c in (FEW, many, STYLE, EXPLICIT)]
    assert found == ["few", "many", "style", "explicit"]


@pytest.fixture
def trainee(loaded, monkeypatch):
    """(Network on the sprite world, a batch (x, sigma) of fox pictures).

    The model that came in must stay as it was.
    """
    model, clip, _ = loaded
    monkeypatch.setattr(_shared, "DRAWING", 2)
    for peer in (esd, slider, salun, sculpting):
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
@pytest.mark.parametrize(
    "peer, each",
    [(esd, ["fox", "cat"]), (slider, [("fox", "animal"), ("cat", "animal")])],
)
def test_several_concepts_share_the_steps_as_in_the_official_code(trainee, monkeypatch, peer, each):
    net, seen, steps = trainee[0], [], 8
    monkeypatch.setattr(peer, "loss", counted(peer.loss, seen))
    peer.train(net, each, steps)
    assert len(seen) == steps
    assert {row for rows in seen for row in rows} == {net.text_id[n] for n in ("fox", "cat")}


def counted(real, seen):
    """A loss that notes the texts of every step."""

    def loss(net, branch, x, sigma, rows, *others):
        seen.append(rows)
        return real(net, branch, x, sigma, rows, *others)

    return loss


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
        return float(_shared.forgetting(net, x, sigma, foxes, animals).detach())

    before = now()
    masks = salun.train(net, [("fox", "animal")], ["cat"], 2, alpha=0.5)
    assert now() < before
    for (key, w), mask in zip(net.trainable.items(), masks, strict=True):
        assert torch.equal(w.detach()[~mask], net.start(key)[~mask])


@pytest.mark.world
def test_sculpting_moves_what_its_mask_allows(trainee, monkeypatch):
    net, _, _ = trainee
    monkeypatch.setattr(sculpting, "STEPS", 10)
    monkeypatch.setattr(sculpting, "EPOCHS", 2)
    monkeypatch.setattr(sculpting, "WARMUP", 4)
    trained, add = [], sculpting.Best.add

    def noted(best, loss, **told):
        trained.append(told["trained"])
        add(best, loss, **told)

    monkeypatch.setattr(sculpting.Best, "add", noted)
    masks = sculpting.train(net, "cat", ["fox", "animal"], 10)
    assert trained == [False] * 4 + [True] * 6  # the warm-up is no candidate for the best epoch
    moved = 0
    for (key, w), mask in zip(net.trainable.items(), masks, strict=True):
        assert torch.equal(w.detach()[~mask], net.start(key)[~mask])
        assert int(mask.sum()) == mask.numel() // 2
        moved += int((w.detach() != net.start(key)).sum())
    assert moved > 0


@pytest.mark.world
def test_edits_reach_a_clone_and_not_the_model(loaded):
    model, clip, _ = loaded
    concepts = types.ConceptSet((types.Concept("fox", superclass="animal"),), ("cat",))
    setting = uce.Setting(whole=False)
    out = _shared.erased(
        model, "UCE", concepts, uce.edits(model, uce.read(clip, concepts, "few"), setting)
    )
    key = _shared.layers.cross_attention(model)[0].key

    def said(m, x):
        return x @ _shared.weights.read(m, key).T

    c, animal = (_shared.last_states(clip, [name]).float() for name in ("fox", "animal"))
    assert (said(out.model, c) - said(model, animal)).norm() < 0.1 * (
        said(model, c) - said(model, animal)
    ).norm()
    assert out.nbytes == sum(320 * 2 for _ in range(8)) + 768 * 4 and not model.patches


# --- Every row on a tiny model --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """(MODEL, CLIP), so small that every row runs in seconds."""
    return tiny.model(), tiny.Clip()


def difference(model, erased):
    """Weight key -> how far a row has moved it, of all weights that a row may edit."""
    layers = (*_shared.layers.cross_attention(model), *_shared.layers.feed_forward(model))
    read = _shared.weights.read
    found = {x.key: (read(erased, x.key) - read(model, x.key)).norm() for x in layers}
    assert all(torch.isfinite(d) for d in found.values())
    return {key for key, d in found.items() if d > 0}


def test_the_text_encoder_row_gives_a_clip_and_leaves_the_model_alone():
    with torch.inference_mode():
        model, clip = tiny.model(), tiny.sdxl_clip(widths=(64, 128))
        row = rows.known()["text_encoder"]
        erased = rows.method(row, FEW).erase(model, clip, FEW, seed=0, size=64)
    assert erased.model is model and not difference(model, erased.model)
    assert erased.clip is not clip and len(erased.clip.patcher.patches) == 2 and erased.nbytes > 0
    assert not clip.patcher.patches and row.group == "pack"


TUNED = [name for name, row in rows.known().items() if row.group in (rows.SWEEP, rows.SAME)]


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("concepts", [FEW, EXPLICIT], ids=["few", "explicit"])
def test_a_closed_form_edits_keys_and_values(small, name, concepts):
    """At every setting of its sweep for few objects, and at the official one for the explicit."""
    model, clip = small
    row, kind = rows.known()[name], _shared.kind_of(concepts)
    layers = _shared.layers.cross_attention(model)
    only = ("value",) if row.peer in ("oce", "speed") else ("key", "value")
    wanted = {x.key for x in layers if x.role in only}
    settings = rows.grid(row, kind)
    with torch.inference_mode():
        read = rows.read(row, clip, concepts, kind)
        for setting in settings if kind == "few" and row.group == rows.SWEEP else settings[:1]:
            out = rows.erased(row, model, concepts, read, setting, 0)
            moved = difference(model, out.model)
            # Where what is retained fills the space, SPEED has nothing left to edit.
            assert moved == wanted or (row.peer == "speed" and not moved), setting
            assert out.nbytes > 0
    assert not model.patches


def test_a_rows_method_does_what_its_parts_do(small):
    model, clip = small
    with torch.inference_mode():
        official = rows.method(rows.known()["uce"], FEW).erase(model, clip, FEW, seed=0, size=64)
        row = rows.known()["uce sweep"]
        first, other = (
            rows.method(row, FEW, setting).erase(model, clip, FEW, seed=0, size=64)
            for setting in rows.grid(row, "few")[:2]
        )
    for layer in _shared.layers.cross_attention(model):
        a, b, c = (_shared.weights.read(x.model, layer.key) for x in (official, first, other))
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("peer", ["esd", "salun", "sculpting", "slider"])
def test_a_training_row_trains_as_many_steps_as_it_is_told(small, monkeypatch, peer):
    model, clip = small
    monkeypatch.setattr(_shared, "DRAWING", 1)
    row = rows.known(steps=2)[peer]
    monkeypatch.setattr(row.module, "PICTURES", 2)
    steps = []
    counted = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        with torch.inference_mode():  # as the benchmark runs it
            out = rows.method(row, FEW).erase(model, clip, FEW, seed=0, size=64)
    finally:
        counted.remove()
    assert difference(model, out.model)
    # Two concepts, which share the steps or have two each; one of Sculpting Memory's is a warm-up.
    assert len(steps) == {"esd": 2, "salun": 4, "sculpting": 2, "slider": 2}[peer]


def test_conceptprune_prunes_less_for_a_style(small, monkeypatch):
    model, clip = small
    for name, value in (("STEPS", 2), ("WINDOW", 2), ("PROMPTS", 2)):
        monkeypatch.setattr(conceptprune, name, value)
    pruned = {}
    for concepts in (FEW, STYLE):
        out = conceptprune.erase(model, clip, concepts)
        read = [_shared.weights.read(out.model, x.key) for x in _shared.layers.feed_forward(model)]
        zero = sum(int((w == 0).sum()) for w in read)
        pruned[concepts.concepts[0].kind] = zero / sum(w.numel() for w in read)
    # two objects at 2 % a step, of two steps; one style at 1 %
    assert 0 < pruned["style"] <= 0.02 and pruned["style"] < pruned["object"] <= 0.08


@pytest.fixture(scope="module", params=tiny_transformer.SIZES)
def transformer_world(request, tmp_path_factory):
    """(format, Studio) of a tiny diffusion transformer of the emoji world."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, tiny_transformer.made(request.param, folder)


def test_uce_on_a_transformer_is_its_equation_on_what_the_layers_see(transformer_world):
    form, shown = transformer_world
    concepts = types.ConceptSet(
        (types.Concept("fox", superclass="animal"), types.Concept("house")), ("cat",)
    )
    found = _uce_transformer.edits(shown.model, shown.clip, concepts, uce.OFFICIAL["few"])
    family = _shared.layers.of(shown.model)
    assert [key for key, _ in found] == [layer.key for layer in family.cross_attention_layers()]
    states = _uce_transformer.observed.ObservedStates(family, shown.clip)
    said = {
        t: _uce_transformer.blocks_of(states, states.groups[0], t)[0]
        for t in ("fox", "animal", "house", "", "cat")
    }
    pairs = [
        _shared.block(*blocks(said[a], said[b])) for a, b in (("fox", "animal"), ("house", ""))
    ]
    c, n = (torch.cat(part) for part in zip(*pairs, strict=True))
    k = torch.cat([said[""][0], said["cat"][0]])
    key, edit = found[0]
    w0 = _shared.weights.read(shown.model, key).double()
    left = 0.5 * w0 + (w0 @ n.T) @ c + 0.5 * (w0 @ k.T) @ k
    right = 0.5 * torch.eye(c.shape[1]).double() + gram(c) + 0.5 * gram(k)
    want = torch.linalg.solve(right, left, left=False) - w0
    assert (edit.change(w0.float(), 1.0) - want).norm() < 1e-2 * want.norm(), form


def blocks(old, new):
    """The arguments of _shared.block for what blocks_of gives of a name and of its target."""
    return old[0], new[0], old[1], new[1]
