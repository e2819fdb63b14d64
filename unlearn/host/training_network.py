"""A MODEL's UNet in a form that gradients go through: its modules copied around tensors of our own.

ComfyUI loads weights in inference mode, where autograd cannot use them. It may also keep them on
another device, patched or streamed. So only the structure of the loaded model is used: every module
is copied without hooks or weight functions and is given plain tensors. Frozen tensors share memory
with the model's where type and device allow; trained ones are float32 copies.
"""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.openaimodel as unets
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
import torch.utils.checkpoint
from comfy.quant_ops import QuantizedTensor

from ..errors import UnlearnError
from ..types import UnlearnPatch
from . import architectures, memory, text_encoding, weights
from .architectures import Layer
from .memory import BatchSize
from .model_types import Clip, Model
from .progress import Progress

Branch: TypeAlias = torch.nn.Module  # the student, the teacher or the reference of a Network

PREFIX = "diffusion_model."
LARGEST_BATCH = 8  # pictures that are drawn at once
# Bytes on the device per trained weight. In float32: the weight, its gradient, Adam's two moments,
# the importance and one temporary. As booleans: the mask, and whether it was ever in the mask.
BYTES_PER_TRAINED_WEIGHT = 6 * 4 + 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What ComfyUI hangs on a module that streams its weights from another device.
_STREAMED = (
    "_v",
    "_v_weight",
    "_v_bias",
    "_v_signature",
    "_prefetch",
    "weight_lowvram_function",
    "bias_lowvram_function",
)


class Conditioning(NamedTuple):
    """Texts, and what the host makes of them: name -> tensor [n, ...] on the CPU."""

    texts: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


class DrawSettings(NamedTuple):
    """How latents are drawn: shape [c, h, w], number of DDIM steps, and guidance."""

    shape: tuple[int, ...]
    steps: int
    cfg: float


def layers(model: Model, which: str = "cross-attention") -> list[Layer]:
    """The matrices of a MODEL to train, from input to output; which: a key of TRAINABLE.

    Raises UnlearnError when there are none or they are quantised.
    """
    found = architectures.of(model).trainable_matrices(which)
    _refuse_quantised(model)
    return found


def _refuse_quantised(model: Model) -> None:
    for key in model.model.state_dict().keys():
        if not key.startswith(PREFIX):
            continue
        weight = comfy.model_patcher.get_key_weight(model.model, key)[0]
        packed = isinstance(weight, QuantizedTensor) or hasattr(weight, "tensor_type")
        if weight is not None and (packed or not weight.is_floating_point()):
            raise UnlearnError(
                "The input 'model' has quantised weights, which cannot be trained; load an fp16, "
                "bf16 or fp8 checkpoint, or use ScaPre Solve, which needs no training."
            )


def activation_dtype(model: Model, wanted: str) -> torch.dtype:
    """The dtype of activations for the setting 'precision': a key of DTYPES, or 'auto'.

    'auto' gives float32 on a CPU and for a model in float32, else bfloat16 where the device has it,
    else float16.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    device = model.load_device
    if memory.is_cpu(device) or model.model.get_dtype_inference() == torch.float32:
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


def needed_bytes(
    model: Model, chosen: Sequence[str], earlier: UnlearnPatch | None, dtype: torch.dtype
) -> int:
    """Bytes that a Network's copies and its training need on the device, without activations.

    They are computed from shapes: nothing is read or copied. Arguments as for Network.
    """
    trained, edited = set(chosen), _edited_keys(earlier)
    total = 0
    for key in _parameter_keys(model):
        weight = comfy.model_patcher.get_key_weight(model.model, key)[0]
        copy = weight.numel() * dtype.itemsize
        if not _can_share(model, key, dtype, model.load_device):
            total += copy
        if key in trained:
            total += copy + weight.numel() * BYTES_PER_TRAINED_WEIGHT  # the copy is the teacher's
        elif key in edited:
            total += 2 * copy  # for the teacher and for the student
    return total


def _parameter_keys(model: Model) -> list[str]:
    return [PREFIX + name for name, _ in model.model.diffusion_model.named_parameters()]


def _edited_keys(patch: UnlearnPatch | None) -> set[str]:
    return set() if patch is None else {key for key, _ in patch.edits}


def _stored(model: Model, key: str) -> tuple[torch.Tensor, Any]:
    """Weight or bias `key` as the model stores it, unpatched, and how it is converted or None."""
    tensor, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    backup = model.backup.get(key) or model.hook_backup.get(key)
    return (tensor if backup is None else backup[0]), convert


def _can_share(model: Model, key: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a frozen tensor can be read where the model stores it, so that no copy is needed."""
    tensor, convert = _stored(model, key)
    patched = key in model.patches or key in weights.bypass_edits(model)
    as_it_is = tensor.dtype == dtype and tensor.device == device
    return as_it_is and not patched and convert is None


def _sharing(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor on the memory of one that was made in inference mode; to be read only."""
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def _frozen(model: Model, key: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Weight or bias `key` with the MODEL's own patches, shared with the model where possible."""
    if _can_share(model, key, dtype, device):
        return _sharing(_stored(model, key)[0])
    return weights.read(model, key, device=device).to(dtype)


def _shell(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str
) -> torch.nn.Module:
    """A copy of a module and all below it with `tensors` for parameters.

    Nothing that was hung on the module while it was loaded is copied.
    """
    new: Any = module.__class__.__new__(module.__class__)
    new.__dict__.update({k: v for k, v in module.__dict__.items() if k not in _STREAMED})
    for name, value in module.__dict__.items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            new.__dict__[name] = type(value)() if value is not None else None
    if hasattr(module, "weight_function"):
        new.weight_function, new.bias_function = [], []
    new.__dict__["_parameters"] = {
        n: p if p is None else tensors[prefix + n] for n, p in module._parameters.items()
    }
    new.__dict__["_buffers"] = dict(module._buffers)
    new.__dict__["_modules"] = {
        n: m if m is None else _shell(m, tensors, f"{prefix}{n}.")
        for n, m in module._modules.items()
    }
    return new


def _checkpointed(reference: weakref.ref, *args: Any, **more: Any) -> Any:
    """The forward pass of a module, whose activations are computed again for the backward pass."""
    module: Any = reference()
    forward = functools.partial(type(module).forward, module)
    return torch.utils.checkpoint.checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False, **more
    )


def _checkpoint_blocks(branch: Branch) -> None:
    for module in branch.modules():
        if isinstance(module, unets.ResBlock | unets.SpatialTransformer):
            # A weak reference: a module that held itself would keep its memory after training.
            module.forward = functools.partial(_checkpointed, weakref.ref(module))


def conditioning(
    model: Model,
    clip: Clip,
    texts: Sequence[str],
    size: int,
    shape: Sequence[int],
    bar: Progress | None = None,
) -> Conditioning:
    """What a MODEL is given for each text, made by the host.

    size: of the pictures in pixels. shape: of a latent [c, h, w].
    Raises UnlearnError for a CLIP of another width or a text over 75 tokens.
    """
    texts, family = tuple(dict.fromkeys(texts)), architectures.of(model)
    cond: dict[str, Any] = {"width": size, "height": size, "model_conds": {}}
    with torch.inference_mode():
        if family.uses_pooled_text():
            cond["cross_attn"], cond["pooled_output"] = _with_pooled(clip, texts, bar)
        else:
            states = text_encoding.encode(clip, texts, bar)
            cond["cross_attn"] = torch.stack([states[t] for t in texts])
        text_encoding.check_width(cond["cross_attn"].shape[-1], family.text_width())
        # One picture for all texts. Inpainting models are given an empty one, to be drawn whole.
        room = torch.zeros(1, *shape)
        (cond,) = comfy.samplers.encode_model_conds(
            model.model.extra_conds,
            [cond],
            room,
            torch.device("cpu"),
            "positive",
            latent_image=room,
            seed=0,
        )
        values = {name: value.cond for name, value in cond["model_conds"].items()}
        tensors = {n: t.detach().cpu() for n, t in values.items() if torch.is_tensor(t)}
    with torch.inference_mode(False):
        return Conditioning(texts, {n: t.clone() for n, t in tensors.items()})


def _with_pooled(
    clip: Clip, texts: Sequence[str], bar: Progress | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states [n, 77, d] and pooled outputs [n, d] of texts."""
    states, pooled = [], []
    for text in texts:
        text_encoding.locate(clip, "{concept}", text)
        literal = text.replace("(", "\\(").replace(")", "\\)")
        ((state, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(literal))
        states.append(state)
        pooled.append(more["pooled_output"])
        if bar is not None:
            bar.step()
    return torch.cat(states), torch.cat(pooled)


class Network:
    """The UNet of a MODEL three times.

    `student` has the float32 weights `trainable`. `teacher` has the student's weights as of the
    last `update_teacher`. `reference` is the model that came in. Latents are in the model's own
    scale throughout.
    """

    def __init__(
        self,
        model: Model,
        chosen: Sequence[str],
        conditioned: Conditioning,
        earlier: UnlearnPatch | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
    ) -> None:
        """chosen: weight keys to train. earlier: a patch that the student starts from.

        dtype: of activations and frozen weights. checkpointing: the student computes activations
        twice instead of keeping them.
        Raises UnlearnError for a compiled model.
        """
        self.model = model
        self.chosen = tuple(chosen)
        self.earlier = earlier
        self.dtype = dtype
        self.device = torch.device(model.load_device)
        self.texts, self.conds = conditioned
        self.text_id = {text: i for i, text in enumerate(self.texts)}
        self.sampling: Any = model.get_model_object("model_sampling")
        if not hasattr(model.model.diffusion_model, "input_blocks"):
            raise UnlearnError(
                "The input 'model' is compiled, so it cannot be trained; connect it before "
                "TorchCompileModel."
            )
        self._build_branches()
        if checkpointing:
            _checkpoint_blocks(self.student)
        self._options = {"optimized_attention_override": _plain_attention}

    def _build_branches(self) -> None:
        model, edited = self.model, _edited_keys(self.earlier)
        shared: dict[str, torch.Tensor] = {}  # what all three branches read
        unchanged: dict[str, torch.Tensor] = {}  # what only the reference reads
        for key in _parameter_keys(model):
            memory.raise_if_cancelled()
            tensor = _frozen(model, key, self.dtype, self.device)
            differs = key in self.chosen or key in edited
            (unchanged if differs else shared)[key.removeprefix(PREFIX)] = tensor
        self.trainable = {key: torch.nn.Parameter(self.start(key)) for key in self.chosen}
        # The weights that only the earlier patch edits: they are different, but not trained.
        self._edited = {
            key: self.start(key).to(self.dtype) for key in edited if key not in self.trainable
        }
        self.teacher_weights = {
            key: weights.read(model, key, device=self.device).to(self.dtype)
            for key in (*self.chosen, *self._edited)
        }
        self.student = self._branch(shared, {**self.trainable, **self._edited})
        self.teacher = self._branch(shared, self.teacher_weights)
        self.reference = _shell(model.model.diffusion_model, {**shared, **unchanged}, "")
        for key in self.chosen:
            # ComfyUI then casts these float32 weights to the activations' type as they are used.
            name = key.removeprefix(PREFIX).removesuffix(".weight")
            layer: Any = self.student.get_submodule(name)
            layer.comfy_cast_weights = True

    def _branch(self, shared: dict[str, torch.Tensor], own: dict[str, Any]) -> Branch:
        tensors = {**shared, **{key.removeprefix(PREFIX): value for key, value in own.items()}}
        return _shell(self.model.model.diffusion_model, tensors, "")

    def start(self, key: str) -> torch.Tensor:
        """Weight `key`, float32, as training finds it: with the model's LoRAs and earlier patch."""
        weight = weights.read(self.model, key, device=self.device)
        for edited, edit in self.earlier.edits if self.earlier is not None else ():
            if edited == key:
                weight = weight + edit.change(weight, 1.0)
        return weight

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Gives the teacher the student's present weights; until then it is the reference."""
        for key, tensor in self.teacher_weights.items():
            tensor.copy_(self.trainable[key] if key in self.trainable else self._edited[key])

    def conditions_digest(self, texts: Sequence[str]) -> str:
        """Hex digest of what decides, beside the weights, what the network makes of texts.

        It is what the text encoder says of them, and what the output means at which noise levels.
        """
        h = hashlib.blake2b(digest_size=16)
        kinds = [kind.__name__ for kind in type(self.sampling).__mro__]
        h.update(repr((kinds, self.levels([0.1, 0.5, 0.9]).tolist())).encode())
        chosen = [self.text_id[text] for text in texts]
        for name, tensor in sorted(self.conds.items()):
            rows = tensor[chosen] if len(tensor) == len(self.texts) else tensor
            h.update(name.encode() + rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    def predict(
        self,
        branch: Branch,
        x: torch.Tensor,
        sigma: torch.Tensor,
        text_ids: Sequence[int],
        context: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output of a branch, float32 [b, c, h, w]: the noise, or v, as the model has it.

        x: latents [b, c, h, w] at the noise levels sigma [b], under one text each. context: token
        states [b, n, d] in place of the texts' own, or None.
        """
        given = {}
        for name, tensor in self.conds.items():
            per_text = len(tensor) == len(self.texts)
            expanded = (len(text_ids), *tensor.shape[1:])
            part = tensor[list(text_ids)] if per_text else tensor.expand(*expanded)
            dtype = self.dtype if part.is_floating_point() else part.dtype  # noise levels are whole
            given[name] = part.to(self.device, dtype)
        xc = self.sampling.calculate_input(sigma, x).to(self.dtype)
        if "c_concat" in given:
            xc = torch.cat([xc, given.pop("c_concat")], 1)
        own_states = given.pop("c_crossattn")
        context = own_states if context is None else context.to(own_states)
        t = self.sampling.timestep(sigma).float().to(self.device)
        options = dict(self._options)
        return branch(
            xc, t, context=context, control=None, transformer_options=options, **given
        ).float()

    def states(
        self, text_ids: Sequence[int], other: Sequence[torch.Tensor | None]
    ) -> torch.Tensor | None:
        """Token states [b, n, d] of texts, some replaced by `other`; None where all are their own.

        other: for each text its states [n, d], or None.
        """
        if all(state is None for state in other):
            return None
        own = self.conds["c_crossattn"][list(text_ids)].to(self.device, self.dtype)
        pairs = zip(own, other, strict=True)
        return torch.stack([a if b is None else b.to(a) for a, b in pairs])

    @torch.no_grad()
    def predict_in_batches(
        self,
        branch: Branch,
        x: torch.Tensor,
        sigma: torch.Tensor,
        text_ids: Sequence[int],
        batch_size: BatchSize,
        most: int | None = None,
    ) -> torch.Tensor:
        """As `predict`, without gradient, some rows at a time: fewer when memory runs out.

        most: rows at a time whatever batch_size allows.
        """
        parts: list[torch.Tensor] = []
        at = 0
        while at < len(x):
            left = len(x) - at
            work = functools.partial(self._predict_some, branch, x[at:], sigma[at:], text_ids[at:])
            n, part = batch_size.run(left if most is None else min(left, most), work)
            parts.append(part)
            at += n
        return torch.cat(parts)

    def _predict_some(
        self,
        branch: Branch,
        x: torch.Tensor,
        sigma: torch.Tensor,
        text_ids: Sequence[int],
        n: int,
    ) -> torch.Tensor:
        """As `predict`, of the first n rows."""
        return self.predict(branch, x[:n], sigma[:n], text_ids[:n])

    def levels(self, fractions: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """Noise levels sigma, float32, for fractions of the schedule in (0, 1).

        Uniform fractions give uniform timesteps.
        """
        found = [float(self.sampling.percent_to_sigma(float(u))) for u in fractions]
        return torch.tensor(found, device=self.device)

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Latents with noise at the levels sigma [b], as the model's schedule mixes them."""
        return self.sampling.noise_scaling(sigma, noise, latents)

    def denoising_target(
        self, latents: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """The output with which x is denoised to `latents`.

        It is the noise for an eps model, and v for a v model.
        """
        nothing = torch.zeros_like(x)
        offset = self.sampling.calculate_denoised(sigma, nothing, x)
        slope = self.sampling.calculate_denoised(sigma, nothing + 1, x) - offset
        return (latents - offset) / slope

    @torch.no_grad()
    def draw(
        self,
        branch: Branch,
        text_ids: Sequence[int],
        away_from: Sequence[int],
        seeds: Sequence[int],
        how: DrawSettings,
        bar: Progress | None = None,
    ) -> torch.Tensor:
        """Latents [n, c, h, w] on the CPU of texts, guided away from the texts `away_from`."""
        batch_size = BatchSize(LARGEST_BATCH)
        drawn: list[torch.Tensor] = []
        at = 0
        while at < len(text_ids):
            pairs = list(zip(text_ids, away_from, strict=True))[at:]
            work = functools.partial(self._ddim, branch, pairs, seeds[at:], how, bar)
            n, latents = batch_size.run(len(pairs), work)
            drawn.append(latents)
            at += n
        return torch.cat(drawn)

    def _ddim(
        self,
        branch: Branch,
        pairs: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        how: DrawSettings,
        bar: Progress | None,
        n: int,
    ) -> torch.Tensor:
        """The first n latents on the CPU; pairs: a text, and the one it is guided away from."""
        text_ids = [text_id for text_id, _ in pairs[:n]] + [other for _, other in pairs[:n]]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[:n]]
        noise = torch.stack([torch.randn(how.shape, generator=g) for g in generators])
        sigmas = comfy.samplers.calculate_sigmas(self.sampling, "normal", how.steps)
        sigmas = sigmas.clone().to(self.device)
        nothing = torch.zeros_like(noise, device=self.device)
        x = self.noised(nothing, noise.to(self.device), sigmas[0])
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            memory.raise_if_cancelled()
            both, level = torch.cat([x, x]), now.expand(len(x) * 2)
            output = self.predict(branch, both, level, text_ids)
            wanted, other = self.sampling.calculate_denoised(level, output, both).chunk(2)
            x0 = other + how.cfg * (wanted - other)
            x = x + (x - x0) / now * (then - now)
            if bar is not None:
                bar.step(len(x))
        return x.float().cpu()


def _plain_attention(_: Any, *args: Any, **more: Any) -> torch.Tensor:
    """torch's own attention, which has gradients, in place of whichever the host has chosen."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **more)
