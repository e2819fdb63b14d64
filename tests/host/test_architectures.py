"""What the pack knows of each model family, on models of true shape as ComfyUI builds them."""

import gc
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from testbed import pack
from testbed.shapes import on_meta

architectures = pack.module("unlearn.host.architectures")
weights = pack.module("unlearn.host.weights")
Prompt = pack.module("unlearn.host.text_encoding").Prompt
UnlearnError = pack.module("unlearn.errors").UnlearnError


class Expected(NamedTuple):
    """What is true of a kind of model."""

    text_layers: int
    text_width: int
    text_rows: int  # of all text layers together
    feed_forwards: int
    feed_forward_weights: int
    trained: tuple[int, int, int]  # by each of TRAINABLE
    pooled: bool
    first_label: str


# A row for each kind of model. A new family needs one as well.
KINDS = {
    "SD1.5": Expected(32, 768, 24960, 16, 49_561_600, (64, 32, 128), False, "input 1.0 k"),
    "SD2.1": Expected(32, 1024, 24960, 16, 49_561_600, (64, 32, 128), False, "input 1.0 k"),
    "SDXL": Expected(140, 2048, 166400, 70, 409_600_000, (280, 140, 560), True, "input 4.0 k"),
}


@pytest.fixture(params=KINDS, scope="module")
def known(request):
    """(family, what is expected of it, number of entries of a weight)."""
    model = on_meta(request.param)
    shapes = {key: tuple(w.shape) for key, w in model.model.state_dict().items()}
    return architectures.of(model), KINDS[request.param], shapes


def test_text_enters_through_every_key_and_value_matrix(known):
    family, expected, shapes = known
    found = family.cross_attention_layers()
    assert len(found) == expected.text_layers == len({x.key for x in found})
    assert sum(shapes[x.key][0] for x in found) == expected.text_rows
    assert {x.group for x in found} == {"text"} and {x.rows for x in found} == {None}
    assert [x.role for x in found] == ["key", "value"] * (len(found) // 2)
    assert family.text_width() == expected.text_width
    assert found == architectures.cross_attention(family.model)


def test_every_second_feed_forward_linear_is_found(known):
    family, expected, shapes = known
    found = family.feed_forward_layers()
    assert len(found) == expected.feed_forwards == len({x.key for x in found})
    connections = sum(shapes[x.key][0] * shapes[x.key][1] for x in found)
    assert connections == expected.feed_forward_weights
    assert len({x.group for x in found}) == len(found)  # each has an input of its own
    assert found == architectures.feed_forward(family.model)


def test_what_is_trained(known):
    family, expected, _ = known
    found = [family.trainable_matrices(which) for which in architectures.TRAINABLE]
    assert tuple(map(len, found)) == expected.trained
    assert {x.key for x in found[1]} == {x.key for x in family.cross_attention_layers()}
    assert {x.key for x in found[0]} < {x.key for x in found[2]}


def test_layers_come_from_input_to_output_under_short_names(known):
    family, expected, _ = known
    for found in (family.cross_attention_layers(), family.feed_forward_layers()):
        parts = [x.label.split()[0] for x in found]
        assert parts == sorted(parts, key=["input", "middle", "output"].index)
        assert parts == [architectures.part(x.key) for x in found]
        assert [family.label(x.key) for x in found] == [x.label for x in found]
        assert len({x.label for x in found}) == len(found)
    assert family.cross_attention_layers()[0].label == expected.first_label
    assert family.feed_forward_layers()[0].label == expected.first_label.replace(" k", " ff")
    assert {x.label for x in family.trainable_matrices("all attention")} >= {
        expected.first_label.replace(" k", f" attn{n}.to_q") for n in (1, 2)
    }


def test_which_weights_read_text(known):
    family, expected, shapes = known
    assert sum(family.reads_text(key) for key in shapes) == expected.text_layers
    assert family.uses_pooled_text() == expected.pooled
    assert family.conditioning_extras == ("pooled_output",)
    other = "diffusion_model.out.2.weight"
    assert family.label(other) == other and architectures.part(other) == ""


def test_where_the_parts_of_a_prompt_stand(known):
    """Start token 0, `a photo of a [red fox] at night`, end token, padding."""
    spans = known[0].spans(Prompt("a photo of a red fox at night", "red fox", 5, 6, 9), 77)
    assert list(spans.own) == [5, 6] and list(spans.after) == [7, 8] and spans.end == 9
    assert list(spans.padding) == [*range(10, 77)]
    nothing = known[0].spans(Prompt("a photo of a", "", 5, 4, 5), 77)
    assert not nothing.own and not nothing.after and nothing.end == 5


@pytest.mark.parametrize("ask", ["of", "cross_attention", "feed_forward"])
def test_a_model_of_another_family_is_refused(ask):
    plain = SimpleNamespace(model=torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(4, 4)}))
    with pytest.raises(UnlearnError, match="no text cross-attention") as error:
        getattr(architectures, ask)(plain)
    assert "'model' (ModuleDict)" in str(error.value) and "\n" not in str(error.value)


def test_a_smaller_unet_needs_no_table(loaded):
    family = architectures.of(loaded[0])
    assert len(family.cross_attention_layers()) == 8 and family.text_width() == 768
    assert not family.uses_pooled_text() and family.native_size() == 512
    keys = {x.key for x in family.cross_attention_layers()}
    assert all(weights.exists(loaded[0], key) for key in keys)
    assert len({family.lora_names()[key] for key in keys}) == len(keys)


TOY_FAMILY = """
from .base import Architecture, Layer, Spans


class Toy(Architecture):
    @classmethod
    def fits(cls, keys):
        return keys[0].startswith("toy.")

    def cross_attention_layers(self):
        return [Layer(key, "entry", "entry", key, (0, 2)) for key in self.keys]

    def feed_forward_layers(self):
        self.refuse("feed-forward layers")

    def trainable_matrices(self, which):
        return self.cross_attention_layers()

    label = reads_text = staticmethod(lambda key: key)
    native_size = lambda self: 8
    uses_pooled_text = lambda self: False
    lora_names = lambda self: {}
    spans = lambda self, prompt, length: Spans(range(0), range(0), None, range(0))
"""


@pytest.fixture
def toy_family(tmp_path, monkeypatch):
    """One more file in the folder of families, and nothing else."""
    (tmp_path / "toy.py").write_text(TOY_FAMILY, encoding="utf-8")
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    yield
    sys.modules.pop(f"{architectures.__name__}.toy")
    del architectures.toy
    gc.collect()  # a class that is gone is no subclass any more


def test_a_family_is_one_file(toy_family):
    model = SimpleNamespace(model=torch.nn.ModuleDict({"toy": torch.nn.Linear(3, 4, bias=False)}))
    (layer,) = architectures.cross_attention(model)
    assert layer.key == "toy.weight" and layer.rows == (0, 2) and layer.role == "entry"
    assert architectures.of(model).text_width() == 3
    with pytest.raises(UnlearnError, match="has no feed-forward layers"):
        architectures.feed_forward(model)


def test_a_family_that_is_gone_is_not_found(known):
    names = [family.__name__ for family in architectures.families()]
    assert "UNet" in names and "Toy" not in names and len(set(names)) == len(names)
    assert isinstance(known[0], architectures.UNet)
