"""Saves, loads and merges saliency, so that several machines can share the measuring."""

from typing import Any

from comfy_api.latest import io

from ..unlearn.errors import UnlearnError
from ..unlearn.files import saliency_file
from ..unlearn.host import folders, progress, saved_files
from ..unlearn.host.model_types import Model
from ..unlearn.pruning.merge import merge
from ..unlearn.types import SaliencyMap
from .saving_inputs import existing_input
from .sockets import Saliency


class SaveConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveConceptSaliency",
            display_name="Save Concept Saliency",
            category="unlearn",
            description="Saves saliency to models/unlearn_saliency, so that it need not be "
            "measured again, here or on another machine.",
            search_aliases=["unlearn", "forget", "saliency", "FIA"],
            inputs=[
                Saliency.Input(
                    "saliency", tooltip="From Concept Saliency or Merge Concept Saliency."
                ),
                io.String.Input(
                    "name",
                    default="my_saliency",
                    tooltip="File name without ending; saliency of that name is replaced, unless "
                    "'existing' says otherwise.",
                ),
                existing_input(),
            ],
            outputs=[
                io.String.Output(
                    "file", tooltip="The name under which Load Concept Saliency lists it."
                )
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, name: str | None = None, existing: str | None = "replace", **inputs: Any
    ) -> float:
        """Saves again where the file was deleted or changed since."""
        return saved_files.of_name(saliency_file.FOLDER, name, existing)

    @classmethod
    def execute(cls, saliency: SaliencyMap, name: str, existing: str = "replace") -> io.NodeOutput:
        target = saved_files.Target.of(saliency_file.FOLDER, name, existing)
        saliency_file.save(target.path, saliency)
        progress.say(target.written(), cls.hidden.unique_id)
        return io.NodeOutput(target.listed, ui={"text": [target.listed]})


class LoadConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadConceptSaliency",
            display_name="Load Concept Saliency",
            category="unlearn",
            description="Loads saliency from models/unlearn_saliency. Connect it to Fuse Neuron "
            "Masks.",
            search_aliases=["unlearn", "forget", "saliency", "FIA"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=saliency_file.listed(),
                    tooltip="A file made by Save Concept Saliency; press R to refresh.",
                )
            ],
            outputs=[
                Saliency.Output(
                    "saliency", tooltip="Connect to Fuse Neuron Masks or Merge Concept Saliency."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return folders.stamp(saliency_file.FOLDER, name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(saliency_file.load(folders.find(saliency_file.FOLDER, name)))


class MergeConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MergeConceptSaliency",
            display_name="Merge Concept Saliency",
            category="unlearn",
            description="Joins saliency of one model. Different concepts are put side by side. "
            "One concept measured with different prompts comes out as if all had been measured "
            "together.",
            search_aliases=["unlearn", "forget", "saliency", "FIA"],
            inputs=[
                io.Autogrow.Input(
                    "saliency",
                    template=io.Autogrow.TemplatePrefix(
                        Saliency.Input(
                            "saliency",
                            tooltip="From Concept Saliency or Load Concept Saliency. A new socket "
                            "appears when it is connected.",
                        ),
                        prefix="saliency",
                        min=0,  # the host would insist on the first socket, also where it is muted
                        max=64,
                    ),
                    tooltip="Saliency maps to join.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the maps were measured on. It is needed only where "
                    "one concept is in several maps.",
                ),
            ],
            outputs=[
                Saliency.Output(
                    "saliency", tooltip="Connect to Fuse Neuron Masks or Save Concept Saliency."
                )
            ],
        )

    @classmethod
    def execute(
        cls, saliency: dict[str, SaliencyMap | None], model: Model | None = None
    ) -> io.NodeOutput:
        maps = [found for found in saliency.values() if found is not None]
        if not maps:
            raise UnlearnError(
                "The input 'saliency' has nothing connected; "
                "connect Concept Saliency or Load Concept Saliency."
            )
        return io.NodeOutput(merge(maps, model))
