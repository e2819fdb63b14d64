"""Measures which weight connections a concept needs, by forward passes only (Forget-It-All, arXiv 2601.06163)."""

from comfy_api.latest import io

from ..kernels.fia import SCORES
from ..unlearn.errors import UnlearnError, finite
from ..unlearn.files import saliency_file
from ..unlearn.host import folders, progress
from ..unlearn.pruning import saliency
from ..unlearn.pruning.prompts import lines
from .sockets import Concepts, Saliency

D = saliency.DEFAULTS


class ConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        text = lambda name, example, tip: io.String.Input(
            name,
            multiline=True,
            default="",
            optional=True,
            placeholder=example,
            tooltip=tip,
            advanced=True,
        )
        return io.Schema(
            node_id="ConceptSaliency",
            display_name="Concept Saliency (FIA)",
            category="unlearn",
            description="Measures which connections of the model each concept needs, by starting a few pictures with and without it. "
            "No training, no gradients: works with any precision. Connect it to Fuse Neuron Masks.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "prune",
                "concept",
                "neuron",
                "FIA",
                "wanda",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to measure, after any LoRA loaders. It is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the model, from the same checkpoint loader.",
                ),
                Concepts.Input(
                    "concepts",
                    tooltip="What to forget, from Concepts to Forget. Its keep list is not used here.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default=D["score"],
                    tooltip="'paper' weighs how input and output of a connection go together; 'wanda' only the input: less memory, "
                    "and its statistics can always be merged. Try 'paper' first.",
                ),
                io.Int.Input(
                    "prompts",
                    default=D["prompts"],
                    min=1,
                    max=1000,
                    tooltip="Pictures started per concept, and as many without it. 5 is enough to try; 10 is steadier.",
                ),
                io.Int.Input(
                    "steps",
                    default=D["steps"],
                    min=1,
                    max=1000,
                    tooltip="Sampling steps a whole picture would take.",
                ),
                io.Int.Input(
                    "window",
                    default=D["window"],
                    min=1,
                    max=1000,
                    tooltip="How many of them are run and measured. The first ones decide what is in the picture: leave it at a fifth.",
                ),
                io.Float.Input(
                    "cfg",
                    default=D["cfg"],
                    min=1.0,
                    max=30.0,
                    step=0.5,
                    tooltip="Guidance while measuring. Use what you draw with; 1 takes half the time.",
                ),
                io.Int.Input(
                    "seed",
                    default=D["seed"],
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Noise of the first prompt; the others count on from it.",
                ),
                io.Int.Input(
                    "size",
                    default=D["size"],
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Width and height in pixels of the measured pictures; 0 takes the model's own (512, 768 or 1024).",
                ),
                io.Float.Input(
                    "ceiling",
                    default=D["ceiling"],
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's connections that is remembered: the largest r2 that Fuse Neuron Masks can use.",
                ),
                io.Float.Input(
                    "r1",
                    default=D["r1"],
                    min=0.0001,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of connections that count as high at one step, for how often a connection is high. Leave it.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scale",
                    options=["layer_max", "none"],
                    default=D["scale"],
                    tooltip="Whether strength is divided by the layer's maximum before frequency is added (as in the released code) or "
                    "not (as printed). Leave it.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "halves",
                    options=["conditional", "both"],
                    default=D["halves"],
                    tooltip="Measure the prompt's half of guidance, or both halves as the released code does. Leave it.",
                    advanced=True,
                ),
                io.Int.Input(
                    "first",
                    default=D["first"],
                    min=0,
                    max=10**6,
                    tooltip="Number of the first prompt pair, to share work: 0 on one machine, 'prompts' on the next; then merge.",
                    advanced=True,
                ),
                text(
                    "templates",
                    "a {concept} in {context}",
                    "Own sentences with the concept, one per line, with {concept} and {context}.",
                ),
                text(
                    "base",
                    "{context}",
                    "The same sentences without the concept, one per line, with {context}.",
                ),
                text(
                    "contexts",
                    "a kitchen\nthe garden",
                    "What stands for {context}, one per line. Empty: places, people, things.",
                ),
                io.String.Input(
                    "raw_statistics",
                    default="",
                    optional=True,
                    tooltip="A name here writes the raw statistics of score 'paper' into models/unlearn_saliency, to be merged. "
                    "They are large (gigabytes). Leave it empty.",
                    advanced=True,
                ),
            ],
            outputs=[
                Saliency.Output(
                    "saliency", tooltip="Connect to Fuse Neuron Masks, or to Save Concept Saliency."
                ),
                io.String.Output("report", tooltip="What was measured, in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        templates="",
        base="",
        contexts="",
        raw_statistics="",
        **settings,
    ):
        finite(**{k: float(settings[k]) for k in ("cfg", "ceiling", "r1")})
        if raw_statistics and settings["score"] == "wanda":
            raise UnlearnError(
                "'raw_statistics' is for score 'paper'; with 'wanda' they are kept anyway, so leave it empty."
            )
        folder = (
            folders.new_in(saliency_file.models_folder(), raw_statistics, ".raw")
            if raw_statistics
            else None
        )
        found, report = saliency.collect(
            model,
            clip,
            concepts,
            lines(templates),
            lines(base),
            lines(contexts),
            folder=folder,
            node_id=cls.hidden.unique_id,
            **settings,
        )
        progress.say(report, cls.hidden.unique_id)
        return io.NodeOutput(found, report)
