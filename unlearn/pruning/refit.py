"""An FIA patch measured and pruned again from its recipe, for another model."""

from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal

from ..errors import UnlearnError
from ..host.model_types import Clip, Model
from ..provenance import Recipe, Refitted
from ..types import Concept, ConceptSet, UnlearnPatch
from . import collection, masks, tuning
from .prompts import OwnLines
from .runs import RUNS
from .settings import MaskSettings, SaliencySettings


def measurements(
    recipe: Recipe,
) -> tuple[list[tuple[tuple[Concept, ...], SaliencySettings, OwnLines]], tuple[str, ...]]:
    """((concepts, settings, own lines) of each run of a recipe, notes about what it does not say).

    Raises UnlearnError for a value that cannot be.
    """
    named = {concept.name: concept for concept in recipe.concepts.concepts}
    listed = recipe.settings.get(RUNS) or [
        {"concepts": list(named), "settings": recipe.settings.get("saliency") or {}}
    ]
    defaults = {**asdict(SaliencySettings()), **OwnLines()._asdict()}
    found, notes = [], {}
    for run in listed:
        if not isinstance(run, Mapping) or not isinstance(run.get("settings"), Mapping):
            raise UnlearnError(
                "The patch does not say how its saliency was measured; measure it anew with "
                "Concept Saliency."
            )
        own = Recipe("", "", dict(run["settings"]), recipe.concepts, {}, "", ())
        values, said = own.chosen(defaults)
        notes |= dict.fromkeys(said)
        lines = OwnLines(*(values.pop(name) for name in OwnLines._fields))
        concepts = tuple(named[name] for name in run.get("concepts", ()) if name in named)
        if concepts:
            found.append((concepts, SaliencySettings(**values), lines))
    return found, tuple(notes)


def mask_settings(recipe: Recipe) -> tuple[MaskSettings, str, tuple[str, ...]]:
    """(settings of the masks, the lines 'per_concept', notes about what the recipe does not say).

    Raises UnlearnError for a value that cannot be.
    """
    values, notes = recipe.chosen(asdict(MaskSettings()))
    shares = recipe.settings.get("per_concept") or {}
    if not isinstance(shares, Mapping) or not all(
        isinstance(share, int | float) for share in shares.values()
    ):
        raise UnlearnError(
            "The patch has no usable 'per_concept'; make a new one with Fuse Neuron Masks instead."
        )
    lines = [f"{name} = {Decimal(repr(share)):f}" for name, share in shares.items()]
    return MaskSettings(**values), "\n".join(lines), notes


def refit(
    model: Model, clip: Clip, recipe: Recipe, node_id: str | None = None
) -> tuple[UnlearnPatch, Refitted]:
    """(UnlearnPatch, reports and notes) of a recipe on a MODEL, which is not changed.

    Raises UnlearnError as `collection.collect` and `masks.fuse`.
    """
    measured, notes = measurements(recipe)
    settings, per_concept, more = mask_settings(recipe)
    maps, reports = [], []
    for concepts, run, own in measured:
        found, text = collection.collect(
            model, clip, ConceptSet(concepts), own, node_id=node_id, **asdict(run)
        )
        maps.append(found)
        reports.append(text)
    patch, _, text = masks.fuse(maps, per_concept, **asdict(settings))
    constants = recipe.other_constants(tuning.IN_PROVENANCE)
    return patch, Refitted((*reports, text), (*notes, *more, *constants))
