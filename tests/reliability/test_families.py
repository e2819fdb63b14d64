"""Every class of UNet that ComfyUI knows, through every method: it works or says one sentence.

Models are tiny, with the structure of their class; nothing is known of what they draw. What is
known: where text enters, that the plain model stays as it is, and that only UnlearnError leaves a
node.
"""

import hashlib
from types import SimpleNamespace

import pytest
import torch

from testbed import families, pack, tiny

architectures = pack.module("unlearn.host.architectures")
batched_sampling = pack.module("unlearn.host.batched_sampling")
matching = pack.module("unlearn.host.matching")
networks = pack.module("unlearn.host.training_network")
patching = pack.module("unlearn.host.patching")
adapters = pack.module("unlearn.host.adapters")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
nodes = pack.module("nodes")
UnlearnError = pack.module("unlearn.errors").UnlearnError
CONCEPTS = text.parse("fox -> animal", "cat\nhouse")
TEXTUAL = [name for name in families.FAMILIES if name not in families.PICTURES_ONLY]
PREDICTED = dict(level=0.9, size=64)


def running(node):
    """A node as the host makes one."""
    hidden = SimpleNamespace(unique_id=None, extra_pnginfo=None, prompt=None)
    return type("Running", (node,), {"hidden": hidden})


def execute(node, *args, **given):
    """What a node gives, with its defaults for what is not given."""
    widgets = tiny.defaults(node.define_schema().inputs)
    return running(node).execute(*args, **{**widgets, **given}).result


def digest(model):
    """Hash of the plain model's weights, whatever clone of it was loaded last."""
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    h = hashlib.sha256()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


@pytest.fixture(scope="module", params=TEXTUAL)
def family(request):
    """(name, MODEL, CLIP, digest) of a family that reads text."""
    with torch.inference_mode():
        model = families.model(request.param)
        return request.param, model, families.clip(request.param), digest(model)


@pytest.fixture(scope="module", params=families.PICTURES_ONLY)
def wordless(request):
    """(MODEL, CLIP of equal width) of a family that is guided by pictures."""
    with torch.inference_mode():
        return families.model(request.param), families.clip(request.param)


def test_every_class_with_a_unet_is_in_the_table():
    """Classes are built without memory; those that the host cannot build so have no UNet."""
    import comfy.supported_models as known
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    named = {family.config for family in families.FAMILIES.values()}
    with_unet = set()
    for found in known.models:
        own = "model_channels" in found.unet_config or "context_dim" in found.unet_config
        with_unet |= {found.__name__} if own else set()
    assert with_unet == named
    for name in families.FAMILIES:
        assert isinstance(families.model(name).model.diffusion_model, UNetModel)


@pytest.mark.parametrize("kind", ["Stable_Cascade_C", "Stable_Cascade_B", "HunyuanDiT", "SD3"])
def test_what_is_no_unet_is_refused(kind):
    """Tiny as it is, its keys are those of its class."""
    keys = {
        "Stable_Cascade_C": "down_blocks.0.2.attention.attn.to_k.weight",
        "Stable_Cascade_B": "down_blocks.0.2.attention.attn.to_k.weight",
        "HunyuanDiT": "blocks.0.attn2.kv_proj.weight",
        "SD3": "joint_blocks.0.context_block.attn.qkv.weight",
    }
    weight = torch.zeros(4, 4)
    inner = SimpleNamespace(state_dict=lambda: {f"diffusion_model.{keys[kind]}": weight})
    with pytest.raises(UnlearnError, match="no text cross-attention"):
        architectures.cross_attention(SimpleNamespace(model=inner))
    assert architectures.known(SimpleNamespace(model=inner)) is None


# --- where text enters ------------------------------------------------------------------------


def predicted(model, clip, texts):
    """What a model predicts from one noise under texts, all with the pooled vector of the first."""

    class OnePooled(families.TextEncoder):
        def __init__(self):
            self.__dict__.update(clip.__dict__)

        def encode_from_tokens_scheduled(self, tokens):
            ((states, more),) = clip.encode_from_tokens_scheduled(tokens)
            return [[states, {key: torch.ones_like(value) for key, value in more.items()}]]

    found = batched_sampling.predict_from_noise(model, OnePooled(), texts, [1], **PREDICTED)
    return found[:, 0]


def silenced(model, layers):
    """The model without what these layers give."""
    keys = [layer.key for layer in layers]
    edits = tuple((k, adapters.Delta.of(-weights.read(model, k))) for k in keys)
    patch = types.UnlearnPatch(edits, weights.fingerprint(model, keys))
    return patching.apply(model, patch)[0]


def test_text_enters_through_the_layers_that_are_edited_and_through_no_other(family):
    """In the x4 upscaler text also enters where other models attend to the picture itself."""
    _, model, clip, _ = family
    texts = ["a photo of a fox", "a photo of a cat in the snow"]
    first, second = predicted(model, clip, texts)
    size = float(first.square().mean()) ** 0.5
    assert float((first - second).abs().max()) > 1e-4 * size > 0
    layers = architectures.cross_attention(model)
    first, second = predicted(silenced(model, layers), clip, texts)
    assert torch.equal(first, second)
    first, second = predicted(silenced(model, layers[:-2]), clip, texts)  # the last key and value
    assert not torch.equal(first, second)


def test_the_upscaler_reads_text_in_place_of_the_picture():
    found = architectures.cross_attention(families.model("SD x4 upscaler"))
    modules = [layer.key.split(".")[-3] for layer in found]
    assert (modules.count("attn1"), modules.count("attn2")) == (12, 20)
    assert {layer.group for layer in found} == {"text"}
    assert len({layer.label for layer in found}) == 32
    assert all(architectures.label(layer.key) == layer.label for layer in found)
    plain = architectures.cross_attention(families.model("SD2"))
    assert all(".attn2." in layer.key for layer in plain)


def test_models_that_are_guided_by_pictures_are_refused_whatever_the_width(wordless):
    model, clip = wordless
    before = digest(model)
    patch = types.UnlearnPatch((), types.Fingerprint({}), ({"method": "m", "concepts": []},))
    tries = {
        nodes.ScaPreSolve: (model, clip, CONCEPTS),
        nodes.ConceptSaliency: (model, clip, CONCEPTS),
        nodes.DynamicMaskTrainer: (model, clip, CONCEPTS),
        nodes.CollateralForecast: (model, clip, patch),
        nodes.ErasureReport: (model, model.clone(), clip, Vae(), CONCEPTS),
    }
    for node, given in tries.items():
        with pytest.raises(UnlearnError, match="is guided by pictures and not by text") as error:
            execute(node, *given)
        assert "The input 'model' (S" in str(error.value)
    for ask in (architectures.cross_attention, architectures.feed_forward, networks.layers):
        with pytest.raises(UnlearnError, match="is guided by pictures"):
            ask(model)
    assert digest(model) == before


def kolors(inside=True):
    """As packs for Kolors make it: an SDXL whose text is projected from another encoder's width."""
    import comfy.supported_models

    model = families.model("SDXL")
    if inside:
        model.model.diffusion_model.encoder_hid_proj = torch.nn.Linear(256, 128)
        return model
    shapes = {**comfy.supported_models.SDXL.unet_config, "adm_in_channels": 5632}
    other = type("Kolors", (comfy.supported_models.SDXL,), {"unet_config": shapes})
    model.model.model_config = other(model.model.model_config.unet_config)
    return model


@pytest.mark.parametrize(
    "inside, said",
    [(True, "changes its text in 'encoder_hid_proj'"), (False, "an encoder that ComfyUI has no")],
)
def test_text_that_is_projected_first_is_refused(inside, said):
    model = kolors(inside)
    for node in (nodes.ScaPreSolve, nodes.ConceptSaliency, nodes.DynamicMaskTrainer):
        with pytest.raises(UnlearnError, match=said):
            execute(node, model, families.clip("SDXL"), CONCEPTS)


def test_a_class_that_another_pack_made_for_the_same_text_is_taken():
    import comfy.supported_models

    model = families.model("SDXL")
    own = type("Mine", (comfy.supported_models.SDXL,), {"memory_usage_factor": 1.0})
    model.model.model_config = own(model.model.model_config.unet_config)
    assert architectures.of(model).native_size() == 1024

    def clip_target(self):
        raise NotImplementedError

    own.clip_target = clip_target
    with pytest.raises(UnlearnError, match="an encoder that ComfyUI has no class for"):
        architectures.of(model)


def test_pictures_are_drawn_again_where_the_output_means_something_else(monkeypatch):
    """Training pictures of one model are no others' with the same weights: eps, then v."""
    drawn = []
    real = networks.Network.draw

    def draw(self, *given):
        drawn.append(self.model.model.model_type.name)
        return real(self, *given)

    monkeypatch.setattr(networks.Network, "draw", draw)
    clip = families.clip("SD2")
    for name in ("SD2", "SD2 v", "SD2 v"):
        execute(nodes.DynamicMaskTrainer, families.model(name), clip, CONCEPTS, **SHORT, seed=5)
    assert drawn and drawn.count("V_PREDICTION") == drawn.count("EPS")


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_size_a_model_was_made_for(name):
    model = families.model(name)
    assert architectures.native_size(model) == families.FAMILIES[name].size
    side = families.FAMILIES[name].size // (4 if name == "SD x4 upscaler" else 8)
    shape = batched_sampling.latent_shape(model, families.FAMILIES[name].size)
    assert shape == [4, side, side]


class Vae(tiny.Vae):
    """Pictures as latents too: the mean of each 8 x 8 square, and a fourth channel."""

    latent_channels, latent_dim, per_latent = 4, 2, 8

    def encode(self, pictures):
        side = torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), self.per_latent)
        return torch.cat([side, side.mean(1, keepdim=True)], 1)


def test_closed_form_pruning_and_report(family, tally):
    name, model, clip, before = family
    patch, _, report = execute(nodes.ScaPreSolve, model, clip, CONCEPTS, prior=False)
    assert {key for key, _ in patch.edits} >= {x.key for x in architectures.cross_attention(model)}
    assert "fox" in report
    saliency, _ = execute(
        nodes.ConceptSaliency, model, clip, CONCEPTS, prompts=2, steps=4, window=2, size=64
    )
    pruned, _, _ = execute(nodes.NeuronMaskFuse, saliency={"saliency0": saliency})
    assert {key for key, _ in pruned.edits} == {x.key for x in architectures.feed_forward(model)}
    given = {"patch0": patch, "patch1": pruned}
    patched = execute(nodes.ApplyUnlearnPatch, model, patches=given)[0]
    first, second = predicted(model, clip, ["a fox"]), predicted(patched, clip, ["a fox"])
    assert torch.isfinite(second).all() and not torch.equal(first, second)
    words = execute(nodes.CollateralForecast, model, clip, patch, concepts=CONCEPTS, size=64)[1]
    assert "left of their effect" in words or "Forecast: of" in words
    grid, _, words, _ = execute(
        nodes.ErasureReport, model, patched, clip, Vae(), CONCEPTS,
        size=64, steps=2, seeds=1, kept=1,
    )  # fmt: skip
    assert grid.shape[0] == 1 and torch.isfinite(grid).all() and "nothing" not in words[:30]
    assert digest(model) == before
    tally("cells", 3)


LENGTH = {"steps": 3, "batch": 2, "held": 2, "pictures": 2, "captions": 2, "sampling_steps": 2}
SHORT = {"preset": {"preset": "custom", **LENGTH}, "warmup": 1, "refresh": 2, "size": 64}


def test_training(family, tally):
    _, model, clip, before = family
    patch, losses, _, _ = execute(nodes.DynamicMaskTrainer, model, clip, CONCEPTS, **SHORT)
    assert {key for key, _ in patch.edits} == {x.key for x in networks.layers(model)}
    assert all(map(torch.isfinite, map(torch.tensor, losses["loss"])))
    patched = execute(nodes.ApplyUnlearnPatch, model, patches={"patch0": patch})[0]
    first, second = predicted(model, clip, ["a fox"]), predicted(patched, clip, ["a fox"])
    assert torch.isfinite(second).all() and not torch.equal(first, second)
    assert digest(model) == before
    tally("cells")


# --- the Erasure Report on other families -------------------------------------------------------


def report(model, clip):
    given = dict(size=64, steps=1, seeds=1, kept=0)
    return execute(nodes.ErasureReport, model, model.clone(), clip, Vae(), CONCEPTS, **given)


def test_a_model_of_videos_makes_no_single_pictures():
    import comfy.latent_formats

    model = families.model("SD1.5")
    model.model.latent_format = comfy.latent_formats.Wan21()
    with pytest.raises(UnlearnError, match=r"\(SD15\) makes no single pictures"):
        report(model, families.clip("SD1.5"))


def test_a_model_that_is_not_known_is_drawn_with_all_that_its_clip_says(monkeypatch):
    clip, model = families.clip("SD1.5"), families.model("SD1.5")
    monkeypatch.setattr(architectures, "known", lambda model: None)
    assert report(model, clip)[2].startswith("Nothing changed.")


def test_prompts_of_several_chunks_are_drawn_with_shorter_ones():
    """As by themselves: cross-attention does not see that a chunk stands there twice."""
    model, clip = families.model("SD1.5"), families.clip("SD1.5")
    texts = ["a fox", "a red fox in the snow " * 20]
    together = batched_sampling.predict_from_noise(model, clip, texts, [1], **PREDICTED)
    alone = [batched_sampling.predict_from_noise(model, clip, [t], [1], **PREDICTED) for t in texts]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    uneven = [torch.zeros(1, 77, 8), torch.zeros(1, 30, 8)]
    with pytest.raises(UnlearnError, match="'clip' gives states of another length for every"):
        batched_sampling._as_batch(uneven)
