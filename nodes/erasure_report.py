"""Shows what an edit did: pictures before and after it, side by side, and a verdict."""

from typing import Any

from comfy_api.latest import io, ui

from ..unlearn.analysis.comparison import ReportInputs, ReportSettings, as_json, compare
from ..unlearn.concepts.notation import split_lines
from ..unlearn.errors import finite
from ..unlearn.host.model_types import Clip, Model, Vae
from ..unlearn.types import ConceptSet
from .sampling_inputs import sampling_inputs
from .sockets import Concepts
from .telling import tell

D = ReportSettings()


class ErasureReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ErasureReport",
            display_name="Erasure Report",
            category="unlearn",
            description="Draws every forgotten concept and some kept ones with the model before "
            "and after the edit, with the same seeds, and says in words whether the edit worked, "
            "did nothing, or damaged everything.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "concept",
                "compare",
                "before after",
                "evaluate",
            ],
            inputs=[
                io.Model.Input(
                    "before", tooltip="The unedited model, as it goes into Apply Unlearn Patch."
                ),
                io.Model.Input("after", tooltip="The edited model, from Apply Unlearn Patch."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the models, from the same checkpoint "
                    "loader.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE that goes with the models, from the same checkpoint loader.",
                ),
                Concepts.Input(
                    "concepts",
                    tooltip="What should be forgotten and kept: the list the patch was made from.",
                ),
                io.Int.Input(
                    "seed",
                    default=D.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the first picture of each prompt. A KSampler with this seed "
                    "draws the same picture.",
                ),
                io.Int.Input(
                    "seeds",
                    default=D.seeds,
                    min=1,
                    max=16,
                    tooltip="Pictures per prompt, each with a seed of its own. Try 2 first; 8 say "
                    "more.",
                ),
                io.Int.Input(
                    "kept",
                    default=D.kept,
                    min=0,
                    max=64,
                    tooltip="How many prompts of the keep list to draw. Where the list is shorter, "
                    "everyday captions are added. Without kept prompts the report cannot see "
                    "damage.",
                ),
                *sampling_inputs(D),
                io.String.Input(
                    "templates",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="a photo of a {concept}",
                    tooltip="Your own sentences, one per line, each with {concept} in it. Empty: "
                    "one sentence by kind. Try sentences that the patch was not made with.",
                    advanced=True,
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For CLIP scores, from Load CLIP Vision. To score pictures against the "
                    "prompt it must belong to the same CLIP as the text encoder: ViT-bigG for "
                    "SDXL, ViT-H for SD2.x.",
                ),
                io.Clip.Input(
                    "score_clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP as clip_vision, where the model's "
                    "own is another (always with SD1.x).",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "grid", tooltip="Before and after, pair by pair, with the verdict on top."
                ),
                io.Image.Output(
                    "chart",
                    tooltip="Change of pictures, CLIP scores, and relative change of each layer's "
                    "weights.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The verdict and the figures in words; connect to Preview as Text.",
                ),
                io.String.Output(
                    "metrics", tooltip="All figures as JSON, one entry per picture and per layer."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        before: Model,
        after: Model,
        clip: Clip,
        vae: Vae,
        concepts: ConceptSet,
        templates: str = "",
        clip_vision: Any = None,
        score_clip: Clip | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        finite(cfg=settings["cfg"])
        report = compare(
            ReportInputs(before, after, clip, vae, clip_vision, score_clip),
            concepts,
            ReportSettings(templates=split_lines(templates), **settings),
            cls.hidden.unique_id,
        )
        text = tell(report.text, cls.hidden)
        return io.NodeOutput(
            report.grid,
            report.chart,
            text,
            as_json(report.metrics),
            ui=ui.PreviewImage(report.grid, cls=cls),
        )
