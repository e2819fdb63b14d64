"""Going back to an earlier list: the patch is found again, and only where all is as it was."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from testbed import pack

solved = pack.module("unlearn.closed_form.solved")
scapre = pack.module("unlearn.closed_form.solve")
identities = pack.module("unlearn.host.model_identity")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")

pytestmark = pytest.mark.usefixtures("states_on_disk")
FOX, CAT = text.parse("fox -> animal", "house"), text.parse("cat -> animal", "house")
SETTINGS = scapre.SolveSettings(templates=("{concept}",), prior=False)
KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
OTHER = "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
QUERY = "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def counted(monkeypatch):
    """The concepts of every solve that really ran."""
    ran, real = [], solved.solve

    def solve(model, clip, concepts, settings, node_id=None):
        ran.append(concepts.concepts[0].name)
        return real(model, clip, concepts, settings, node_id=node_id)

    monkeypatch.setattr(solved, "solve", solve)
    return ran


def lora(patcher, key, strength=1.0, seed=0, flipped=None):
    """A clone with a LoRA-like patch on one weight. flipped: one number of it that is another."""
    shape = patcher.model_state_dict()[key].shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 100
    if flipped is not None:
        change.view(-1)[flipped] += 1
    clone = patcher.clone()
    clone.add_patches({key: (change,)}, strength)
    return clone


def with_clip(clip, **how):
    other = clip.clone()
    other.patcher = lora(other.patcher, QUERY, **how)
    return other


def with_options(model, **options):
    clone = model.clone()
    clone.model_options["transformer_options"].update(options)
    return clone


def skipping(clip):
    other = clip.clone()
    other.clip_layer(-2)
    return other


def test_going_back_to_an_earlier_list_solves_nothing(loaded, counted):
    model, clip, _ = loaded
    first = solved.solve_or_recall(model, clip, FOX, SETTINGS)
    solved.solve_or_recall(model.clone(), clip.clone(), CAT, SETTINGS)
    again = solved.solve_or_recall(model.clone(), clip.clone(), FOX, SETTINGS)
    assert counted == ["fox", "cat"] and again.patch == first.patch
    assert again.report == f"{first.report}\n{solved.AGAIN}"
    assert torch.equal(again.picture, first.picture)
    again.picture.zero_()  # what another node does to it reaches nobody
    assert solved.solve_or_recall(model, clip, FOX, SETTINGS).picture.any()


def test_a_loaded_patch_does_not_change_what_a_model_is(loaded):
    """The weights of clones are shared, and may hold a sibling's patch."""
    import comfy.model_management

    model, clip, _ = loaded
    known = solved.key_of(model, clip, FOX, SETTINGS)
    comfy.model_management.load_models_gpu([lora(model, KEY), lora(model, OTHER)])
    assert solved.key_of(model, clip, FOX, SETTINGS) == known is not None
    comfy.model_management.load_models_gpu([model])


OTHERS = {
    "another concept": lambda m, c: (m, c, CAT, SETTINGS),
    "another superclass": lambda m, c: (m, c, text.parse("fox -> bird", "house"), SETTINGS),
    "another alias": lambda m, c: (m, c, text.parse("fox | vixen -> animal", "house"), SETTINGS),
    "another kind": lambda m, c: (m, c, text.parse("style: fox -> animal", "house"), SETTINGS),
    "another keep list": lambda m, c: (m, c, text.parse("fox -> animal", "cat"), SETTINGS),
    "a LoRA": lambda m, c: (lora(m, KEY), c, FOX, SETTINGS),
    "a LoRA of another strength": lambda m, c: (lora(m, KEY, 0.5), c, FOX, SETTINGS),
    "a LoRA with one other number": lambda m, c: (lora(m, KEY, flipped=7), c, FOX, SETTINGS),
    "a LoRA on a weight that is not edited": lambda m, c: (lora(m, OTHER), c, FOX, SETTINGS),
    "two LoRAs": lambda m, c: (lora(lora(m, KEY), KEY, seed=1), c, FOX, SETTINGS),
    "a LoRA on the CLIP": lambda m, c: (m, with_clip(c), FOX, SETTINGS),
    "one of another strength there": lambda m, c: (m, with_clip(c, strength=0.5), FOX, SETTINGS),
    "one with one other number": lambda m, c: (m, with_clip(c, flipped=3), FOX, SETTINGS),
    "another clip skip": lambda m, c: (m, skipping(c), FOX, SETTINGS),
    "an option of the model": lambda m, c: (with_options(m, scale=2.0), c, FOX, SETTINGS),
    "another setting": lambda m, c: (m, c, FOX, replace(SETTINGS, hard_keep=0.5)),
    "another strength": lambda m, c: (m, c, FOX, replace(SETTINGS, strength="gentle")),
    "another sentence": lambda m, c: (m, c, FOX, replace(SETTINGS, templates=("a {concept}",))),
    "another variant": lambda m, c: (m, c, FOX, replace(SETTINGS, variant="uce")),
    "a setting of the variant": lambda m, c: (
        m,
        c,
        FOX,
        scapre.SolveSettings.of(templates=("{concept}",), prior=False, erase=50.0),
    ),
}


def test_whatever_is_another_gives_another_key(loaded):
    model, clip, _ = loaded
    keys = {"plain": solved.key_of(model, clip, FOX, SETTINGS)}
    keys |= {name: solved.key_of(*of(model, clip)) for name, of in OTHERS.items()}
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize("module", solved.CONSTANTS, ids=lambda m: m.__name__.rpartition("n.")[2])
def test_other_constants_of_the_pack_give_another_key(loaded, monkeypatch, module):
    known = solved.key_of(loaded[0], loaded[1], FOX, SETTINGS)
    name = next(
        n for n, value in vars(module).items() if n.isupper() and type(value) in (int, float)
    )
    monkeypatch.setattr(module, name, getattr(module, name) + 1)
    assert solved.key_of(loaded[0], loaded[1], FOX, SETTINGS) != known


def test_a_weight_changed_in_place_gives_another_key(loaded):
    model, clip, _ = loaded
    known = solved.key_of(model, clip, FOX, SETTINGS)
    weight = model.model.diffusion_model.out[2].weight
    before = weight.clone()
    weight.mul_(1.01)
    try:
        assert solved.key_of(model, clip, FOX, SETTINGS) != known
    finally:
        weight.copy_(before)
    assert solved.key_of(model, clip, FOX, SETTINGS) == known


def test_a_model_that_was_edited_before_is_another(loaded):
    model, clip, _ = loaded
    patch = scapre.solve(model, clip, CAT, SETTINGS)[0]
    once = patching.apply(model, patch)[0]
    keys = {
        solved.key_of(m, clip, FOX, SETTINGS)
        for m in (model, once, patching.apply(model, patch, 0.5)[0])
    }
    assert len(keys) == 3 and None not in keys
    beside = patching.apply(model, patch, quantised="bypass")[0]
    assert solved.key_of(beside, clip, FOX, SETTINGS) is None


def wrapped(model):
    model.add_wrapper_with_key("diffusion_model", "theirs", print)


def optioned(model):
    model.set_model_sampler_cfg_function(print)


def replaced(model):
    model.add_object_patch("model_sampling", model.get_model_object("model_sampling"))


def injected(model):
    model.set_injections("theirs", [])


@pytest.mark.parametrize("change", [wrapped, optioned, replaced, injected])
def test_what_cannot_be_read_is_always_solved(loaded, change):
    """Functions and objects that other packs put into a model say nothing of what they do."""
    model = loaded[0].clone()
    change(model)
    assert solved.key_of(model, loaded[1], FOX, SETTINGS) is None


@pytest.mark.parametrize("part", ["model", "clip"])
def test_a_network_with_hooks_is_always_solved(loaded, part):
    model, clip, _ = loaded
    network = model.model.diffusion_model if part == "model" else clip.cond_stage_model
    hook = next(network.children()).register_forward_hook(lambda module, args, out: None)
    try:
        assert solved.key_of(model, clip, FOX, SETTINGS) is None
    finally:
        hook.remove()
    assert solved.key_of(model, clip, FOX, SETTINGS) is not None


def test_texts_with_an_embedding_are_always_solved(loaded):
    concepts = text.parse("embedding:fox -> animal")
    assert solved.key_of(loaded[0], loaded[1], concepts, SETTINGS) is None
    templates = replace(SETTINGS, templates=("embedding:style {concept}",))
    assert solved.key_of(loaded[0], loaded[1], FOX, templates) is None


def result(loaded):
    return solved.Solved(*scapre.solve(loaded[0], loaded[1], FOX, SETTINGS))


def test_memory_is_bounded_and_the_oldest_goes(loaded):
    found, network = result(loaded), torch.nn.Linear(1, 1)
    by_number = solved.SolvedPatches(most=2, most_bytes=2**40)
    for key in "abc":
        by_number.put(network, key, found)
    assert [by_number.get(network, key) is not None for key in "abc"] == [False, True, True]
    by_number.get(network, "b")  # now the youngest
    by_number.put(network, "d", found)
    assert [by_number.get(network, key) is not None for key in "bcd"] == [True, False, True]
    by_bytes = solved.SolvedPatches(most=9, most_bytes=int(2.5 * found.nbytes))
    for key in "abc":
        by_bytes.put(network, key, found)
    assert len(by_bytes) == 2 and by_bytes.nbytes <= by_bytes.most_bytes
    too_large = solved.SolvedPatches(most=9, most_bytes=found.nbytes - 1)
    too_large.put(network, "a", found)
    assert len(too_large) == 0


def test_a_patch_belongs_to_one_network_and_goes_with_it(loaded):
    found, kept = result(loaded), solved.SolvedPatches()
    one, two = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    kept.put(one, "a", found)
    assert kept.get(two, "a") is None and kept.get(one, "a") is not None
    kept.put(two, "b", found)
    del two
    gc.collect()
    assert len(kept) == 1 and kept.get(one, "a") is not None


def test_what_is_kept_keeps_no_model(checkpoint):
    import comfy.sd

    model, clip = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:2]
    kept = solved.SolvedPatches()
    solved.solve_or_recall(model, clip, FOX, SETTINGS, patches=kept)
    assert len(kept) == 1
    there = [weakref.ref(part) for part in (model.model, clip.cond_stage_model)]
    del model, clip
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert [ref() for ref in there] == [None, None] and len(kept) == 0
