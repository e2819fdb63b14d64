"""Which text encoder a CLIP is: what decides its token states, and nothing that was computed.

Computed states differ a little between devices, drivers and dtypes of computation. The weights do
not, so the same encoder has one identity everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from .model_types import Clip
from .weights import at

COLUMN_STEP = 7919  # a prime: successive rows are sampled in far apart columns
# Parameters that no token state depends on. A checkpoint may lack them, and ComfyUI then leaves
# anything in them.
UNUSED = ("text_projection.weight", "text_projection", "logit_scale")
COMPUTATION = {"manual_cast_dtype"}  # object patches that say how states are computed
PLAIN = (str, int, float, bool, type(None))


class Unknown(Exception):
    """Something decides the states that cannot be read."""


def identity(clip: Clip, probes: Sequence[str], pooled_by: str | None = None) -> str | None:
    """Hex digest of what decides the token states of a CLIP, or None where that cannot be read.

    It covers the weights (one entry of each row of every matrix), the patches on them with their
    strengths, the clip skip, the classes and options of the encoders, and how the tokenizer reads
    `probes`. The rounding of float32 weights to float16, which ComfyUI does on GPUs, makes no
    difference. Nothing is loaded or moved. pooled_by: the encoder whose pooled vectors are read
    too, so that its projection counts. None for hooks of weights, for a CLIP that is `altered`,
    and for what is no CLIP of ComfyUI's.
    """
    patcher = getattr(clip, "patcher", None)
    model = getattr(clip, "cond_stage_model", None)
    if patcher is None or not isinstance(model, torch.nn.Module):
        return None
    if patcher.forced_hooks or altered(patcher, model):
        return None
    h = hashlib.blake2b(digest_size=12)
    try:
        _add_tokenizer(h.update, clip, probes)
        _add_options(h.update, clip, model)
        _add_weights(h.update, patcher, model, pooled_by)
        for key in sorted(patcher.patches):
            add(h.update, (key, patcher.patches[key]))
    except (Unknown, AttributeError, TypeError, RuntimeError):  # a CLIP of another pack's making
        return None
    return h.hexdigest()


def altered(patcher: Any, network: torch.nn.Module) -> bool:
    """Whether functions of another maker change what a network computes, whatever its weights.

    They are replaced modules, injections, PyTorch hooks, and modules with a `forward` of their own.
    They may change a few words alone, so that no probe shows them.
    """
    if patcher.injections or patcher.object_patches.keys() - COMPUTATION:
        return True
    return any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in network.modules()
    )


def clip_altered(clip: Clip) -> bool:
    """Whether a CLIP is `altered`; False for what is no CLIP of ComfyUI's."""
    patcher = getattr(clip, "patcher", None)
    model = getattr(clip, "cond_stage_model", None)
    return patcher is not None and isinstance(model, torch.nn.Module) and altered(patcher, model)


def _add_tokenizer(update: Callable[[bytes], None], clip: Clip, probes: Sequence[str]) -> None:
    """The tokenizer's class, its options, and the tokens and weights of some sentences."""
    add(update, (type(clip.tokenizer).__qualname__, dict(clip.tokenizer_options)))
    for text in probes:
        add(update, clip.tokenize(text))


def _add_options(update: Callable[[bytes], None], clip: Clip, model: torch.nn.Module) -> None:
    """The clip skip, and the classes and options of the encoders.

    The encoders of all clones are the same objects, so their current options are those of the last
    run. The defaults, which every run starts from, stay.
    """
    add(update, ("clip skip", clip.layer_idx))
    for name, encoder in [("", model), *model.named_children()]:
        add(update, (name, type(encoder).__qualname__))
        for option in ("options_default", "layer_norm_hidden_state", "special_tokens"):
            add(update, (option, getattr(encoder, option, None)))
        for option in ("enable_attention_masks", "zero_out_masked", "max_length", "num_layers"):
            add(update, (option, getattr(encoder, option, None)))


def _add_weights(
    update: Callable[[bytes], None], patcher: Any, model: torch.nn.Module, pooled_by: str | None
) -> None:
    """All parameters without patches: the patcher's backup where a patch is in place."""
    for name, parameter in sorted(model.named_parameters()):
        projects = pooled_by is not None and name.startswith(f"{pooled_by}.")
        if name.endswith(UNUSED) and not (projects and "text_projection" in name):
            continue
        backup = patcher.backup.get(name) or patcher.hook_backup.get(name)
        add(update, name)
        add(update, parameter if backup is None else backup[0])


def add(update: Callable[[bytes], None], value: Any) -> None:
    """Adds any value that a patch or an option may hold; raises Unknown for others."""
    if isinstance(value, torch.Tensor):
        add_tensor(update, value)
    elif isinstance(value, PLAIN):
        update(f"{value!r}\0".encode())
    elif isinstance(value, WeightAdapterBase):
        update(f"{type(value).__qualname__}\0".encode())
        add(update, tuple(value.weights))
    elif isinstance(value, dict):
        add(update, [(key, value[key]) for key in sorted(value, key=str)])
    elif isinstance(value, (tuple, list)):
        update(f"[{len(value)}\0".encode())
        for part in value:
            add(update, part)
    else:
        raise Unknown


def add_tensor(update: Callable[[bytes], None], tensor: Any) -> None:
    """Shape and one entry of each row of a tensor; of a quantised one, of what it is stored in."""
    if hasattr(tensor, "_qdata"):  # comfy_kitchen's QuantizedTensor
        add(update, getattr(tensor, "_layout_cls", ""))
        add(update, [v for v in vars(tensor._params).values() if isinstance(v, torch.Tensor)])
        tensor = tensor._qdata
    update(f"{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    columns = max(1, tensor.shape[-1] if tensor.dim() > 1 else 1)
    rows = torch.arange(flat.numel() // columns)
    found = at(flat, rows * columns + rows * COLUMN_STEP % columns)
    if found.dtype == torch.float32:
        found = found.half()
    update(found.contiguous().view(torch.uint8).numpy().tobytes())
