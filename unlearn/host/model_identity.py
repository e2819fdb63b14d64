"""Which MODEL and CLIP something was computed from: everything that decides their answers.

Made for a cache in memory, where a wrong answer is worse than none. So whatever cannot be read,
such as a function that another pack has put into the model, gives no identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from . import clip_identity, weights
from .clip_identity import PLAIN, Unknown
from .model_types import Clip, Model
from .patching import MANIFEST

Update = Callable[[Any], None]
# What a patcher may hold besides patches and options. Where one is not empty, nothing is known.
FOREIGN = (
    "weight_wrapper_patches",
    "additional_models",
    "hook_patches",
    "forced_hooks",
    "current_hooks",
)
FUNCTIONS = ("wrappers", "callbacks")  # {kind: {key: [function]}}
PROBES = ("a photo of a cat", "an oil painting of two ships at night, by a famous artist")


def identity(model: Model, clip: Clip) -> str | None:
    """Hex digest of what decides what a MODEL and a CLIP compute, None where it cannot be read.

    Of the MODEL: samples of every weight without patches, all numbers of the patches on them, their
    strengths, the options, and what was unlearned before. Of the CLIP: what
    `clip_identity.identity` reads, all numbers of its patches, and its projections. Nothing is
    loaded or moved. Two MODELs of other networks may differ where no sample lies, so who keeps
    something by this must ask for the same network too. A MODEL whose edits run beside its layers
    has no identity.
    """
    encoder = clip_identity.identity(clip, PROBES)
    if encoder is None:
        return None
    h = hashlib.blake2b(encoder.encode(), digest_size=16)
    try:
        _add_patcher(h.update, clip.patcher)
        _add_projections(h.update, clip)
        _add_patcher(h.update, model)
        _add_weights(h.update, model)
        _add(h.update, model.get_attachment(MANIFEST))
    except (Unknown, AttributeError, TypeError, RuntimeError):  # of another pack's making
        return None
    return h.hexdigest()


def _add_patcher(update: Update, patcher: Any) -> None:
    """The patches and options of a ModelPatcher; raises Unknown where it holds more than these."""
    if any(getattr(patcher, name, None) for name in FOREIGN):
        raise Unknown
    for name in FUNCTIONS:
        for kind in getattr(patcher, name, {}).values():
            if any(kind.values()):
                raise Unknown
    if clip_identity.altered(patcher, patcher.model):
        raise Unknown
    _add(update, {key: str(value) for key, value in patcher.object_patches.items()})
    _add(update, patcher.model_options)
    _add(update, patcher.patches)


def _add_projections(update: Update, clip: Clip) -> None:
    """What makes pooled vectors, which `clip_identity` leaves out."""
    for name, parameter in sorted(clip.cond_stage_model.named_parameters()):
        if name.endswith(clip_identity.UNUSED):
            _add(update, name)
            clip_identity.add_tensor(update, parameter)


def _add_weights(update: Update, model: Any) -> None:
    """All parameters without patches: the patcher's backup where a patch is in place."""
    for name, parameter in sorted(model.model.named_parameters()):
        backup = model.backup.get(name) or model.hook_backup.get(name)
        _add(update, name)
        _add_samples(update, parameter if backup is None else backup[0])


def _add_samples(update: Update, tensor: Any) -> None:
    """Shape and samples of a weight; of a quantised one, of what it is stored in."""
    if hasattr(tensor, "tensor_type"):
        raise Unknown
    if hasattr(tensor, "_qdata"):  # comfy_kitchen's QuantizedTensor
        for value in vars(tensor._params).values():
            if isinstance(value, torch.Tensor):
                _add_whole(update, value)
        tensor = tensor._qdata
    update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    if flat.numel():
        _add_whole(update, weights.at(flat, weights.sample_places(flat.numel())))


def _add(update: Update, value: Any) -> None:
    """Adds any value that a patch or an option may hold; raises Unknown for others."""
    if isinstance(value, torch.Tensor):
        _add_whole(update, value)
    elif isinstance(value, PLAIN):
        update(f"{type(value).__name__} {value!r}\0".encode())
    elif isinstance(value, WeightAdapterBase):
        update(f"{type(value).__qualname__}\0".encode())
        _add(update, tuple(value.weights))
    elif isinstance(value, Mapping):
        update(f"{{{len(value)}\0".encode())
        for key in sorted(value, key=str):
            _add(update, key)
            _add(update, value[key])
    elif isinstance(value, (tuple, list)):
        update(f"[{len(value)}\0".encode())
        for part in value:
            _add(update, part)
    else:
        raise Unknown


def _add_whole(update: Update, tensor: torch.Tensor) -> None:
    """Dtype, shape and every number of a tensor."""
    if hasattr(tensor, "_qdata") or hasattr(tensor, "tensor_type"):
        raise Unknown  # stored in a form of another maker
    update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel():
        update(flat.view(torch.uint8).numpy().data)
