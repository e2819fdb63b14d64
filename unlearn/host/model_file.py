"""What the file that a model was loaded from says about patches in it."""

import json
import os
from typing import Any

import comfy.utils

from .model_types import Model

SAVED = "saved"  # of the metadata `unlearn`: what Save Unlearned Checkpoint put into the weights
_LARGEST_HEADER = 2**27  # bytes


def baked_patches(model: Model) -> tuple[dict, ...]:
    """The provenance, with strength, of each patch that the MODEL's own file says is in it.

    ComfyUI's loaders leave the file's path on the MODEL, so that it can be loaded again. Without
    such a path, or with metadata that are not this pack's, there are none.
    """
    path = _path(model)
    if path is None:
        return ()
    try:
        header = comfy.utils.safetensors_header(path, max_size=_LARGEST_HEADER)
        metadata = json.loads(header or b"{}").get("__metadata__") or {}
        saved = json.loads(metadata.get("unlearn") or "{}").get(SAVED) or ()
    except (OSError, ValueError, AttributeError, TypeError):
        return ()
    if not isinstance(saved, list) or not all(map(_is_record, saved)):
        return ()
    return tuple(saved)


def _path(model: Model) -> str | None:
    """The .safetensors file that a MODEL was loaded from, if it is known and still there."""
    reload = getattr(model, "cached_patcher_init", None)
    first = reload[1][0] if reload and reload[1] else None
    if not isinstance(first, str) or not first.lower().endswith((".safetensors", ".sft")):
        return None
    return first if os.path.isfile(first) else None


def _is_record(record: Any) -> bool:
    """Whether metadata, which anyone may have written, hold a provenance."""
    if not isinstance(record, dict) or not isinstance(record.get("method"), str):
        return False
    if not isinstance(record.get("strength", 1.0), int | float):
        return False
    lists = [record.get("concepts"), record.get("lines") or []]
    return all(
        isinstance(part, list) and all(isinstance(text, str) for text in part) for part in lists
    )


def loaded_from(model: Model) -> str:
    """The name of the file that a MODEL was loaded from, '' where it is not known.

    ComfyUI's own loaders leave it in the MODEL, so that it can be loaded again.
    """
    made = getattr(model, "cached_patcher_init", None)
    if not isinstance(made, tuple) or len(made) < 2 or not made[1]:
        return ""
    path = made[1][0]
    return os.path.basename(path) if isinstance(path, str) else ""
