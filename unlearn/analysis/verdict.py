"""What the Erasure Report concludes from its figures, in words.

It compares pictures and cannot tell what is in them. So it says that pictures changed or stayed,
and never that a concept is gone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import wording
from ..wording import Findings
from . import tuning
from .picture_pairs import EVERYDAY

NOTHING: Mapping[str, float] = {}
LOWER = "Try: lower 'strength' of Apply Unlearn Patch."
RAISE = "Try: raise 'strength' of Apply Unlearn Patch."
LOOK = "Next: look at the pairs; kept pictures should look the same."


class Verdict(NamedTuple):
    """A code for programs, a few words for people, and what more the report says of it.

    The codes are before_is_broken, damaged, did_nothing, partly, side_effects, worked, and changed
    where nothing kept was drawn.
    """

    code: str
    text: str
    told: Findings


def verdict(metrics: Mapping[str, Any], kept_changes: Mapping[str, float] = NOTHING) -> Verdict:
    """The Verdict on the figures of `measures.measure` with `weights` of `weight_metrics`.

    kept_changes: name -> mean change of what was drawn and should be kept. Change is measured in
    latents and in pixels. The larger of the two must be small before the verdict says that nothing
    happened, and the smaller must be large before it says that something did.
    """
    told = Findings()
    if metrics["broken_pictures_before"]:
        return _before_is_broken(metrics, told)
    if metrics["broken_pictures"]:
        told.warn(
            "The patch breaks the model.",
            f"{metrics['broken_pictures']} pictures hold no numbers at all (NaN). Lower the "
            "strength, or make the patch again.",
        )
        told.advice.append(LOWER)
        return Verdict("damaged", "Edited pictures are broken.", told)
    weights, gone, kept = metrics["weights"], metrics["forgotten"], metrics["kept"]
    most, least = max(gone["latent"], gone["pixels"]), min(gone["latent"], gone["pixels"])
    side = min(kept["latent"], kept["pixels"]) if kept else None
    if most == 0 and not weights["touched"]:
        told.warn("Both models are the same.", "Look whether the strength is 0.")
        told.advice.append("Try: connect Apply Unlearn Patch to 'after' of Erasure Report.")
        return Verdict("did_nothing", "Nothing changed.", told)
    if side is not None and side >= tuning.DAMAGE_CHANGE:
        told.warn(
            "Kept pictures changed into something else.",
            f"What should be kept changed by {side:.0%}, forgotten prompts by {least:.0%} (100% is "
            "a picture of something else). Lower the strength, or have the eraser preserve more.",
        )
        told.advice.append(LOWER)
        return Verdict("damaged", "Everything changed, kept pictures too.", told)
    if most < tuning.MIN_CHANGE:
        told.warn(
            "Pictures of what to forget look as before.",
            f"{weights['share']:.2%} of the weights differ, but pictures of what should be "
            f"forgotten changed by {most:.0%} only. Raise the strength, or have the eraser erase "
            "more.",
        )
        told.advice.append(RAISE)
        return Verdict("did_nothing", "Hardly anything changed.", told)
    return _effect(metrics, least, side, kept_changes, told)


def _before_is_broken(metrics: Mapping[str, Any], told: Findings) -> Verdict:
    count = f"{metrics['broken_pictures_before']} of {metrics['pictures']} pictures"
    if metrics["broken_latents_before"]:
        told.warn(
            "The fault is in the model without the patch.",
            f"The unedited model (input 'before') gives NaN in {count}, so the edit cannot be "
            "judged: check its checkpoint, the LoRAs on it and the VAE, or load them in fp32.",
        )
        told.advice.append("Try: connect another model to 'before' of Erasure Report.")
    else:
        told.warn(
            "The fault is in the VAE.",
            f"The VAE gives NaN in {count} of the unedited model (input 'before'), so the edit "
            "cannot be judged: check the VAE, or run it in fp32 (start ComfyUI with --fp32-vae).",
        )
        told.advice.append("Try: connect another VAE to 'vae' of Erasure Report.")
    return Verdict("before_is_broken", "Pictures are broken without the patch.", told)


def _effect(
    metrics: Mapping[str, Any],
    least: float,
    side: float | None,
    kept_changes: Mapping[str, float],
    told: Findings,
) -> Verdict:
    """The Verdict on an edit that changed the forgotten prompts and left most of the kept ones."""
    figures = f"Forgotten prompts changed by {least:.0%}"
    told.details.append(figures + ("." if side is None else f", kept ones by {side:.0%}."))
    weak, changed = [], []
    for concept in metrics["concepts"]:
        is_weak = max(concept["latent"], concept["pixels"]) < tuning.MIN_CHANGE
        (weak if is_weak else changed).append(concept["name"])
    parts = [wording.sentence(f"{wording.names(changed) or 'pictures'} changed")]
    if weak:
        parts = [wording.sentence(f"{wording.names(weak)} hardly changed"), *parts[: bool(changed)]]
        told.warn(
            f"{wording.names(weak, quotes=True)} may not be forgotten.",
            f"Hardly anything changed for {', '.join(weak)}: erase more, or name it otherwise.",
        )
        told.advice.append(RAISE)
        if side is not None:
            parts += _of_kept(kept_changes, told)
        return Verdict("partly", " ".join(parts), told)
    if side is None:
        told.advice.append("Try: raise 'kept' of Erasure Report.")
        told.details.append("Nothing kept was drawn to compare with.")
        return Verdict("changed", " ".join([*parts, "Nothing kept was drawn."]), told)
    if side >= tuning.SIDE_EFFECT_CHANGE:
        told.warn("Kept pictures suffer.", "Lower the strength, or name them in the keep list.")
        told.advice.append(LOWER)
        return Verdict("side_effects", " ".join([*parts, "Kept pictures changed too."]), told)
    told.advice.append(LOOK)
    told.details.append(
        "Look at the pairs: the concept should be gone on the right, and kept things the same."
    )
    return Verdict("worked", " ".join([*parts, *_of_kept(kept_changes, told)]), told)


def _of_kept(changes: Mapping[str, float], told: Findings) -> list[str]:
    """What the verdict says of kept pictures, of which on the whole little changed."""
    shown = {
        ("everyday pictures" if name == EVERYDAY else name): change
        for name, change in changes.items()
    }
    same = [name for name, change in shown.items() if change < tuning.SIDE_EFFECT_CHANGE]
    other = [name for name in shown if name not in same]
    if other:
        told.warn(
            f"{wording.names(other, quotes=True)} should have stayed as before.",
            "Changed: " + ", ".join(f"{name} by {shown[name]:.0%}" for name in other) + ".",
        )
    parts = [wording.sentence(f"{wording.names(other)} changed too")] if other else []
    if same or not other:
        unchanged = wording.names(same, joined=", ") or "kept pictures"
        parts.append(wording.sentence(f"{unchanged} unchanged"))
    return parts
