"""Saliency on disk and from several machines: save, load, merge."""

from comfy_api.latest import io

from ..unlearn.errors import UnlearnError
from ..unlearn.files import saliency_file
from ..unlearn.host import folders
from ..unlearn.pruning import saliency as maps_of
from .sockets import Saliency


class SaveConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SaveConceptSaliency",
            display_name="Save Concept Saliency",
            category="unlearn",
            description="Saves saliency to models/unlearn_saliency, so that it need not be measured again, here or on another machine.",
            search_aliases=["unlearn", "forget", "saliency", "FIA"],
            inputs=[
                Saliency.Input(
                    "saliency", tooltip="From Concept Saliency or Merge Concept Saliency."
                ),
                io.String.Input(
                    "name",
                    default="my_saliency",
                    tooltip="File name without ending; a file of that name is replaced.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "file", tooltip="The name under which Load Concept Saliency lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, saliency, name):
        path = folders.new(saliency_file.FOLDER, name)
        saliency_file.save(path, saliency)
        listed = path.relative_to(folders.folders(saliency_file.FOLDER)[0].resolve()).as_posix()
        return io.NodeOutput(listed, ui={"text": [listed]})


class LoadConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadConceptSaliency",
            display_name="Load Concept Saliency",
            category="unlearn",
            description="Loads saliency from models/unlearn_saliency. Connect it to Fuse Neuron Masks.",
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
    def fingerprint_inputs(cls, name):
        return folders.stamp(saliency_file.FOLDER, name)

    @classmethod
    def execute(cls, name):
        return io.NodeOutput(saliency_file.load(folders.find(saliency_file.FOLDER, name)))


class MergeConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MergeConceptSaliency",
            display_name="Merge Concept Saliency",
            category="unlearn",
            description="Joins saliency of one model: different concepts side by side, and one concept measured with different prompts as "
            "if all had been measured together.",
            search_aliases=["unlearn", "forget", "saliency", "FIA"],
            inputs=[
                io.Autogrow.Input(
                    "saliency",
                    template=io.Autogrow.TemplatePrefix(
                        Saliency.Input(
                            "saliency",
                            tooltip="From Concept Saliency or Load Concept Saliency; a new socket appears.",
                        ),
                        prefix="saliency",
                        min=1,
                        max=64,
                    ),
                    tooltip="Saliency maps to join.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Needed where one concept stands in several maps: the model they were measured on.",
                ),
            ],
            outputs=[
                Saliency.Output(
                    "saliency", tooltip="Connect to Fuse Neuron Masks or Save Concept Saliency."
                )
            ],
        )

    @classmethod
    def execute(cls, saliency, model=None):
        maps = [s for s in saliency.values() if s is not None]
        if not maps:
            raise UnlearnError(
                "The input 'saliency' has nothing connected; connect Concept Saliency or Load Concept Saliency."
            )
        return io.NodeOutput(maps_of.merge(maps, model))
