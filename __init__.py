"""ComfyUI-Unlearn: makes diffusion models forget. Licence: GPL-3.0-or-later."""

import re

WEB_DIRECTORY = "./web"
NEEDS = (0, 22)  # as requires-comfyui in pyproject.toml
try:
    from comfyui_version import __version__ as _host
except ImportError:  # ComfyUI may be packed in another way; what it lacks shows below
    _host = "an unknown version"


def _too_old(why: str = "") -> ImportError:
    return ImportError(
        f"ComfyUI-Unlearn needs ComfyUI 0.22 or newer and found {_host}{why}; update ComfyUI and "
        "start it again."
    )


_numbers = re.match(r"v?(\d+)\.(\d+)", _host)
if _numbers is not None and tuple(map(int, _numbers.groups())) < NEEDS:
    raise _too_old()
try:
    from comfy_api.latest import ComfyExtension, io
except ImportError as error:
    raise _too_old(f" ({error})") from None


class UnlearnExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes or none.

        What an old ComfyUI lacks shows in an import or in a schema, and ComfyUI would register the
        nodes before it.
        """
        try:
            from .nodes import NODES

            for node in NODES:
                node.GET_SCHEMA()
        except (ImportError, AttributeError) as error:
            raise _too_old(f" ({error})") from error
        return NODES


async def comfy_entrypoint() -> UnlearnExtension:
    return UnlearnExtension()
