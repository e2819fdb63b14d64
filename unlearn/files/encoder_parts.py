"""The part of a patch that is for the text encoder, and putting it on a CLIP.

In a patch the weights of a text encoder stand under `ENCODER_PREFIX`; the CLIP's patcher knows them
without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import UnlearnError
from ..host import patch_match, patching
from ..host.model_types import Clip
from ..provenance import TEXT_ENCODER, family
from ..types import ENCODER_PREFIX, Fingerprint, UnlearnPatch

NO_CLIP = (
    "The input 'patches' brings a patch for the text encoder and no CLIP is connected; connect the "
    "clip of the checkpoint loader to 'clip' of Apply Unlearn Patch, and draw with the clip that "
    "comes out."
)


def is_encoder_key(key: str) -> bool:
    """Whether a weight key of a patch is one of the text encoder."""
    return key.startswith(ENCODER_PREFIX)


def patch_key(key: str) -> str:
    """The key in a patch of a weight that the CLIP's patcher calls `key`."""
    return ENCODER_PREFIX + key


def clip_key(key: str) -> str:
    """What the CLIP's patcher calls the weight that has `key` in a patch."""
    return key.removeprefix(ENCODER_PREFIX)


def of_model(patch: UnlearnPatch) -> UnlearnPatch | None:
    """The part of a patch that is for the diffusion model: all of it, or None without any."""
    return _part(patch, encoder=False)


def of_encoder(patch: UnlearnPatch) -> UnlearnPatch | None:
    """The part of a patch that is for the text encoder, under the keys of the CLIP's patcher."""
    part = _part(patch, encoder=True)
    if part is None:
        return None
    samples = {clip_key(key): sample for key, sample in part.fingerprint.samples.items()}
    edits = tuple((clip_key(key), edit) for key, edit in part.edits)
    return replace(part, edits=edits, fingerprint=Fingerprint(samples))


def split(
    stack: Mapping[str, UnlearnPatch],
) -> tuple[dict[str, UnlearnPatch], dict[str, UnlearnPatch]]:
    """(parts for the diffusion model, parts for the text encoder) of patches by input name."""
    model = {name: of_model(patch) for name, patch in stack.items()}
    encoder = {name: of_encoder(patch) for name, patch in stack.items()}
    return _present(model), _present(encoder)


def _present(parts: Mapping[str, UnlearnPatch | None]) -> dict[str, UnlearnPatch]:
    return {name: part for name, part in parts.items() if part is not None}


def as_part(patch: UnlearnPatch) -> UnlearnPatch:
    """A patch under the keys of a CLIP's patcher as it travels and is stacked with others."""
    samples = {patch_key(key): sample for key, sample in patch.fingerprint.samples.items()}
    edits = tuple((patch_key(key), edit) for key, edit in patch.edits)
    return replace(patch, edits=edits, fingerprint=Fingerprint(samples))


def _part(patch: UnlearnPatch, encoder: bool) -> UnlearnPatch | None:
    edits = tuple(pair for pair in patch.edits if is_encoder_key(pair[0]) == encoder)
    if len(edits) == len(patch.edits):  # also of a patch without edits
        return patch if patch.edits or not encoder else None
    if not edits:
        return None
    samples = {
        key: sample
        for key, sample in patch.fingerprint.samples.items()
        if is_encoder_key(key) == encoder
    }
    records = tuple(p for p in patch.provenance if (family(p) == TEXT_ENCODER) == encoder)
    return UnlearnPatch(edits, Fingerprint(samples), records)


def matches(clip: Clip, parts: Sequence[UnlearnPatch]) -> tuple[patch_match.Match, ...]:
    """How each of several parts for the text encoder goes with a CLIP.

    Raises UnlearnError where the CLIP lacks weights or has them in another shape.
    """
    patcher = getattr(clip, "patcher", None)
    if patcher is None:
        raise UnlearnError(
            "The input 'clip' has no weights of its own that could be patched; connect the CLIP of "
            "a checkpoint loader."
        )
    return patch_match.matches(patcher, parts, called="clip")


def apply(
    clip: Clip,
    part: UnlearnPatch,
    strength: float = 1.0,
    strict: bool = False,
    match: patch_match.Match | None = None,
) -> Clip:
    """A clone of a CLIP with the part of a patch for the text encoder on it, at `strength`.

    The CLIP that comes in is not changed. The edits go through the host's patcher into the weights,
    and `patching.manifest` of that patcher names them. strict: stop where the patch was made for
    another text encoder. Raises UnlearnError as `matches`.
    """
    found = match or matches(clip, [part])[0]
    edited = clip.clone()
    edited.patcher, _ = patching.apply(
        clip.patcher, part, strength, strict=strict, quantised="weights", match=found
    )
    return edited


def manifest(clip: Clip | None) -> tuple[dict, ...]:
    """The provenance of each patch that was applied to a CLIP, with its strength."""
    patcher = getattr(clip, "patcher", None)
    return () if patcher is None else patching.manifest(patcher)


def manifest_as_json(clip: Clip | None) -> list[dict]:
    """The manifest of a CLIP as lists and objects that JSON knows, for a file's metadata."""
    return json.loads(json.dumps(manifest(clip), default=str))
