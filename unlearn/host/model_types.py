"""The host's own types, under the names that ComfyUI's sockets have."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import comfy.model_patcher
    import comfy.sd

    Model: TypeAlias = comfy.model_patcher.ModelPatcher
    Clip: TypeAlias = comfy.sd.CLIP
    Vae: TypeAlias = comfy.sd.VAE
else:  # comfy.sd loads every text encoder and model class there is, so it is not imported for names
    Model = Clip = Vae = Any
