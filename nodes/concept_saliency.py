"""Measures which weight connections a concept needs, by forward passes only.

The method is Forget-It-All (arXiv 2601.06163).
"""

import contextlib
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..kernels.fia import SCORES
from ..unlearn.concepts.notation import split_lines
from ..unlearn.errors import UnlearnError, finite
from ..unlearn.files import saliency_file
from ..unlearn.host import folders, saved_files
from ..unlearn.host.matching import check_clip
from ..unlearn.host.model_types import Clip, Model
from ..unlearn.pruning import collection
from ..unlearn.pruning.prompts import OwnLines
from ..unlearn.types import ConceptSet
from .search_words import WANTED
from .sockets import Concepts, Saliency
from .telling import tell

D = collection.DEFAULTS


def _lines(name: str, example: str, tooltip: str) -> io.String.Input:
    """An input for several lines of text."""
    return io.String.Input(
        name,
        multiline=True,
        default="",
        optional=True,
        placeholder=example,
        tooltip=tooltip,
        advanced=True,
    )


def _raw_folder(name: str) -> Path:
    """The folder of raw statistics of a name; raises UnlearnError for a name that cannot be."""
    return folders.new_in(saliency_file.models_folder(), name, ".raw")


class ConceptSaliency(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSaliency",
            display_name="Concept Saliency (FIA)",
            category="unlearn",
            description="Measures which connections of the model each concept needs, by starting "
            "a few pictures with it and without it. There is no training and there are no "
            "gradients, so any precision works. Connect it to Fuse Neuron Masks.",
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
                *WANTED,
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to measure, after any LoRA loaders. It is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the model, from the same checkpoint "
                    "loader.",
                ),
                Concepts.Input(
                    "concepts",
                    tooltip="What to forget, from Concepts to Forget. Its keep list is not used "
                    "here.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default=D["score"],
                    tooltip="'paper' weighs how the input and the output of a connection go "
                    "together. 'wanda' weighs only the input, needs far less memory, and its "
                    "statistics can always be merged. Try 'paper' first.",
                ),
                io.Int.Input(
                    "prompts",
                    default=D["prompts"],
                    min=1,
                    max=1000,
                    tooltip="Pictures started for each concept, and as many without it. 5 is "
                    "enough to try; more is steadier.",
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
                    tooltip="How many of the steps are run and measured. The first steps decide "
                    "what is in the picture, so leave it at a fifth of them.",
                ),
                io.Float.Input(
                    "cfg",
                    default=D["cfg"],
                    min=1.0,
                    max=30.0,
                    step=0.5,
                    tooltip="Guidance while measuring. Use the value you draw with. At 1 the "
                    "model runs half as often.",
                ),
                io.Int.Input(
                    "seed",
                    default=D["seed"],
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Noise of the first prompt. The following prompts count on from it.",
                ),
                io.Int.Input(
                    "size",
                    default=D["size"],
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Width and height of the measured pictures in pixels. 0 takes the "
                    "size the model was made for (512, 768 or 1024).",
                ),
                io.Float.Input(
                    "ceiling",
                    default=D["ceiling"],
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's connections that is remembered. It is the "
                    "largest r2 that Fuse Neuron Masks can use.",
                ),
                io.Float.Input(
                    "r1",
                    default=D["r1"],
                    min=0.0001,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of connections that count as high at one step. It decides how "
                    "often a connection is high. Leave it.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scale",
                    options=["layer_max", "none"],
                    default=D["scale"],
                    tooltip="Whether strength is divided by the layer's maximum before frequency "
                    "is added (as in the released code) or not (as printed). Leave it.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "halves",
                    options=["conditional", "both"],
                    default=D["halves"],
                    tooltip="Measure the prompt's half of guidance, or both halves as the "
                    "released code does. Leave it.",
                    advanced=True,
                ),
                io.Int.Input(
                    "first",
                    default=D["first"],
                    min=0,
                    max=10**6,
                    tooltip="Number of the first prompt pair, to share the work: 0 on one "
                    "machine, the value of 'prompts' on the next. Then merge the results.",
                    advanced=True,
                ),
                _lines(
                    "templates",
                    "a {concept} in {context}",
                    "Own sentences with the concept, one per line, with {concept} and {context}.",
                ),
                _lines(
                    "base",
                    "{context}",
                    "The same sentences without the concept, one per line, with {context}.",
                ),
                _lines(
                    "contexts",
                    "a kitchen\nthe garden",
                    "What stands for {context}, one per line. Empty: places, people, things.",
                ),
                io.String.Input(
                    "raw_statistics",
                    default="",
                    optional=True,
                    tooltip="A name here writes the raw statistics of the score 'paper' into "
                    "models/unlearn_saliency, so that they can be merged. They take gigabytes. "
                    "Leave it empty.",
                    advanced=True,
                ),
            ],
            outputs=[
                Saliency.Output(
                    "saliency", tooltip="Connect to Fuse Neuron Masks, or to Save Concept Saliency."
                ),
                io.String.Output("report", tooltip="What was measured, in words."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, raw_statistics: str | None = "", **inputs: Any) -> float:
        """Measures again where the raw statistics were deleted since."""
        if not raw_statistics:
            return 0
        with contextlib.suppress(UnlearnError):  # the node says it when it runs
            return saved_files.state(str(_raw_folder(raw_statistics)))
        return 0

    @classmethod
    def execute(
        cls,
        model: Model,
        clip: Clip,
        concepts: ConceptSet,
        templates: str = "",
        base: str = "",
        contexts: str = "",
        raw_statistics: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        finite(**{k: float(settings[k]) for k in ("cfg", "ceiling", "r1")})
        folder = None
        if raw_statistics:
            if settings["score"] == "wanda":
                raise UnlearnError(
                    "'raw_statistics' is for score 'paper'; with 'wanda' they are kept anyway, "
                    "so leave it empty."
                )
            folder = _raw_folder(raw_statistics)
        check_clip(model, clip)
        found, report = collection.collect(
            model,
            clip,
            concepts,
            OwnLines(split_lines(templates), split_lines(base), split_lines(contexts)),
            folder=folder,
            node_id=cls.hidden.unique_id,
            **settings,
        )
        if folder is not None:
            saved_files.wrote(str(folder), folder, numbered=True)
        report = tell(report, cls.hidden)
        return io.NodeOutput(found, report)
