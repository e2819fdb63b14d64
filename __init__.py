"""ComfyUI-Unlearn: makes diffusion models forget. Licence: GPL-3.0-or-later."""

WEB_DIRECTORY = "./web"

try:
    from comfy_api.latest import ComfyExtension, io
except ImportError as error:
    raise ImportError("ComfyUI-Unlearn needs ComfyUI 0.22 or newer; update ComfyUI and start it again.") from error


class UnlearnExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import NODES

        return NODES


async def comfy_entrypoint() -> UnlearnExtension:
    return UnlearnExtension()
