"""A MODEL's UNet in a form that gradients go through: the same modules once more, around tensors of our own.

ComfyUI loads weights in inference mode, where autograd cannot use them, and may keep them on another device, half patched or streamed.
So nothing of the loaded model is used but its structure: every module is copied as a shell, without hooks or weight functions, and
given plain tensors: the frozen ones share memory with the model's where type and device allow, the trained ones are float32 copies.
"""

import functools

import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.openaimodel as unets
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
import torch.utils.checkpoint
from comfy.quant_ops import QuantizedTensor

from ..errors import UnlearnError
from . import architectures, text_encoding, weights
from .model_types import Model

LARGEST_BATCH = 8
_STREAMED = (
    "_v",
    "_v_weight",
    "_v_bias",
    "_v_signature",
    "_prefetch",
    "weight_lowvram_function",
    "bias_lowvram_function",
)


def layers(model: Model, which: str = "cross-attention") -> list[architectures.Layer]:
    """The matrices of a MODEL to train, from input to output; which: one of TRAINABLE.

    Raises UnlearnError when there are none or they are quantised.
    """
    found = architectures.of(model).trainable_matrices(which)
    for key in model.model.state_dict().keys():
        weight = (
            comfy.model_patcher.get_key_weight(model.model, key)[0]
            if key.startswith("diffusion_model.")
            else None
        )
        if weight is not None and (
            isinstance(weight, QuantizedTensor)
            or not weight.is_floating_point()
            or hasattr(weight, "tensor_type")
        ):
            raise UnlearnError(
                "The input 'model' has quantised weights, which cannot be trained; load an fp16, bf16 or fp8 checkpoint, "
                "or use ScaPre Solve, which needs no training."
            )
    return found


def _sharing(tensor):
    """A plain tensor on the memory of a tensor made in inference mode; to be read only."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def _frozen(model, key, dtype, device):
    """Weight or bias `key` with the MODEL's own patches, a plain tensor of `dtype` on `device`; shared with the model where it can be."""
    tensor, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    backup = model.backup.get(key) or model.hook_backup.get(key)
    tensor = tensor if backup is None else backup[0]
    if (
        key not in model.patches
        and key not in weights.bypass_edits(model)
        and convert is None
        and tensor.dtype == dtype
        and tensor.device == device
    ):
        return _sharing(tensor)
    return weights.read(model, key, device=device).to(dtype)


def _shell(module, tensors, prefix):
    """The module and all below it once more, with `tensors` for parameters and nothing that was hung on it while it was loaded."""
    new = module.__class__.__new__(module.__class__)
    new.__dict__.update({k: v for k, v in module.__dict__.items() if k not in _STREAMED})
    for name, value in module.__dict__.items():
        if (
            name.endswith("_hooks")
            or name.endswith("_hooks_with_kwargs")
            or name.endswith("_hooks_always_called")
        ):
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


def conditioning(model, clip, texts, size, shape, bar=None):
    """(texts, name -> tensor [n, ...] on the CPU): what a MODEL is told for each text, made by the host. size: of the pictures in pixels;
    shape: of a latent [c, h, w]. Raises UnlearnError for a CLIP of another width or a text over 75 tokens.
    """
    texts, cond = tuple(dict.fromkeys(texts)), {"width": size, "height": size, "model_conds": {}}
    with torch.inference_mode():
        if model.model.adm_channels:  # SDXL: the pooled output of each prompt is needed too
            found = []
            for text in texts:
                text_encoding.locate(clip, "{concept}", text)
                ((states, more),) = clip.encode_from_tokens_scheduled(
                    clip.tokenize(text.replace("(", "\\(").replace(")", "\\)"))
                )
                found.append((states, more["pooled_output"]))
                if bar is not None:
                    bar.step()
            cond["cross_attn"], cond["pooled_output"] = (
                torch.cat(part) for part in zip(*found, strict=True)
            )
        else:
            states = text_encoding.encode(clip, texts, bar)
            cond["cross_attn"] = torch.stack([states[t] for t in texts])
        width = architectures.of(model).text_width()
        text_encoding.check_width(cond["cross_attn"].shape[-1], width)
        room = torch.zeros(len(texts), *shape)
        (cond,) = comfy.samplers.encode_model_conds(
            model.model.extra_conds, [cond], room, torch.device("cpu"), "positive"
        )
        found = {
            n: v.cond.detach().cpu()
            for n, v in cond["model_conds"].items()
            if torch.is_tensor(v.cond)
        }
    with torch.inference_mode(False):
        return texts, {n: v.clone() for n, v in found.items()}


class Network:
    """The UNet of a MODEL three times: `student` with trainable float32 `masters`, `teacher`, whose weights `teach` sets to the student's,
    and `reference`, the model that came in.

    chosen: weight keys to train. said: what `conditioning` gave. earlier: an UnlearnPatch the student starts from, or None. dtype: of
    activations and frozen weights. Latents are in the model's own scale throughout.
    """

    def __init__(
        self,
        model,
        chosen,
        said,
        earlier=None,
        dtype=torch.float32,
        device="cpu",
        checkpointing=False,
    ):
        self.model, self.chosen, self.earlier, self.dtype, self.device = (
            model,
            tuple(chosen),
            earlier,
            dtype,
            torch.device(device),
        )
        self.texts, self.conds = said
        self.row = {text: i for i, text in enumerate(self.texts)}
        self.sampling = model.get_model_object("model_sampling")
        if not hasattr(model.model.diffusion_model, "input_blocks"):
            raise UnlearnError(
                "The input 'model' is compiled, so it cannot be trained; connect it before TorchCompileModel."
            )
        edited = {key for key, _ in earlier.edits} if earlier is not None else set()
        names = [n for n, _ in model.model.diffusion_model.named_parameters()]
        shared, came = {}, {}  # what all three read, and what only the reference reads
        for name in names:
            comfy.model_management.throw_exception_if_processing_interrupted()
            key = f"diffusion_model.{name}"
            (came if key in self.chosen or key in edited else shared)[name] = _frozen(
                model, key, dtype, self.device
            )
        self.masters = {key: torch.nn.Parameter(self.start(key)) for key in self.chosen}
        self._fixed = {key: self.start(key).to(dtype) for key in edited if key not in self.masters}
        self.teacher_weights = {
            key: weights.read(model, key, device=self.device).to(dtype)
            for key in (*self.chosen, *self._fixed)
        }
        name_of = lambda key: key.removeprefix("diffusion_model.")
        branch = lambda own: _shell(
            model.model.diffusion_model,
            {**shared, **{name_of(key): value for key, value in own.items()}},
            "",
        )
        self.student, self.teacher, self.reference = (
            branch({**self.masters, **self._fixed}),
            branch(self.teacher_weights),
            branch(came),
        )
        for (
            key
        ) in self.chosen:  # float32 masters are cast to the activations' type as they are used
            self.student.get_submodule(
                name_of(key).removesuffix(".weight")
            ).comfy_cast_weights = True
        if checkpointing:
            for module in self.student.modules():
                if isinstance(module, unets.ResBlock | unets.SpatialTransformer):
                    again = functools.partial(
                        torch.utils.checkpoint.checkpoint, module.forward, use_reentrant=False
                    )
                    module.forward = functools.partial(again, preserve_rng_state=False)
        self._options = {
            "optimized_attention_override": lambda _, *a, **k: (
                comfy.ldm.modules.attention.attention_pytorch(*a, **k)
            )
        }

    def start(self, key):
        """Weight `key`, float32, as training finds it: the model's with its LoRAs, and the earlier patch on it."""
        weight = weights.read(self.model, key, device=self.device)
        for edited, edit in self.earlier.edits if self.earlier is not None else ():
            if edited == key:
                weight = weight + edit.change(weight, 1.0)
        return weight

    @torch.no_grad()
    def teach(self):
        """Gives the teacher the student's weights of this moment; until then it is the model that came in."""
        for key, tensor in self.teacher_weights.items():
            tensor.copy_(self.masters[key] if key in self.masters else self._fixed[key])

    def predict(self, branch, x, sigma, rows):
        """What the network gives out, float32 [b, c, h, w]: the noise, or v, of latents x at noise levels sigma [b] under texts `rows`."""
        given = {}
        for name, tensor in self.conds.items():
            part = (
                tensor[rows]
                if len(tensor) == len(self.texts)
                else tensor.expand(len(rows), *tensor.shape[1:])
            )
            given[name] = part.to(self.device, self.dtype)
        xc = self.sampling.calculate_input(sigma, x).to(self.dtype)
        if "c_concat" in given:
            xc = torch.cat([xc, given.pop("c_concat")], 1)
        context, t = given.pop("c_crossattn"), self.sampling.timestep(sigma).float().to(self.device)
        return branch(
            xc, t, context=context, control=None, transformer_options=dict(self._options), **given
        ).float()

    def levels(self, u):
        """Noise levels sigma, float32, for fractions u of the schedule in (0, 1); uniform u gives uniform timesteps."""
        return torch.tensor(
            [float(self.sampling.percent_to_sigma(float(v))) for v in u], device=self.device
        )

    def noised(self, latents, noise, sigma):
        return self.sampling.noise_scaling(sigma, noise, latents)

    def answer(self, latents, x, sigma):
        """What the network should give out for x to be denoised to `latents`: the noise for an eps model, v for a v model."""
        nothing = torch.zeros_like(x)
        offset = self.sampling.calculate_denoised(sigma, nothing, x)
        slope = self.sampling.calculate_denoised(sigma, nothing + 1, x) - offset
        return (latents - offset) / slope

    @torch.no_grad()
    def draw(self, branch, rows, against, seeds, shape, steps, cfg, bar=None):
        """Latents [n, c, h, w] on the CPU of texts `rows`, guided away from texts `against`, noise by `seeds`: DDIM with `steps` steps."""
        sigmas = (
            comfy.samplers.calculate_sigmas(self.sampling, "normal", steps).clone().to(self.device)
        )
        out, at, b = [], 0, LARGEST_BATCH
        while at < len(rows):
            part, away = rows[at : at + b], against[at : at + b]
            try:
                noise = torch.stack(
                    [
                        torch.randn(shape, generator=torch.Generator().manual_seed(s))
                        for s in seeds[at : at + b]
                    ]
                )
                x = self.noised(
                    torch.zeros_like(noise, device=self.device), noise.to(self.device), sigmas[0]
                )
                for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    level = now.expand(len(x) * 2)
                    both = torch.cat([x, x])
                    x0 = self.sampling.calculate_denoised(
                        level, self.predict(branch, both, level, [*part, *away]), both
                    )
                    x0 = x0[len(x) :] + cfg * (x0[: len(x)] - x0[len(x) :])
                    x = x + (x - x0) / now * (then - now)
                    if bar is not None:
                        bar.step(len(x))
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                if len(part) == 1:
                    raise
                b, x = len(part) // 2, None
            if x is None:
                comfy.model_management.soft_empty_cache()
                continue
            out.append(x.float().cpu())
            at += len(part)
        return torch.cat(out)
