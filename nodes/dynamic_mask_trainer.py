"""Forgets concepts one after another by training a moving part of the attention matrices (Sculpting Memory, arXiv 2504.09039)."""

from comfy_api.latest import io

from ..unlearn.errors import UnlearnError, finite
from ..unlearn.host import progress
from ..unlearn.host.architectures import TRAINABLE
from ..unlearn.sculpting import train
from .sockets import Concepts, Patch

D = train.DEFAULTS
FLOATS = ("stop_at", "learning_rate", "cfg", "density", "turnover", "align", "distil", "hold")


def number(kind, name, low, high, step, tip, **more):
    return kind.Input(name, default=D[name], min=low, max=high, step=step, tooltip=tip, **more)


class DynamicMaskTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        whole = lambda name, low, high, tip, **more: number(io.Int, name, low, high, 1, tip, **more)
        real = lambda name, low, high, step, tip, **more: number(
            io.Float, name, low, high, step, tip, **more
        )
        rare = {"advanced": True}
        custom = [
            whole(
                "steps",
                1,
                100000,
                "Most training steps per concept; it stops earlier when the concept is gone.",
            ),
            real(
                "stop_at",
                0.0,
                1.0,
                0.05,
                "A concept's round ends when this share of what it adds is left, measured on unseen sentences.",
            ),
            whole("batch", 1, 256, "Pictures of the concept in a step."),
            whole(
                "held",
                1,
                256,
                "Pictures of what stays in a step ('replay' only). Twice the batch is a good start.",
            ),
            real(
                "learning_rate",
                1e-8,
                1.0,
                1e-7,
                "How far a weight moves per step. Too high: kept things suffer; too low: nothing is forgotten.",
            ),
            whole(
                "pictures",
                1,
                1000,
                "Pictures the model draws of each concept, and as many of its superclass, to train on.",
            ),
            whole("sampling_steps", 1, 200, "Sampling steps for those pictures."),
            whole(
                "captions",
                0,
                1000,
                "Everyday captions that are held ('replay' only). More when you have no keep list.",
            ),
        ]
        return io.Schema(
            node_id="DynamicMaskTrainer",
            display_name="Dynamic Mask Trainer",
            category="unlearn",
            description="Forgets concepts one after another by training: each is overwritten with its superclass, what was forgotten "
            "before stays forgotten, and the keep list is held. No pictures needed. Slower than ScaPre Solve; connect the patch to "
            "Apply Unlearn Patch.",
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
            ],
            inputs=[
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
                    tooltip="What to forget, in this order, and what to keep. Give every concept a superclass.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(train.VARIANTS),
                    default=D["variant"],
                    tooltip="'replay' also holds what was forgotten before, the keep list and everyday captions. 'intended' and 'released' "
                    "are the paper's losses with and without distillation: for comparison, they damage much else.",
                ),
                io.DynamicCombo.Input(
                    "preset",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in train.PRESETS),
                        io.DynamicCombo.Option("custom", custom),
                    ],
                    tooltip="How long to train. Try 'quick' to see that it works, 'balanced' for use; 'custom' shows the numbers.",
                ),
                real(
                    "cfg",
                    1.0,
                    30.0,
                    0.5,
                    "Guidance for the pictures the model draws to train on. Use what you draw with.",
                ),
                whole(
                    "size",
                    0,
                    4096,
                    "Side in pixels of the training pictures; 0 takes the model's own (512, 768 or 1024).",
                ),
                whole(
                    "seed",
                    0,
                    2**63 - 1,
                    "Decides noise, pictures and order: the same seed repeats a run on the CPU.",
                    control_after_generate=io.ControlAfterGenerate.fixed,
                ),
                Patch.Input(
                    "earlier",
                    optional=True,
                    tooltip="A patch to go on from: the result contains it, so apply only the result.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Your own pictures of the one concept to forget; needs 'vae'.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only to read 'images': the VAE of the same checkpoint.",
                ),
                io.Combo.Input(
                    "trainable",
                    options=list(TRAINABLE),
                    default=D["trainable"],
                    tooltip="Which matrices may change. 'keys and values' touches least, 'all attention' most.",
                    **rare,
                ),
                real(
                    "density",
                    0.01,
                    1.0,
                    0.05,
                    "Share of each matrix that is trained at a time. The paper's is a half.",
                    **rare,
                ),
                real(
                    "turnover",
                    0.0,
                    1.0,
                    0.05,
                    "Share of the mask exchanged at the first refresh; it decays as a cosine.",
                    **rare,
                ),
                whole(
                    "warmup",
                    1,
                    10000,
                    "Steps before the first mask, in which gradients are gathered and nothing moves.",
                    **rare,
                ),
                whole("refresh", 1, 10000, "Steps between two exchanges of the mask.", **rare),
                io.Combo.Input(
                    "importance",
                    options=["signed", "absolute"],
                    default=D["importance"],
                    tooltip="Rank weights by the sum of their gradients, as released, or by the sum of its sizes.",
                    **rare,
                ),
                real(
                    "align",
                    0.0,
                    100.0,
                    0.05,
                    "Weight of learning the superclass' own pictures (lambda_a).",
                    **rare,
                ),
                real(
                    "distil",
                    0.0,
                    100.0,
                    0.05,
                    "Weight of following the teacher under the superclass (lambda_kd); not 'released'.",
                    **rare,
                ),
                real(
                    "hold",
                    0.0,
                    1000.0,
                    0.5,
                    "Weight of following the teacher on all that stays ('replay' only). Raise it when kept things change.",
                    **rare,
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *train.DTYPES],
                    default=D["precision"],
                    tooltip="Of activations while training; what is trained is always float32. 'auto' takes bf16 where the device has it.",
                    **rare,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=D["checkpointing"],
                    tooltip="Compute activations twice instead of keeping them: a third slower, far less memory.",
                    **rare,
                ),
                whole(
                    "preview_every",
                    0,
                    10000,
                    "Steps between two preview pictures of the concept being forgotten; 0 for none.",
                    **rare,
                ),
                whole(
                    "low_rank",
                    0,
                    1024,
                    "0 keeps every trained weight; 16 to 64 gives a small patch, and the report says what is lost.",
                    **rare,
                ),
                io.Combo.Input(
                    "on_cancel",
                    options=["discard", "keep"],
                    default=D["on_cancel"],
                    tooltip="When you cancel: stop and change nothing, or give out what was learned until then.",
                    **rare,
                ),
                io.String.Input(
                    "resume",
                    default="",
                    optional=True,
                    tooltip="A file name here keeps the training in models/unlearn_training, so that a run that was cut off goes on where "
                    "it was. Gone when the run ends.",
                    **rare,
                ),
                io.String.Input(
                    "templates",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="a photo of a {concept}",
                    tooltip="Own sentences to overwrite the concepts in, one per line with {concept} in it. Empty: built-in ones by kind.",
                    **rare,
                ),
            ],
            outputs=[
                Patch.Output("patch", tooltip="Connect to Apply Unlearn Patch."),
                io.Custom("LOSS_MAP").Output(
                    "losses", tooltip="The loss at every step; connect to Plot Loss Graph."
                ),
                io.Image.Output(
                    "report_image",
                    tooltip="How much of each concept is left, how long it took, and what changed.",
                ),
                io.String.Output(
                    "report", tooltip="The same in words, with warnings and what to do next."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        preset,
        earlier=None,
        images=None,
        vae=None,
        resume="",
        templates="",
        **settings,
    ):
        chosen = {k: v for k, v in preset.items() if k != "preset"} or train.PRESETS[
            preset["preset"]
        ]
        settings = {**D, **settings, **chosen}
        finite(**{k: float(settings[k]) for k in FLOATS})
        if settings["variant"] not in train.VARIANTS:
            raise UnlearnError(
                f"The input 'variant' is '{settings['variant']}'; choose one of {', '.join(train.VARIANTS)}."
            )
        sentences = tuple(line.strip() for line in templates.splitlines() if line.strip()) or None
        patch, losses, picture, report = train.train(
            model,
            clip,
            concepts,
            earlier,
            images,
            vae,
            sentences,
            resume,
            node_id=cls.hidden.unique_id,
            **settings,
        )
        progress.say(report, cls.hidden.unique_id)
        return io.NodeOutput(patch, losses, picture, report)
