"""Edits that run beside a layer, so that a quantised weight need not be rounded again.

A low-rank edit D takes a concept out exactly: (W + D) c = 0. Rounded into 8 or 4 bits the sum no longer does, and 1.5 to 16 % of W c is
back. Beside the layer, with Q an orthonormal basis of the rows of D's `down`, so that D (x - Q Q^T x) = 0,

    y = W (x - Q Q^T x) + (W + D) Q Q^T x

What the input has in the directions of the edit meets the edited weight in float32; the rest meets the layer as it is. Adding D x to the
layer's output would be the same sum, but layers that round their input as well (int8 everywhere, fp8 on newer GPUs) would leave the error
of rounding c behind.

The host calls what it injects into a loaded model a PatcherInjection. Its own BypassInjectionManager keeps one adapter per layer, rounds
it to the weight's dtype, and swaps `forward`, restoring in the order of swapping: beside a LoRA loaded in bypass mode one of the two would
stay. Hooks come off in any order, and are looked for in the model that is being loaded, deep copies included.
"""

import weakref

import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import PatcherInjection
from comfy.quant_ops import QuantizedTensor

from . import weights

_attached = (
    weakref.WeakKeyDictionary()
)  # a model's module -> (handles of its hooks, finalizer of the patcher they serve)


def rounds(model, key):
    """Whether ComfyUI would round an edited weight `key` of a MODEL back into 8 or 4 bits."""
    weight, _, _ = comfy.model_patcher.get_key_weight(model.model, key)
    return isinstance(weight, QuantizedTensor) or (
        weight.is_floating_point() and weight.element_size() == 1
    )


def possible(model, key):
    """Whether `key` of a MODEL is the weight of a layer that hooks reach and that `weights.read` reads without a forward pass."""
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    layer = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
    return hasattr(layer, "in_features") and not (weights.packed(weight) and convert is None)


def put(model, edits):
    """Makes `edits`, weight key -> ((LowRank, strength), ...), all that runs beside the layers of a MODEL, the caller's own clone."""
    model.is_injected = False  # a clone of a loaded model says it is injected, and would take on and off what was never on it
    if edits:
        beside = Beside(edits)
        model.set_injections(weights.BYPASS_ATTACHMENT, [PatcherInjection(beside.inject, detach)])
        model.set_attachments(weights.BYPASS_ATTACHMENT, edits)
    elif weights.bypass_edits(model):
        model.remove_injections(weights.BYPASS_ATTACHMENT)
        model.remove_attachments(weights.BYPASS_ATTACHMENT)


def detach(patcher):
    """Takes all hooks of this module off a loaded model."""
    _take_off(patcher.model)


def _take_off(module):
    handles, finalizer = _attached.pop(module, ((), None))
    for handle in handles:
        handle.remove()
    if finalizer is not None:
        finalizer.detach()


def _abandoned(module):
    """The patcher went without being unloaded (a new run replaced it): its hooks must not stay on the layers that others share."""
    if (found := module()) is not None:
        _take_off(found)


class Beside:
    """The edits, weight key -> ((LowRank, strength), ...), and what was worked out from them for the weights last loaded."""

    def __init__(self, edits):
        self.edits = edits
        self.made_for, self.made = None, {}

    def inject(self, patcher):
        """Puts the hooks on the model of a patcher that has just loaded it; on all layers or on none."""
        if self.made_for != (
            patcher.patches_uuid,
            id(patcher.model),
        ):  # LoRAs behind the patch change the answers
            self.made = self._work_out(patcher)
            self.made_for = (patcher.patches_uuid, id(patcher.model))
        _take_off(patcher.model)
        handles = []
        for key, factors in self.made.items():
            handles += _hooks(
                comfy.utils.get_attr(patcher.model, key.removesuffix(".weight")), *factors
            )
        finalizer = weakref.finalize(patcher, _abandoned, weakref.ref(patcher.model))
        finalizer.atexit = False
        _attached[patcher.model] = handles, finalizer

    def _work_out(self, patcher):
        """Weight key -> (Q [d_in, r], (W + D) Q [d_out, r]) float32; W with all LoRAs and edits of the patcher, not rounded."""
        bases, made = {}, {}
        with torch.inference_mode(False), torch.no_grad():  # training goes through them
            for key, edits in self.edits.items():
                shared = tuple(id(edit.weights[1]) for edit, _ in edits)
                if shared not in bases:
                    bases[shared] = basis(
                        torch.cat([edit.weights[1].double() for edit, _ in edits])
                    ).to(patcher.load_device)
                w = weights.read(patcher, key, device=patcher.load_device)
                made[key] = bases[shared], w @ bases[shared]
        return made


def basis(rows):
    """Orthonormal basis float32 [d_in, r] of the span of rows [n, d_in]; directions below 1e-6 of the largest are left out."""
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    return v[s > s.amax() * 1e-6].T.float().contiguous()


def _hooks(layer, q, v):
    """Handles of the two hooks that make a linear layer W answer W (x - q q^T x) + v q^T x; q [d_in, r], v [d_out, r]."""
    kept = []

    def before(module, args):
        x = args[0].float()
        kept[:] = [x @ q.to(x.device)]
        return ((x - kept[0] @ q.to(x.device).T).to(args[0].dtype), *args[1:])

    def after(module, args, out):
        return (out.float() + kept.pop() @ v.to(out.device).T).to(out.dtype)

    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after)
