"""What the Erasure Report concludes from its figures, in words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from . import tuning

WEAK_NAMES_SHOWN = 5

NO_DIFFERENCE = (
    "It silently did nothing: both models are the same. Connect the model from Apply Unlearn Patch "
    "to 'after', and look whether its strength is 0."
)


class Verdict(NamedTuple):
    """A code for programs and sentences for people.

    The codes are before_is_broken, damaged, did_nothing, partly, side_effects, worked, and changed
    where nothing kept was drawn.
    """

    code: str
    text: str


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The Verdict on the figures of `measures.measure` with `weights` of `weight_metrics`.

    Change is measured in latents and in pixels. The larger of the two must be small before the
    verdict says that nothing happened, and the smaller must be large before it says that something
    did.
    """
    if metrics["broken_pictures_before"]:
        return Verdict("before_is_broken", _before_is_broken(metrics))
    if metrics["broken_pictures"]:
        return Verdict(
            "damaged",
            f"It damaged everything: {metrics['broken_pictures']} pictures hold no numbers at all "
            "(NaN). Lower the strength, or make the patch again.",
        )
    weights, gone, kept = metrics["weights"], metrics["forgotten"], metrics["kept"]
    most, least = max(gone["latent"], gone["pixels"]), min(gone["latent"], gone["pixels"])
    side = min(kept["latent"], kept["pixels"]) if kept else None
    if most == 0 and not weights["touched"]:
        return Verdict("did_nothing", NO_DIFFERENCE)
    if side is not None and side >= tuning.DAMAGE_CHANGE:
        return Verdict(
            "damaged",
            f"It damaged everything: what should be kept changed by {side:.0%}, forgotten prompts "
            f"by {least:.0%} (100% is a picture of something else). Lower the strength, or have "
            "the eraser preserve more.",
        )
    if most < tuning.MIN_CHANGE:
        return Verdict(
            "did_nothing",
            f"It silently did nothing to speak of: {weights['share']:.2%} of the weights differ, "
            f"but pictures of what should be forgotten changed by {most:.0%} only. Raise the "
            "strength, or have the eraser erase more.",
        )
    return _effect(metrics, least, side)


def _before_is_broken(metrics: Mapping[str, Any]) -> str:
    count = f"{metrics['broken_pictures_before']} of {metrics['pictures']} pictures"
    if metrics["broken_latents_before"]:
        return (
            f"The unedited model (input 'before') gives NaN in {count}, so the edit cannot be "
            "judged: check its checkpoint, the LoRAs on it and the VAE, or load them in fp32."
        )
    return (
        f"The VAE gives NaN in {count} of the unedited model (input 'before'), so the edit cannot "
        "be judged: check the VAE, or run it in fp32 (start ComfyUI with --fp32-vae)."
    )


def _effect(metrics: Mapping[str, Any], least: float, side: float | None) -> Verdict:
    """The Verdict on an edit that changed the forgotten prompts and left most of the kept ones."""
    figures = f"Forgotten prompts changed by {least:.0%}"
    figures += "." if side is None else f", kept ones by {side:.0%}."
    weak = [
        concept["name"]
        for concept in metrics["concepts"]
        if max(concept["latent"], concept["pixels"]) < tuning.MIN_CHANGE
    ]
    if weak:
        names = ", ".join(weak[:WEAK_NAMES_SHOWN])
        return Verdict(
            "partly",
            f"{figures} Hardly anything changed for {names}: erase more, or name it otherwise.",
        )
    if side is None:
        return Verdict(
            "changed", f"{figures} Nothing kept was drawn to compare with; raise 'kept'."
        )
    if side >= tuning.SIDE_EFFECT_CHANGE:
        return Verdict(
            "side_effects",
            f"{figures} Kept things suffer: lower the strength, or name them in the keep list.",
        )
    return Verdict(
        "worked",
        f"{figures} Look at the pairs: the concept should be gone on the right, and kept things "
        "the same.",
    )
