"""The pooled text vector of prompts, which SDXL reads beside the token states.

ComfyUI gives the vector of the first piece of one prompt. Here a batch of prompts is read at once,
so what each encoder makes of every prompt is noted on the way. Of a prompt of several pieces the
first alone is in the vector, as in ComfyUI.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..errors import UnlearnError
from .model_types import Clip

Tokens = Mapping[str, list]  # encoder -> chunks of (token, weight)


class _Seen(NamedTuple):
    """The pooled vectors [n, d] that one encoder of a CLIP gave."""

    encoder: str
    vectors: torch.Tensor


def shallow_copy(module: Any, **parts: torch.nn.Module) -> Any:
    """A shallow copy of a module that shares everything with it except the named `parts`."""
    out = copy.copy(module)
    out._modules = {**module._modules, **parts}
    return out


def _recording(clip: Clip) -> tuple[Clip, list[_Seen]]:
    """(a CLIP that shares its weights with `clip`, what its encoders give when it encodes)."""
    seen: list[_Seen] = []
    model: Any = getattr(clip, "cond_stage_model", None)
    encoders: dict[str, torch.nn.Module] = {}
    for name, encoder in getattr(model, "_modules", {}).items():
        if hasattr(encoder, "encode"):
            encoders[name] = _noting(encoder, name, seen)
    if not encoders:
        return clip, seen
    out = copy.copy(clip)  # with its patcher, so that ComfyUI knows that it is loaded
    out.cond_stage_model = shallow_copy(model, **encoders)
    return out, seen


def _noting(encoder: Any, name: str, seen: list[_Seen]) -> Any:
    """A shallow copy of an encoder that adds the pooled vectors of each batch to `seen`."""
    out = shallow_copy(encoder)

    def encode(tokens: list) -> Any:
        found = type(encoder).encode(out, tokens)
        if isinstance(found[1], torch.Tensor):
            seen.append(_Seen(name, found[1]))
        return found

    out.encode = encode
    return out


def encode(clip: Clip, tokens: Tokens, count: int) -> tuple[torch.Tensor, torch.Tensor, str | None]:
    """(token states of all prompts as ComfyUI gives them, pooled vectors [count, d], encoder).

    tokens: one chunk of each of `count` prompts for every encoder. The vectors are float32 on the
    CPU. The last is the name of the encoder that they come from, None where that is not known.
    Raises UnlearnError for a CLIP without pooled vectors.
    """
    recording, seen = _recording(clip)
    states, first = _read(recording, tokens)
    for encoder, vectors in seen:
        vectors = vectors.float().cpu()
        if len(vectors) >= count and torch.equal(vectors[:1], first):
            return states, vectors[:count].clone(), encoder
    alone = [{name: [chunks[i]] for name, chunks in tokens.items()} for i in range(count)]
    return states, torch.cat([_read(clip, one)[1] for one in alone]), None


def _read(clip: Clip, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    found: Any = clip.encode_from_tokens(tokens, return_pooled=True)
    states, pooled = found
    if not isinstance(pooled, torch.Tensor):
        raise UnlearnError(
            "The input 'clip' gives no pooled text vector and the model reads one; connect the "
            "CLIP of the same checkpoint."
        )
    return states, pooled.float().cpu()
