"""How much text a text encoder reads in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_management
import torch

from . import memory
from .model_types import Clip
from .tuning import FREE_FOR_READING, MOST_TEXTS, MOST_TREE, TEXTS, TREE, WIDTHS_IN_A_LAYER

LENGTH = 77  # positions of a text in CLIP
HEAD = 64  # width of an attention head in every CLIP


class ReadingBatch(NamedTuple):
    """The most that one call reads: so many texts, and of a prefix tree so many positions."""

    texts: int
    positions: int


class ReadingNeed(NamedTuple):
    """Bytes that reading takes for each position, and for each two that see each other."""

    position: int
    pair: int

    def of(self, texts: int, positions: int) -> int:
        """Bytes for so many texts that do not see each other, of so many positions each."""
        return texts * positions * (self.position + positions * self.pair)


USUAL = ReadingBatch(TEXTS, TREE)


def fitting(clip: Clip) -> ReadingBatch:
    """How much of its texts one call of a CLIP's text encoder reads.

    USUAL on the CPU, so that states there are always the same to the last bit. On any other device
    the largest batch that the share FREE_FOR_READING of free memory holds, at most MOST_TEXTS texts
    and MOST_TREE positions; there the encoder is loaded first, so that its weights no longer count
    as free. USUAL too where free memory or the encoder's size is not known. Nobody has measured
    another device yet: `dev.py bench gpu`, part `reading`, times these and other batches.

    Whoever reads halves the batch when memory runs out all the same (`memory.BatchSize`).
    """
    patcher: Any = getattr(clip, "patcher", None)
    device = getattr(patcher, "load_device", None)
    if device is None or memory.is_cpu(device):
        return USUAL
    need = need_of(clip)
    if need is None:
        return USUAL
    comfy.model_management.load_models_gpu([patcher])
    free = memory.free_bytes(device)
    if not free or free < 0:
        return USUAL
    room = FREE_FOR_READING * free
    texts = min(MOST_TEXTS, int(room // need.of(1, LENGTH)))
    positions = MOST_TREE
    while positions > LENGTH and need.of(1, positions) > room:
        positions //= 2
    return ReadingBatch(max(1, texts), max(LENGTH, positions))


def need_of(clip: Clip) -> ReadingNeed | None:
    """What reading with a CLIP takes, from its widest encoder; None where that cannot be told.

    Encoders run one after another. Counted are the numbers that a layer has at hand at once, a
    state of each layer, which is the most that a CLIP keeps, and the scores of all heads before and
    after the softmax.
    """
    model: Any = getattr(clip, "cond_stage_model", None)
    patches = getattr(getattr(clip, "patcher", None), "object_patches", {})
    size = (patches.get("manual_cast_dtype") or torch.float32).itemsize
    needs = []
    for encoder in getattr(model, "_modules", {}).values():
        try:
            width = int(encoder.transformer.get_input_embeddings().weight.shape[-1])
            layers = int(encoder.num_layers)
        except AttributeError:
            return None
        position = size * width * (WIDTHS_IN_A_LAYER + layers)
        needs.append(ReadingNeed(position, size * 2 * -(-width // HEAD)))
    return max(needs, default=None)
