"""Forgets concepts one after another by training part of the weights (Sculpting Memory)."""

from typing import Any

import torch
from comfy_api.latest import io

from ..unlearn.concepts.notation import split_lines
from ..unlearn.errors import UnlearnError, finite
from ..unlearn.host.architectures import TRAINABLE
from ..unlearn.host.matching import check_clip
from ..unlearn.host.model_types import Clip, Model, Vae
from ..unlearn.host.training_network import DTYPES
from ..unlearn.sculpting.settings import (
    DEFAULTS,
    IMPORTANCES,
    ON_CANCEL,
    PRESETS,
    STRENGTHS,
    VARIANTS,
    TrainingSettings,
)
from ..unlearn.sculpting.train import TrainingInputs, train
from ..unlearn.types import ConceptSet, UnlearnPatch
from .search_words import WANTED
from .sockets import Concepts, Patch
from .telling import tell

FLOATS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, float))
RARE: dict[str, Any] = {"advanced": True}


def whole(name: str, low: int, high: int, tooltip: str, **more: Any) -> io.Int.Input:
    """An input for a whole number; its default is that of the setting with its name."""
    return io.Int.Input(
        name, default=DEFAULTS[name], min=low, max=high, step=1, tooltip=tooltip, **more
    )


def real(
    name: str, low: float, high: float, step: float, tooltip: str, **more: Any
) -> io.Float.Input:
    """An input for a real number; its default is that of the setting with its name."""
    return io.Float.Input(
        name, default=DEFAULTS[name], min=low, max=high, step=step, tooltip=tooltip, **more
    )


def choice(name: str, options: list[str], tooltip: str, **more: Any) -> io.Combo.Input:
    """An input with a list of options; its default is that of the setting with its name."""
    return io.Combo.Input(name, options=options, default=DEFAULTS[name], tooltip=tooltip, **more)


class DynamicMaskTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicMaskTrainer",
            display_name="Dynamic Mask Trainer",
            category="unlearn",
            description="Forgets concepts one after another by training. Each is overwritten with "
            "its superclass. What was forgotten before stays forgotten, and the keep list stays as "
            "it is. No pictures needed. Slower than ScaPre Solve. Connect the patch to Apply "
            "Unlearn Patch.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "train",
                "concept",
                "sculpting memory",
                "continual",
                "sequential",
                *WANTED,
            ],
            inputs=[
                *_main_inputs(),
                *_optional_inputs(),
                *_mask_inputs(),
                *_loss_inputs(),
                *_running_inputs(),
                *_later_inputs(),
            ],
            outputs=[
                Patch.Output("patch", tooltip="Connect to Apply Unlearn Patch."),
                io.Custom("LOSS_MAP").Output(
                    "losses", tooltip="The loss at every step. Connect to Plot Loss Graph."
                ),
                io.Image.Output(
                    "report_image",
                    tooltip="How much of each concept is left, how long it took, and what changed.",
                ),
                io.String.Output(
                    "report", tooltip="The same in words, with warnings and what to do next."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        clip: Clip,
        concepts: ConceptSet,
        preset: dict[str, Any],
        earlier: UnlearnPatch | None = None,
        images: torch.Tensor | None = None,
        vae: Vae | None = None,
        resume: str = "",
        templates: str = "",
        strength: str = "normal",
        resist_search: bool = False,
        **given: Any,
    ) -> io.NodeOutput:
        length = {name: value for name, value in preset.items() if name != "preset"}
        settings = TrainingSettings(**{**given, **(length or PRESETS[preset["preset"]])})
        settings = settings.at(strength)
        if resist_search:
            settings = settings.against_search()
        finite(**{name: float(getattr(settings, name)) for name in FLOATS})
        if settings.variant not in VARIANTS:
            raise UnlearnError(
                f"The input 'variant' is '{settings.variant}'; choose one of {', '.join(VARIANTS)}."
            )
        check_clip(model, clip)
        sentences = split_lines(templates) or None
        node_id = cls.hidden.unique_id
        inputs = TrainingInputs(earlier, images, vae, sentences, resume, node_id)
        outputs = train(model, clip, concepts, settings, inputs)
        report = tell(outputs.report, cls.hidden)
        return io.NodeOutput(*outputs._replace(report=report))


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="The model to train on, after any LoRA loaders. It is not changed.",
        ),
        io.Clip.Input(
            "clip",
            tooltip="The text encoder that goes with the model, from the same checkpoint loader.",
        ),
        Concepts.Input(
            "concepts",
            tooltip="What to forget, in this order, and what to keep. Give every concept a "
            "superclass.",
        ),
        choice(
            "variant",
            list(VARIANTS),
            "'replay' also trains on what was forgotten before, the keep list and everyday "
            "captions. 'intended' and 'released' are the paper's losses with and without "
            "distillation. They are for comparison and damage much else.",
        ),
        io.DynamicCombo.Input(
            "preset",
            options=[
                *(io.DynamicCombo.Option(name, []) for name in PRESETS),
                io.DynamicCombo.Option("custom", _length_inputs()),
            ],
            tooltip="How long to train. Try 'quick' to see that it works, 'balanced' for use. "
            "'custom' shows the numbers.",
        ),
        real(
            "cfg",
            1.0,
            30.0,
            0.5,
            "Guidance for the pictures the model draws to train on. Use what you draw with.",
            **RARE,
        ),
        whole(
            "size",
            0,
            4096,
            "Side in pixels of the training pictures. 0 takes the model's own (512, 768 or 1024).",
            **RARE,
        ),
        whole(
            "seed",
            0,
            2**63 - 1,
            "Decides noise, pictures and order. The same seed repeats a run on the CPU.",
            control_after_generate=io.ControlAfterGenerate.fixed,
            **RARE,
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        Patch.Input(
            "earlier",
            optional=True,
            tooltip="A patch to start from. The result contains it, so apply only the result.",
        ),
        io.Image.Input(
            "images",
            optional=True,
            tooltip="Your own pictures of the one concept to forget. They need 'vae'.",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The VAE of the same checkpoint. It is only used to read 'images'.",
        ),
    ]


def _length_inputs() -> list[io.Input]:
    return [
        whole(
            "steps",
            1,
            100000,
            "Most training steps per concept. It stops earlier when the concept is gone.",
        ),
        real(
            "stop_at",
            0.0,
            1.0,
            0.05,
            "A concept counts as gone when this share of its effect is left, measured on sentences "
            "that are not trained on.",
        ),
        whole("batch", 1, 256, "Pictures of the concept in a training step."),
        whole("held", 1, 256, "Pictures of what stays in a training step ('replay' only)."),
        real(
            "learning_rate",
            1e-8,
            1.0,
            1e-7,
            "How far a weight moves per step. Too high: kept things suffer. Too low: nothing is "
            "forgotten.",
        ),
        whole(
            "pictures",
            1,
            1000,
            "Pictures the model draws of each concept, and as many of its superclass, to train on.",
        ),
        whole("sampling_steps", 1, 200, "Sampling steps for those pictures."),
        whole("captions", 0, 1000, "Everyday captions that stay as they are ('replay' only)."),
    ]


def _mask_inputs() -> list[io.Input]:
    return [
        choice(
            "trainable",
            list(TRAINABLE),
            "Which matrices may change. 'keys and values' are the fewest, 'all attention' the "
            "most.",
            **RARE,
        ),
        real(
            "density",
            0.01,
            1.0,
            0.05,
            "Share of each matrix that is trained at a time. The paper's is a half.",
            **RARE,
        ),
        real(
            "turnover",
            0.0,
            1.0,
            0.05,
            "Share of the mask that the first refresh exchanges. It decays as a cosine.",
            **RARE,
        ),
        whole(
            "warmup",
            1,
            10000,
            "Steps before the first mask. Gradients are gathered in them and nothing moves.",
            **RARE,
        ),
        whole("refresh", 1, 10000, "Steps between two refreshes of the mask.", **RARE),
        choice(
            "importance",
            list(IMPORTANCES),
            "Rank weights by the sum of their gradients, as released, or by the sum of the "
            "gradients' sizes.",
            **RARE,
        ),
    ]


def _loss_inputs() -> list[io.Input]:
    return [
        real(
            "align",
            0.0,
            100.0,
            0.05,
            "Weight of learning the superclass' own pictures (lambda_a).",
            **RARE,
        ),
        real(
            "distil",
            0.0,
            100.0,
            0.05,
            "Weight of following the teacher under the superclass (lambda_kd). Not in 'released'.",
            **RARE,
        ),
        real(
            "hold",
            0.0,
            1000.0,
            0.5,
            "Weight of following the teacher on all that stays ('replay' only). Raise it when kept "
            "things change.",
            **RARE,
        ),
    ]


def _running_inputs() -> list[io.Input]:
    return [
        choice(
            "precision",
            ["auto", *DTYPES],
            "Precision of activations while training. What is trained is always float32. 'auto' "
            "takes bf16 where the device has it.",
            **RARE,
        ),
        io.Boolean.Input(
            "checkpointing",
            default=DEFAULTS["checkpointing"],
            tooltip="Compute activations twice instead of keeping them: slower, with less memory.",
            **RARE,
        ),
        whole(
            "preview_every",
            0,
            10000,
            "Steps between two preview pictures of the concept being forgotten; 0 for none.",
            **RARE,
        ),
        whole(
            "low_rank",
            0,
            1024,
            "0 keeps every trained weight. 16 to 64 gives a small patch, and the report says what "
            "is lost.",
            **RARE,
        ),
        choice(
            "on_cancel",
            list(ON_CANCEL),
            "When you cancel: stop and change nothing, or give out what was learned until then.",
            **RARE,
        ),
        io.String.Input(
            "resume",
            default="",
            optional=True,
            tooltip="With a file name here the training is kept in models/unlearn_training, so "
            "that a run that was cut off can go on. The file is deleted when the run ends.",
            **RARE,
        ),
        io.String.Input(
            "templates",
            multiline=True,
            default="",
            optional=True,
            placeholder="a photo of a {concept}",
            tooltip="Own sentences to overwrite the concepts in, one per line with {concept} in "
            "it. Empty: built-in ones by kind.",
            **RARE,
        ),
    ]


def _later_inputs() -> list[io.Input]:
    """They come last, because workflows store values by position."""
    return [
        io.Combo.Input(
            "strength",
            options=list(STRENGTHS),
            default="normal",
            optional=True,
            tooltip="How hard it forgets. Try 'normal' first, 'strong' when a concept comes back, "
            "and 'gentle' when kept things change. It changes the numbers of the preset, also "
            "those of 'custom'.",
        ),
        io.Boolean.Input(
            "resist_search",
            default=False,
            optional=True,
            tooltip="Makes a concept harder to bring back by searching for words. It trains the "
            "whole attention and feed-forward layers, takes several times as long, gives a large "
            "patch and changes kept things more. A long search still brings it back. Try off "
            "first.",
            advanced=True,
        ),
    ]
