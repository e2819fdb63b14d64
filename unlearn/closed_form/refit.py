"""A ScaPre patch made again from its recipe, for another model."""

from dataclasses import asdict, fields, replace
from pathlib import Path

from ..errors import UnlearnError
from ..host.model_types import Clip, Model
from ..provenance import Recipe, Refitted
from ..types import UnlearnPatch
from . import text_encoder, tuning, variants
from .solve import SolveSettings, solve


def settings_of(recipe: Recipe) -> tuple[SolveSettings, tuple[str, ...]]:
    """(settings of a recipe, notes about what it does not say).

    Raises UnlearnError for a variant that does not exist, or a value that cannot be.
    """
    variant = variants.find(recipe.variant or variants.FIRST)
    common = {
        f.name: f.default for f in fields(SolveSettings) if f.name not in ("variant", "options")
    }
    # Patches from before there was a choice of strength were made as 'normal' is.
    recipe = replace(recipe, settings={"strength": "normal", **recipe.settings})
    values, notes = recipe.chosen({**asdict(variant.settings()), **common})
    for name, shown in variant.inputs.items():
        low, high = getattr(shown, "low", 0), getattr(shown, "high", 1)
        if not low <= values[name] <= high:
            raise UnlearnError(
                f"The patch says {values[name]} for its setting '{name}', where {low} to {high} is "
                "possible; make a new patch with ScaPre Solve instead."
            )
    return SolveSettings.of(variant.name, **values), notes


def refit(
    model: Model,
    clip: Clip,
    recipe: Recipe,
    node_id: str | None = None,
    folder: Path | None = None,
) -> tuple[UnlearnPatch, Refitted]:
    """(UnlearnPatch, reports and notes) of a recipe on a MODEL, which is not changed.

    folder: where token states are kept, None for ComfyUI's own. Raises UnlearnError as `solve`.
    """
    settings, notes = settings_of(recipe)
    patch, _, report = solve(model, clip, recipe.concepts, settings, node_id=node_id, folder=folder)
    return patch, Refitted((report,), (*notes, *recipe.other_constants(tuning.IN_PROVENANCE)))


def refit_encoder(
    clip: Clip, recipe: Recipe, node_id: str | None = None
) -> tuple[UnlearnPatch, Refitted]:
    """As `refit`, of a recipe for the text encoder. The CLIP is not changed."""
    patch, report = text_encoder.solve(clip, recipe.concepts, node_id=node_id)
    return patch, Refitted((report,), recipe.other_constants(tuning.OF_ENCODER))
