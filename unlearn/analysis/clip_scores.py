"""CLIP scores of pictures: 100 times the cosine of two embeddings of one CLIP."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UnlearnError
from ..host.batched_sampling import LARGEST_BATCH
from ..host.memory import BatchSize, raise_if_cancelled
from ..host.model_types import Clip
from .measures import Changes
from .picture_pairs import Drawing, PicturePair

TEXT_ENCODERS = ("clip_g", "clip_h", "clip_l")  # ComfyUI's names, the one that projects first


def add_clip_scores(
    pairs: Sequence[PicturePair],
    before: Drawing,
    after: Drawing,
    changes: Changes,
    clip_vision: Any,
    clip: Clip,
) -> dict[str, Any]:
    """Adds CLIP scores to the figures of each pair and returns their means by group.

    `clip_image` compares the picture before with that after; `clip_before` and `clip_after`
    compare each with the prompt, where the text encoder projects into the vision model's space.
    `no_text_score_because` says why there are none.
    """
    embedded = [_embed_pictures(clip_vision, drawing.pictures) for drawing in (before, after)]
    for change, a, b in zip(changes, *embedded, strict=True):
        change["clip_image"] = 100 * float(a @ b)
    prompts, reason = _embed_prompts(clip, [p.prompt for p in pairs], embedded[0].shape[1])
    if prompts is not None:
        for change, prompt, a, b in zip(changes, prompts, *embedded, strict=True):
            change["clip_before"] = 100 * float(a @ prompt)
            change["clip_after"] = 100 * float(b @ prompt)
    scores: dict[str, Any] = {"no_text_score_because": reason}
    for group, forgotten in (("forgotten", True), ("kept", False)):
        chosen = [c for c, p in zip(changes, pairs, strict=True) if p.forgotten == forgotten]
        scores[group] = {}
        for field in ("clip_before", "clip_after", "clip_image"):
            if chosen and field in chosen[0]:
                scores[group][field] = sum(c[field] for c in chosen) / len(chosen)
    return scores


def _embed_pictures(clip_vision: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Normalised embeddings [n, width] of pictures [n, height, width, 3]."""
    batch, parts, at = BatchSize(LARGEST_BATCH), [], 0
    while at < len(pictures):
        raise_if_cancelled()
        work = functools.partial(_embed_batch, clip_vision, pictures[at:])
        count, part = batch.run(len(pictures) - at, work)
        parts.append(part)
        at += count
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _embed_batch(clip_vision: Any, pictures: torch.Tensor, count: int) -> torch.Tensor:
    out = clip_vision.encode_image(torch.nan_to_num(pictures[:count]), crop=True)
    embedded = out["image_embeds"]
    if embedded is None:
        raise UnlearnError(
            "The input 'clip_vision' gives no embeddings that a text can be compared with; connect "
            "a CLIP vision model, or leave it unconnected."
        )
    return embedded.float().cpu()


def _embed_prompts(
    clip: Clip, prompts: Sequence[str], width: int
) -> tuple[torch.Tensor | None, str]:
    """Normalised embeddings [n, width] and '', or None and why the encoder gives none."""
    inner = getattr(clip, "cond_stage_model", None)
    encoders = [getattr(inner, name, None) for name in TEXT_ENCODERS]
    encoder = next((e for e in encoders if e is not None), None)
    if not getattr(encoder, "return_projected_pooled", False):
        return None, (
            "the text encoder has no projection to compare with pictures (SD1.x has none); "
            "connect 'score_clip'"
        )
    found = {}
    for prompt in dict.fromkeys(prompts):
        raise_if_cancelled()
        _, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        found[prompt] = pooled
    embedded = torch.cat([found[prompt] for prompt in prompts]).float().cpu()
    if embedded.shape[1] != width:
        return None, (
            f"the text encoder's space has {embedded.shape[1]} dimensions, that of clip_vision "
            f"{width}; connect the pair of one CLIP"
        )
    return torch.nn.functional.normalize(embedded, dim=1), ""
