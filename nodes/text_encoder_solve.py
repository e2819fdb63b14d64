"""Forgets concepts by a closed-form edit of the first layer of CLIP's text encoders."""

from comfy_api.latest import io

from ..unlearn.closed_form import text_encoder
from ..unlearn.host.model_types import Clip
from ..unlearn.types import ConceptSet
from .search_words import WANTED
from .sockets import Concepts, Patch
from .telling import tell


class TextEncoderSolve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TextEncoderSolve",
            display_name="Erase in Text Encoder",
            category="unlearn",
            description="Makes a patch for the text encoder, which then reads a concept as its "
            "superclass. Every model that uses this text encoder forgets with it. For CLIP-L and "
            "CLIP-G (SD1.5, SDXL). Connect the patch and the clip to Apply Unlearn Patch.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "censor",
                "concept",
                "CLIP",
                "text encoder",
                "closed form",
                *WANTED,
            ],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder to edit, from a checkpoint loader, after any LoRA "
                    "loaders. It is not changed.",
                ),
                Concepts.Input(
                    "concepts", tooltip="What to forget and what to keep, from Concepts to Forget."
                ),
            ],
            outputs=[
                Patch.Output(
                    "patch",
                    tooltip="Connect to Apply Unlearn Patch, alone or beside a patch of ScaPre "
                    "Solve.",
                ),
                io.String.Output(
                    "report",
                    tooltip="How much of each concept is left, with warnings and what to do next.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, clip: Clip, concepts: ConceptSet) -> io.NodeOutput:
        patch, report = text_encoder.solve(clip, concepts, node_id=cls.hidden.unique_id)
        return io.NodeOutput(patch, tell(report, cls.hidden))
