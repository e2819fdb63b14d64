"""Shows what a patch does at several strengths: one prompt and seed, side by side."""

from typing import Any

from comfy_api.latest import io, ui

from ..unlearn.analysis.strength_sweep import Prompts, SweepSettings, sweep
from ..unlearn.errors import finite
from ..unlearn.host.model_types import Model, Vae
from ..unlearn.host.sampling import Conditioning
from ..unlearn.types import UnlearnPatch
from .sampling_inputs import sampling_inputs
from .sockets import Patch
from .telling import tell

D = SweepSettings()


class UnlearnStrengthSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UnlearnStrengthSweep",
            display_name="Unlearn Strength Sweep",
            category="unlearn",
            description="Draws one prompt and seed at several strengths of a patch, from 0 to 1, "
            "as one labelled strip. It shows at which strength a concept goes.",
            search_aliases=["unlearn", "forget", "erase", "strength", "compare", "sweep", "grid"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The unedited model, as it goes into Apply Unlearn Patch."
                ),
                Patch.Input(
                    "patch", tooltip="From an eraser such as ScaPre Solve, or Load Unlearn Patch."
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE that goes with the model, from the same checkpoint loader.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to draw, from CLIP Text Encode. Name a forgotten concept to see "
                    "it go, or a kept one to see that it stays.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What not to draw, from CLIP Text Encode. It may be empty."
                ),
                io.Int.Input(
                    "pictures",
                    default=D.pictures,
                    min=2,
                    max=11,
                    tooltip="How many strengths to draw, from 0 to 1 in even steps. 5 gives 0, "
                    "0.25, 0.5, 0.75 and 1; 11 gives every tenth.",
                ),
                io.Int.Input(
                    "seed",
                    default=D.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of all pictures. A KSampler with this seed draws the same ones.",
                ),
                *sampling_inputs(D),
            ],
            outputs=[
                io.Image.Output(
                    "strip", tooltip="All pictures in a row, each with its strength below it."
                ),
                io.Image.Output(
                    "images",
                    tooltip="The pictures in full size as a batch, strength 0 first; connect to "
                    "Save Image.",
                ),
                io.String.Output(
                    "report", tooltip="Between which strengths the pictures change most."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        patch: UnlearnPatch,
        vae: Vae,
        positive: Conditioning,
        negative: Conditioning,
        **settings: Any,
    ) -> io.NodeOutput:
        finite(cfg=settings["cfg"])
        found = sweep(
            model,
            patch,
            vae,
            Prompts(positive, negative),
            SweepSettings(**settings),
            cls.hidden.unique_id,
        )
        report = tell(found.report, cls.hidden)
        return io.NodeOutput(
            found.strip,
            found.pictures,
            report,
            ui=ui.PreviewImage(found.strip, cls=cls),
        )
