"""The types of the sockets that this pack adds to ComfyUI."""

from comfy_api.latest import io

Concepts = io.Custom("UNLEARN_CONCEPTS")
Saliency = io.Custom("UNLEARN_SALIENCY")
Patch = io.Custom("UNLEARN_PATCH")
