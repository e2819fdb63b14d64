"""Reading a model's weights without touching them, whatever sibling clone is loaded, patched or quantised."""

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ..errors import UnlearnError
from ..types import Fingerprint
from .adapters import Edit

SAMPLES = 64
BYPASS_ATTACHMENT = (
    "unlearn_beside"  # of the attachment with the edits that run beside the layers (bypass.py)
)


def read(model, key, patched=True, device=None, edited=True):
    """Weight `key` of a MODEL as a new float32 tensor [d_out, d_in] on `device` (default CPU).

    Starts from the patcher's backup where one exists, for the module may hold a sibling clone's patched weight; `patched` adds
    this model's own patches (LoRAs and the like, and edits that run beside the layers); not `edited`: without those of this pack. Raises
    UnlearnError on NaN or infinite entries.
    """
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    backup = model.backup.get(key) or model.hook_backup.get(
        key
    )  # in this order: hook_backup may be patched already
    if packed(weight) and convert is None:
        return _checked(_through_the_layer(model, key), key).to(device or "cpu")
    if backup is not None:
        weight = backup[0]
    weight = comfy.model_management.cast_to_device(
        weight, torch.device(device or "cpu"), torch.float32, copy=True
    )
    if convert is not None:
        weight = convert(weight, inplace=True)  # dequantises
    patches = (
        [p for p in model.patches.get(key, ()) if edited or not isinstance(p[1], Edit)]
        if patched
        else []
    )
    if patches:
        weight = comfy.lora.calculate_weight(patches, weight, key)
    for edit, strength in bypass_edits(model).get(key, ()) if patched and edited else ():
        weight += edit.change(weight, strength)
    return _checked(weight, key)


def edited(model, key):
    """Whether a patch of this pack is on weight `key` of a MODEL, in it or beside its layer."""
    return key in bypass_edits(model) or any(
        isinstance(p[1], Edit) for p in model.patches.get(key, ())
    )


def bypass_edits(model):
    """The edits that run beside the layers of a MODEL, not in its weights: weight key -> ((edit, strength), ...)."""
    return model.get_attachment(BYPASS_ATTACHMENT) or {}


def _checked(weight, key):
    if not torch.isfinite(weight).all():
        raise UnlearnError(
            f"The input 'model' has NaN or infinite numbers in its weight '{key}'; "
            "load an undamaged checkpoint, or check the LoRAs before this node."
        )
    return weight


def packed(weight):
    """Whether a weight is stored in a form of its loader's own (GGUF and the like), which only the layer itself can read."""
    return not weight.is_floating_point() or hasattr(weight, "tensor_type")


def _through_the_layer(model, key):
    """The weight of a linear layer as its own forward pass applies it: the answers to unit vectors, less the answer to zero."""
    comfy.model_management.load_models_gpu([model])
    module = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
    with torch.inference_mode():
        unit = torch.eye(module.in_features, device=model.load_device)
        answers = torch.cat([module(part).float() for part in unit.split(1024)])
        return (answers - module(torch.zeros_like(unit[:1])).float()).T.contiguous().clone()


def fingerprint(model, keys):
    """Fingerprint of the pristine, LoRA-free weights `keys` of a MODEL."""
    samples = {}
    for key in keys:
        weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
        backup = model.backup.get(key) or model.hook_backup.get(key)
        if packed(weight) or convert is not None:  # only as a whole
            flat = read(model, key, patched=False).flatten()
        else:
            flat = (weight if backup is None else backup[0]).reshape(-1)
        where = torch.linspace(
            0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64
        ).long()
        # float8 is indexed as bytes
        found = (
            flat.view(torch.uint8)[where.to(flat.device)].view(flat.dtype)
            if flat.element_size() == 1
            else flat[where.to(flat.device)]
        )
        samples[key] = _checked(found.detach().to("cpu", torch.float32, copy=True), key)
    return Fingerprint(samples)


def shape(model, key):
    """Shape of weight `key` of a MODEL as the maths sees it (a quantised weight's logical shape)."""
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    if packed(weight) and convert is None:
        module = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
        return module.out_features, module.in_features
    return tuple(weight.shape)
