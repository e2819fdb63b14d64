"""Patches on disk: save one, load one, and see what is in it."""

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..unlearn.files import patch_file, patch_report, small_picture
from ..unlearn.host import folders, progress, saved_files
from ..unlearn.host.model_types import Model
from ..unlearn.types import UnlearnPatch
from .saving_inputs import existing_input
from .sockets import Patch
from .telling import tell


class SaveUnlearnPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveUnlearnPatch",
            display_name="Save Unlearn Patch",
            category="unlearn",
            description="Saves a patch to models/unlearn_patches: a small file to keep, to send, "
            "and to load with Load Unlearn Patch on the same base model.",
            search_aliases=["unlearn", "forget", "erase", "export", "patch"],
            inputs=[
                Patch.Input(
                    "patch", tooltip="From an eraser such as ScaPre Solve or Fuse Neuron Masks."
                ),
                io.String.Input(
                    "name",
                    default="my_patch",
                    tooltip="File name without ending, subfolder/name to sort. A patch of that "
                    "name is replaced, unless 'existing' says otherwise.",
                ),
                existing_input(),
                io.Image.Input(
                    "before",
                    optional=True,
                    tooltip="A picture from before the edit. The file keeps it small, and Load "
                    "Unlearn Patch shows it, so that a patch is recognised at sight.",
                ),
                io.Image.Input(
                    "after",
                    optional=True,
                    tooltip="A picture with the same prompt and seed from after the edit, which "
                    "is shown beside it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "file",
                    tooltip="The name under which Load Unlearn Patch lists it (press R to "
                    "refresh).",
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, name: str | None = None, existing: str | None = "replace", **inputs: Any
    ) -> float:
        """Saves again where the file was deleted or changed since."""
        return saved_files.of_name(patch_file.FOLDER, name, existing)

    @classmethod
    def execute(
        cls,
        patch: UnlearnPatch,
        name: str,
        existing: str = "replace",
        before: torch.Tensor | None = None,
        after: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        target = saved_files.Target.of(patch_file.FOLDER, name, existing)
        pictures = [picture for picture in (before, after) if picture is not None]
        if pictures:
            patch = replace(patch, picture=small_picture.encoded(pictures))
        patch_file.save(target.path, patch)
        progress.say(target.written(), cls.hidden.unique_id)
        return io.NodeOutput(target.listed, ui={"text": [target.listed]})


class LoadUnlearnPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadUnlearnPatch",
            display_name="Load Unlearn Patch",
            category="unlearn",
            description="Loads a patch from models/unlearn_patches. Connect it to Apply Unlearn "
            "Patch.",
            search_aliases=["unlearn", "forget", "erase", "import", "patch"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.listed(patch_file.FOLDER),
                    tooltip="A file made by Save Unlearn Patch, or copied to "
                    "models/unlearn_patches; press R to refresh the list.",
                )
            ],
            outputs=[
                Patch.Output(
                    "patch",
                    tooltip="Connect to Apply Unlearn Patch, alone or with other patches.",
                ),
                io.String.Output(
                    "about", tooltip="What is in the file: concepts, method, settings, size."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return folders.stamp(patch_file.FOLDER, name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        path = folders.find(patch_file.FOLDER, name)
        patch, metadata = patch_file.load(path)
        size, version = path.stat().st_size / 2**20, metadata.get("pack_version", "?")
        file = f"{name}, {size:.2f} MB, saved by ComfyUI-Unlearn {version}"
        about = patch_report.describe(patch, about_file=(file,))
        about = tell(about, cls.hidden)
        return io.NodeOutput(patch, about, ui=_shown(cls, patch))


class UnlearnPatchInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UnlearnPatchInfo",
            display_name="Unlearn Patch Info",
            category="unlearn",
            description="Tells what is in a patch: what it forgets, how it was made, how much it "
            "changes, and whether it fits a model.",
            search_aliases=["unlearn", "forget", "erase", "inspect", "patch", "metadata"],
            inputs=[
                Patch.Input(
                    "patch",
                    tooltip="From Load Unlearn Patch or from an eraser such as ScaPre Solve.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model you want to use it on: tells whether the patch was made for "
                    "it.",
                ),
            ],
            outputs=[io.String.Output("text", tooltip="Connect to Preview as Text to read it.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, patch: UnlearnPatch, model: Model | None = None) -> io.NodeOutput:
        text = patch_report.describe(patch, model)
        text = tell(text, cls.hidden)
        return io.NodeOutput(text, ui={"text": [text], **_shown(cls, patch)})


def _shown(cls: type[io.ComfyNode], patch: UnlearnPatch) -> dict[str, Any]:
    """What makes a node show a patch's small picture; nothing where it has none."""
    picture = small_picture.decoded(patch.picture)
    return {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
