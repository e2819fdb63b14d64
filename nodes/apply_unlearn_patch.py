"""Puts patches, stacked in order, on a model."""

from typing import Any

from comfy_api.latest import io

from ..unlearn import wording
from ..unlearn.errors import finite
from ..unlearn.files import patch_overlap
from ..unlearn.host import patch_match, patching
from ..unlearn.host.model_types import Model
from ..unlearn.types import UnlearnPatch
from ..unlearn.wording import Findings
from .search_words import FAMILIES, WANTED
from .sockets import Patch
from .telling import tell

REPEATED = ["warn", "once"]
NO_PATCH = wording.compose(
    "Nothing was applied.",
    advice=["Next: connect the patch of an eraser to 'patches' of Apply Unlearn Patch."],
    details=["No patch is connected; the model passes through as it came."],
)


class ApplyUnlearnPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyUnlearnPatch",
            display_name="Apply Unlearn Patch",
            category="unlearn",
            description="Applies one or more unlearn patches to a model, in order. Place it after "
            "LoRA loaders. The model that comes in is not changed; Save Unlearned Checkpoint bakes "
            "the patches in, and so does Save Checkpoint unless quantised is 'bypass'.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "censor",
                "concept",
                *WANTED,
                *FAMILIES,
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to patch; the same one the patches were made from, LoRAs "
                    "included.",
                ),
                io.Autogrow.Input(
                    "patches",
                    template=io.Autogrow.TemplatePrefix(
                        Patch.Input(
                            "patch",
                            tooltip="From an eraser such as ScaPre Solve, or Load Unlearn Patch; a "
                            "new socket appears.",
                        ),
                        prefix="patch",
                        min=0,  # the host would insist on the first socket, also where it is muted
                        max=16,
                    ),
                    tooltip="Patches to apply, first to last. Without any the model passes through "
                    "as it came.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1 forgets fully, 0 changes nothing, negative exaggerates the concept. "
                    "Between the two pictures do not change evenly: at 0.5 all may still show the "
                    "concept, at 0.75 some, at 0.9 few. Try 1 first.",
                ),
                io.Combo.Input(
                    "mismatch",
                    options=["warn", "error"],
                    default="warn",
                    tooltip="What to do when a patch was made for another base model: warn and "
                    "apply all the same, or stop. A fine-tune or a merge of the patch's own model "
                    "never stops; the report tells how far it is off.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "quantised",
                    options=["auto", "bypass", "weights"],
                    default="auto",
                    optional=True,
                    tooltip="On fp8, int8 and 4-bit models rounding lets a concept come back. "
                    "'auto' puts edits into the weights and takes away what rounding brings back; "
                    "'weights' leaves that; 'bypass' runs low-rank edits beside the layers, where "
                    "saves and merges may miss them. Try 'auto' first.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "repeated",
                    options=REPEATED,
                    default="warn",
                    optional=True,
                    tooltip="What to do when a concept would be forgotten twice with the same "
                    "method: warn, or leave out each patch that is there or on the model already "
                    "('once'). Try 'once' when the report warns.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model; connect to a sampler or to Save Checkpoint.",
                ),
                io.String.Output(
                    "report",
                    tooltip="What was applied and where, and a warning where the base model is not "
                    "the patch's own.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        patches: dict[str, UnlearnPatch | None],
        strength: float,
        mismatch: str,
        quantised: str = "auto",
        repeated: str = "warn",
    ) -> io.NodeOutput:
        finite(strength=strength)
        stack = {name: patch for name, patch in patches.items() if patch is not None}
        if not stack:
            return io.NodeOutput(model, tell(NO_PATCH, cls.hidden))
        matches = patch_match.matches(model, [*stack.values()])
        repeats = patch_overlap.find(model, stack, matches, strength, repeated == "once")
        chosen = [[*stack.values()][i] for i in repeats.kept]
        patched, verdict, told = model, "Nothing was applied.", Findings()
        if chosen:
            patch, found = sum(chosen[1:], chosen[0]), [matches[i] for i in repeats.kept]
            patched, _ = patching.apply(
                model,
                patch,
                strength,
                strict=mismatch == "error",
                quantised=quantised,
                match=patch_match.worst(found),
            )
            verdict = patching.verdict(patch, strength, patch_match.worst(found))
            told.details.append(patching.describe(patch, strength, patched))
            for one in found:
                one.tell(told)
            if strength < 1:
                told.advice.append("Try: set 'strength' of Apply Unlearn Patch to 1.")
        _tell_repeats(repeats, told)
        _note_for_saved_files(cls.hidden.extra_pnginfo, cls.hidden.unique_id, patched)
        report = told.report(verdict)
        report = tell(report, cls.hidden)
        return io.NodeOutput(patched, report)


def _tell_repeats(repeats: patch_overlap.Repeats, told: Findings) -> None:
    """Adds to a report which patches were left out, and what is forgotten twice."""
    told.details += repeats.left_out
    told.warnings += repeats.warnings
    if repeats.warnings:
        told.advice.append("Try: set 'repeated' of Apply Unlearn Patch to 'once'.")
    elif not told.warnings:
        told.advice.append(
            "Next: draw with the patched model." if repeats.kept else "Next: look at the details."
        )


def _note_for_saved_files(extra_pnginfo: Any, node_id: str, patched: Model) -> None:
    """Adds what was applied to the metadata of files that later nodes save in this run."""
    if isinstance(extra_pnginfo, dict):
        applied = extra_pnginfo.setdefault("unlearn", {})
        applied[str(node_id)] = patching.manifest_as_json(patched)
