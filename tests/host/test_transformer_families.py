"""Each family of testbed/families/transformers.py, tiny, through the pack."""

import pytest
import torch

from testbed import pack
from testbed.families import transformers

pack.load()


def sampled(model, clip, text, seed=1):
    """What ComfyUI's own sampler makes of noise in two steps."""
    import comfy.sample

    positive = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    noise = torch.randn(
        [1, *transformers.latent(NAME[id(model)])], generator=torch.Generator().manual_seed(seed)
    )
    return comfy.sample.sample(
        model,
        noise,
        2,
        1.0,
        "euler",
        "simple",
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=seed,
    )


NAME = {}  # of a MODEL's family


@pytest.fixture(scope="module", params=transformers.FAMILIES)
def family(request):
    """(name, MODEL, CLIP) of a family."""
    with torch.inference_mode():
        model, clip = transformers.model(request.param), transformers.clip(request.param)
    NAME[id(model)] = request.param
    yield request.param, model, clip
    del NAME[id(model)]


def test_comfyui_loads_and_runs_it(family):
    """Its class is the one that ComfyUI's detection finds, and its picture hangs on the text."""
    name, model, clip = family
    assert type(model.model.model_config).__name__ == transformers.FAMILIES[name].config
    fox, cat = (sampled(model, clip, f"a photo of a {animal}") for animal in ("fox", "cat"))
    assert torch.isfinite(fox).all() and list(fox.shape[1:]) == transformers.latent(name)
    assert float((fox - cat).norm() / fox.norm()) > 1e-4
    assert torch.equal(fox, sampled(model, clip, "a photo of a fox"))
