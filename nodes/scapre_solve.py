"""Erases many concepts at once by a closed-form edit of the cross-attention keys and values (arXiv 2601.06162)."""

from comfy_api.latest import io

from .errors import finite
from .host import progress, scapre
from .types import Concepts, Patch

TOKENS = ["all", "last"]


class ScaPreSolve(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScaPreSolve",
            display_name="ScaPre Solve",
            category="unlearn",
            description="Makes a patch that forgets all listed concepts at once, in seconds and without pictures, by solving for the "
            "cross-attention keys and values. Connect the patch to Apply Unlearn Patch.",
            search_aliases=["erase", "remove", "unlearn", "forget", "censor", "concept", "UCE", "closed form"],
            inputs=[
                io.Model.Input("model", tooltip="The model to edit, after any LoRA loaders. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder that goes with the model, from the same checkpoint loader."),
                Concepts.Input("concepts", tooltip="What to forget and what to keep, from Concepts to Forget."),
                io.DynamicCombo.Input(
                    "variant",
                    options=[
                        io.DynamicCombo.Option(
                            "anchored",
                            [
                                io.Float.Input(
                                    "erase",
                                    default=scapre.DEFAULTS["erase"],
                                    min=0.0,
                                    max=1e6,
                                    step=1.0,
                                    tooltip="How hard the concepts are pushed out (eta). Too low: they come back; too high costs little "
                                    "while 'preserve' holds. Try the default, then ten times more.",
                                ),
                                io.Float.Input(
                                    "preserve",
                                    default=scapre.DEFAULTS["preserve"],
                                    min=0.0,
                                    max=1e6,
                                    step=0.1,
                                    tooltip="How strongly everything that is kept is held in place (beta). "
                                    "Raise it when kept things change.",
                                ),
                                io.Float.Input(
                                    "anchor",
                                    default=scapre.DEFAULTS["anchor"],
                                    min=1e-6,
                                    max=1e3,
                                    step=0.01,
                                    tooltip="How strongly every direction is held at the original weights (lambda). Raise it when prompts "
                                    "unlike those in the lists change.",
                                    advanced=True,
                                ),
                                io.Float.Input(
                                    "spectral",
                                    default=scapre.DEFAULTS["spectral"],
                                    min=0.0,
                                    max=1e3,
                                    step=0.1,
                                    tooltip="Spectral trace regularisation: keeps many concepts from fighting over weak shared directions. "
                                    "Try 1 when forgetting dozens at once.",
                                    advanced=True,
                                ),
                                io.Boolean.Input(
                                    "informax",
                                    default=scapre.DEFAULTS["informax"],
                                    tooltip="Weigh each output channel by how much it tells the concepts apart (Informax decoupler).",
                                    advanced=True,
                                ),
                                io.Float.Input(
                                    "overshoot",
                                    default=scapre.DEFAULTS["overshoot"],
                                    min=0.0,
                                    max=1.0,
                                    step=0.05,
                                    tooltip="How far past zero the concepts are pushed, for new sentences hold more of a concept "
                                    "than the studied ones have in common. Lower it when kept things change.",
                                    advanced=True,
                                ),
                            ],
                        )
                    ],
                    tooltip="The way to solve. 'anchored' pushes the concepts out while it holds everything else at the original weights.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=TOKENS,
                    default="all",
                    tooltip="Erase all words of a concept's name, or only the 'last' (spares the 'ice' of 'ice cream').",
                ),
                io.Boolean.Input(
                    "prior",
                    default=True,
                    tooltip="Also keep a hundred everyday captions, so that what you did not list is held too. Leave it on.",
                ),
                io.String.Input(
                    "templates",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="a photo of a {concept}",
                    tooltip="Own sentences to study the concepts in, one per line with {concept} in it. Empty: built-in sentences by kind.",
                    advanced=True,
                ),
            ],
            outputs=[
                Patch.Output("patch", tooltip="Connect to Apply Unlearn Patch."),
                io.Image.Output("report_image", tooltip="How much of each concept is left, and how much each layer changed."),
                io.String.Output("report", tooltip="The same in words, with warnings and what to do next."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, concepts, variant, tokens, prior, templates=""):
        settings = {k: v for k, v in variant.items() if k != "variant"}
        finite(**{k: float(v) for k, v in settings.items()})
        sentences = tuple(line.strip() for line in templates.splitlines() if line.strip()) or None
        patch, picture, report = scapre.solve(
            model, clip, concepts, sentences, tokens=tokens, prior=prior, node_id=cls.hidden.unique_id, **settings
        )
        progress.say(report, cls.hidden.unique_id)
        return io.NodeOutput(patch, picture, report)
