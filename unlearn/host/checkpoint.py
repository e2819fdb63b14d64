"""Whole checkpoints, written by ComfyUI's own function, with what was unlearned in the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors import SafetensorError

from ..errors import UnlearnError
from . import patching, weights
from .adapters import LowRank
from .model_types import Clip, Model, Vae

UNET = "model."  # what stands before the keys of a MODEL in a file
# What ComfyUI's quantised layers write beside their weight, and read with it.
QUANTISATION = ("weight_scale", "weight_scale_2", "input_scale", "comfy_quant")


def save(
    model: Model,
    clip: Clip | None,
    vae: Vae | None,
    prefix: str,
    prompt: dict | None = None,
    extra: dict | None = None,
) -> tuple[str, int]:
    """Writes a patched MODEL as ComfyUI's Save Checkpoint does, with its CLIP and VAE unless None.

    Returns the file's name in the output folder, and how many patches its metadata names. The
    metadata key `unlearn` holds JSON; under `saved` is a list with the provenance and strength of
    every patch applied to the MODEL and then to the CLIP. Bypass edits are put into the weights of
    the file. (Stock save nodes write only what Apply Unlearn Patch left in the workflow's metadata
    in the same run.) The file also has what loaders need to sample an SDXL as this MODEL does, and
    16 bits for quantised weights with low-rank edits.

    Raises UnlearnError for a MODEL without a patch or with weights that ComfyUI cannot save, a
    prefix that leads out of the output folder, and a file that cannot be written.
    """
    from comfy_extras.nodes_model_merging import save_checkpoint

    record = patching.manifest_as_json(model)
    if clip is not None and getattr(clip, "patcher", None) is not None:
        record += patching.manifest_as_json(clip.patcher)
    if not record:
        raise UnlearnError(
            "The input 'model' has no unlearn patch on it; connect the model from Apply Unlearn "
            "Patch (after a merge: use Save Checkpoint)."
        )
    fault = weights.saving_fault(model)
    if fault:
        raise UnlearnError(fault)
    output, path, name = _next_path(prefix)
    extra = {**(extra or {}), "unlearn": {"saved": record}}
    try:
        save_checkpoint(
            _for_file(patching.baked(model)),
            clip=clip,
            vae=vae,
            filename_prefix=prefix,
            output_dir=output,
            prompt=prompt,
            extra_pnginfo=extra,
        )
    # BaseException, because cancelling is no Exception, and half a file must not stay.
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            raise UnlearnError(
                f"The file '{path.name}' cannot be written ({error}); free disk space or choose "
                "another name."
            ) from error
        raise
    return name, 0 if comfy.cli_args.args.disable_metadata else len(record)


def _next_path(prefix: str) -> tuple[str, Path, str]:
    """(output folder, path of the file that ComfyUI writes next, its name in the output folder)."""
    import folder_paths

    output = folder_paths.get_output_directory()
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    except Exception as error:  # ComfyUI raises a bare Exception
        raise UnlearnError(
            f"The file name '{prefix}' leads out of the output folder; use a plain name."
        ) from error
    path = Path(folder) / f"{stem}_{counter:05}_.safetensors"
    return output, path, f"{subfolder}/{path.name}".lstrip("/")


def _for_file(model: Model) -> Model:
    """A clone of a MODEL that gives ComfyUI's writer what this pack adds to the file."""
    clone = model.clone()
    of_host = clone.state_dict_for_saving

    def with_more(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        tensors = of_host(*args, **kwargs)
        for key, value in sampling_keys(model).items():
            tensors[key] = value
            # Load Diffusion Model reads nothing else than what starts as the UNet's keys do.
            tensors[f"{UNET}diffusion_model.{key}"] = value.clone()
        _unround(model, tensors)
        return tensors

    clone.state_dict_for_saving = with_more
    return clone


def sampling_keys(model: Model) -> dict[str, torch.Tensor]:
    """The keys by which ComfyUI's loader tells how an SDXL MODEL is sampled; none for others.

    ComfyUI's own saves write an EDM model as one of v-prediction, and write the keys where the
    loader of a UNet alone does not look.
    """
    kinds = comfy.model_sampling
    if not isinstance(model.model, comfy.model_base.SDXL):
        return {}
    sampling = model.get_model_object("model_sampling")
    latents: Any = model.get_model_object("latent_format")
    if isinstance(sampling, kinds.EDM):
        if not hasattr(latents, "latents_mean"):
            return {}
        return {"edm_mean": latents.latents_mean.clone(), "edm_std": latents.latents_std.clone()}
    if not isinstance(sampling, kinds.V_PREDICTION):
        return {}
    if isinstance(sampling, kinds.ModelSamplingContinuousEDM):
        ends = {"sigma_max": sampling.sigma_max, "sigma_min": sampling.sigma_min}
        return {f"edm_vpred.{end}": torch.tensor(float(ends[end])) for end in ends}
    found = {"v_pred": torch.tensor([])}
    if getattr(sampling, "zsnr", False):
        found["ztsnr"] = torch.tensor([])
    return found


def _unround(model: Model, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces quantised weights with low-rank edits, in the tensors of a file, by 16 bits.

    ComfyUI's loader takes a layer without `comfy_quant` as one that is not quantised.
    """
    for key, patches in model.patches.items():
        if not any(isinstance(p[1], LowRank) for p in patches):
            continue
        weight, _, _ = comfy.model_patcher.get_key_weight(model.model, key)
        layer = UNET + key.removesuffix("weight")
        if not isinstance(weight, QuantizedTensor) or f"{layer}pre_quant_scale" in tensors:
            continue
        for name in QUANTISATION:
            tensors.pop(layer + name, None)
        tensors[layer + "weight"] = weights.read(model, key).to(weight.dtype)
