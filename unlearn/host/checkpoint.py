"""Whole checkpoints, written by ComfyUI's own function, with what was unlearned in the metadata."""

from pathlib import Path

import comfy.cli_args
from safetensors import SafetensorError

from ..errors import UnlearnError
from . import patching


def save(model, clip, vae, prefix, prompt=None, extra=None):
    """Writes a patched MODEL, with its CLIP and VAE unless None, into the output folder as ComfyUI's Save Checkpoint does; returns the
    file's name there and how many patches it names.

    The metadata gets a key `unlearn`: JSON, under `saved` a list with the provenance and strength of every patch applied. (Stock save
    nodes write what Apply Unlearn Patch left there, under its node id, and only in a run in which it was not cached.) Edits that run beside
    the layers are put into the weights of the file.
    Raises UnlearnError for a MODEL without any, a prefix that leads out of the output folder, and a disk that refuses.
    """
    import folder_paths
    from comfy_extras.nodes_model_merging import save_checkpoint

    record = patching.manifest_as_json(model)
    if not record:
        raise UnlearnError(
            "The input 'model' has no unlearn patch on it; connect the model from Apply Unlearn Patch (after a merge: use Save Checkpoint)."
        )
    output = folder_paths.get_output_directory()
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    except Exception as error:  # the host raises a bare Exception
        raise UnlearnError(
            f"The file name '{prefix}' leads out of the output folder; use a plain name."
        ) from error
    extra = {**(extra or {}), "unlearn": {"saved": record}}
    path = Path(folder) / f"{stem}_{counter:05}_.safetensors"  # as the host names it
    try:  # baked, for edits that run beside the layers would be lost
        save_checkpoint(
            patching.baked(model),
            clip=clip,
            vae=vae,
            filename_prefix=prefix,
            output_dir=output,
            prompt=prompt,
            extra_pnginfo=extra,
        )
    except (
        BaseException
    ) as error:  # cancelling is no Exception; half a file would be loaded as a whole one
        path.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            raise UnlearnError(
                f"The file '{path.name}' cannot be written ({error}); free disk space or choose another name."
            ) from error
        raise
    return f"{subfolder}/{path.name}".lstrip(
        "/"
    ), 0 if comfy.cli_args.args.disable_metadata else len(record)
