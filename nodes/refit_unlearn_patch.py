"""Makes a patch again, from the recipe in it, for another model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from comfy_api.latest import io

from ..unlearn import provenance, wording
from ..unlearn.closed_form import refit as closed_form
from ..unlearn.errors import UnlearnError
from ..unlearn.files import encoder_parts, patch_overlap
from ..unlearn.host import patch_match
from ..unlearn.host.model_types import Clip, Model, Vae
from ..unlearn.pruning import refit as pruning
from ..unlearn.sculpting import refit as sculpting
from ..unlearn.sculpting.train import TrainingInputs
from ..unlearn.types import UnlearnPatch
from .concept_saliency import ConceptSaliency
from .dynamic_mask_trainer import DynamicMaskTrainer
from .neuron_mask_fuse import NeuronMaskFuse
from .recipe_limits import check_limits
from .scapre_solve import ScaPreSolve
from .sockets import Patch
from .telling import tell


class RefitUnlearnPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RefitUnlearnPatch",
            display_name="Refit Unlearn Patch",
            category="unlearn",
            description="Makes a patch again for the model that is connected, from the recipe in "
            "it: the same concepts, keep list, method and settings. Use it where a patch was made "
            "for another base model. Connect the result to Apply Unlearn Patch.",
            search_aliases=["unlearn", "forget", "erase", "patch", "transfer", "remake", "recipe"],
            inputs=[
                Patch.Input(
                    "patch",
                    tooltip="From Load Unlearn Patch: a patch of any eraser of this pack. It is "
                    "not changed.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model to make it for, after any LoRA loaders, without the patch "
                    "on it. It is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with this model, from the same checkpoint "
                    "loader.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Only for a patch that Dynamic Mask Trainer trained on your own "
                    "pictures, which are not in the patch: those pictures. They need 'vae'.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the same checkpoint. It is only used to read 'images'.",
                ),
            ],
            outputs=[
                Patch.Output(
                    "patch",
                    tooltip="The patch for this model; connect to Apply Unlearn Patch or Save "
                    "Unlearn Patch.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The report of the method, and what the old patch did not say.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        patch: UnlearnPatch,
        model: Model,
        clip: Clip,
        images: torch.Tensor | None = None,
        vae: Vae | None = None,
    ) -> io.NodeOutput:
        if not patch.provenance:
            raise UnlearnError(
                "The input 'patch' does not say how it was made; make a new one with an eraser "
                "such as ScaPre Solve."
            )
        recipes = [provenance.recipe(record) for record in patch.provenance]
        for recipe in recipes:
            _check(recipe)
        match = patch_match.Match(patch_match.SAME, 0.0)
        of_model = encoder_parts.of_model(patch)
        if of_model is not None:
            match = patch_match.match(model, of_model)
            patch_overlap.refuse_on_model(model, of_model, match)
        inputs = TrainingInputs(images=images, vae=vae, node_id=cls.hidden.unique_id)
        found, lines, reports = None, [_headline(recipes, match)], []
        for recipe in recipes:
            found, (reported, notes) = _refit(model, clip, recipe, found, inputs)
            reports += reported
            lines += [*notes, *recipe.notes]
        text = _together(reports, lines)
        text = tell(text, cls.hidden)
        return io.NodeOutput(found, text)


def _check(recipe: provenance.Recipe) -> None:
    """Raises UnlearnError, before any work, for a method or a setting that is not known."""
    if recipe.family == provenance.SCAPRE:
        settings, _ = closed_form.settings_of(recipe)
        values: Mapping[str, Any] = {**settings.as_dict(), "auto_protect": settings.protect}
        _check_inputs(ScaPreSolve, values, "variant", "templates")
    elif recipe.family == provenance.FIA:
        runs, _ = pruning.measurements(recipe)
        for _, run, _ in runs:
            _check_inputs(ConceptSaliency, asdict(run))
        masks, _, _ = pruning.mask_settings(recipe)
        _check_inputs(NeuronMaskFuse, asdict(masks))
    elif recipe.family == provenance.SCULPTING:
        trained, _, _ = sculpting.settings_of(recipe)
        _check_inputs(DynamicMaskTrainer, asdict(trained))
    elif recipe.family != provenance.TEXT_ENCODER:  # which has no settings
        raise UnlearnError(
            f"The input 'patch' was made by '{recipe.family}', which this version cannot do again; "
            "update ComfyUI-Unlearn, or make a new patch with one of its erasers."
        )


def _check_inputs(node: type[io.ComfyNode], values: Mapping[str, Any], *left_out: str) -> None:
    inputs = [i for i in node.define_schema().inputs if i.id not in left_out]
    check_limits(inputs, values)


def _refit(
    model: Model,
    clip: Clip,
    recipe: provenance.Recipe,
    found: UnlearnPatch | None,
    inputs: TrainingInputs,
) -> tuple[UnlearnPatch, provenance.Refitted]:
    """(what was made so far with the patch of one more recipe, its reports and notes)."""
    if recipe.family == provenance.SCULPTING:
        # A training starts from the patches before it, and its result contains them.
        started = TrainingInputs(found, inputs.images, inputs.vae, node_id=inputs.node_id)
        return sculpting.refit(model, clip, recipe, started)
    if recipe.family == provenance.TEXT_ENCODER:
        made, report = closed_form.refit_encoder(clip, recipe, inputs.node_id)
    elif recipe.family == provenance.SCAPRE:
        made, report = closed_form.refit(model, clip, recipe, inputs.node_id)
    else:
        made, report = pruning.refit(model, clip, recipe, inputs.node_id)
    return made if found is None else found + made, report


def _together(reports: Sequence[str], lines: Sequence[str]) -> str:
    """One report of several. lines: what the refit itself says."""
    told, verdicts, measured = wording.Findings(details=[*lines]), [], []
    for report in reports:
        parts = wording.read(report)
        verdicts.append(parts.verdict)
        told.warnings += [wording.Warn(warning) for warning in parts.warnings]
        measured += parts.details
        told.advice[:0] = parts.advice  # the last report's is the next thing to do
    told.details += measured
    return told.report(f"Patch made again. {' '.join(dict.fromkeys(verdicts))}")


def _headline(recipes: list[provenance.Recipe], match: patch_match.Match) -> str:
    methods = " + ".join(f"{r.family} {r.variant}".strip() for r in recipes)
    return (
        f"Made again for this model, whose weights differ by {match.difference:.0%} from those the "
        f"patch was made for: {methods}."
    )
