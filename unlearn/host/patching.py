"""Putting a patch on a model.

Every weight must match, and the model should be the one that the patch was made for.
"""

import json
import math
from collections.abc import Mapping

from .. import wording
from ..errors import UnlearnError
from ..types import Edit, UnlearnPatch
from . import bypass, patch_match, weights
from .adapters import LowRank, Prune
from .model_types import Model

MANIFEST = "unlearn"  # the attachment that follows a patched model through clones and LoRA loaders
Strengths = tuple[tuple[Edit, float], ...]  # edits of one weight, first to last, with strengths


def apply(
    model: Model,
    patch: UnlearnPatch,
    strength: float = 1.0,
    strict: bool = False,
    quantised: str = "auto",
    match: patch_match.Match | None = None,
) -> tuple[Model, str]:
    """(clone of the MODEL with the patch at `strength`, warning text or '').

    The model that comes in is not changed. `quantised` says where low-rank edits go: 'auto' puts
    them into the weights and undoes their rounding where weights would be rounded into 8 or 4
    bits, 'bypass' puts them beside all layers, 'weights' into the weights and no more. match: what
    is known of the patch and the MODEL already, None to find it out. Raises UnlearnError when
    weights are missing or have another shape, and on another base model, which is no relative of
    the patch's own, when `strict`.
    """
    found = match or patch_match.match(model, patch)
    if strict:
        found.refuse_stranger()
    beside = dict(weights.bypass_edits(model))
    corrected = dict(bypass.corrected_edits(model))
    into: dict[str, Strengths] = {}
    # Strength 0 must not even round a weight.
    for key, edit in patch.edits if strength else ():
        place = _place(model, key, edit, quantised)
        if place == "bypass":
            beside[key] = (*beside.get(key, ()), (edit, strength))
            continue
        before: Strengths = ()
        if place == "corrected":
            corrected[key] = (*corrected.get(key, ()), edit)
        elif isinstance(edit, Prune):
            # Pruning does not commute with additions, so earlier ones go into the weight first. A
            # correction would fill up what is pruned.
            before = beside.pop(key, ())
            corrected.pop(key, None)
        into[key] = (*into.get(key, ()), *before, (edit, strength))
    patched = model.clone()
    into_weights(patched, into)
    bypass.put(patched, beside, corrected)
    record = tuple({**p, "strength": strength} for p in patch.provenance)
    patched.set_attachments(MANIFEST, manifest(model) + record)
    return patched, found.warning


def _place(model: Model, key: str, edit: Edit, quantised: str) -> str:
    """Where an edit goes: into the 'weights', there and 'corrected', or into 'bypass'.

    Rounding keeps the zeros of a Prune exactly. A Delta removes no direction completely, so
    rounding costs it little, and beside a layer it would need a second matrix of full size.

    | format | error of a rounded Delta | of the format itself |
    |---|---|---|
    | fp8 | 3.8 % | 3.0 % |
    | int8 | 1.7 % | 1.1 % |
    | nvfp4 | 18 % | 10 % |
    """
    if not isinstance(edit, LowRank) or quantised == "weights" or not bypass.possible(model, key):
        return "weights"
    if quantised == "bypass":
        return "bypass"
    return "corrected" if bypass.rounds(model, key) else "weights"


def into_weights(patched: Model, edits: Mapping[str, Strengths]) -> None:
    """Adds edits to the weights of a MODEL that is the caller's own clone.

    ComfyUI's `add_patches` builds a state dict of the whole model and takes one strength and one
    edit per weight. So the first edits of all weights go in together, then all second ones.
    """
    depth = max(map(len, edits.values()), default=0)
    for place in range(depth):
        by_strength: dict[float, dict[str, Edit]] = {}
        for key, stack in edits.items():
            if place < len(stack):
                edit, strength = stack[place]
                by_strength.setdefault(strength, {})[key] = edit
        for strength, group in by_strength.items():
            refused = group.keys() - set(patched.add_patches(group, strength))
            if refused:
                raise UnlearnError(
                    f"The input 'model' did not accept a patch for its weight '{min(refused)}'; "
                    "use a model loaded by a stock loader."
                )


def baked(model: Model) -> Model:
    """A clone of a MODEL with its bypass edits in the weights, as files need them.

    Without bypass edits it is the MODEL itself.
    """
    bypassed = weights.bypass_edits(model)
    if not bypassed:
        return model
    clone = model.clone()
    into_weights(clone, bypassed)
    bypass.put(clone, {}, bypass.corrected_edits(model))
    return clone


def manifest(model: Model) -> tuple[dict, ...]:
    """The provenance of each patch applied to a MODEL with its strength, first to last."""
    return tuple(model.get_attachment(MANIFEST) or ())


def manifest_as_json(model: Model) -> list[dict]:
    """The manifest as lists and objects that JSON knows, for a file's metadata."""
    return json.loads(json.dumps(manifest(model), default=str))


def _method_line(provenance: Mapping) -> str:
    concepts = provenance["concepts"]
    more = " ..." if len(concepts) > 8 else ""
    return f"{provenance['method']}: forgets {', '.join(concepts[:8])}{more}"


def verdict(patch: UnlearnPatch, strength: float, match: patch_match.Match) -> str:
    """What is said of a patch that was applied. Nothing was drawn, so it says what it is for."""
    names = wording.names(name for p in patch.provenance for name in p.get("concepts", ()))
    if not strength:
        return "Nothing changed: the strength is 0."
    if strength < 0:
        return "Patch applied in reverse."
    if match.grade != patch_match.SAME:
        near = match.grade == patch_match.RELATIVE
        return f"Patch applied to {'a similar' if near else 'another'} model."
    if strength < 1:
        may_show = wording.sentence(f"{names or 'it'} may still show")
        return f"Patch applied at strength {strength:g}. {may_show}"
    return f"Patch applied. It forgets {names}." if names else "Patch applied."


def describe(patch: UnlearnPatch, strength: float, model: Model | None = None) -> str:
    """A line for each patch in the stack, the size of it all, and what of it runs in bypass.

    `model` is the patched MODEL, or None to leave the last part out.
    """
    lines = [_method_line(p) for p in patch.provenance]
    keys = len({key for key, _ in patch.edits})
    lines.append(
        f"{len(patch.edits)} edits on {keys} weights at strength {strength:g}, "
        f"{patch.nbytes / 2**20:.2f} MB"
    )
    if model is None:
        return "\n".join(lines)
    corrected = bypass.corrected_edits(model)
    if corrected:
        size = sum(2 * math.prod(weights.shape(model, key)) for key in corrected) / 2**20
        lines.append(
            f"{len(corrected)} weights would be rounded into 8 or 4 bits; the rounding is undone "
            f"as the model runs, which takes up to {size:.0f} MB of memory. Saves, merges and "
            "compiled models have the edits rounded."
        )
    beside = weights.bypass_edits(model)
    if beside:
        count = sum(map(len, beside.values()))
        lines.append(
            f"{count} low-rank edits of {len(beside)} weights run beside their layers (bypass), "
            "where rounding does not reach them, and the model runs uncompiled. Save Checkpoint "
            "and the second input of a merge do not see them: use Save Unlearned Checkpoint, or "
            "set quantised to 'auto'."
        )
    return "\n".join(lines)
