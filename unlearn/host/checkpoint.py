"""Whole checkpoints, written by ComfyUI's own function, with what was unlearned in the metadata."""

from __future__ import annotations

from pathlib import Path

import comfy.cli_args
from safetensors import SafetensorError

from ..errors import UnlearnError
from . import patching, weights
from .model_types import Clip, Model, Vae


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
    every patch applied. Bypass edits are put into the weights of the file. (Stock save nodes write
    only what Apply Unlearn Patch left in the workflow's metadata in the same run.)

    Raises UnlearnError for a MODEL without a patch or with packed weights, a prefix that leads out
    of the output folder, and a file that cannot be written.
    """
    from comfy_extras.nodes_model_merging import save_checkpoint

    record = patching.manifest_as_json(model)
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
            patching.baked(model),
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
