"""Whether a CLIP and a VAE go with a MODEL, told before any work is done."""

import functools
from typing import Any

from ..errors import UnlearnError
from . import architectures, text_encoding
from .architectures import Architecture, kind
from .model_types import Clip, Model, Vae


def check_clip(model: Model, clip: Clip) -> None:
    """Raises UnlearnError unless a CLIP is the text encoder that a MODEL reads.

    Its tokenizer must be for the same encoders, its token states as wide as the model reads them,
    and it must give a pooled vector where the model reads one. Raises too for a MODEL that reads no
    text. One empty prompt is encoded.
    """
    family = architectures.of(model)
    tokens = clip.tokenize("")
    _check_encoders(family, clip, tokens)
    if isinstance(family, architectures.Transformer):
        return  # whether its layers can read the states is seen when they do
    ((states, more),) = clip.encode_from_tokens_scheduled(tokens)
    text_encoding.check_width(states.shape[-1], family.text_width())
    if family.uses_pooled_text() and more.get("pooled_output") is None:
        raise UnlearnError(
            f"The input 'clip' gives no pooled vector, which the model ({kind(model)}) reads; "
            "connect the CLIP of the same checkpoint."
        )


def _check_encoders(family: Architecture, clip: Clip, tokens: dict[str, Any]) -> None:
    config: Any = getattr(family.model.model, "model_config", None)
    target = None if config is None else config.clip_target({})
    if target is None or type(getattr(clip, "tokenizer", None)) is target.tokenizer:
        return
    try:
        found, wanted = set(tokens), _encoders(target.tokenizer)
    except (RuntimeError, TypeError, ValueError, OSError):
        return  # a tokenizer whose vocabulary comes with its weights
    if found != wanted:
        raise UnlearnError(
            f"The input 'clip' reads text with {_named(found)}, and the model "
            f"({kind(family.model)}) was made for {_named(wanted)}; connect the CLIP of the same "
            "checkpoint."
        )


@functools.cache
def _encoders(tokenizer: type) -> frozenset[str]:
    """The names of the text encoders that a class of tokenizers gives tokens for."""
    return frozenset(tokenizer().tokenize_with_weights(""))


def _named(encoders: set[str] | frozenset[str]) -> str:
    """Encoders as artists know them: `l` is CLIP-L."""
    shown = (f"CLIP-{name.upper()}" if len(name) == 1 else name for name in sorted(encoders))
    return " and ".join(shown)


def check_vae(model: Model, vae: Vae) -> None:
    """Raises UnlearnError where a VAE's latents have other channels or axes than a MODEL's."""
    form: Any = model.get_model_object("latent_format")
    wanted = (form.latent_channels, form.latent_dimensions)
    found = (
        getattr(vae, "latent_channels", wanted[0]),
        getattr(vae, "latent_dim", wanted[1]),
    )
    if found != wanted:
        raise UnlearnError(
            f"The input 'vae' is for latents of {_shown(*found)}, and the model ({kind(model)}) "
            f"has {_shown(*wanted)}; connect the VAE of the same checkpoint."
        )


def _shown(channels: int, axes: int) -> str:
    return f"{channels} channels" + {1: " of sound", 3: " of video"}.get(axes, "")
