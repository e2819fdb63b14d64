"""A patch made again from its recipe is what the method makes there from the same lists."""

import copy
import functools
import json
import sys

import pytest
import torch

from testbed import pack, tiny
from testbed.worlds import catalogue
from testbed.worlds.checkpoint import read_compact

closed_form = pack.module("unlearn.closed_form.solve")
collection = pack.module("unlearn.pruning.collection")
masks = pack.module("unlearn.pruning.masks")
merge = pack.module("unlearn.pruning.merge")
patch_files = pack.module("unlearn.files.patch_file")
patching = pack.module("unlearn.host.patching")
prompts = pack.module("unlearn.pruning.prompts")
provenance = pack.module("unlearn.provenance")
sculpting = pack.module("unlearn.sculpting.train")
settings = pack.module("unlearn.sculpting.settings")
states = pack.module("unlearn.files.text_cache")
text = pack.module("unlearn.concepts.notation")
types = pack.module("unlearn.types")
variants = pack.module("unlearn.closed_form.variants")
nodes = {node.__name__: node for node in pack.module("nodes").NODES}
UnlearnError = pack.module("unlearn.errors").UnlearnError
FORGET, KEEP = "fox -> animal | vixen\nstyle: van gogh * 2", "cat\nhouse"
SHORT = {"prompts": 2, "steps": 4, "window": 2, "cfg": 3.0, "size": 64, "ceiling": 0.2}


@pytest.fixture(scope="module")
def clip():
    return tiny.Clip()


@pytest.fixture(autouse=True)
def text_states(tmp_path, monkeypatch):
    monkeypatch.setattr(closed_form, "default_folder", lambda: tmp_path)


@functools.cache
def pair(share):
    """(the model of a patch, another one of which this share of the weights is another's)."""
    one, other, g = tiny.model(), tiny.model(), torch.Generator().manual_seed(9)
    for weight in other.model.diffusion_model.parameters():
        if weight.ndim > 1:
            new = torch.randn(weight.shape, generator=g) * weight.float().std()
            weight.copy_((1 - share) * weight + share * new)
    return one, other


def refit(patch, model, clip, **more):
    """(patch, report) of Refit Unlearn Patch."""
    node = nodes["RefitUnlearnPatch"].PREPARE_CLASS_CLONE(None)
    return node.execute(patch, model, clip, **more).result


def through_a_file(patch, tmp_path):
    path = tmp_path / "patch.safetensors"
    patch_files.save(path, patch)
    return patch_files.load(path)[0]


def same_edits(a, b):
    assert [key for key, _ in a.edits] == [key for key, _ in b.edits] and a.edits
    for (_, one), (_, two) in zip(a.edits, b.edits, strict=True):
        assert type(one) is type(two)
        for x, y in zip(one.weights, two.weights, strict=True):
            assert x.equal(y) if isinstance(x, torch.Tensor) else x == y
    assert json.loads(json.dumps(a.provenance)) == json.loads(json.dumps(b.provenance))
    assert a.fingerprint.difference(b.fingerprint) == 0


@pytest.fixture(scope="module")
def models():
    return pair(1.0)


SCAPRE = [(name, 1.0) for name in variants.variants()] + [("anchored", 0.05), ("anchored", 0.2)]


@pytest.mark.parametrize("variant, share", SCAPRE)
def test_scapre(clip, tmp_path, variant, share):
    """Every variant, with settings that are not the defaults."""
    models = pair(share)
    given = {"templates": ("a {concept}", "a photo of {concept}"), "prior": False}
    chosen = closed_form.SolveSettings.of(variant, erase=7.0, tokens="last", **given)
    there = [
        closed_form.solve(model, clip, text.parse(FORGET, KEEP), chosen)[0] for model in models
    ]
    made, report = refit(through_a_file(there[0], tmp_path), models[1], clip)
    same_edits(made, there[1])
    assert f"ScaPre {variant}" in report and "does not say" not in report
    assert made.digest == through_a_file(there[1], tmp_path).digest or made == there[1]


def saliency(model, clip, forget, own=prompts.BUILT_IN, **given):
    return collection.collect(model, clip, text.parse(forget), own, **SHORT, **given)[0]


def masks_there(model, clip):
    """One map of two concepts, own sentences, a share of its own."""
    own = prompts.OwnLines(("a {concept} in {context}",), ("{context}",), ("a kitchen", "a park"))
    found = saliency(model, clip, FORGET, own, score="wanda")
    return masks.fuse([found], "fox = 3%", r2=0.1, granularity="neuron", alpha=1.01)[0]


def masks_of_two_maps(model, clip):
    """Maps of other concepts, measured otherwise."""
    maps = [
        saliency(model, clip, "fox | vixen", score="wanda"),
        saliency(model, clip, "style: van gogh * 2", score="wanda", seed=5, halves="both"),
    ]
    return masks.fuse(maps, r2=0.1, granularity="row", alpha=1.01)[0]


def masks_of_a_merged_map(model, clip):
    """The work shared by two machines: two prompts each."""
    parts = [saliency(model, clip, "fox | vixen", score="wanda", first=k) for k in (0, 2)]
    return masks.fuse([merge.merge(parts, model)], r2=0.1)[0]


@pytest.mark.parametrize("there", [masks_there, masks_of_two_maps, masks_of_a_merged_map])
def test_fia(models, clip, tmp_path, there):
    old, new = (there(model, clip) for model in models)
    made, report = refit(through_a_file(old, tmp_path), models[1], clip)
    assert [k for k, _ in made.edits] == [k for k, _ in new.edits]
    for (_, a), (_, b) in zip(made.edits, new.edits, strict=True):
        different = (a.mask() != b.mask()).float().mean()
        assert different < 1e-3, different  # a merge adds up in another order
    assert "Prunes" in report and "does not say" not in report
    if there is not masks_of_a_merged_map:
        same_edits(made, new)


TRAINING = {"steps": 3, "stop_at": 0.0, "batch": 2, "held": 2, "learning_rate": 1e-3}
TRAINING |= {"pictures": 2, "sampling_steps": 2, "captions": 2, "cfg": 3.0, "size": 64}
TRAINING |= {"warmup": 1, "refresh": 2}


def trained(model, clip, forget="fox -> animal", earlier=None, **more):
    chosen = settings.TrainingSettings(**TRAINING, **more)
    inputs = sculpting.TrainingInputs(earlier, templates=("a {concept}",))
    return sculpting.train(model, clip, text.parse(forget, KEEP), chosen, inputs).patch


def test_sculpting_on_an_earlier_patch(models, clip, tmp_path):
    def there(model):
        first = closed_form.solve(
            model, clip, text.parse("cat -> animal"), closed_form.SolveSettings.of(prior=False)
        )[0]
        return trained(model, clip, earlier=first, low_rank=2)

    old, new = map(there, models)
    made, report = refit(through_a_file(old, tmp_path), models[1], clip)
    same_edits(made, new)
    assert len(made.provenance) == 2 and "ScaPre anchored + Sculpting Memory replay" in report


def test_own_pictures_are_asked_for(clip):
    model, chosen = tiny.model(), settings.TrainingSettings(**TRAINING)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))

    class Vae(tiny.Vae):
        def encode(self, pixels):
            return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)[:, [0, 1, 2, 0]]

    inputs = sculpting.TrainingInputs(images=images, vae=Vae(), templates=("a {concept}",))
    old = sculpting.train(model, clip, text.parse("fox -> animal"), chosen, inputs).patch
    assert old.provenance[0]["settings"]["images"] == 2
    made, report = refit(old, model, clip, images=images, vae=Vae())
    same_edits(made, old)
    assert "own pictures" not in report
    assert "2 pictures of the artist's own" in refit(old, model, clip)[1]


def with_record(patch, change):
    """The patch with a change made to its provenance."""
    record = copy.deepcopy(patch.provenance[0])
    change(record)
    return types.UnlearnPatch(patch.edits, patch.fingerprint, (record,))


@pytest.fixture(scope="module")
def simple(clip, tmp_path_factory):
    """(model, ScaPre patch)."""
    model = tiny.model()
    chosen = closed_form.SolveSettings.of(prior=False)
    folder = tmp_path_factory.mktemp("states")
    return model, closed_form.solve(
        model, clip, text.parse("fox -> animal"), chosen, folder=folder
    )[0]


def test_what_an_old_file_lacks_is_said(simple, clip):
    model, patch = simple

    def older(record):
        del record["settings"]["glance_size"], record["lines"], record["keep"]
        record["settings"]["target"] = "difference"  # a setting that is no more
        record["tuning"]["energy"] = 0.5

    made, report = refit(with_record(patch, older), model, clip)
    assert made.provenance[0]["settings"] == patch.provenance[0]["settings"]
    assert made.provenance[0]["lines"] == ["object: fox"]
    for said in (
        "does not say glance_size; today's default",
        "not their kinds and superclasses",
        "does not say what was kept",
        "with other constants (energy)",
    ):
        assert said in report, said


REFUSED = {
    "cannot do again": lambda r: r.update(method="m"),
    "no variant 'x'": lambda r: r.update(method="ScaPre x"),
    "names no concepts": lambda r: r.update(lines=[], concepts=[]),
    "says 'abc' for its setting 'erase'": lambda r: r["settings"].update(erase="abc"),
    "says 'True' for its setting 'rounds'": lambda r: r["settings"].update(rounds=True),
    "says 'nan' for its setting 'drift'": lambda r: r["settings"].update(drift=float("nan")),
    "-1.0 for its setting 'erase', where 0.0 to": lambda r: r["settings"].update(erase=-1),
    "says 'some' for its setting 'tokens'": lambda r: r["settings"].update(tokens="some"),
    "says '99' for its setting 'rounds', where 0 to 10": lambda r: r["settings"].update(rounds=99),
    "'fox' is in the forget list and in the keep list": lambda r: r.update(keep=["fox"]),
    "does not say how its saliency": lambda r: r.update(
        method="FIA", settings={"saliency_runs": [3]}
    ),
    "says '0' for its setting 'prompts'": lambda r: r.update(
        method="FIA", settings={"saliency": {"prompts": 0}}
    ),
    "no usable 'per_concept'": lambda r: r.update(method="FIA", settings={"per_concept": [1]}),
    "says '0' for its setting 'steps'": lambda r: r.update(
        method="Sculpting Memory replay", settings={"steps": 0}
    ),
    "says 'x' for its setting 'variant'": lambda r: r.update(
        method="Sculpting Memory x", settings={"variant": "x"}
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_made_again_is_refused_in_a_sentence(simple, clip, said):
    model, patch = simple
    with pytest.raises(UnlearnError) as caught:
        refit(with_record(patch, REFUSED[said]), model, clip)
    assert said in str(caught.value), caught.value


def test_a_patch_without_provenance_or_on_the_model_already_is_refused(simple, clip):
    model, patch = simple
    bare = types.UnlearnPatch(patch.edits, patch.fingerprint, ())
    with pytest.raises(UnlearnError, match="does not say how it was made"):
        refit(bare, model, clip)
    patched = patching.apply(model, patch)[0]
    with pytest.raises(UnlearnError, match=r"forgets 'fox' already \(the model"):
        refit(patch, patched, clip)


def test_old_files_are_made_again(clip):
    """Every method's file of before this was thought of has enough in it."""
    folder = pack.ROOT / "tests" / "data" / "before_layout" / "unlearn_patches"
    for path in sorted(folder.glob("*.safetensors")):
        for record in patch_files.load(path)[0].provenance:
            recipe = provenance.recipe(record)
            assert recipe.concepts == text.parse(
                "fox -> animal | vixen\nstyle: van gogh * 2", "\n".join(record["keep"])
            )
            sys.modules[nodes["RefitUnlearnPatch"].__module__]._check(recipe)


def test_worlds_have_one_architecture():
    """What the measured table in docs/results stands on: all weights differ, no shape does."""
    one, other = (read_compact(catalogue.get(name).file) for name in ("sprites", "glyphs"))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
