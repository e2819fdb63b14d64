"""What comes in on wires: nothing, swapped, of another family, of another width, or no number.

Whatever it is, a node works or says one sentence, and nothing that came in is changed. The run is
seeded as in test_fuzz.py: input number i is made from `Random(f"{node} {i}")` alone. UNLEARN_FUZZ
multiplies the counts.
"""

import functools
import hashlib
import os
from random import Random
from types import SimpleNamespace

import pytest
import torch

from testbed import families, pack, tiny

matching = pack.module("unlearn.host.matching")
adapters = pack.module("unlearn.host.adapters")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
nodes = pack.module("nodes")
wires = pack.module("nodes.wires")
UnlearnError = pack.module("unlearn.errors").UnlearnError
TIMES = float(os.environ.get("UNLEARN_FUZZ", "1"))
FOX = text.parse("fox -> animal", "cat")
LENGTH = {"steps": 2, "batch": 1, "held": 1, "pictures": 1, "captions": 1, "sampling_steps": 1}
QUICK = {
    "ScaPreSolve": {"prior": False},
    "ConceptSaliency": {"prompts": 1, "steps": 2, "window": 1, "size": 64},
    "DynamicMaskTrainer": {
        "preset": {"preset": "custom", "stop_at": 0.0, "learning_rate": 1e-5, **LENGTH},
        "warmup": 1,
        "size": 64,
    },
    "ErasureReport": {"size": 64, "steps": 1, "seeds": 1, "kept": 0},
    "CollateralForecast": {"size": 64, "glance": False},
    "UnlearnStrengthSweep": {"size": 64, "steps": 1, "pictures": 2},
    "UnlearnConcepts": {"forget": "cow", "keep": "pig"},
}


class Vae(tiny.Vae):
    """Pictures as latents too, as wide as it says."""

    def __init__(self, channels=4, axes=2, ratio=8):
        self.latent_channels, self.latent_dim, self.ratio = channels, axes, ratio

    def encode(self, pictures):
        side = torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), self.ratio)
        return side.mean(1, keepdim=True).expand(-1, self.latent_channels, -1, -1)


class OtherEncoder(families.TextEncoder):
    """As wide as the model reads, but of another family: a T5, say."""

    def tokenize(self, words, return_word_ids=False, **_):
        return {"t5xxl": next(iter(super().tokenize(words, return_word_ids).values()))}


def running(node):
    hidden = SimpleNamespace(unique_id=None, extra_pnginfo=None, prompt=None)
    return type("Running", (node,), {"hidden": hidden})


def saliency(model, clip):
    given = {**tiny.defaults(nodes.ConceptSaliency.define_schema().inputs)}
    given |= QUICK["ConceptSaliency"]
    return running(nodes.ConceptSaliency).execute(model, clip, FOX, **given).result[0]


def solved(model, clip):
    given = {**tiny.defaults(nodes.ScaPreSolve.define_schema().inputs), "prior": False}
    return running(nodes.ScaPreSolve).execute(model, clip, text.parse("cow"), **given).result[0]


def patch_of(key, shape):
    edit = adapters.LowRank.of(torch.full((shape[0], 1), 0.1), torch.full((1, shape[1]), 0.1))
    samples = types.Fingerprint({key: torch.zeros(64)})
    # A method with a recipe, which Refit Unlearn Patch follows.
    said = {"method": "ScaPre uce", "settings": {"prior": False}, "concepts": ["fox"]}
    return types.UnlearnPatch(((key, edit),), samples, (said,))


@pytest.fixture(scope="module")
def brought():
    """Things by name that may come in on a wire. The first of each type is the right one."""
    with torch.inference_mode():
        model, clip = families.model("SD1.5"), families.clip("SD1.5")
        key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        found = {
            "MODEL": model,
            "CLIP": clip,
            "VAE": Vae(),
            "IMAGE": torch.rand(1, 64, 64, 3),
            "CONDITIONING": clip.encode_from_tokens_scheduled(clip.tokenize("fox")),
            "UNLEARN_CONCEPTS": FOX,
            "UNLEARN_PATCH": solved(model, clip),
            "UNLEARN_SALIENCY": saliency(model, clip),
            "CLIP_VISION": SimpleNamespace(encode_image=vision),
            "a wider CLIP": families.clip("SDXL"),
            "another encoder": OtherEncoder(48),
            "a video VAE": Vae(16, 3),
            "a VAE of 16 channels": Vae(16),
            "a VAE of the upscaler": Vae(ratio=4),
            "SVD": families.model("SVD"),
            "SDXL": families.model("SDXL"),
            "no concepts": types.ConceptSet(()),
            "a patch for another model": patch_of("diffusion_model.nowhere.weight", (2, 2)),
            "a patch of another shape": patch_of(key, (4, 4)),
            "an empty patch": types.UnlearnPatch((), types.Fingerprint({})),
            "a control net": SimpleNamespace(control_model=None, cond_hint=None, copy=None),
            "a patcher of a VAE": SimpleNamespace(
                model=torch.nn.Linear(2, 2), clone=None, add_patches=None, get_model_object=None
            ),
            "a LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
            "a CONDITIONING": [[torch.zeros(1, 77, 48), {}]],
            "no picture": torch.zeros(0, 64, 64, 3),
            "pictures without height": torch.zeros(1, 0, 64, 3),
            "a grey picture": torch.zeros(1, 64, 64, 1),
            "a picture without batch": torch.zeros(64, 64, 3),
            "a mask": torch.zeros(1, 64, 64),
            "NaN": torch.full((1, 64, 64, 3), float("nan")),
            "three pictures": torch.rand(3, 40, 72, 4),
            "nothing": None,
            "a word": "fox",
            "a number": 7,
            "a list": [],
        }
        return found, digest(found)


def vision(pictures, crop=True):
    return {"image_embeds": pictures.flatten(1)[:, :8]}


def digest(found):
    """Hash of everything that could be changed: weights, pictures, patches and maps."""
    import comfy.model_management as mm

    h = hashlib.sha256()
    for name in ("MODEL", "SVD", "SDXL"):
        mm.load_models_gpu([found[name]])
        for key, value in found[name].model.state_dict().items():
            h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        assert not found[name].patches
    for value in found.values():
        if isinstance(value, torch.Tensor):
            h.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        if isinstance(value, types.UnlearnPatch):
            h.update(value.digest.encode())
        if isinstance(value, types.SaliencyMap):
            h.update(b"".join(r.indices.numpy().tobytes() for p in value.rankings for r in p))
    return h.hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that nodes write go here."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    kinds = ("loras", "unlearn_patches", "unlearn_saliency", "unlearn_training")
    for kind in kinds:
        places = ([str(tmp_path / kind)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, places)


def right(node, found):
    """The right thing on every wire of a node, and its defaults, made quick."""
    given = tiny.defaults(node.define_schema().inputs) | QUICK.get(node.__name__, {})
    for item in node.define_schema().inputs:
        if item.io_type in found:
            given[item.id] = found[item.io_type]
        elif hasattr(item, "template"):
            given[item.id] = {f"{item.id}0": found[item.template.input.io_type]}
    if node.__name__ == "ErasureReport":
        given["after"] = given["before"].clone()
    if node.__name__ == "TextEncoderSolve":  # it reads the layers of a real CLIP
        given["clip"] = real_clip()
    return given


@functools.cache
def real_clip():
    with torch.inference_mode():
        return tiny.sdxl_clip(widths=(64, 128))


NUMBERS = (None, float("nan"), float("inf"), -float("inf"), -7, 10**30, 10**400, "x", "", [], {})
WORDS = (None, 7, [], {}, "", "x", "\x00", "../x", "{concept}", "fox" * 2000, "\u202e", "{context}")


def outcome(what, node, given):
    """'works', or the sentence with which the node refused. Anything else fails the test."""
    try:
        running(node).execute(**given)
    except UnlearnError as error:
        said = str(error)
        assert said.isprintable() and 10 < len(said) < 800 and said.endswith("."), (what, said)
        return said
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return "works"


# Of the right type for a wire, though not the right thing.
OF_TYPE = {
    "a wider CLIP": "CLIP",
    "another encoder": "CLIP",
    "a video VAE": "VAE",
    "a VAE of 16 channels": "VAE",
    "a VAE of the upscaler": "VAE",
    "SVD": "MODEL",
    "SDXL": "MODEL",
    "no concepts": "UNLEARN_CONCEPTS",
    "a patch for another model": "UNLEARN_PATCH",
    "a patch of another shape": "UNLEARN_PATCH",
    "an empty patch": "UNLEARN_PATCH",
    "three pictures": "IMAGE",
    "a CONDITIONING": "CONDITIONING",
}
# Nodes that read lists of files have no file here.
FROM_FILES = ("LoadConceptSaliency", "LoadUnlearnPatch")
CHECKED = [node for node in nodes.NODES if node.__name__ not in FROM_FILES]


def wired(node):
    """(input, type of its wire, whether it grows) of a node's wires."""
    for item in node.define_schema().inputs:
        several = hasattr(item, "template")
        kind = item.template.input.io_type if several else item.io_type
        if kind in wires._WIRES:
            yield item, kind, several


@pytest.mark.parametrize("node", CHECKED, ids=lambda node: node.__name__)
def test_every_wire_of_every_node(node, brought, folder, tally):
    """Every wire in turn with everything, all other inputs right."""
    found, before = brought
    plain = right(node, found)
    if node.__name__ != "SaveUnlearnedCheckpoint":  # it wants a patched model
        assert outcome(node.__name__, node, plain) == "works"
    for item, kind, several in wired(node):
        for name, thing in found.items():
            what = f"{node.__name__} '{item.id}' {name}"
            value = {f"{item.id}0": thing} if several else thing
            said = outcome(what, node, {**plain, item.id: value})
            tally("inputs")
            if thing is None and not item.optional and not several:
                assert said.startswith(f"The input '{item.id}' brings nothing"), (what, said)
            elif thing is not None and name != kind and OF_TYPE.get(name) != kind:
                assert f"input '{item.id}" in said and "brings" in said, (what, said)
    assert digest(found) == before


def test_the_hosts_own_classes_are_told_apart():
    import comfy.clip_vision
    import comfy.controlnet
    import comfy.sd

    things = {
        "MODEL": families.model("SD1.5"),
        "CLIP": comfy.sd.CLIP(no_init=True),
        "VAE": comfy.sd.VAE.__new__(comfy.sd.VAE),
        "CLIP_VISION": comfy.clip_vision.ClipVisionModel.__new__(comfy.clip_vision.ClipVisionModel),
        "CONTROL_NET": comfy.controlnet.ControlNet(),
        "STYLE_MODEL": comfy.sd.StyleModel(None, "cpu"),
    }
    for kind in ("MODEL", "CLIP", "VAE", "CLIP_VISION", "IMAGE"):
        taken = [name for name, thing in things.items() if wires._WIRES[kind].fits(thing)]
        assert taken == [kind] * (kind in things)


READS_TEXT = (
    nodes.ScaPreSolve,
    nodes.ConceptSaliency,
    nodes.DynamicMaskTrainer,
    nodes.CollateralForecast,
    nodes.ErasureReport,
)


@pytest.mark.parametrize("node", READS_TEXT, ids=lambda node: node.__name__)
@pytest.mark.parametrize(
    "name, said",
    [
        (
            "another encoder",
            "'clip' reads text with t5xxl, and the model (SD15) was made for CLIP-L",
        ),
        ("a wider CLIP", "'clip' reads text with CLIP-G and CLIP-L, and the model (SD15) was made"),
        ("wide", "'clip' gives states of width 64 and the model reads width 48"),
    ],
)
def test_a_text_encoder_of_another_model(node, name, said, brought):
    found = brought[0]
    clip = families.TextEncoder(64) if name == "wide" else found[name]
    assert said in outcome(name, node, {**right(node, found), "clip": clip})


def test_an_encoder_without_a_pooled_vector_is_refused_where_the_model_reads_one():
    clip = families.clip("SDXL")
    states = clip.encode_from_tokens(clip.tokenize(""))
    clip.encode_from_tokens_scheduled = lambda tokens: [[states, {"pooled_output": None}]]
    with pytest.raises(UnlearnError, match="'clip' gives no pooled vector"):
        matching.check_clip(families.model("SDXL"), clip)


@pytest.mark.parametrize(
    "name, said",
    [
        ("a video VAE", "is for latents of 16 channels of video, and the model (SD15) has 4 cha"),
        ("a VAE of 16 channels", "is for latents of 16 channels, and the model (SD15) has 4 chan"),
    ],
)
def test_a_vae_of_other_latents(name, said, brought):
    found = brought[0]
    for node in (nodes.ErasureReport, nodes.DynamicMaskTrainer):
        given = {**right(node, found), "vae": found[name]}
        assert said in outcome(name, node, given)
    trained = {**right(nodes.DynamicMaskTrainer, found), "vae": found["a VAE of the upscaler"]}
    assert "gives latents of shape [4, 16, 16] where the model has [4, 8, 8]" in outcome(
        name, nodes.DynamicMaskTrainer, trained
    )


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prompts": float("nan")}, "The input 'prompts' is nan; give it a whole number from 1 to"),
        ({"cfg": float("inf")}, "The input 'cfg' is inf; give it a number from 1.0 to 30.0."),
        ({"steps": 0}, "The input 'steps' is 0; give it a whole number from 1 to 1000."),
        ({"steps": 2.5}, "The input 'steps' is 2.5; give it a whole number from 1 to 1000."),
        ({"score": "best"}, "The input 'score' is 'best'; choose one of paper, wanda."),
        ({"templates": None}, "The input 'templates' is something of the type NoneType; give it"),
    ],
)
def test_settings_that_a_link_may_bring(given, said, brought):
    assert said in outcome(
        "", nodes.ConceptSaliency, {**right(nodes.ConceptSaliency, brought[0]), **given}
    )


@pytest.mark.parametrize("node", CHECKED, ids=lambda node: node.__name__)
def test_fuzz(node, brought, folder, tally):
    """Some inputs at once, wires and settings alike."""
    found, before = brought
    plain, refused = right(node, found), 0
    items = node.define_schema().inputs
    count = int(40 * TIMES)
    for i in range(count):
        rng = Random(f"{node.__name__} {i}")
        given = dict(plain)
        for item in rng.sample(items, min(len(items), rng.randint(1, 3))):
            if item.io_type in wires._WIRES:
                given[item.id] = found[rng.choice(list(found))]
            elif hasattr(item, "template"):
                things = [found[rng.choice(list(found))] for _ in range(rng.randint(0, 3))]
                given[item.id] = {f"{item.id}{n}": thing for n, thing in enumerate(things)}
            elif item.io_type in ("INT", "FLOAT"):
                given[item.id] = rng.choice(NUMBERS)
            elif item.io_type != "BOOLEAN":
                given[item.id] = rng.choice(WORDS)
            if item.optional and rng.random() < 0.3:
                given.pop(item.id)
        refused += outcome(f"{node.__name__} {i}", node, given) != "works"
    tally("inputs", count)
    assert 0 < refused
    assert digest(found) == before
