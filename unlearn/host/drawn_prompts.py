"""Prompts that a MODEL draws, as samplers are given them, and the latents they are drawn in.

UNets take many prompts in one call. All other models read more of a text encoder's output than
token states, of another length for every prompt, so each prompt is drawn by itself, with its
conditioning in full. A model of videos draws one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnlearnError
from . import architectures, batched_sampling, memory, observed_text, predictions, sampling
from .architectures import Transformer, UNet
from .model_types import Clip, Model
from .sampling import Conditioning

SOUND = 1  # axes of the latents of sound
# What ComfyUI's code raises where conditioning lacks something that a model asks for.
LACKING = (RuntimeError, TypeError, KeyError, AttributeError, IndexError, AssertionError)


class DrawnPrompts:
    """The conditioning of some prompts. at_once: how many may be drawn in one call."""

    at_once: int

    def __init__(self, negative: Conditioning) -> None:
        self.negative = negative

    def of(self, chosen: Sequence[int]) -> Conditioning:
        """The conditioning of the prompts with these numbers."""
        raise NotImplementedError

    def fault(self, model: Model, error: Exception) -> UnlearnError | None:
        """What to tell an artist where drawing raises an error; None where that is a fault here."""
        return None


class Together(DrawnPrompts):
    """Prompts as one batch."""

    at_once = batched_sampling.LARGEST_BATCH

    def __init__(self, positive: Conditioning, negative: Conditioning) -> None:
        super().__init__(negative)
        self._positive = positive

    def of(self, chosen: Sequence[int]) -> Conditioning:
        """Rows of the batch."""
        return sampling.select(self._positive, chosen)


class OneByOne(DrawnPrompts):
    """Prompts with all that the text encoder says of each."""

    at_once = 1

    def __init__(self, positive: Sequence[Conditioning], negative: Conditioning) -> None:
        super().__init__(negative)
        self._positive = positive

    def of(self, chosen: Sequence[int]) -> Conditioning:
        """The conditioning of the only prompt chosen."""
        (number,) = chosen
        return self._positive[number]

    def fault(self, model: Model, error: Exception) -> UnlearnError | None:
        """Models that are made for more than text say so by many kinds of errors."""
        if not isinstance(error, LACKING) or memory.is_full(error):
            return None
        return UnlearnError(
            f"The model ({architectures.kind(model)}) draws nothing from text alone "
            f"({type(error).__name__}: {error}); use one that needs no picture, mask or sound "
            "beside the prompt, and the text encoder that goes with it."
        )


def of(model: Model, clip: Clip, texts: Sequence[str], size: int) -> DrawnPrompts:
    """The prompts `texts` and the empty one, for pictures of `size` pixels, each encoded once."""
    if isinstance(architectures.known(model), UNet):
        return Together(*batched_sampling.conditioning(clip, texts, size))
    known = predictions.encoded_texts(clip, [*texts, ""], {})
    whole = {
        text: [[states, {**more, "width": size, "height": size}]]
        for text, (states, more) in known.items()
    }
    return OneByOne([whole[text] for text in texts], whole[""])


def latent_shape(model: Model, size: int) -> list[int]:
    """[channels, (1 frame,) height, width] of a MODEL's latents for pictures of `size` pixels.

    Raises UnlearnError for a model of sound.
    """
    family = architectures.known(model)
    form: Any = model.get_model_object("latent_format")
    if isinstance(family, UNet) or form.latent_dimensions == SOUND:
        return batched_sampling.latent_shape(model, size)
    side = max(1, size // form.spacial_downscale_ratio)
    if isinstance(family, Transformer):
        return observed_text.latent_shape(family, side)
    frames = [1] if form.latent_dimensions == 3 else []
    return [form.latent_channels, *frames, side, side]
