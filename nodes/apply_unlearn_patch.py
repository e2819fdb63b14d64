"""Puts patches, stacked in order, on a model and on its text encoder."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from comfy_api.latest import io

from ..unlearn import wording
from ..unlearn.errors import UnlearnError, finite
from ..unlearn.files import encoder_parts, patch_overlap
from ..unlearn.host import patch_match, patching
from ..unlearn.host.model_types import Clip, Model
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
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that a patch of Erase in Text Encoder was made from; "
                    "other patches do not need it. It is not changed.",
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
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The patched text encoder; connect to CLIP Text Encode. Without a "
                    "patch for it, it is the one that came in.",
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
        clip: Clip | None = None,
    ) -> io.NodeOutput:
        finite(strength=strength)
        stack = {name: patch for name, patch in patches.items() if patch is not None}
        if not stack:
            return io.NodeOutput(model, tell(NO_PATCH, cls.hidden), clip)
        how = Applying(strength, mismatch == "error", quantised, repeated == "once")
        of_model, of_clip = encoder_parts.split(stack)
        if of_clip and not of_model and clip is None:
            raise UnlearnError(encoder_parts.NO_CLIP)
        done = [on_model(model, of_model, how)] if of_model else []
        patched, edited = done[0].patched if done else model, clip
        if of_clip and clip is not None:
            done.append(on_clip(clip, of_clip, how))
            edited = done[-1].patched
        told = together(done, strength)
        if of_clip and clip is None:
            told.findings.warn("The text encoder is not patched.", encoder_parts.NO_CLIP)
            told.findings.advice.insert(0, "Try: connect 'clip' of Apply Unlearn Patch.")
        applied = (*patching.manifest_as_json(patched), *encoder_parts.manifest_as_json(edited))
        _note_for_saved_files(cls.hidden.extra_pnginfo, cls.hidden.unique_id, applied)
        report = tell(told.findings.report(told.verdict), cls.hidden)
        return io.NodeOutput(patched, report, edited)


class Applying(NamedTuple):
    """How patches are applied: strength; strict, whether another base model stops; where edits of
    quantised weights go; once, whether repeats are left out."""

    strength: float
    strict: bool
    quantised: str
    once: bool


class Applied(NamedTuple):
    """What was applied: the patched MODEL or CLIP, the patches in it, how the worst of them goes
    with it, and what the report says; patch and match are None where all were left out."""

    patched: Any
    patch: UnlearnPatch | None
    match: patch_match.Match | None
    repeats: patch_overlap.Repeats
    findings: Findings


class Told(NamedTuple):
    """A report in the making."""

    verdict: str
    findings: Findings


def on_model(model: Model, stack: dict[str, UnlearnPatch], how: Applying) -> Applied:
    """Applies a stack of patches, by input name, to a MODEL."""
    matches = patch_match.matches(model, [*stack.values()])

    def apply(patch: UnlearnPatch, match: patch_match.Match) -> tuple[Model, str]:
        patched, _ = patching.apply(
            model, patch, how.strength, strict=how.strict, quantised=how.quantised, match=match
        )
        return patched, patching.describe(patch, how.strength, patched)

    return _applied(model, model, stack, matches, how, apply)


def on_clip(clip: Clip, stack: dict[str, UnlearnPatch], how: Applying) -> Applied:
    """Applies the parts of patches for the text encoder, by input name, to a CLIP."""
    matches = encoder_parts.matches(clip, [*stack.values()])

    def apply(patch: UnlearnPatch, match: patch_match.Match) -> tuple[Clip, str]:
        edited = encoder_parts.apply(clip, patch, how.strength, how.strict, match)
        said = patching.describe(patch, how.strength)
        return edited, f"In the text encoder:\n{said}"

    return _applied(clip, clip.patcher, stack, matches, how, apply)


def _applied(
    plain: Any,
    patcher: Model,
    stack: dict[str, UnlearnPatch],
    matches: Sequence[patch_match.Match],
    how: Applying,
    apply: Callable[[UnlearnPatch, patch_match.Match], tuple[Any, str]],
) -> Applied:
    """The Applied of a stack on a MODEL or CLIP, with the repeats in it left out where asked."""
    repeats = patch_overlap.find(patcher, stack, matches, how.strength, how.once)
    chosen = [[*stack.values()][i] for i in repeats.kept]
    findings = Findings()
    if not chosen:
        return Applied(plain, None, None, repeats, findings)
    patch, found = sum(chosen[1:], chosen[0]), [matches[i] for i in repeats.kept]
    worst = patch_match.worst(found)
    patched, said = apply(patch, worst)
    findings.details.append(said)
    for one in found:
        one.tell(findings)
    return Applied(patched, patch, worst, repeats, findings)


def together(done: Sequence[Applied], strength: float) -> Told:
    """The report on what was applied to a MODEL, to a CLIP, or to both."""
    told, verdict = Findings(), "Nothing was applied."
    parts = [(one.patch, one.match) for one in done if one.patch is not None]
    matches = [match for _, match in parts if match is not None]
    if parts:
        patches = [patch for patch, _ in parts if patch is not None]
        whole = sum(patches[1:], patches[0])
        verdict = patching.verdict(whole, strength, patch_match.worst(matches))
    for one in done:
        told.add(one.findings)
    if parts and strength < 1:
        told.advice.append("Try: set 'strength' of Apply Unlearn Patch to 1.")
    for one in done:
        _tell_repeats(one.repeats, told)
    return Told(verdict, told)


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


def _note_for_saved_files(extra_pnginfo: Any, node_id: str, records: Sequence[dict]) -> None:
    """Adds what was applied to the metadata of files that later nodes save in this run."""
    if isinstance(extra_pnginfo, dict):
        applied = extra_pnginfo.setdefault("unlearn", {})
        applied[str(node_id)] = [*records]
