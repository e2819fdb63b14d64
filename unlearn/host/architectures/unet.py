"""UNets: SD1.x, SD2.x, SDXL and smaller ones made from them.

Layers are found by pattern over the weight keys, so models with fewer blocks need no tables.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.utils

from ...errors import UnlearnError
from .. import weights
from ..model_types import Model
from ..text_encoding import Prompt
from .base import WIDEST, Architecture, Layer, Role, Spans, kind

_BLOCK = (
    r"^diffusion_model\.(input|middle|output)_blocks?\.(\d+)(?:\.\d+)?\.transformer_blocks\.(\d+)\."
)
_MATRIX = re.compile(_BLOCK + r"(attn[12]|ff)\.(to_q|to_k|to_v|to_out|net\.2)(?:\.0)?\.weight$")
_INSIDE = re.compile(_BLOCK)
_BLOCKS = re.compile(r"^diffusion_model\.(input_blocks|middle_block|output_blocks)\.")
_ORDER = {"input": 0, "middle": 1, "output": 2}
_ROLES: dict[str, Role] = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out": "output",
    "net.2": "feed-forward",
}
_TRAINABLE = {
    "cross-attention": (("attn2",), ("to_q", "to_k", "to_v", "to_out")),
    "keys and values": (("attn2",), ("to_k", "to_v")),
    "all attention": (("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out")),
    WIDEST: (
        ("attn1", "attn2", "ff"),
        ("to_q", "to_k", "to_v", "to_out", "net.2"),
    ),
}
_POOLED = "diffusion_model.label_emb.0.0.weight"
_POOLED_LABEL = "pooled text"
# How many embedded numbers (sizes, crops, a score) stand behind the pooled text vector, by the
# host's function that writes them. In other models with such a layer no text is in it.
_NUMBERS_BEHIND_POOLED = {
    comfy.model_base.SDXL.encode_adm: 6,
    comfy.model_base.SDXLRefiner.encode_adm: 5,
}
# Parts of a UNet, outside its blocks, that give vectors which are no text.
_NO_TEXT = ("time_embed", "label_emb", "out", "id_predictor")
# Widths that tell which text encoder a class of models reads: of its states and of its vector.
_TEXT_SHAPES = ("context_dim", "adm_in_channels")


class _Matrix(NamedTuple):
    """A weight of a transformer block, and where it stands in the UNet."""

    key: str
    part: str  # input, middle or output
    block: int
    depth: int  # transformer block within the block
    module: str  # attn1 (self-attention), attn2 (cross-attention) or ff (feed-forward)
    projection: str

    @property
    def place(self) -> str:
        return f"{self.part} {self.block}.{self.depth}"

    def layer(self, with_module: bool = False, reads_text: bool = False) -> Layer:
        """As a Layer; its label names the module where a list has several modules of a block.

        reads_text: whether the module reads text although it is no attn2.
        """
        name = "ff" if self.module == "ff" else self.projection.removeprefix("to_")
        if with_module:
            name = f"{self.module}.{self.projection}"
        role = _ROLES[self.projection]
        # All cross-attention keys and values read the same text states.
        reads = (self.module == "attn2" or reads_text) and role in ("key", "value")
        end = "out" if role == "output" else "in"
        group = "text" if reads else f"{self.place} {self.module} {end}"
        return Layer(self.key, f"{self.place} {name}", role, group)


def _matrix(key: str) -> _Matrix | None:
    found = _MATRIX.match(key)
    if found is None:
        return None
    part, block, depth, module, projection = found.groups()
    if (module == "ff") != (projection == "net.2"):
        return None
    return _Matrix(key, part, int(block), int(depth), module, projection)


class UNet(Architecture):
    """Text enters through the keys and values of all cross-attention layers.

    All of them read the text encoder's own states, at every timestep, so a closed form is exact.
    Some models (the x4 upscaler) have cross-attention in place of self-attention, too.
    """

    conditioning_extras = ("pooled_output",)

    @classmethod
    def fits(cls, keys: tuple[str, ...]) -> bool:
        return any(_INSIDE.match(key) for key in keys)

    def _layers(
        self,
        modules: tuple[str, ...],
        projections: tuple[str, ...],
        lacking: str,
    ) -> list[Layer]:
        found = [m for m in map(_matrix, self.keys) if m is not None]
        found = [m for m in found if m.projection in projections and self._module(m) in modules]
        if not found:
            self.refuse(lacking)
        found.sort(key=lambda m: (_ORDER[m.part], m.block, m.depth, m.module, m.projection))
        several = len(modules) > 1
        return [
            m.layer(several or m.module == "attn1", reads_text=self._module(m) == "attn2")
            for m in found
        ]

    def _module(self, matrix: _Matrix) -> str:
        """What a module does: attn2 also for an attn1 that reads text in place of the picture."""
        if matrix.module != "attn1":
            return matrix.module
        path = matrix.key.partition(".attn1.")[0]
        block = comfy.utils.get_attr(self.model.model, path)
        return "attn2" if getattr(block, "disable_self_attn", False) else "attn1"

    def check(self) -> None:
        """Raises UnlearnError where what cross-attention reads is not what a text encoder says."""
        fault = _foreign_text(self.model)
        projection = "" if fault else self._projection()
        if projection:
            fault = (
                f"changes its text in '{projection}' before cross-attention reads it, so nothing "
                "can be erased there"
            )
        if fault:
            raise UnlearnError(
                f"The input 'model' ({kind(self.model)}) {fault}; use an SD1.x, SD2.x or SDXL "
                "checkpoint."
            )

    def _projection(self) -> str:
        """The name of a layer outside the blocks that gives what cross-attention reads, or ''."""
        found = [m for m in map(_matrix, self.keys) if m is not None]
        widths = {
            weights.shape(self.model, m.key)[1]
            for m in found
            if self._module(m) == "attn2" and _ROLES[m.projection] in ("key", "value")
        }
        for key in self.keys:
            path = key.removeprefix("diffusion_model.")
            if _BLOCKS.match(key) or path.startswith(_NO_TEXT) or not key.endswith(".weight"):
                continue
            if path.startswith(("noise_augmentor.", "model_sampling.")):
                continue
            shape = weights.shape(self.model, key)
            if len(shape) > 1 and shape[0] in widths:
                return path.removesuffix(".weight")
        return ""

    def cross_attention_layers(self) -> list[Layer]:
        return self._layers(("attn2",), ("to_k", "to_v"), "text cross-attention layers to edit")

    def pooled_text_layers(self) -> list[Layer]:
        return pooled_text_layers(self.model, self.keys)

    def feed_forward_layers(self) -> list[Layer]:
        return self._layers(("ff",), ("net.2",), "transformer feed-forward layers to prune")

    def trainable_matrices(self, which: str) -> list[Layer]:
        modules, projections = _TRAINABLE[which]
        return self._layers(modules, projections, "text cross-attention layers to train")

    @staticmethod
    def label(key: str) -> str:
        return label(key)

    @staticmethod
    def reads_text(key: str) -> bool:
        return reads_text(key)

    def native_size(self) -> int:
        return unet_size(self.model)

    def uses_pooled_text(self) -> bool:
        return any(key.startswith("diffusion_model.label_emb.") for key in self.keys)

    def lora_names(self) -> dict[str, str]:
        """As kohya's scripts and ComfyUI's LoraLoader know them.

        These are diffusers' names for SD1.x and SD2.x, and the original ones for SDXL.
        """
        names = {}
        for key in self.keys:
            path = key.removeprefix("diffusion_model.").removesuffix(".weight")
            names[key] = "lora_unet_" + path.replace(".", "_")
        if isinstance(self.model.model, comfy.model_base.SDXL):
            return names
        config = self.model.model.model_config.unet_config
        for theirs, ours in comfy.utils.unet_to_diffusers(config).items():
            key = f"diffusion_model.{ours}"
            if key in names and theirs.endswith(".weight"):
                names[key] = "lora_unet_" + theirs.removesuffix(".weight").replace(".", "_")
        return names

    def spans(self, prompt: Prompt, length: int) -> Spans:
        return text_spans(prompt, length)


def label(key: str) -> str:
    """Short name of a weight for reports, as in `input 4.0 k`; other weights keep their key."""
    if key == _POOLED:
        return _POOLED_LABEL
    found = _matrix(key)
    return key if found is None else found.layer(with_module=found.module == "attn1").label


def pooled_text_layers(model: Model, keys: tuple[str, ...]) -> list[Layer]:
    """The layer that reads the pooled text vector in its first columns, of SDXL and its kin."""
    inner: Any = model.model
    numbers = _NUMBERS_BEHIND_POOLED.get(getattr(type(inner), "encode_adm", None))
    if numbers is None or _POOLED not in keys:
        return []
    width = weights.shape(model, _POOLED)[1] - numbers * inner.embedder.dim
    return [Layer(_POOLED, _POOLED_LABEL, "entry", "pooled text", columns=(0, width))]


def text_spans(prompt: Prompt, length: int) -> Spans:
    """Where the parts of a prompt stand among its `length` token states.

    In CLIP's order: start token, words, end token, padding.
    """
    return Spans(
        own=range(prompt.first, prompt.last + 1),
        after=range(prompt.last + 1, prompt.end),
        end=prompt.end,
        padding=range(prompt.end + 1, length),
    )


def part(key: str) -> str:
    """The part of the UNet that a weight is in: `input`, `middle`, `output`, or '' for neither."""
    found = _INSIDE.match(key)
    return found[1] if found else ""


def reads_text(key: str) -> bool:
    """Whether a weight is a key or value matrix of cross-attention."""
    found = _matrix(key)
    return found is not None and found.layer().group == "text"


def unet_size(model: Model) -> int:
    """Side in pixels of the square pictures a MODEL was made for.

    SDXL, its refiner and what is made from them: 1024. SD2.x that predicts v, and unCLIP: 768.
    All else: 512.
    """
    inner: Any = model.model
    config, latents = inner.model_config, inner.latent_format
    large = (comfy.latent_formats.SDXL, comfy.latent_formats.SDXL_Playground_2_5)
    if isinstance(config, comfy.supported_models.SDXL) or isinstance(latents, large):
        return 1024
    if isinstance(latents, comfy.latent_formats.SD_X4):  # predicts v, but is made from 512
        return 512
    velocity = inner.model_type.name == "V_PREDICTION"
    if isinstance(config, comfy.supported_models.SD20) and velocity:
        return 768
    return 768 if isinstance(inner, comfy.model_base.SD21UNCLIP) else 512


def _foreign_text(model: Model) -> str:
    """What is wrong where cross-attention reads no text of a CLIP that ComfyUI knows, else ''.

    Other packs make classes from ComfyUI's for models that read another text encoder.
    """
    config: Any = getattr(model.model, "model_config", None)
    if not hasattr(config, "clip_target"):  # no model of a loader of ComfyUI's
        return ""
    foreign = "reads the text of an encoder that ComfyUI has no class for"
    try:
        if config.clip_target({}) is None:
            return "is guided by pictures and not by text"
    except (NotImplementedError, TypeError):  # of other packs
        return foreign
    lineage = [c for c in type(config).__mro__ if c.__module__ == comfy.supported_models.__name__]
    if not lineage or lineage[0] is type(config):
        return ""
    own, ancestor = type(config).unet_config, lineage[0].unet_config
    alike = all(own.get(name) == ancestor.get(name) for name in _TEXT_SHAPES)
    return "" if alike else foreign
