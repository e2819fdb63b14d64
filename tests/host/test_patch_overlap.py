"""A concept that would be forgotten twice: said in a sentence, or left out where 'once' is chosen.

The stacks here are of made-up edits; what matters is what their provenance says.
"""

import pytest
import torch

from testbed import pack, tiny

adapters = pack.module("unlearn.host.adapters")
layers = pack.module("unlearn.host.architectures")
patching = pack.module("unlearn.host.patching")
provenance = pack.module("unlearn.provenance")
text = pack.module("unlearn.concepts.notation")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
nodes = {node.__name__: node for node in pack.module("nodes").NODES}


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def patch_of(model, forget, method="ScaPre anchored", seed=0, on=None, **said):
    """A patch of one low-rank edit whose provenance has the concepts of a forget text."""
    key = layers.cross_attention(model)[0].key
    d_out, d_in = weights.shape(model, key)
    g = torch.Generator().manual_seed(seed)
    up, down = torch.randn(d_out, 1, generator=g), torch.randn(1, d_in, generator=g)
    edit = adapters.LowRank.of(0.01 * up, down)
    earlier = patching.manifest(on) if on is not None else ()
    record = provenance.record(method, {"seed": seed}, text.parse(forget), {}, earlier) | said
    return types.UnlearnPatch(((key, edit),), weights.fingerprint(model, [key]), (record,))


def apply(model, *stack, strength=1.0, **how):
    """(model, report) of Apply Unlearn Patch."""
    node = nodes["ApplyUnlearnPatch"].PREPARE_CLASS_CLONE(None)
    patches = {f"patch{i}": patch for i, patch in enumerate(stack)}
    return node.execute(model, patches, strength, "warn", **how).result[:2]


def applied(model):
    """The concepts of each patch that is on a MODEL."""
    return [record["concepts"] for record in patching.manifest(model)]


REPEATED = [
    # two forget texts, the concept that a warning names, what is left with 'once'
    ("fox", "fox", "'fox' is", [["fox"]]),
    ("fox -> animal", "fox\nhouse", "'fox' is", [["fox", "house"]]),
    ("fox\nhouse", "style: Fox", "'Fox' is", [["fox", "house"]]),
    ("fox | vixen", "vixen", "'vixen' is", [["fox"]]),
    ("vixen", "fox | vixen", "'fox' is", [["fox"]]),
    ("ice cream", "ice-cream", "'ice-cream' is", [["ice cream"]]),
    ("fox", "foxes", "'foxes' is", [["fox"]]),
    ("fox\nhouse", "house\ncat", "'house' is", [["fox", "house"], ["house", "cat"]]),
    ("fox\nhouse", "house\nfox", "'house', 'fox' are", [["fox", "house"]]),
]


@pytest.mark.parametrize("first, second, named, left", REPEATED)
@pytest.mark.parametrize("nodes_used", [1, 2])
def test_a_concept_in_two_patches(model, first, second, named, left, nodes_used):
    a, b = patch_of(model, first, seed=1), patch_of(model, second, seed=2)
    if nodes_used == 1:
        patched, report = apply(model, a, b)
        kept, told = apply(model, a, b, repeated="once")
        where = "by patch0 and by patch1"
    else:
        on = apply(model, a)[0]
        patched, report = apply(on, b)
        kept, told = apply(on, b, repeated="once")
        where = "by the model (an earlier Apply Unlearn Patch) and by patch0"
    assert f"WARNING: {named.replace(', ', ' and ')} forgotten twice." in report
    assert f"\n{named} forgotten twice, {where}" in report and "'repeated' of Apply" in report
    assert len(applied(patched)) == 2
    if nodes_used == 2 and left == [["fox"]] and first == "vixen":
        left = [["vixen"], ["fox"]]  # what is on the model stays, and it has no fox
    elif nodes_used == 2 and first == "fox -> animal":
        left = [["fox"], ["fox", "house"]]
    assert applied(kept) == left
    assert ("Left out" in told) == (len(left) == 1)
    assert ("forgotten twice" in told) == (len(left) == 2)


def test_the_same_patch_twice(model):
    patch = patch_of(model, "fox\nhouse")
    key = patch.edits[0][0]
    once = weights.read(apply(model, patch)[0], key)
    twice, report = apply(model, patch, patch)
    assert "'fox', 'house' are forgotten twice, because patch1 is the same patch as" in report
    assert not torch.allclose(weights.read(twice, key), once)
    left, report = apply(model, patch, patch, patch, repeated="once")
    assert weights.read(left, key).equal(once) and report.count("Left out") == 2
    assert "WARNING" not in report
    again, report = apply(left, patch, repeated="once")
    assert weights.read(again, key).equal(once) and "Nothing was applied" in report


def test_what_is_no_repeat(model):
    """Other concepts, other methods, halves that add up to one, and an edit taken back."""
    fox, cat = patch_of(model, "fox -> animal", seed=1), patch_of(model, "cat -> animal", seed=2)
    pruned = patch_of(model, "fox", "FIA", seed=3)
    trained = patch_of(model, "fox", "Sculpting Memory replay", seed=4)
    for repeated in ("warn", "once"):
        patched, report = apply(model, fox, cat, pruned, trained, repeated=repeated)
        assert "twice" not in report and len(applied(patched)) == 4
        back, report = apply(patched, fox, strength=-1.0, repeated=repeated)
        assert "twice" not in report and len(applied(back)) == 5
    half = apply(model, fox, strength=0.5)[0]
    assert "twice" not in apply(half, fox, strength=0.5)[1]
    assert "twice" in apply(half, fox, strength=0.6)[1]
    full, report = apply(half, fox, repeated="once")  # a half that is there does not cover it
    assert len(applied(full)) == 2 and "twice" in report
    off = apply(model, fox, strength=0.0)[0]
    assert "twice" not in apply(off, fox)[1]


def test_a_patch_made_on_a_patched_model_is_no_repeat(model):
    """It forgets what the first one left; without the first one below it, it is a repeat."""
    fox = patch_of(model, "fox", seed=1)
    on = apply(model, fox)[0]
    more = patch_of(model, "fox", seed=2, on=on)
    assert more.provenance[0]["on_model"] == [
        {"method": "ScaPre anchored", "lines": ["object: fox"], "strength": 1.0}
    ]
    assert "twice" not in apply(on, more)[1] and "twice" not in apply(model, fox, more)[1]
    assert len(applied(apply(model, fox, more, repeated="once")[0])) == 2
    assert "twice" in apply(model, more, patch_of(model, "fox\nhouse", seed=3))[1]


def test_a_result_of_a_training_contains_the_earlier_patch(model):
    fox = patch_of(model, "fox", seed=1)
    result = fox + patch_of(model, "cat", "Sculpting Memory replay", seed=2)
    assert "'fox' is forgotten twice" in apply(model, fox, result)[1]
    patched, report = apply(model, fox, result, repeated="once")
    assert "Left out: patch0 ('fox')" in report and applied(patched) == [["fox"], ["cat"]]


def test_old_and_foreign_provenance(model):
    """Without lines the names count; a line that cannot be read is passed over."""
    old = patch_of(model, "fox", seed=1)
    (said,) = old.provenance
    bare = types.UnlearnPatch(
        old.edits, old.fingerprint, ({"method": said["method"], "concepts": ["fox"]},)
    )
    odd = types.UnlearnPatch(old.edits, old.fingerprint, ({**said, "lines": ["->", "fox"]},))
    unknown = types.UnlearnPatch(old.edits, old.fingerprint, ())
    other = patch_of(model, "fox", seed=2)
    assert "'fox' is forgotten twice" in apply(model, bare, other)[1]
    assert "'fox' is forgotten twice" in apply(model, odd, other)[1]
    assert "twice" not in apply(model, unknown, other)[1]
    assert "What is in the patch is forgotten twice" in apply(model, unknown, unknown)[1]


def test_pruning_twice_is_told_apart(model):
    a, b = patch_of(model, "fox", "FIA", seed=1), patch_of(model, "fox", "FIA", seed=2)
    assert "more may be pruned than was meant" in apply(model, a, b)[1]


def test_the_first_socket_may_be_empty(model):
    """A muted or bypassed node in front of it leaves it out, or leaves None."""
    node, patch = nodes["ApplyUnlearnPatch"].PREPARE_CLASS_CLONE(None), patch_of(model, "fox")
    for patches in ({"patch1": patch}, {"patch0": None, "patch1": patch}):
        patched, report = node.execute(model, patches, 1.0, "warn").result[:2]
        assert applied(patched) == [["fox"]] and "WARNING" not in report
