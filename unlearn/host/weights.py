"""Reading a model's weights without changing them, whatever is loaded, patched or quantised."""

import math
import uuid
import weakref
from collections.abc import Iterable

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ..errors import UnlearnError
from ..types import Edit, Fingerprint
from . import adapters
from .model_types import Model

SAMPLES = 64  # entries of each weight in a fingerprint
# The attachment that holds the bypass edits. Models in a running ComfyUI carry it under this name.
BYPASS_ATTACHMENT = "unlearn_beside"
# Holds, by weight key, how many patches a weight had when its bypass edits were put beside it.
BYPASS_AFTER_ATTACHMENT = "unlearn_beside_after"
IDENTITY_ROWS = 1024  # unit vectors that go through a packed layer at once
# A MODEL -> its clone without patches, whose layers answer with the original weights.
_unpatched: weakref.WeakKeyDictionary[Model, Model] = weakref.WeakKeyDictionary()


def read(
    model: Model,
    key: str,
    patched: bool = True,
    device: torch.device | str | None = None,
    edited: bool = True,
) -> torch.Tensor:
    """Weight `key` of a MODEL as a new float32 tensor [d_out, d_in] on `device` (default CPU).

    `patched` includes this model's own patches: LoRAs and the like, and this pack's edits, those
    in bypass too. Not `edited` leaves out the edits of this pack. Raises UnlearnError on NaN or
    infinite entries.
    """
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    if packed(weight) and convert is None:
        weight = _read_through_layer(model, key).to(device or "cpu")
    else:
        weight = comfy.model_management.cast_to_device(
            _original(model, key, weight), torch.device(device or "cpu"), torch.float32, copy=True
        )
    if convert is not None:
        weight = convert(weight, inplace=True)  # dequantises
    if patched:
        weight = _with_patches(model, key, weight, edited)
    return _checked(weight, key)


def _original(model: Model, key: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight without patches: the patcher's backup where there is one.

    The module may hold the patched weight of a sibling clone. `hook_backup` comes second, because
    what it holds may be patched already.
    """
    backup = model.backup.get(key) or model.hook_backup.get(key)
    return weight if backup is None else backup[0]


def _with_patches(model: Model, key: str, weight: torch.Tensor, edited: bool) -> torch.Tensor:
    """A weight [d_out, d_in] with the patches of a MODEL on it."""
    patches = []
    for patch in model.patches.get(key, ()):
        if edited or not isinstance(patch[1], adapters.WeightEdit):
            patches.append(patch)
    if patches:
        weight = comfy.lora.calculate_weight(patches, weight, key)
    for edit, strength in bypass_edits(model).get(key, ()) if edited else ():
        weight += edit.change(weight, strength)
    return weight


def edited(model: Model, key: str) -> bool:
    """Whether an edit of this pack is on weight `key` of a MODEL, in the weight or in bypass."""
    in_weight = any(isinstance(p[1], adapters.WeightEdit) for p in model.patches.get(key, ()))
    return in_weight or key in bypass_edits(model)


def bypass_edits(model: Model) -> dict[str, tuple[tuple[Edit, float], ...]]:
    """The edits of a MODEL that run in bypass, not in its weights.

    Weight key -> ((edit, strength), ...). A merge that came later keeps a share of the first
    model, and so of its edits.
    """
    beside = model.get_attachment(BYPASS_ATTACHMENT) or {}
    before = model.get_attachment(BYPASS_AFTER_ATTACHMENT) or {}
    found = {}
    for key, edits in beside.items():
        share = math.prod(p[2] for p in model.patches.get(key, ())[before.get(key, 0) :])
        found[key] = edits if share == 1 else tuple((edit, s * share) for edit, s in edits)
    return found


def _checked(weight: torch.Tensor, key: str) -> torch.Tensor:
    if not torch.isfinite(weight).all():
        raise UnlearnError(
            f"The input 'model' has NaN or infinite numbers in its weight '{key}'; "
            "load an undamaged checkpoint, or check the LoRAs before this node."
        )
    return weight


def packed(weight: torch.Tensor) -> bool:
    """Whether a weight is stored in a form that only its own layer can read (GGUF and the like)."""
    return not weight.is_floating_point() or hasattr(weight, "tensor_type")


def _read_through_layer(model: Model, key: str) -> torch.Tensor:
    """The original weight [d_out, d_in] of a linear layer as its forward pass applies it.

    These are the answers to unit vectors, less the answer to zero, which is the bias. The layer of
    a GGUF model adds the patches of the model that is loaded, so one without patches is loaded.
    """
    plain = _without_patches(model)
    comfy.model_management.load_models_gpu([plain])
    module = comfy.utils.get_attr(plain.model, key.removesuffix(".weight"))
    with torch.inference_mode():
        unit = torch.eye(module.in_features, device=plain.load_device)
        answers = torch.cat([module(part).float() for part in unit.split(IDENTITY_ROWS)])
        bias = module(torch.zeros_like(unit[:1])).float()
        return (answers - bias).T.contiguous().clone()


def restore(model: Model) -> None:
    """Loads a MODEL without any patches, so that its layers hold their original weights again.

    A model that was loaded with an edit leaves the edited weights in layers that all its clones
    share, until another of them is loaded.
    """
    comfy.model_management.load_models_gpu([_without_patches(model)])


def _without_patches(model: Model) -> Model:
    """A clone of a MODEL without patches and injections; the MODEL itself where it has none."""
    if not model.patches and not model.injections:
        return model
    if model not in _unpatched:
        plain = model.clone()
        # Not the MODEL, which it would keep alive. The host's class sets no type for it.
        plain.parent = _root(model)  # pyright: ignore[reportAttributeAccessIssue]
        plain.patches, plain.patches_uuid = {}, uuid.uuid4()
        plain.injections, plain.is_injected = {}, False
        _unpatched[model] = plain
    return _unpatched[model]


def _root(model: Model) -> Model | None:
    """The MODEL that another was cloned from, over however many clones; None if it is no clone.

    ComfyUI notes it as loaded once a clone that was loaded is gone. Where it finds none, it takes
    the network for leaked, and collects garbage before everything that it loads from then on.
    """
    root = model
    while root.parent is not None:
        root = root.parent
    return None if root is model else root


def saving_fault(model: Model) -> str:
    """Why no checkpoint can be saved from a MODEL, as one sentence, or ''.

    The state dict of a model with packed weights (GGUF) holds numbers that no loader can read.
    """
    for name, weight in model.model.diffusion_model.named_parameters():
        key = f"diffusion_model.{name}"
        if packed(weight) and comfy.model_patcher.get_key_weight(model.model, key)[2] is None:
            return (
                "The input 'model' stores its weights packed, as GGUF models do, and ComfyUI can "
                "write no checkpoint from it; apply the patch to the fp16 or bf16 model and save "
                "that, or keep the patch as a file with Save Unlearn Patch or Save Unlearn LoRA."
            )
    return ""


def fingerprint(model: Model, keys: Iterable[str]) -> Fingerprint:
    """Fingerprint of the original weights `keys` of a MODEL, without LoRAs or edits."""
    samples = {}
    for key in keys:
        entries = math.prod(shape(model, key))
        samples[key] = _checked(originals_at(model, key, sample_places(entries)), key)
    return Fingerprint(samples)


def sample_places(entries: int) -> torch.Tensor:
    """The int64 places [at most SAMPLES] of a fingerprint in a flat weight of so many entries."""
    count = min(SAMPLES, entries)
    return torch.linspace(0, entries - 1, count, dtype=torch.float64).long()


def originals_at(model: Model, key: str, places: torch.Tensor) -> torch.Tensor:
    """The entries float32 [n] at int64 `places` of the flat original weight `key` of a MODEL."""
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    if packed(weight) or convert is not None:  # such a weight can only be read as a whole
        flat = read(model, key, patched=False).flatten()
    else:
        flat = _original(model, key, weight).reshape(-1)
    return at(flat, places).float()


def at(flat: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The entries at int64 `places` of a flat tensor, as a new tensor on the CPU."""
    places = places.to(flat.device)
    if flat.element_size() > 1:
        return flat[places].detach().to("cpu", copy=True)
    # float8 has no indexing of its own, so it is indexed as bytes.
    return flat.view(torch.uint8)[places].view(flat.dtype).detach().to("cpu", copy=True)


def exists(model: Model, key: str) -> bool:
    """Whether a MODEL has a weight `key`. Asking for one key builds no state dict."""
    try:
        weight, _, _ = comfy.model_patcher.get_key_weight(model.model, key)
    except AttributeError:
        return False
    return isinstance(weight, torch.Tensor)


def shape(model: Model, key: str) -> tuple[int, ...]:
    """Shape of weight `key` of a MODEL; of a quantised weight the shape it stands for."""
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    if packed(weight) and convert is None:
        module = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
        return module.out_features, module.in_features
    return tuple(weight.shape)
