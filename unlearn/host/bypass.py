"""Edits that rounding does not reach: beside a layer (bypass), or in it with the rounding undone.

A low-rank edit D removes a concept c exactly: (W + D) c = 0. When W + D is rounded into 8 or 4
bits, 1.5 to 16 % of W c comes back. So what a layer's input x has in the directions of the edit
meets the edited weight in float32, and the rest meets the layer as it is. With an orthonormal basis
Q of the rows of D's `down`, D (x - Q Q^T x) = 0, and the model computes

    y = layer(x - Q Q^T x) + (W + D) Q Q^T x

There are two ways to use this.

- Corrected: D is in the weight too, rounded, where ComfyUI's saves, merges and compilation see it.
  The layer is round(W + D). Where it is held so, what rounding changed for the rest of x is added
  too, from a matrix E = W + D - round(W + D) in 16 bits; without E other words move by 2 to 16 %.
  Under dynamic VRAM the weight is rounded when it is used, and there is no E.
- In bypass: D is not in the weight. The layer is W, which is not rounded again. Files and the
  second model of a merge do not have the edit, and compiled code is not used.

Adding D x to the layer's output would be the same sum, but layers that round their input too (int8
everywhere, fp8 on newer GPUs) would keep the error of rounding c.

TorchCompileModel drops the guards of compiled code, so that the code of one model runs for all its
clones. So hooks do nothing while code is compiled: an edit that is in the weight acts, and an edit
in bypass makes its model run uncompiled.

ComfyUI calls what it injects into a loaded model a PatcherInjection. Its own
BypassInjectionManager keeps one adapter for each layer, rounds it to the weight's dtype, and swaps
`forward`, restoring in the order of swapping, so that with a LoRA in bypass mode one of the two
would stay. Hooks can be removed in any order. They are put on the model that is being loaded,
which may be a deep copy.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from comfy.quant_ops import QuantizedTensor
from torch.utils.hooks import RemovableHandle

from ..types import Edit
from . import weights
from .model_types import Model

# Directions of an edit that are smaller than this share of its largest one are numerical noise in
# float32. Not measured.
SMALLEST_DIRECTION = 1e-6
# The attachment that holds the corrected edits, and the key of this module's wrapper.
CORRECTED_ATTACHMENT = "unlearn_corrected"
Beside = Mapping[str, tuple[tuple[Edit, float], ...]]  # weight key -> ((LowRank, strength), ...)
Corrected = Mapping[str, tuple[Edit, ...]]  # weight key -> (LowRank, ...)
# The module of a loaded model -> the handles of its hooks, and the finalizer of its patcher.
_attached: weakref.WeakKeyDictionary[
    torch.nn.Module, tuple[list[RemovableHandle], weakref.finalize]
] = weakref.WeakKeyDictionary()


def rounds(model: Model, key: str) -> bool:
    """Whether ComfyUI would round an edited weight `key` of a MODEL back into 8 or 4 bits."""
    weight, _, _ = comfy.model_patcher.get_key_weight(model.model, key)
    eight_bits = weight.is_floating_point() and weight.element_size() == 1
    return isinstance(weight, QuantizedTensor) or eight_bits


def possible(model: Model, key: str) -> bool:
    """Whether weight `key` of a MODEL belongs to a layer that can have bypass edits.

    Hooks must reach the layer, and `weights.read` must need no forward pass.
    """
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    layer = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
    return hasattr(layer, "in_features") and not (weights.packed(weight) and convert is None)


def corrected_edits(model: Model) -> Corrected:
    """The low-rank edits in the weights of a MODEL whose rounding is undone."""
    return model.get_attachment(CORRECTED_ATTACHMENT) or {}


def put(model: Model, beside: Beside, corrected: Corrected) -> None:
    """Makes `beside` all bypass edits and `corrected` all corrected edits of a MODEL.

    The MODEL is the caller's own clone, and has the corrected edits in its weights already.
    """
    # A clone of a loaded model says that it is injected, and would eject what it never had.
    model.is_injected = False
    _attach(model, weights.BYPASS_ATTACHMENT, beside)
    _attach(model, CORRECTED_ATTACHMENT, corrected)
    counts = {key: len(model.patches.get(key, ())) for key in beside}
    _attach(model, weights.BYPASS_AFTER_ATTACHMENT, counts)
    model.remove_injections(weights.BYPASS_ATTACHMENT)
    model.remove_callbacks_with_key(CallbacksMP.ON_DETACH, weights.BYPASS_ATTACHMENT)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, weights.BYPASS_ATTACHMENT)
    if beside or corrected:
        directions = dict(corrected)
        for key, edits in beside.items():
            directions[key] = (*directions.get(key, ()), *(edit for edit, _ in edits))
        hooks = RoundingHooks(directions, frozenset(corrected))
        model.set_injections(weights.BYPASS_ATTACHMENT, [PatcherInjection(hooks.inject, detach)])
        model.add_callback_with_key(
            CallbacksMP.ON_DETACH, weights.BYPASS_ATTACHMENT, hooks.free_factors
        )
    if beside:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, weights.BYPASS_ATTACHMENT, _uncompiled)


def _attach(model: Model, name: str, value: Mapping) -> None:
    model.remove_attachments(name)
    if value:
        model.set_attachments(name, dict(value))


def _uncompiled(executor: Callable, *args: Any, **kwargs: Any) -> Any:
    """Wraps a step of a model with bypass edits: compiled code would leave them out."""
    with torch.compiler.set_stance("force_eager"):
        return executor(*args, **kwargs)


def detach(patcher: Model) -> None:
    """Removes all hooks of this module from a loaded model."""
    _remove_hooks(patcher.model)


def _remove_hooks(module: torch.nn.Module) -> None:
    attached = _attached.pop(module, None)
    if attached is None:
        return
    handles, finalizer = attached
    for handle in handles:
        handle.remove()
    finalizer.detach()


def _abandoned(module: weakref.ref[torch.nn.Module]) -> None:
    """Removes the hooks of a patcher that vanished without being unloaded.

    A new run replaces it so. Its hooks must not stay on layers that others share.
    """
    found = module()
    if found is not None:
        _remove_hooks(found)


class _Factors(NamedTuple):
    """What the hooks of a layer [d_out, d_in] need.

    q [d_in, r], v = (W + D) q [d_out, r] float32; e [d_out, d_in] what rounding took, or None.
    """

    q: torch.Tensor
    v: torch.Tensor
    e: torch.Tensor | None


class RoundingHooks:
    """The hooks of a patched model, and their factors for the weights that were loaded last."""

    def __init__(self, edits: Corrected, corrected: frozenset[str]) -> None:
        self.edits = edits
        self.corrected = corrected
        self._made_for: tuple | None = None
        self._factors: dict[str, _Factors] = {}

    def inject(self, patcher: Model) -> None:
        """Puts the hooks on the model of a patcher that has just loaded it, on all layers."""
        # LoRAs that were added after the patch change the factors, and so do merges.
        held = tuple(_holds_patched(patcher, key) for key in self.edits)
        loaded = (patcher.patches_uuid, id(patcher.model), held)
        if self._made_for != loaded:
            self._factors = self._compute_factors(patcher)
            self._made_for = loaded
        _remove_hooks(patcher.model)
        handles: list[RemovableHandle] = []
        for key, factors in self._factors.items():
            handles += _hooks(_layer(patcher, key), factors)
        finalizer = weakref.finalize(patcher, _abandoned, weakref.ref(patcher.model))
        finalizer.atexit = False
        _attached[patcher.model] = handles, finalizer

    def free_factors(self, patcher: Model, unpatch_all: bool) -> None:
        """Frees the memory of a model that is unloaded."""
        self._made_for, self._factors = None, {}

    def _compute_factors(self, patcher: Model) -> dict[str, _Factors]:
        """The factors by weight key.

        W has all LoRAs, merges and edits of the patcher, and is not rounded.
        """
        bases: dict[tuple[int, ...], torch.Tensor] = {}
        factors = {}
        # Not in inference mode, because training differentiates through them.
        with torch.inference_mode(False), torch.no_grad():
            for key, edits in self.edits.items():
                downs = [edit.weights[1] for edit in edits]
                shared = tuple(map(id, downs))
                if shared not in bases:
                    rows = torch.cat([down.double() for down in downs])
                    bases[shared] = basis(rows).to(patcher.load_device)
                w = weights.read(patcher, key, device=patcher.load_device)
                e = _rounding(patcher, key, w) if key in self.corrected else None
                factors[key] = _Factors(bases[shared], w @ bases[shared], e)
        return factors


def _layer(patcher: Model, key: str) -> Any:
    return comfy.utils.get_attr(patcher.model, key.removesuffix(".weight"))


def _holds_patched(patcher: Model, key: str) -> bool:
    """Whether the layer of a loaded model holds weight `key` with its patches, rounded."""
    return key in patcher.backup and not _layer(patcher, key).weight_function


def _rounding(patcher: Model, key: str, weight: torch.Tensor) -> torch.Tensor | None:
    """A weight float32 [d_out, d_in] less what the loaded layer holds of it, in its compute dtype.

    None where the layer holds the weight without its patches.
    """
    if not _holds_patched(patcher, key):
        return None
    held, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if convert is not None:
        held = convert(held.clone(), inplace=True)
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    return (weight - held.to(weight.device, torch.float32)).to(dtype)


def basis(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis float32 [d_in, r] of the span of rows [n, d_in]."""
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    return v[s > s.amax() * SMALLEST_DIRECTION].T.float().contiguous()


def _hooks(layer: torch.nn.Module, factors: _Factors) -> list[RemovableHandle]:
    """Two hooks that make a linear layer W answer (W + e) (x - q q^T x) + v q^T x."""
    q, v, e = factors
    kept: list[torch.Tensor] = []

    def before(module: torch.nn.Module, args: tuple) -> tuple | None:
        if torch.compiler.is_compiling():
            return None
        x = args[0].float()
        inside = x @ q.to(x.device)
        outside = x - inside @ q.to(x.device).T
        kept[:] = [inside, outside]
        return (outside.to(args[0].dtype), *args[1:])

    def after(module: torch.nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor | None:
        if torch.compiler.is_compiling():
            return None
        inside, outside = kept
        kept.clear()
        total = out.float() + inside @ v.to(out.device).T
        if e is not None:
            there = e.to(out.device)
            total += (outside.to(there.dtype) @ there.T).float()
        return total.to(out.dtype)

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
