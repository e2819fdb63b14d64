"""A Sculpting Memory patch trained again from its recipe, for another model."""

from dataclasses import asdict, replace

from ..host.model_types import Clip, Model
from ..provenance import Recipe, Refitted
from ..types import UnlearnPatch
from . import tuning
from .settings import TrainingSettings
from .train import TrainingInputs, train


def settings_of(recipe: Recipe) -> tuple[TrainingSettings, tuple[str, ...] | None, tuple[str, ...]]:
    """(settings of a recipe, its own sentences or None, notes about what it does not say)."""
    values, notes = recipe.chosen({**asdict(TrainingSettings()), "templates": None})
    templates = values.pop("templates")
    return TrainingSettings(**values), templates, notes


def refit(
    model: Model, clip: Clip, recipe: Recipe, inputs: TrainingInputs
) -> tuple[UnlearnPatch, Refitted]:
    """(UnlearnPatch, reports and notes) of a recipe on a MODEL, which is not changed.

    inputs: the earlier patch, already made for this MODEL, which the result contains; the artist's
    own pictures, if the patch was trained on some; and where progress is shown. Raises UnlearnError
    as `train`.
    """
    settings, templates, notes = settings_of(recipe)
    own = recipe.settings.get("images", 0)
    if own and inputs.images is None:
        notes += (
            f"The patch was trained on {own} pictures of the artist's own, which are not in it; "
            "connect them to 'images', or the model draws its own as it did now.",
        )
    outputs = train(
        model, clip, recipe.concepts, settings, replace(inputs, templates=templates, resume="")
    )
    said = (*notes, *recipe.other_constants(tuning.IN_PROVENANCE))
    return outputs.patch, Refitted((outputs.report,), said)
