"""The first layers of CLIP's text encoders: which weights they have, and what these see of texts.

Only encoders of CLIP's own kind are known: CLIP-L, CLIP-G, and both together. The loaded CLIP is
never changed. Hooks note what goes by, and a call ends at the layer that is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import comfy.clip_model
import comfy.model_management
import torch

from ..errors import UnlearnError
from . import memory, reading_batch
from .model_types import Clip
from .progress import Progress
from .text_encoding import REMEDY, SHOWN, escaped

NAMES = {"clip_l": "l", "clip_g": "g"}  # module of an encoder -> its name in a tokenizer's answer
CALLED = {"clip_l": "CLIP-L", "clip_g": "CLIP-G"}

Tokens = list[Any]  # 77 entries: a token's number, or the vector of an embedding


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a CLIP, and the layer of it that is edited: its first working one.

    module: its name in the CLIP. layer: the number of the layer. end: the token that ends a text.
    """

    clip: Clip
    module: str
    layer: int
    end: int

    @property
    def called(self) -> str:
        """The encoder as artists know it."""
        return CALLED[self.module]

    @property
    def key(self) -> str:
        """The weight of the layer's second feed-forward matrix, as the CLIP's patcher names it."""
        return f"{self.module}.transformer.text_model.encoder.layers.{self.layer}.mlp.fc2.weight"

    @property
    def network(self) -> Any:
        """The encoder's module."""
        return getattr(self.clip.cond_stage_model, self.module)

    @property
    def whole_layer(self) -> Any:
        """The layer's module."""
        return self.network.transformer.text_model.encoder.layers[self.layer]

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text, padding included.

        Raises UnlearnError for a text of more than one chunk.
        """
        chunks = self.clip.tokenize(escaped(text))[NAMES[self.module]]
        if len(chunks) > 1:
            raise UnlearnError(
                f"The prompt '{text[:SHOWN]}...' is longer than the 75 tokens the text encoder "
                "reads; shorten it."
            )
        return [entry[0] for entry in chunks[0]]


class Sight(NamedTuple):
    """What one matrix sees of texts, float32 on the CPU.

    into: [n, 77, d_in], what goes into it. stream: [n, 77, d], what the layer that it ends adds up
    to.
    """

    into: torch.Tensor
    stream: torch.Tensor


class _Seen(BaseException):
    """Ends a call of an encoder. No code between its layers and the caller takes it for an
    error."""


def encoders(clip: Clip) -> tuple[Encoder, ...]:
    """The text encoders of a CLIP.

    Raises UnlearnError where one of them is no CLIP-L or CLIP-G, or has no working layer.
    """
    model: Any = getattr(clip, "cond_stage_model", None)
    parts = [
        (name, part)
        for name, part in getattr(model, "_modules", {}).items()
        if hasattr(part, "transformer")
    ]
    plain = comfy.clip_model.CLIPTextModel
    if not parts or any(
        name not in NAMES or not isinstance(part.transformer, plain) for name, part in parts
    ):
        raise UnlearnError(
            "The input 'clip' is no CLIP-L or CLIP-G alone, and only these can be edited; use "
            "ScaPre Solve for this model, or connect the CLIP of an SD1.5 or SDXL checkpoint."
        )
    return tuple(
        Encoder(clip, name, _first_working(part, name), part.special_tokens["end"])
        for name, part in parts
    )


def _first_working(encoder: Any, name: str) -> int:
    """The number of the first layer whose feed-forward part adds anything."""
    for number, layer in enumerate(encoder.transformer.text_model.encoder.layers):
        # As floats, because fp8 has no `any` of its own.
        if all(bool(part.weight.float().any()) for part in (layer.mlp.fc1, layer.mlp.fc2)):
            return number
    raise UnlearnError(
        f"The input 'clip' has a {CALLED[name]} whose layers are all empty; load an undamaged text "
        "encoder."
    )


@torch.inference_mode()
def look(encoder: Encoder, sentences: Sequence[Tokens], progress: Progress | None = None) -> Sight:
    """The Sight of an encoder's edited matrix on a few sentences given as tokens, with all patches.

    Raises UnlearnError for NaN; ComfyUI's InterruptProcessingException after cancelling.
    """
    clip, model = encoder.clip, encoder.clip.cond_stage_model
    model.reset_clip_options()
    clip.load_model()
    model.set_clip_options({"execution_device": clip.patcher.load_device})
    rows = memory.BatchSize(reading_batch.fitting(clip).texts, "prompt", REMEDY)
    found: list[Sight] = []
    at = 0
    while at < len(sentences):
        memory.raise_if_cancelled()
        left = sentences[at:]
        count, seen = rows.run(len(left), partial(_look_at_first, encoder, left))
        found.append(seen)
        at += count
        if progress is not None:
            progress.step(count)
    into, stream = (torch.cat(part) for part in zip(*found, strict=True))
    if not (torch.isfinite(into).all() and torch.isfinite(stream).all()):
        raise UnlearnError("The input 'clip' gives NaN; load an undamaged text encoder.")
    return Sight(into, stream)


def _look_at_first(encoder: Encoder, sentences: Sequence[Tokens], count: int) -> Sight:
    """The Sight on the first `count` sentences, all at once."""
    noted: dict[str, torch.Tensor] = {}

    def note_input(module: torch.nn.Module, given: tuple) -> None:
        noted["into"] = given[0].detach().float().cpu().clone()

    def note_output(module: torch.nn.Module, given: tuple, out: torch.Tensor) -> None:
        noted["stream"] = out.detach().float().cpu().clone()
        raise _Seen

    layer = encoder.whole_layer
    handles = [
        layer.mlp.fc2.register_forward_pre_hook(note_input),
        layer.register_forward_hook(note_output),
    ]
    device = encoder.clip.patcher.load_device
    try:
        with comfy.model_management.cuda_device_context(device):
            encoder.network([list(tokens) for tokens in sentences[:count]])
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Sight(noted["into"], noted["stream"])
