"""Properties that hold for every input, by hypothesis: of patches, edits, files and kernels."""

import copy
import functools
import json
import random

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from testbed import pack

adapters = pack.module("unlearn.host.adapters")
patch_files = pack.module("unlearn.files.patch_file")
saliency_files = pack.module("unlearn.files.saliency_file")
collection = pack.module("unlearn.pruning.collection")
merging = pack.module("unlearn.pruning.merge")
ranking = pack.module("unlearn.pruning.ranking").ranking
types = pack.module("unlearn.types")
fia, scapre, sculpt, uce, bures, complement, sylvester = (
    pack.module(f"kernels.{name}")
    for name in ("fia", "scapre", "sculpting", "uce", "bures", "complement", "sylvester")
)
KEYS = [
    f"diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight" for i in range(3)
]
D_OUT, D_IN = 5, 7
quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
seeds, sizes, strengths = st.integers(0, 10**6), st.integers(1, 9), st.floats(-2, 2, width=32)


def rand(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_of(kind, seed):
    """An edit of a weight [D_OUT, D_IN] from a seed."""
    if kind == "lowrank":
        return adapters.LowRank.of(rand(seed, D_OUT, 2), rand(seed + 1, 2, D_IN))
    if kind in ("delta", "sparse"):
        return adapters.Delta.of(
            torch.where(
                rand(seed, D_OUT, D_IN) > (1.2 if kind == "sparse" else -9),
                rand(seed + 1, D_OUT, D_IN),
                0,
            )
        )
    shape = {"connection": (D_OUT, D_IN), "row": (D_OUT,), "column": (D_IN,)}[kind]
    return adapters.Prune.of(rand(seed, *shape) > 0, D_OUT, D_IN, kind)


ADDING, PRUNING = ("lowrank", "delta", "sparse"), ("connection", "row", "column")
edits = st.builds(edit_of, st.sampled_from(ADDING + PRUNING), seeds)
records = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["ScaPre", "FIA"]),
        "concepts": st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=2),
        "settings": st.dictionaries(
            st.sampled_from("abc"), st.floats(-9, 9) | st.booleans() | st.none(), max_size=2
        ),
    }
)


def patch_of(parts, provenance, seed):
    keys = {key for key, _ in parts}
    return types.UnlearnPatch(
        tuple(parts),
        types.Fingerprint({k: rand(seed + KEYS.index(k), 35) for k in keys}),
        tuple(provenance),
    )


patches = st.builds(
    patch_of,
    st.lists(st.tuples(st.sampled_from(KEYS), edits), min_size=1, max_size=4),
    st.lists(records, min_size=1, max_size=2),
    seeds,
)


def content(patch):
    """All that a patch says, as plain values: what its digest stands for."""

    def plain(w):
        return (
            (str(w.dtype), tuple(w.shape), w.contiguous().view(torch.uint8).numpy().tobytes())
            if isinstance(w, torch.Tensor)
            else repr(w)
        )

    parts = [(key, edit.name, [plain(w) for w in edit.weights]) for key, edit in patch.edits]
    return repr((parts, json.dumps(patch.provenance, sort_keys=True)))


def applied(patch, strength=1.0):
    """Weight key -> what ComfyUI's own arithmetic makes of a weight, edit by edit in order."""
    import comfy.lora

    found = {key: rand(KEYS.index(key), D_OUT, D_IN) for key in KEYS}
    for key, edit in patch.edits:
        found[key] = comfy.lora.calculate_weight(
            [(strength, edit, 1.0, None, None)], found[key], key
        )
    return found


def same(a, b, atol=1e-5):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=atol, rtol=1e-5) for k in a)


# --- patches as values --------------------------------------------------------


@quick
@given(patches, patches, patches)
def test_stacking_is_associative_and_changes_nobody(a, b, c):
    before = [content(p) for p in (a, b, c)]
    left, right = (a + b) + c, a + (b + c)
    assert content(left) == content(right) and left == right and hash(left) == hash(right)
    assert (
        left.fingerprint.difference(right.fingerprint) == 0
        and left.fingerprint.samples.keys() == right.fingerprint.samples.keys()
    )
    assert [content(p) for p in (a, b, c)] == before


@quick
@given(patches, patches)
def test_a_stack_is_applied_in_its_order(a, b):
    once = applied(a)
    import comfy.lora

    for key, edit in b.edits:
        once[key] = comfy.lora.calculate_weight([(1.0, edit, 1.0, None, None)], once[key], key)
    assert same(applied(a + b), once, atol=0)


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.builds(edit_of, st.sampled_from(ADDING), seeds)),
        min_size=2,
        max_size=4,
    ),
    seeds,
)
def test_the_order_of_edits_that_add_does_not_matter(parts, seed):
    other = random.Random(seed).sample(parts, len(parts))
    assert same(applied(patch_of(parts, (), 0)), applied(patch_of(other, (), 0)))


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.builds(edit_of, st.sampled_from(PRUNING), seeds)),
        min_size=1,
        max_size=4,
    ),
    seeds,
)
def test_pruning_once_is_pruning_for_good_in_any_order(parts, seed):
    patch, other = (
        patch_of(parts, (), 0),
        patch_of(random.Random(seed).sample(parts, len(parts)), (), 0),
    )
    assert same(applied(patch), applied(patch + patch), atol=0) and same(
        applied(patch), applied(other), atol=0
    )


def test_the_order_of_pruning_and_adding_does():
    prune, add = (((KEYS[0], edit_of(kind, 3)),) for kind in ("connection", "delta"))
    assert not same(applied(patch_of(prune + add, (), 0)), applied(patch_of(add + prune, (), 0)))


@quick
@given(st.builds(edit_of, st.sampled_from(ADDING), seeds), strengths, strengths)
def test_strength_is_linear_where_an_edit_adds(edit, s, t):
    w = rand(0, D_OUT, D_IN)
    change = functools.partial(edit.change, w)
    assert torch.allclose(change(s) + change(t), change(s + t), atol=1e-4) and torch.allclose(
        change(s), s * change(1.0), atol=1e-4
    )
    assert not change(0.0).any()


@quick
@given(st.builds(edit_of, st.sampled_from(PRUNING), seeds), strengths)
def test_pruning_is_affine_in_strength_and_exact_at_one(edit, s):
    w = rand(0, D_OUT, D_IN)
    mask = edit.mask().expand(D_OUT, D_IN)
    assert torch.allclose(w + edit.change(w, s), torch.where(mask, (1 - s) * w, w), atol=1e-5)
    assert not (w + edit.change(w, 1.0))[mask].any()


@quick
@given(patches, patches)
def test_a_digest_is_equal_where_the_content_is(a, b):
    assert (a.digest == b.digest) == (content(a) == content(b)) and (a == b) == (
        a.digest == b.digest
    )
    copied = types.UnlearnPatch(copy.deepcopy(a.edits), a.fingerprint, copy.deepcopy(a.provenance))
    assert copied == a and hash(copied) == hash(a)


@quick
@given(patches, st.data())
def test_a_digest_differs_by_every_part(patch, data):
    """Another number, mask bit, shape, key or word of provenance makes another patch."""
    i = data.draw(st.integers(0, len(patch.edits) - 1))
    key, edit = patch.edits[i]
    how = data.draw(st.sampled_from(["tensor", "key", "said", "order", "strip"]))
    parts, said = list(patch.edits), list(patch.provenance)
    if how == "tensor":
        w = next(w for w in edit.weights if isinstance(w, torch.Tensor))
        assume(w.numel())
        other = w.clone()
        flat = other.view(-1).view(torch.uint8)
        flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1
        parts[i] = (key, type(edit)(set(), tuple(other if x is w else x for x in edit.weights)))
    elif how == "key":
        parts[i] = (KEYS[(KEYS.index(key) + 1) % 3], edit)
    elif how == "said":
        said[0] = {**said[0], "method": said[0]["method"] + " "}
    elif how == "order":
        parts.reverse()
    else:
        parts.pop(i)
    other = types.UnlearnPatch(tuple(parts), patch.fingerprint, tuple(said))
    assert (other.digest == patch.digest) == (content(other) == content(patch))


def test_sizes_side_by_side_are_no_other_sizes():
    """[2, 14] and [21, 4] are written with the same digits."""
    values, indices = torch.ones(2), torch.tensor([0, 5], dtype=torch.int32)
    a, b = (
        types.UnlearnPatch(
            ((KEYS[0], adapters.Delta(set(), (values, indices, *s))),), types.Fingerprint({})
        )
        for s in ((2, 14), (21, 4))
    )
    assert a != b


# --- files --------------------------------------------------------------------


@quick
@given(patch=patches)
def test_a_patch_comes_back_from_its_file(tmp_path_factory, patch):
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    patch_files.save(path, patch)
    found = patch_files.load(path)[0]
    assert content(found) == content(patch) and found.fingerprint.difference(patch.fingerprint) == 0
    assert same(applied(found, 0.7), applied(patch, 0.7), atol=0)


LAYERS = tuple((key, 4, 6) for key in KEYS[:2])


def saliency_of(concepts, prompts, seed, base=None):
    """A SaliencyMap of the score `wanda`: one vector for each prompt, a function of the prompt."""
    said = {p: rand(p, 2, 12).abs() for p in prompts}

    def moments(group):
        m = fia.RunningMoments(torch.zeros(2, 12), torch.zeros(2, 12))
        for p in prompts:
            m.add(said[p] * (1 + sum(map(ord, group.key)) % 5))
        return m

    gathered = {}
    for group in (types.Group("object"), *(types.Group("object", c) for c in concepts)):
        m = moments(group)
        gathered[group] = types.ActivationStats(
            tuple(f"{p}:{group.key}" for p in prompts),
            m.mean,
            m.m2 if group.is_baseline else None,
        )
    ranked = tuple(
        tuple(ranking(rand(seed, a, b).abs(), 0.5) for _, a, b in LAYERS) for _ in concepts
    )
    how = {
        **collection.DEFAULTS,
        "score": "wanda",
        "prompts": len(prompts),
        "steps": 4,
        "window": 2,
        "size": 64,
    }
    samples = types.Fingerprint({k: rand(i, 24) for i, (k, *_) in enumerate(LAYERS)})
    return types.SaliencyMap(
        tuple(types.Concept(c) for c in concepts), LAYERS, ranked, 0.5, samples, how, gathered
    )


def ranks_of(found):
    return [
        [(r.indices.tolist(), r.rows.tolist(), r.columns.tolist(), r.peak) for r in parts]
        for parts in found.rankings
    ]


@quick
@given(
    concepts=st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    seed=seeds,
)
def test_a_saliency_map_comes_back_from_its_file(tmp_path_factory, concepts, seed):
    path, made = (
        tmp_path_factory.getbasetemp() / "saliency.safetensors",
        saliency_of(concepts, (1, 2), seed),
    )
    saliency_files.save(path, made)
    found = saliency_files.load(path)
    assert (found.concepts, found.layers, found.ceiling) == (
        made.concepts,
        made.layers,
        made.ceiling,
    ) and ranks_of(found) == ranks_of(made)
    assert found.gathered.keys() == made.gathered.keys() and found.settings == json.loads(
        json.dumps(made.settings)
    )
    for name, part in made.gathered.items():
        assert (
            torch.equal(found.gathered[name].mean, part.mean)
            and found.gathered[name].prompts == part.prompts
        )


@quick
@given(st.permutations(range(1, 8)), st.integers(1, 5), st.integers(1, 5))
def test_merging_statistics_is_associative_and_commutative(prompts, i, j):
    """Prompts parted in three ways and merged in any order are the prompts measured together."""
    i, j = sorted((i, i + j if i + j < 7 else 6))
    assume(i < j)
    parts = [saliency_of(("cat",), p, 0) for p in (prompts[:i], prompts[i:j], prompts[j:])]
    whole = saliency_of(("cat",), tuple(prompts), 0)

    def joined(*maps):
        return {
            name: functools.reduce(
                lambda a, b: merging.merge_statistics(name, [a, b]),
                [m.gathered[name] for m in maps],
            )
            for name in whole.gathered
        }

    a, b, c = parts
    nested = {
        n: merging.merge_statistics(
            n, [a.gathered[n], merging.merge_statistics(n, [b.gathered[n], c.gathered[n]])]
        )
        for n in whole.gathered
    }
    for found in (joined(a, b, c), joined(c, a, b), nested):
        for name, part in whole.gathered.items():
            assert set(found[name].prompts) == set(part.prompts) and torch.allclose(
                found[name].mean, part.mean, atol=1e-5
            )
            assert part.m2 is None or torch.allclose(found[name].m2, part.m2, atol=1e-4)


@quick
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=6, unique=True), seeds)
def test_merging_maps_of_other_concepts_is_laying_them_side_by_side(names, seed):
    half = len(names) // 2
    a, b = saliency_of(names[:half], (1, 2), seed), saliency_of(names[half:], (1, 2), seed + 1)
    both, other = merging.merge([a, b]), merging.merge([b, a])

    def by_name(m):
        return dict(zip((c.name for c in m.concepts), map(repr, ranks_of(m)), strict=True))

    assert (
        by_name(both) == by_name(other) == by_name(a) | by_name(b)
        and [c.name for c in both.concepts] == names
    )
    assert by_name(merging.merge([both])) == by_name(both)


# --- kernels ------------------------------------------------------------------


def moments_of(xs):
    m = fia.RunningMoments(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    for x in xs:
        m.add(x.clone())
    return m


@quick
@given(seeds, st.lists(sizes, min_size=3, max_size=3))
def test_moments_merge_like_a_sum(seed, counts):
    a, b, c = ([*rand(seed + k, n, 3).double()] for k, n in enumerate(counts))
    ma, mb, mc = map(moments_of, (a, b, c))
    xs = torch.stack([*a, *b, *c])
    for m in (
        ma.merge(mb).merge(mc),
        ma.merge(mb.merge(mc)),
        mc.merge(ma).merge(mb),
        moments_of(xs),
    ):
        assert (
            m.n == len(xs)
            and torch.allclose(m.mean, xs.mean(0))
            and torch.allclose(m.m2 / m.n, xs.var(0, correction=0))
        )
    assert torch.allclose(ma.bound(), torch.stack(a).mean(0) + torch.stack(a).std(0, correction=0))
    assert torch.equal(moments_of(a).mean, ma.mean)  # merging used nobody up


@quick
@given(seeds, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_chooses_all_that_a_smaller_one_did(seed, r, s):
    a, (r, s) = rand(seed, 6, 9).abs(), sorted((r, s))
    ranked, _ = fia.strongest(a, 1.0)
    small, large = (set(fia.select_connections(ranked, 6, 9, x).tolist()) for x in (r, s))
    assert small <= large and set(fia.select_units(a.sum(1), r).tolist()) <= set(
        fia.select_units(a.sum(1), s).tolist()
    )


@quick
@given(
    st.lists(st.sets(st.integers(0, 20), min_size=1), min_size=2, max_size=5),
    st.floats(0.1, 1),
    seeds,
)
def test_fusing_asks_nobody_for_the_order_of_concepts(chosen, alpha, seed):
    def pruned(sets):
        return (lambda e, who, shared: set(e[~shared].tolist()))(
            *fia.fuse([torch.tensor(sorted(c)) for c in sets], alpha)
        )

    assert pruned(chosen) == pruned(random.Random(seed).sample(chosen, len(chosen)))
    counted = {
        e for e in set().union(*chosen) if sum(e in c for c in chosen) < alpha * len(chosen) - 1e-9
    }
    assert pruned(chosen) == counted


@quick
@given(seeds, sizes, st.integers(2, 6))
def test_gram_is_additive_symmetric_and_positive(seed, n, d):
    x, y = rand(seed, n, d), rand(seed + 1, n + 1, d)
    g = scapre.gram(torch.cat([x, y]))
    assert (
        torch.allclose(g, scapre.gram(x) + scapre.gram(y))
        and torch.allclose(g, g.T)
        and torch.linalg.eigvalsh(g).min() > -1e-9
    )
    assert torch.allclose(
        scapre.gram(x, torch.full((n,), 3.0)), 3 * scapre.gram(x)
    ) and torch.allclose(scapre.gram(x.flip(0)), scapre.gram(x))


@quick
@given(seeds, sizes, st.floats(0.1, 100))
def test_the_anchored_edit_is_the_minimum(seed, n, eta):
    """No other edit has a smaller objective; targets equal to the states change no weight."""
    d = 6
    c, w0, p = (
        rand(seed, n, d).double(),
        rand(seed + 1, 1, d),
        scapre.gram(rand(seed + 2, 9, d)) + 0.1 * torch.eye(d),
    )
    mu, v = scapre.anchored_basis(scapre.gram(c), p)
    edit = (
        scapre.anchored_up(w0, scapre.cross_gram(torch.zeros(n, d), c) @ v, mu, eta).double() @ v.T
    )

    def cost(e):
        return eta * ((w0.double() + e) @ c.T).square().sum() + (e @ p * e).sum()

    best = cost(edit)
    assert all(
        cost(edit + s * rand(seed + k, 1, d)) >= best - 1e-5 * best.abs()
        for k in range(3)
        for s in (1e-2, -1.0)
    )
    assert not scapre.anchored_up(w0, scapre.cross_gram(c, c) @ v, mu, eta).any()


@quick
@given(seeds, st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_training_mask_keeps_its_size_and_its_best(seed, density, tau):
    total = rand(seed, 5, 8)
    mask = sculpt.initial_mask(total, density)
    again, moved = sculpt.refresh(mask, rand(seed + 1, 5, 8), tau)
    assert mask.sum() == again.sum() == max(1, int(density * 40)) and (again & ~mask).sum() <= moved
    assert torch.equal(sculpt.initial_mask(total * 3, density), mask) and torch.equal(
        sculpt.initial_mask(-total, density), mask
    )
    if mask.any() and not mask.all():
        assert total.abs()[mask].min() >= total.abs()[~mask].max()


@quick
@given(seeds, st.integers(1, 5), st.floats(0.05, 1))
def test_what_is_kept_is_orthogonal_to_its_complement(seed, n, energy):
    keep = rand(seed, n, 6).double()
    basis = complement.complement(keep.T @ keep, energy)
    assert torch.allclose(
        basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-9
    )
    whole = complement.complement(keep.T @ keep)
    assert (keep @ whole).abs().max() < 1e-5 if whole.shape[1] else n >= 6
    assert complement.complement(keep.T @ keep, energy).shape[1] >= whole.shape[1]


@quick
@given(seeds, st.floats(0, 1))
def test_the_bures_geodesic_ends_where_it_should(seed, t):
    w, w0 = rand(seed, 8, 5), rand(seed + 1, 8, 5)
    q = bures.rotation(w, w0)
    assert torch.allclose(q @ q.T, torch.eye(5, dtype=torch.float64), atol=1e-9)
    end = bures.geodesic(w, w0, 1.0)
    assert torch.allclose(
        end.T @ end, q.T @ w0.double().T @ w0.double() @ q, atol=1e-8
    ) and torch.equal(bures.geodesic(w, w0, 0), w.double())
    middle = bures.geodesic(w, w0, t)
    assert torch.allclose((middle - w).norm(), t * (end - w).norm(), atol=1e-6)


@quick
@given(seeds, st.floats(0.01, 5))
def test_a_sylvester_solution_solves(seed, alpha):
    a = scapre.gram(rand(seed, 4, 6))
    alphas = torch.full((3,), alpha).double() * torch.arange(1, 4)
    right = rand(seed + 1, 3, 6).double()
    w = sylvester.solve(
        alphas, *(lambda e: (e[0].clamp_min(0), e[1]))(sylvester.spectrum(a)), right
    )
    assert torch.allclose(alphas[:, None] * w + w @ a, right, atol=1e-6)


@quick
@given(seeds, sizes)
def test_uce_factors_multiply_back_and_no_move_is_no_edit(seed, n):
    c, k = rand(seed, n, 6), rand(seed + 1, 4, 6)
    m = uce.multiplier(scapre.gram(c), scapre.cross_gram(torch.zeros(n, 6), c), scapre.gram(k))
    left, right = uce.factors(m)
    assert torch.allclose(left @ right, m, atol=1e-6)
    assert not uce.multiplier(scapre.gram(c), torch.zeros(6, 6), scapre.gram(k)).any()
