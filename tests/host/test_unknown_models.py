"""Every node on a model of a family that the pack does not know: one sentence, and no traceback."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack, tiny
from testbed.families import transformers, vaes

adapters = pack.module("unlearn.host.adapters")
architectures = pack.module("unlearn.host.architectures")
nodes = pack.module("nodes")
notation = pack.module("unlearn.concepts.notation")
types = pack.module("unlearn.types")
UnlearnError = pack.module("unlearn.errors").UnlearnError
CONCEPTS = notation.parse("fox -> animal", "cat")
# Told of a model that no file of unlearn/host/architectures is about.
UNKNOWN = r"'model' \(Lens\) has no text cross-attention that this pack knows; .*docs/families.md"
LACKS = r"'model' lacks 1 of the weights the patch changes"


@pytest.fixture(scope="module")
def lens():
    """(MODEL, CLIP): ComfyUI's class Lens, tiny, and a text encoder of another model."""
    import comfy.supported_models

    from testbed import device

    sizes = {"image_model": "lens", "num_layers": 1, "num_attention_heads": 2}
    with torch.inference_mode():
        config = comfy.supported_models.Lens(sizes)
        config.set_inference_dtype(torch.float32, None)
        made = config.get_model({}, "")
        for weight in made.diffusion_model.parameters():
            weight.fill_(0.01)
        return device.patcher(made), transformers.clip("Flux.2 Klein")


def patch():
    """A patch of an SD1.5 model."""
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    edit = adapters.Delta.of(torch.ones(4, 4))
    record = {"method": "halved", "concepts": ["fox"]}
    return types.UnlearnPatch(((key, edit),), types.Fingerprint({}), (record,))


def refused(node, match, **given):
    """The node says one sentence in which something stands."""
    hidden = SimpleNamespace(unique_id=None, extra_pnginfo=None, prompt=None)
    running = type("Running", (node,), {"hidden": hidden})
    widgets = tiny.defaults(node.define_schema().inputs)
    with pytest.raises(UnlearnError, match=match) as error:
        running.execute(**{**widgets, **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ScaPreSolve", "ConceptSaliency", "DynamicMaskTrainer"])
def test_an_eraser_names_the_model_and_the_families_that_work(lens, name):
    model, clip = lens
    refused(getattr(nodes, name), UNKNOWN, model=model, clip=clip, concepts=CONCEPTS)


def test_the_sentence_names_every_family(lens):
    with pytest.raises(UnlearnError) as error:
        architectures.of(lens[0])
    for title in ("SDXL", "Anima", "Wan", "Flux.1", "Qwen-Image", "Z-Image", "Krea 2"):
        assert title in str(error.value)


def test_what_takes_a_patch_names_what_the_model_lacks(lens):
    model, clip = lens
    refused(nodes.ApplyUnlearnPatch, LACKS, model=model, patches={"patch0": patch()})
    size = {"size": "exact"}
    refused(nodes.SaveUnlearnLoRA, LACKS, model=model, patch=patch(), size=size, name="x")
    refused(nodes.CollateralForecast, UNKNOWN, model=model, clip=clip, patch=patch())
    refused(nodes.RefitUnlearnPatch, ".", model=model, clip=clip, patch=patch())


def test_the_report_draws_it_or_says_what_it_needs(lens):
    model, clip = lens
    refused(
        nodes.ErasureReport,
        r"The model \(Lens\) draws nothing from text alone",
        before=model,
        after=model.clone(),
        clip=clip,
        vae=vaes.vae(model),
        concepts=CONCEPTS,
        size=64,
        steps=1,
    )
