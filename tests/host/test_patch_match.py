"""What a patch and a model are to each other: same, relative, stranger, or baked in already.

The world's own model and mixes of it with the other world's stand for checkpoints and fine-tunes.
"""

import json

import pytest
import torch

from testbed import pack, tiny, trial
from testbed.worlds import catalogue
from testbed.worlds.checkpoint import read_compact

adapters = pack.module("unlearn.host.adapters")
checkpoint_files = pack.module("unlearn.host.checkpoint")
layers = pack.module("unlearn.host.architectures")
model_files = pack.module("unlearn.host.model_file")
patch_match = pack.module("unlearn.host.patch_match")
patch_reports = pack.module("unlearn.files.patch_report")
patching = pack.module("unlearn.host.patching")
tuning = pack.module("unlearn.host.tuning")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
nodes = {node.__name__: node for node in pack.module("nodes").NODES}
UnlearnError = pack.module("unlearn.errors").UnlearnError


def loaded(state):
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict({k: w.half() for k, w in state.items()})


def mixed(share):
    """The sprite world's UNet with a share of the glyph world's weights."""
    one, other = (read_compact(catalogue.get(name).file) for name in ("sprites", "glyphs"))
    return loaded({k: (1 - share) * w.float() + share * other[k].float() for k, w in one.items()})


def baked(model, patch):
    """The sprite world's UNet with the weights that a patched MODEL has."""
    state = read_compact(catalogue.SPRITES.file)
    for key, _ in patch.edits:
        state[key.removeprefix("diffusion_model.")] = weights.read(model, key)
    return loaded(state)


def apply_node(model, *stack, mismatch="warn", **how):
    """(model, report) of Apply Unlearn Patch."""
    node = nodes["ApplyUnlearnPatch"].PREPARE_CLASS_CLONE(None)
    patches = {f"patch{i}": patch for i, patch in enumerate(stack)}
    return node.execute(model, patches, 1.0, mismatch, **how).result[:2]


@pytest.fixture(scope="module")
def fox():
    return trial.solve("fox -> animal", trial.everything_but("fox", "house"))[0]


@pytest.fixture(scope="module")
def house():
    return trial.solve("house -> building", trial.everything_but("fox", "house"))[0]


def test_a_relative_is_told_from_a_stranger(fox):
    """5 % of another model's weights are a relative, as a merge is; 40 % draw nothing any more."""
    relative, stranger = mixed(0.05), mixed(0.4)
    found = patch_match.match(relative, fox)
    assert found.grade == "relative" and 0.15 < found.difference < 0.25 and not found.baked
    assert patch_match.match(stranger, fox).grade == "stranger"
    assert patch_match.match(trial.studio().model, fox) == patch_match.Match("same", 0.0)
    _, report = apply_node(relative, fox, mismatch="error")
    assert "relative of this model" in report and "Refit Unlearn Patch" in report
    assert "expect damage" not in report
    with pytest.raises(UnlearnError, match="another base model"):
        apply_node(stranger, fox, mismatch="error")
    assert "expect damage" in apply_node(stranger, fox)[1]
    assert "relative of this model" in patch_reports.describe(fox, relative)


def test_a_patch_works_on_a_relative(fox):
    relative = mixed(0.05)
    patched = apply_node(relative, fox)[0]
    assert trial.rate("fox", relative) >= 0.9 and trial.rate("fox", patched) <= 0.1
    assert trial.rate("cat", patched) >= 0.9


def test_every_patch_of_a_stack_is_looked_at(fox):
    """Both change the same weights; the first one's fingerprint must not hide the second's."""
    samples = {k: torch.randn_like(v) for k, v in fox.fingerprint.samples.items()}
    foreign = types.UnlearnPatch(fox.edits, types.Fingerprint(samples), ({**fox.provenance[0]},))
    model = trial.studio().model
    assert "another base model" in apply_node(model, fox, foreign)[1]
    with pytest.raises(UnlearnError, match="another base model"):
        apply_node(model, fox, foreign, mismatch="error")


def test_a_patch_that_is_baked_in_is_recognised_by_the_weights(fox, house):
    model = trial.studio().model
    has_fox = baked(patching.apply(model, fox)[0], fox)
    found = patch_match.match(has_fox, fox)
    assert found.grade == "same" and found.baked == pytest.approx(1, abs=0.02)
    assert patch_match.match(has_fox, house).baked == 0
    half = baked(patching.apply(model, fox, 0.5)[0], fox)
    assert patch_match.match(half, fox).baked == pytest.approx(0.5, abs=0.02)
    patched, report = apply_node(has_fox, fox)
    assert "in the model's own weights already (about 100% of it)" in report and patched.patches
    patched, report = apply_node(has_fox, fox, house, repeated="once")
    assert "Left out: patch0 ('fox'), which is in the model's own weights already" in report
    assert weights.read(patched, fox.edits[0][0]).equal(
        weights.read(patching.apply(has_fox, house)[0], fox.edits[0][0])
    )
    nothing, report = apply_node(has_fox, fox, repeated="once")
    assert not nothing.patches and "Nothing was applied" in report


KINDS = ["lowrank", "delta", "sparse delta", "prune", "row", "lowrank on prune"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_edit_is_recognised(kind):
    model = tiny.model()
    g, edits = torch.Generator().manual_seed(4), []
    for layer in layers.feed_forward(model):
        d_out, d_in = weights.shape(model, layer.key)
        change = torch.randn(d_out, d_in, generator=g) * 0.05
        some = torch.rand(d_out, d_in, generator=g)
        low = adapters.LowRank.of(change[:, :2].contiguous(), torch.randn(2, d_in, generator=g))
        made = {
            "lowrank": [low],
            "delta": [adapters.Delta.of(change)],
            "sparse delta": [adapters.Delta.of(change * (some < 0.2))],
            "prune": [adapters.Prune.of(some < 0.02, d_out, d_in)],
            "row": [adapters.Prune.of(some[:, 0] < 0.3, d_out, d_in, "row")],
            "lowrank on prune": [adapters.Prune.of(some < 0.3, d_out, d_in), low],
        }[kind]
        edits += [(layer.key, edit) for edit in made]
    keys = list(dict.fromkeys(key for key, _ in edits))
    said = ({"method": "m", "concepts": ["cat"]},)
    patch = types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys), said)
    assert patch_match.match(model, patch).baked == 0
    other = tiny.model()
    patched = patching.apply(model, patch)[0]
    for key in keys:
        other.model.get_parameter(key).copy_(weights.read(patched, key))
    found = patch_match.match(other, patch)
    assert found.baked == pytest.approx(1, abs=0.05) and found.grade == "same", found


def test_a_checkpoint_of_ours_says_what_is_in_it(fox, tmp_path, monkeypatch):
    """The MODEL knows its file, and the file's metadata name the patch."""
    import comfy.sd
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    patched = patching.apply(trial.studio().model, fox)[0]
    name, count = checkpoint_files.save(patched, trial.studio().clip, trial.studio().vae, "forgot")
    assert count == 1
    model = comfy.sd.load_checkpoint_guess_config(str(tmp_path / name), output_clip=False)[0]
    (record,) = model_files.baked_patches(model)
    assert record["concepts"] == ["fox"] and record["strength"] == 1.0
    assert model_files.baked_patches(trial.studio().model) == ()
    report = apply_node(model, fox)[1]
    assert "in the model's own weights already" in report
    assert "'fox' is forgotten twice, by the model's file and by patch0" in report
    assert "Left out" in apply_node(model, fox, repeated="once")[1]


@pytest.mark.parametrize(
    "unlearn",
    [
        None,
        "[]",
        "no json",
        json.dumps({"saved": 3}),
        json.dumps({"saved": [3]}),
        json.dumps({"saved": [{"method": "ScaPre"}]}),
        json.dumps({"saved": [{"method": "ScaPre", "concepts": [3]}]}),
        json.dumps({"saved": [{"method": "ScaPre", "concepts": ["x"], "strength": "1"}]}),
    ],
)
def test_metadata_of_strangers_are_nothing(tmp_path, unlearn):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, None if unlearn is None else {"unlearn": unlearn})
    model = tiny.model()
    model.cached_patcher_init = (None, (str(path),))
    assert model_files.baked_patches(model) == ()
    path.write_bytes(b"\xff" * 20)
    assert model_files.baked_patches(model) == ()
    path.unlink()
    assert model_files.baked_patches(model) == ()
