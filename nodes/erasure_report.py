"""Shows what an edit did: the same prompts and seeds before and after, side by side, with numbers and a verdict."""

import comfy.samplers
from comfy_api.latest import io, ui

from ..unlearn.analysis import comparison
from ..unlearn.concepts.notation import split_lines
from ..unlearn.errors import finite
from ..unlearn.host import progress
from .sockets import Concepts

D = comparison.DEFAULTS


class ErasureReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ErasureReport",
            display_name="Erasure Report",
            category="unlearn",
            description="Draws every forgotten concept and some kept ones with the model before and after, same seed, and says in words "
            "whether the edit worked, did nothing, or damaged everything.",
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
                    "before", tooltip="The plain model, as it goes into Apply Unlearn Patch."
                ),
                io.Model.Input("after", tooltip="The patched model, from Apply Unlearn Patch."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the models, from the same checkpoint loader.",
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
                    default=D["seed"],
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the first picture of each prompt; a KSampler with this seed draws the same.",
                ),
                io.Int.Input(
                    "seeds",
                    default=D["seeds"],
                    min=1,
                    max=16,
                    tooltip="Pictures per prompt, each with a seed of its own. 2 for a look, 8 to be sure.",
                ),
                io.Int.Input(
                    "kept",
                    default=D["kept"],
                    min=0,
                    max=64,
                    tooltip="How many prompts of the keep list to draw; where the list is shorter, everyday captions are added. Without "
                    "any, damage cannot be told.",
                ),
                io.Int.Input(
                    "steps",
                    default=D["steps"],
                    min=1,
                    max=200,
                    tooltip="Sampling steps per picture. Use what you draw with.",
                ),
                io.Float.Input(
                    "cfg",
                    default=D["cfg"],
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Guidance. Use what you draw with.",
                ),
                io.Int.Input(
                    "size",
                    default=D["size"],
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="Width and height in pixels; 0 takes what the model was made for. Smaller is faster, but models draw badly "
                    "below half of it.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    default=D["sampler"],
                    tooltip="Use one without fresh noise in each step (no 'ancestral', no 'sde'), so that pairs can be compared.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default=D["scheduler"],
                    tooltip="How the sampling steps are spread. Use what you draw with.",
                    advanced=True,
                ),
                io.String.Input(
                    "templates",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="a photo of a {concept}",
                    tooltip="Own sentences, one per line with {concept} in it. Empty: one sentence by kind. Try some the eraser was not "
                    "made with.",
                    advanced=True,
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For CLIP scores, from Load CLIP Vision. Against the words they need a text encoder of the same CLIP: for SDXL "
                    "that is ViT-bigG, for SD2.x ViT-H.",
                ),
                io.Clip.Input(
                    "score_clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP as clip_vision, where the model's own is another (always with SD1.x).",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "grid", tooltip="Before and after, pair by pair, with the verdict on top."
                ),
                io.Image.Output(
                    "chart",
                    tooltip="Change of pictures, CLIP scores, and relative change of each layer's weights.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The verdict and the figures in words; connect to Preview as Text.",
                ),
                io.String.Output(
                    "metrics", tooltip="All figures as JSON, one entry per picture and per layer."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        before,
        after,
        clip,
        vae,
        concepts,
        templates="",
        clip_vision=None,
        score_clip=None,
        **settings,
    ):
        finite(cfg=settings["cfg"])
        grid, chart, report, metrics = comparison.compare(
            before,
            after,
            clip,
            vae,
            concepts,
            split_lines(templates),
            clip_vision,
            score_clip,
            cls.hidden.unique_id,
            **settings,
        )
        progress.say(report, cls.hidden.unique_id)
        return io.NodeOutput(
            grid, chart, report, comparison.as_json(metrics), ui=ui.PreviewImage(grid, cls=cls)
        )
