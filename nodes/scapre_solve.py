"""Forgets many concepts at once by a closed-form edit of cross-attention (arXiv 2601.06162)."""

from typing import Any

from comfy_api.latest import io

from ..unlearn.closed_form import tuning
from ..unlearn.closed_form.solve import ESTIMATORS, SolveSettings
from ..unlearn.closed_form.solved import solve_or_recall
from ..unlearn.concepts.notation import split_lines
from ..unlearn.errors import finite
from ..unlearn.host.matching import check_clip
from ..unlearn.host.model_types import Clip, Model
from ..unlearn.types import ConceptSet
from .search_words import FAMILIES, WANTED
from .sockets import Concepts, Patch
from .telling import tell
from .variant_inputs import variant_input

TOKENS = ["all", "last"]
STRENGTHS = list(tuning.STRENGTHS)
DEFAULTS = SolveSettings()


class ScaPreSolve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ScaPreSolve",
            display_name="ScaPre Solve",
            category="unlearn",
            description="Makes a patch that forgets all listed concepts at once, in seconds and "
            "without pictures, by solving for the cross-attention keys and values. Connect the "
            "patch to Apply Unlearn Patch.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "censor",
                "concept",
                "UCE",
                "closed form",
                *WANTED,
                *FAMILIES,
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to edit, after any LoRA loaders. It is not changed."
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the model, from the same checkpoint "
                    "loader.",
                ),
                Concepts.Input(
                    "concepts", tooltip="What to forget and what to keep, from Concepts to Forget."
                ),
                variant_input(),
                io.Combo.Input(
                    "tokens",
                    options=TOKENS,
                    default=DEFAULTS.tokens,
                    tooltip="Erase all words of a concept's name, or only the 'last' (spares the "
                    "'ice' of 'ice cream').",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "prior",
                    default=DEFAULTS.prior,
                    tooltip="Also keep everyday captions and 3000 common words, so that what you "
                    "did not list is held too. Leave it on.",
                    advanced=True,
                ),
                io.String.Input(
                    "templates",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="a photo of a {concept}",
                    tooltip="Own sentences to study the concepts in, one per line with {concept} "
                    "in it. Empty: built-in sentences by kind.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "estimator",
                    options=list(ESTIMATORS),
                    default=DEFAULTS.estimator,
                    optional=True,
                    tooltip="How Informax weights are found where they are on. Start with "
                    "'graded'. 'printed' is the paper's, with one threshold for each channel; "
                    "'shuffled' gives the graded weights to channels at random, to see whether "
                    "they matter.",
                    advanced=True,
                ),
                io.Float.Input(
                    "hard_keep",
                    default=DEFAULTS.hard_keep,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    tooltip="Variant 'anchored': do not touch the keep list at all, up to this "
                    "share of its energy. 0 holds it softly, by 'preserve'. Try 0.99. At 1 "
                    "nothing on the list moves, and concepts that look like it may come back.",
                    advanced=True,
                ),
                io.Int.Input(
                    "rounds",
                    default=DEFAULTS.rounds,
                    min=0,
                    max=10,
                    optional=True,
                    tooltip="Rounds of search for embeddings that bring a concept back; those "
                    "found are erased too. Leave it at 0: in our tests rounds stopped no "
                    "determined user, and two of them cost a quarter of what is kept.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "expand",
                    default=DEFAULTS.expand,
                    optional=True,
                    tooltip="Also study plurals and joined or hyphenated forms of the names. Turn "
                    "it on when a plural or another spelling brings a concept back.",
                    advanced=True,
                ),
                io.Float.Input(
                    "auto_protect",
                    default=DEFAULTS.protect,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far every common word must still stand out, as a share of before, "
                    "when the model looks at noise once per word. Words below it are kept too, "
                    "and the patch is solved again. 0 only forecasts. Try 0.8 when unlisted "
                    "things change.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "strength",
                    options=STRENGTHS,
                    default=DEFAULTS.strength,
                    optional=True,
                    tooltip="Variant 'anchored': how hard it forgets. Try 'normal' first, 'strong' "
                    "when a concept comes back, and 'gentle' when kept things change.",
                ),
            ],
            outputs=[
                Patch.Output("patch", tooltip="Connect to Apply Unlearn Patch."),
                io.Image.Output(
                    "report_image",
                    tooltip="How much of each concept is left, and how much each layer changed.",
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
        variant: dict[str, Any],
        tokens: str,
        prior: bool,
        templates: str = "",
        estimator: str = DEFAULTS.estimator,
        hard_keep: float = DEFAULTS.hard_keep,
        rounds: int = DEFAULTS.rounds,
        expand: bool = DEFAULTS.expand,
        auto_protect: float = DEFAULTS.protect,
        strength: str = DEFAULTS.strength,
    ) -> io.NodeOutput:
        own = {name: value for name, value in variant.items() if name != "variant"}
        finite(
            **{name: float(value) for name, value in own.items()},
            hard_keep=hard_keep,
            auto_protect=auto_protect,
        )
        check_clip(model, clip)
        sentences = split_lines(templates) or None
        settings = SolveSettings.of(
            variant["variant"],
            templates=sentences,
            tokens=tokens,
            prior=prior,
            estimator=estimator,
            hard_keep=hard_keep,
            rounds=rounds,
            expand=expand,
            protect=auto_protect,
            strength=strength,
            **own,
        )
        solved = solve_or_recall(model, clip, concepts, settings, cls.hidden.unique_id)
        report = tell(solved.report, cls.hidden)
        return io.NodeOutput(solved.patch, solved.picture, report)
