"""How far two models' pictures and weights differ.

Change of pictures is measured in units of the model itself: 0 is the same picture, 1 is as far
apart as its pictures of two different prompts that start from one noise.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..errors import UnlearnError
from ..host import weights
from ..host.memory import raise_if_cancelled
from ..host.model_types import Model
from .picture_pairs import Drawing, PicturePair

Changes = list[dict[str, float]]
"""The figures of each pair by name; NaN where a picture of the pair holds NaN."""

CHANGE_FIELDS = ("latent", "pixels", "absolute")
SMALLEST_UNIT = 1e-6  # keeps a model that draws one picture for every prompt from dividing by zero


class LayerChange(NamedTuple):
    """How far one weight differs: entries that differ, entries in all, relative change."""

    key: str
    differ: int
    size: int
    relative: float


@dataclass(frozen=True)
class WeightChanges:
    """The weights of the diffusion model that differ between two models.

    total: entries in all weights. unreadable: keys of weights that hold NaN or infinite numbers
    and were not compared.
    """

    layers: tuple[LayerChange, ...]
    total: int
    unreadable: tuple[str, ...] = ()


def weight_changes(before: Model, after: Model) -> WeightChanges:
    """Compares all weights of two diffusion models as the samplers see them, patches included.

    Raises UnlearnError for models without a weight in common.
    """
    sizes = {
        key: weight.numel()
        for key, weight in before.model.state_dict().items()
        if key.startswith("diffusion_model.")
    }
    other = after.model.state_dict()
    common = [key for key in sizes if key in other]
    if not common:
        raise UnlearnError(
            "The inputs 'before' and 'after' have no weight in common; "
            "connect the same model without and with the patch."
        )
    if before.model is after.model:  # clones of one model differ by their patches alone
        common = _differently_patched(before, after, common)
    layers, unreadable = [], []
    for key in common:
        raise_if_cancelled()
        if weights.shape(before, key) != weights.shape(after, key):
            continue
        try:
            change = _layer_change(before, after, key)
        except UnlearnError:  # NaN; the pictures are drawn and are shown in any case
            unreadable.append(key)
            continue
        if change.differ:
            layers.append(change)
    return WeightChanges(tuple(layers), sum(sizes.values()), tuple(unreadable))


def _differently_patched(before: Model, after: Model, keys: Iterable[str]) -> list[str]:
    """The keys on which two clones of one model have different patches."""
    bypass_before, bypass_after = weights.bypass_edits(before), weights.bypass_edits(after)
    found = []
    for key in keys:
        first = [id(patch) for patch in before.patches.get(key, ())]
        second = [id(patch) for patch in after.patches.get(key, ())]
        if first != second or bypass_before.get(key) is not bypass_after.get(key):
            found.append(key)
    return found


def _layer_change(before: Model, after: Model, key: str) -> LayerChange:
    a, b = weights.read(before, key), weights.read(after, key)
    relative = float((b - a).norm() / a.norm().clamp_min(1e-12))
    return LayerChange(key, int((a != b).sum()), a.numel(), relative)


def of_kept(pairs: Sequence[PicturePair], changes: Changes) -> dict[str, float]:
    """name -> mean change of what should be kept, of latents or pixels the smaller one."""
    found: dict[str, list[float]] = {}
    for pair, change in zip(pairs, changes, strict=True):
        if not pair.forgotten:
            found.setdefault(pair.name, []).append(min(change["latent"], change["pixels"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def measure(
    pairs: Sequence[PicturePair], before: Drawing, after: Drawing
) -> tuple[dict[str, Any], Changes]:
    """The figures of all pairs together, and those of each pair.

    Of each pair `latent` and `pixels` are changes in the model's units, and `absolute` is the mean
    pixel difference as a share of white. A pair is NaN where one of its pictures holds NaN. The
    figures of groups are means over the other pairs, None where there is none.
    """
    broken_before, broken_after = _broken(before), _broken(after)
    latent_unit = _unit(pairs, before.latents, _rms_difference)
    pixel_unit = _unit(pairs, before.pictures, _mean_difference)
    changes: Changes = []
    for number in range(len(pairs)):
        absolute = _mean_difference(before.pictures[number], after.pictures[number])
        latent = _rms_difference(before.latents[number], after.latents[number])
        changes.append(
            {
                "latent": latent / latent_unit,
                "absolute": absolute,
                "pixels": absolute / pixel_unit,
            }
        )
        if not broken_before[number] and not math.isfinite(latent + absolute):
            broken_after[number] = True  # finite, but so large that the difference is not
    metrics: dict[str, Any] = {
        "unit": {
            "latent_rms": number_or_none(latent_unit),
            "pixel_mean": number_or_none(pixel_unit),
        },
        "pictures": len(pairs),
        "broken_pictures_before": sum(broken_before),
        "broken_latents_before": int((~_finite_rows(before.latents)).sum()),
        "broken_pictures": sum(broken_after),
    }
    for group, forgotten in (("forgotten", True), ("kept", False)):
        chosen = [c for c, p in zip(changes, pairs, strict=True) if p.forgotten == forgotten]
        metrics[group] = means(chosen, CHANGE_FIELDS) if chosen else None
    metrics["concepts"] = []
    for name in dict.fromkeys(p.name for p in pairs if p.forgotten):
        chosen = [c for c, p in zip(changes, pairs, strict=True) if p.forgotten and p.name == name]
        metrics["concepts"].append({"name": name, **means(chosen, CHANGE_FIELDS)})
    return metrics, changes


def weight_metrics(changes: WeightChanges) -> dict[str, Any]:
    """The metrics of WeightChanges, as they stand in the JSON."""
    touched = sum(layer.differ for layer in changes.layers)
    layers = []
    for key, differ, size, relative in changes.layers:
        layers.append({"key": key, "differ": differ, "of": size, "relative_change": relative})
    return {
        "touched": touched,
        "total": changes.total,
        "share": touched / changes.total,
        "layers": layers,
    }


def means(changes: Sequence[dict[str, float]], fields: Iterable[str]) -> dict[str, float | None]:
    """The mean of each field over the pairs in which it is a number, None where it is in none."""
    found: dict[str, float | None] = {}
    for field in fields:
        values = [change[field] for change in changes if math.isfinite(change[field])]
        found[field] = sum(values) / len(values) if values else None
    return found


def number_or_none(value: float) -> float | None:
    """The value itself; None for NaN and infinity, which JSON does not know."""
    return value if math.isfinite(value) else None


def _finite_rows(tensor: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(tensor).flatten(1).all(1)


def _broken(drawing: Drawing) -> list[bool]:
    """For each picture of a model whether it or its latent holds NaN or infinite numbers."""
    return (~(_finite_rows(drawing.latents) & _finite_rows(drawing.pictures))).tolist()


def _unit(
    pairs: Sequence[PicturePair],
    drawn: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], float],
) -> float:
    """The mean distance of the model's own pictures of different prompts from one noise.

    Those that hold NaN do not count, and the unit is NaN where all do. With one prompt only, it is
    an estimate from the spread of its numbers.
    """
    finite = _finite_rows(drawn).tolist()
    whole = [number for number in range(len(pairs)) if finite[number]]
    if not whole:
        return math.nan
    # The sort is stable, so neighbours have one seed and different prompts.
    by_seed = sorted(whole, key=lambda number: pairs[number].seed)
    apart = [
        distance(drawn[a], drawn[b])
        for a, b in itertools.pairwise(by_seed)
        if pairs[a].seed == pairs[b].seed
    ]
    unit = sum(apart) / len(apart) if apart else float(drawn[whole].std()) * 2**0.5
    return max(unit, SMALLEST_UNIT)


def _rms_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def _mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())
